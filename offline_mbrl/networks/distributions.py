"""Action distributions. This file alone imports distrax, on first use, and without TensorFlow.

distrax reaches TensorFlow Probability, whose JAX backend imports TensorFlow where it is installed
(eight seconds, half a gigabyte), fails beside one without tf_keras, and needs nothing of it. So
TensorFlow is hidden while distrax loads. TensorFlow Probability comes as a nightly build: where it
does not load, the distributions below take the place of distrax's.
"""

import functools
import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from offline_mbrl.types import Action, Array, Key, Observation, Params, Policy

EDGE = 1e-4  # squashed densities have no value at the bounds: actions are read this far inside


@functools.cache
def _distrax() -> ModuleType | None:
    """distrax, or None where it or what it builds on does not load."""
    if "distrax" in sys.modules:
        return sys.modules["distrax"]
    hidden = {
        name: module
        for name, module in sys.modules.items()
        if name == "tensorflow" or name.startswith("tensorflow.")
    }
    for name in hidden:
        del sys.modules[name]
    sys.modules["tensorflow"] = None  # type: ignore[assignment]  # `import tensorflow` fails
    try:
        return importlib.import_module("distrax")
    except Exception:  # a build that does not fit this JAX fails in its own way
        return None
    finally:
        del sys.modules["tensorflow"]
        sys.modules.update(hidden)


class Categorical(NamedTuple):
    """Probabilities proportional to `exp(logits)`: what `distrax.Categorical` is asked for here.

    Samples are those of distrax for the same key.
    """

    logits: Array  # [A], of any sum

    def sample(self, *, seed: Key) -> Action:
        """One action `[]`."""
        return jax.random.categorical(seed, self._log_probs())

    def sample_and_log_prob(self, *, seed: Key) -> tuple[Action, Array]:
        """One action `[]` and the logarithm of its probability `[]`."""
        action = self.sample(seed=seed)
        return action, self.log_prob(action)

    def mode(self) -> Action:
        """The most probable action `[]`, the first of equals."""
        return jnp.argmax(self.logits)

    def log_prob(self, action: Action) -> Array:
        """Logarithm of the probability `[]` of an action in `0 .. A - 1`."""
        return self._log_probs()[action]

    def _log_probs(self) -> Array:
        return jax.nn.log_softmax(jnp.asarray(self.logits))


def categorical(logits: Array) -> Any:
    """A `distrax.Categorical` over `[A]` logits, or `Categorical` where distrax does not load."""
    distrax = _distrax()
    return Categorical(logits=logits) if distrax is None else distrax.Categorical(logits=logits)


# Plain functions below rather than distrax's: its transformed normal is infinite at the bounds
# (where logged actions are), has no mode, and would be the one reason to load distrax (three to ten
# seconds) to act with such a policy.


class Deterministic(NamedTuple):
    """All probability on one action: a policy without a density."""

    action: Action  # [A]

    def sample(self, *, seed: Key) -> Action:
        """The action `[A]`."""
        del seed  # deterministic
        return self.action

    def mode(self) -> Action:
        """The action `[A]`."""
        return self.action


class SquashedNormal(NamedTuple):
    """`tanh(u)` with a diagonal normal `u`, as soft actor-critic has it.

    Source: arXiv:1812.05905, appendix C.
    """

    mean: Array  # [A] of u
    log_std: Array  # [A] of u

    def sample(self, *, seed: Key) -> Action:
        """One action `[A]`."""
        return jnp.tanh(self._draw(seed))

    def sample_and_log_prob(self, *, seed: Key) -> tuple[Action, Array]:
        """One action `[A]` and its log density `[]`, exact however close it is to a bound."""
        u = self._draw(seed)
        return jnp.tanh(u), self._log_prob(u)

    def mode(self) -> Action:
        """`tanh(mean)` `[A]`: the median of each entry; the greedy action of the literature."""
        return jnp.tanh(self.mean)

    def log_prob(self, action: Action) -> Array:
        """Log density `[]` at an action `[A]`; finite, since it is read within `1 - EDGE`."""
        return self._log_prob(jnp.arctanh(jnp.clip(action, EDGE - 1.0, 1.0 - EDGE)))

    def _draw(self, seed: Key) -> Array:
        return self.mean + jnp.exp(self.log_std) * jax.random.normal(seed, self.mean.shape)

    def _log_prob(self, u: Array) -> Array:
        """`sum log N(u; mean, std) - log(1 - tanh(u)^2)`, the latter without cancellation."""
        slope = 2.0 * (jnp.log(2.0) - u - jax.nn.softplus(-2.0 * u))
        return jnp.sum(jax.scipy.stats.norm.logpdf(u, self.mean, jnp.exp(self.log_std)) - slope)


class ClippedNormal(NamedTuple):
    """A diagonal normal whose samples are clipped to `[-1, 1]`."""

    mean: Array  # [A]
    log_std: Array  # [A]

    def sample(self, *, seed: Key) -> Action:
        """One action `[A]`, clipped."""
        noise = jax.random.normal(seed, self.mean.shape)
        return jnp.clip(self.mean + jnp.exp(self.log_std) * noise, -1.0, 1.0)

    def mode(self) -> Action:
        """The mean `[A]`, clipped."""
        return jnp.clip(self.mean, -1.0, 1.0)

    def log_prob(self, action: Action) -> Array:
        """Log density `[]` before clipping, which has its part beyond the bounds there."""
        return jnp.sum(jax.scipy.stats.norm.logpdf(action, self.mean, jnp.exp(self.log_std)))


class NormalMixture(NamedTuple):
    """K diagonal normals on the whole of R^A; actions drawn from it are clipped to `[-1, 1]`."""

    logits: Array  # [K] of the components
    mean: Array  # [K, A]
    std: Array  # [K, A]

    def sample(self, *, seed: Key) -> Action:
        """One action `[A]`, clipped."""
        key_component, key_normal = jax.random.split(seed)
        k = jax.random.categorical(key_component, self.logits)
        noise = jax.random.normal(key_normal, self.mean.shape[1:])
        return jnp.clip(self.mean[k] + self.std[k] * noise, -1.0, 1.0)

    def mode(self) -> Action:
        """The mean `[A]` of the most probable component, clipped."""
        return jnp.clip(self.mean[jnp.argmax(self.logits)], -1.0, 1.0)

    def log_prob(self, action: Action) -> Array:
        """Log density `[]` before clipping, which has its part beyond the bounds there."""
        log_normal = jax.scipy.stats.norm.logpdf(action[None], self.mean, self.std)
        log_weight = jax.nn.log_softmax(self.logits)
        return jax.nn.logsumexp(log_weight + jnp.sum(log_normal, axis=1))


class Implicit(NamedTuple):
    """A distribution that is given by how an action is drawn: without a density and a mode."""

    draw: Callable[[Key], Action]

    def sample(self, *, seed: Key) -> Action:
        """One action `[A]`."""
        return self.draw(seed)


def as_policy(
    distribution: Callable[[Params, Observation], Any], *, has_density: bool = True
) -> Policy:
    """A policy from a distribution of actions.

    Args:
      distribution: `(params, observation) -> distribution`, of distrax or of those above.
      has_density: whether the distribution has `log_prob`; otherwise the policy has none either.
    """

    def sample(params: Params, observation: Observation, key: Key) -> Action:
        return distribution(params, observation).sample(seed=key)

    def mode(params: Params, observation: Observation) -> Action:
        return distribution(params, observation).mode()

    def log_prob(params: Params, observation: Observation, action: Action) -> Array:
        return distribution(params, observation).log_prob(action)

    return Policy(sample=sample, mode=mode, log_prob=log_prob if has_density else None)
