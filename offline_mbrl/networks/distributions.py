"""Action distributions. This file alone imports distrax, on first use, and keeps it from loading TensorFlow.

distrax reaches TensorFlow Probability, whose JAX backend imports TensorFlow where it is installed (eight seconds, half
a gigabyte), fails beside one without tf_keras, and needs nothing of it. So TensorFlow is hidden while it loads.
"""

import importlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from offline_mbrl.types import Array, Policy, PyTree

EDGE = 1e-4  # how far inside [-1, 1] squashed densities read an action: at the bounds themselves they have no value


def _distrax() -> Any:
    if "distrax" in sys.modules:
        return sys.modules["distrax"]
    hidden = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "tensorflow"}
    for name in hidden:
        del sys.modules[name]
    sys.modules["tensorflow"] = None  # type: ignore[assignment]  # makes `import tensorflow` fail at once
    try:
        return importlib.import_module("distrax")
    finally:
        del sys.modules["tensorflow"]
        sys.modules.update(hidden)


def categorical(logits: Array) -> Any:
    """A `distrax.Categorical` over `[A]` logits."""
    return _distrax().Categorical(logits=logits)


# Plain functions below rather than distrax's: its transformed normal is infinite at the bounds (where logged actions
# are), has no mode, and would be the one reason to load distrax (three to ten seconds) to act with such a policy.


class SquashedNormal(NamedTuple):
    """`tanh(u)` with a diagonal normal `u`, as soft actor-critic has it (arXiv:1812.05905, appendix C)."""

    mean: Array  # [A] of u
    log_std: Array  # [A] of u

    def sample(self, *, seed: Array) -> Array:
        """One action `[A]`."""
        return jnp.tanh(self._draw(seed))

    def sample_and_log_prob(self, *, seed: Array) -> tuple[Array, Array]:
        """One action `[A]` and the logarithm of its density `[]`, exact however close it is to a bound."""
        u = self._draw(seed)
        return jnp.tanh(u), self._log_prob(u)

    def mode(self) -> Array:
        """`tanh(mean)` `[A]`: the median of each entry; the greedy action of the literature."""
        return jnp.tanh(self.mean)

    def log_prob(self, action: Array) -> Array:
        """Logarithm of the density `[]` at an action `[A]`; one beyond `1 - EDGE` is read there, so all are finite."""
        return self._log_prob(jnp.arctanh(jnp.clip(action, EDGE - 1.0, 1.0 - EDGE)))

    def _draw(self, seed: Array) -> Array:
        return self.mean + jnp.exp(self.log_std) * jax.random.normal(seed, self.mean.shape)

    def _log_prob(self, u: Array) -> Array:
        """`sum log N(u; mean, std) - log(1 - tanh(u)^2)`, the latter without cancellation."""
        slope = 2.0 * (jnp.log(2.0) - u - jax.nn.softplus(-2.0 * u))
        return jnp.sum(jax.scipy.stats.norm.logpdf(u, self.mean, jnp.exp(self.log_std)) - slope)


def squashed_normal(mean: Array, log_std: Array) -> SquashedNormal:
    """A tanh-squashed diagonal normal on `[-1, 1]^A`, from the `[A]` mean and log standard deviation before tanh."""
    return SquashedNormal(mean, log_std)


class NormalMixture(NamedTuple):
    """K diagonal normals on the whole of R^A; the actions drawn from it are clipped to `[-1, 1]`."""

    logits: Array  # [K] of the components
    mean: Array  # [K, A]
    std: Array  # [K, A]

    def sample(self, *, seed: Array) -> Array:
        """One action `[A]`, clipped."""
        key_component, key_normal = jax.random.split(seed)
        k = jax.random.categorical(key_component, self.logits)
        return jnp.clip(self.mean[k] + self.std[k] * jax.random.normal(key_normal, self.mean.shape[1:]), -1.0, 1.0)

    def mode(self) -> Array:
        """The mean `[A]` of the most probable component, clipped."""
        return jnp.clip(self.mean[jnp.argmax(self.logits)], -1.0, 1.0)

    def log_prob(self, action: Array) -> Array:
        """Logarithm of the density `[]` before clipping, which has its part beyond the bounds there."""
        each = jnp.sum(jax.scipy.stats.norm.logpdf(action[None], self.mean, self.std), axis=1)
        return jax.nn.logsumexp(jax.nn.log_softmax(self.logits) + each)


def normal_mixture(logits: Array, mean: Array, std: Array) -> NormalMixture:
    """A mixture of K diagonal normals, from `[K]` logits, `[K, A]` means and `[K, A]` standard deviations."""
    return NormalMixture(logits, mean, std)


def as_policy(distribution: Callable[[PyTree, PyTree], Any]) -> Policy:
    """A policy from `(params, observation) -> distribution` (of distrax, or one of those above)."""

    def sample(params: PyTree, observation: PyTree, key: Array) -> Array:
        return distribution(params, observation).sample(seed=key)

    def mode(params: PyTree, observation: PyTree) -> Array:
        return distribution(params, observation).mode()

    def log_prob(params: PyTree, observation: PyTree, action: Array) -> Array:
        return distribution(params, observation).log_prob(action)

    return Policy(sample, mode, log_prob)
