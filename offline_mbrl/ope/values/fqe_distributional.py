"""Distributional fitted Q evaluation (FQE-D): a categorical critic of the policy to evaluate.

The backup of `fqe` is applied to every atom of the lagging critic's distribution at `(s', a')`,
projected onto the support and fitted by cross entropy (arXiv:1707.06887, section 4; DOPE's FQE-D,
arXiv:2103.16596, is this with D4PG's critic, arXiv:1804.08617). A value is the distribution's mean.
Departures and our choices:

* the support is the data's rewards over `1 - gamma`, 0 included where there are true terminals,
  where D4PG's defaults are a fixed range; atoms are kept in standardized units of `(1 - gamma) Q`,
  which changes no target;
* a fit begins at the data's mean reward, as that of `fqe` does, not in the middle of the support
  (`initial_logits`);
* the trunk is `fqe`'s unless `torso="d4pg"`.
"""

import functools
from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from offline_mbrl.networks import torsos
from offline_mbrl.ope import convergence, critics
from offline_mbrl.ope.critics import Scales
from offline_mbrl.ope.values import fitted_q, fqe
from offline_mbrl.targets import categorical
from offline_mbrl.types import (
    Action,
    Array,
    EnvironmentSpec,
    Key,
    Learner,
    Observation,
    Params,
    Policy,
    Transition,
    UsageError,
)

LARGEST_TILT = 20.0  # nats between the first and the last atom before the first update
NUM_HALVINGS = 30  # of the interval that the tilt is in


@dataclass(frozen=True)
class Config:
    """Settings of D4PG's critic where it has them; quick benchmarks take fewer updates."""

    num_updates: int = 1_000_000
    batch_size: int = 256  # transitions per update
    torso: Literal["mlp", "d4pg"] = "mlp"  # d4pg: layer normalization and tanh first, ELU then
    hidden_layers: tuple[int, ...] = (256, 256)  # d4pg takes two: (400, 300)
    num_atoms: int = 51  # D4PG
    learning_rate: float = 1e-4  # Adam; D4PG in Acme
    target_period: int = 100  # updates between hard copies
    gamma: float | None = None  # None: the spec's
    bootstrap: bool = False  # each seed sees its own resample of the episodes


class D4PGTorso(nn.Module):
    """Linear, layer normalization, tanh, linear, ELU, logits."""

    sizes: tuple[int, int]
    num_atoms: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[D]` to logits `[num_atoms]`."""
        x = nn.LayerNorm(name="normalization")(nn.Dense(self.sizes[0], name="layer_0")(x))
        x = nn.elu(nn.Dense(self.sizes[1], name="layer_1")(jnp.tanh(x)))
        return nn.Dense(self.num_atoms, name="logits")(x)


# --- the method's own equations, one transition ---


def atoms(scales: Scales, num_atoms: int) -> Array:
    """The support `[num_atoms]`, standardized `(1 - gamma) Q`, evenly over the possible values."""
    high = jnp.where(scales.high > scales.low, scales.high, scales.low + 1.0)  # equal rewards
    return critics.standardized_reward(scales, jnp.linspace(scales.low, high, num_atoms))


def initial_logits(support: Array) -> Array:
    """Logits of the distribution on the support `[A]` closest to the uniform one with mean 0.

    0 is the data's mean reward, or no reward where the data have true terminals. They are `tilt`
    times the support, and at most `LARGEST_TILT` apart, which leaves means near an end out.
    """
    scale = LARGEST_TILT / (support[-1] - support[0])

    def halved(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = 0.5 * (low + high)
        is_above = jax.nn.softmax(middle * support) @ support > 0
        return jnp.where(is_above, low, middle), jnp.where(is_above, middle, high)

    low, high = jax.lax.fori_loop(0, NUM_HALVINGS, halved, (-scale, scale))
    return 0.5 * (low + high) * support


def target(
    apply: critics.Critic,
    params: Params,
    scales: Scales,
    support: Array,
    transition: Transition,
    next_action: Action,
    *,
    gamma: float,
) -> Array:
    """What the distribution at `(s, a)` of one transition is fitted to, `[num_atoms]`.

    Args:
      apply: the critic, logits `[num_atoms]`.
      params: of the lagging network.
      scales: of `critics.scales`.
      support: `[num_atoms]` of `atoms`.
      transition: the data's.
      next_action: of the evaluated policy at `transition.next_observation`.
      gamma: discount factor.
    """
    probabilities = jax.nn.softmax(apply(params, scales, transition.next_observation, next_action))
    reward = critics.standardized_reward(scales, transition.reward)
    backup = functools.partial(fqe.backup, gamma=gamma, low=support[0], high=support[-1])
    moved = jax.vmap(backup, (None, None, 0))(reward, transition.discount, support)
    return categorical.project(probabilities, moved, support)


# --- assembly ---


def make(config: Config, spec: EnvironmentSpec, policy: Policy) -> tuple[Learner, fitted_q.ReadOut]:
    """The learner and its read-out; arguments and results are those of `fqe.make`.

    Args:
      config: the settings.
      spec: of the data.
      policy: the one to evaluate.

    Raises:
      UsageError: as `fqe.make`, or the sizes make no network.
    """
    return fitted_q.make(
        _method(config, spec), policy, batch_size=config.batch_size, bootstrap=config.bootstrap
    )


def values(config: Config, spec: EnvironmentSpec, policy: Policy) -> fitted_q.Values:
    """Q and state values in raw units, as of `fqe.values`.

    Args:
      config: the settings of the fit.
      spec: of the data.
      policy: the evaluated one.

    Raises:
      UsageError: as `fqe.values`, or the sizes make no network.
    """
    return fitted_q.values(_method(config, spec), policy)


def _method(config: Config, spec: EnvironmentSpec) -> fitted_q.Method:
    gamma = critics.discount_factor(config.gamma, spec, "fqe_distributional")
    init, apply = critics.critic(_network(config), spec)

    def init_at_mean(key: Key, scales: Scales) -> Params:
        params = dict(init(key))
        last = f"layer_{len(config.hidden_layers)}" if config.torso == "mlp" else "logits"
        params[last] = {**params[last], "bias": initial_logits(atoms(scales, config.num_atoms))}
        return params

    def mean(scales: Scales, probabilities: Array) -> Array:
        return probabilities @ atoms(scales, config.num_atoms)

    def q_value(params: Params, scales: Scales, observation: Observation, action: Action) -> Array:
        return mean(scales, probabilities(params, scales, observation, action))

    def target_probabilities(
        params: Params, scales: Scales, transition: Transition, next_action: Action
    ) -> Array:
        support = atoms(scales, config.num_atoms)
        return target(apply, params, scales, support, transition, next_action, gamma=gamma)

    def probabilities(
        params: Params, scales: Scales, observation: Observation, action: Action
    ) -> Array:
        return jax.nn.softmax(apply(params, scales, observation, action))

    def loss(params: Params, scales: Scales, transition: Transition, target: Array) -> Array:
        logits = apply(params, scales, transition.observation, transition.action)
        return optax.softmax_cross_entropy(logits, target)

    def copy(params: Params, lagging_params: Params, updates: Array) -> Params:
        return optax.periodic_update(params, lagging_params, updates, config.target_period)

    return fitted_q.Method(
        name="fqe_distributional",
        spec=spec,
        gamma=gamma,
        init=init_at_mean,
        q_value=q_value,
        target=target_probabilities,
        mean=mean,
        loss=loss,
        optimizer=optax.adam(config.learning_rate),
        copy=copy,
        needed_updates=convergence.HORIZONS * config.target_period / (1.0 - gamma),
        distribution=fitted_q.Distribution(
            support=functools.partial(atoms, num_atoms=config.num_atoms),
            probabilities=probabilities,
        ),
    )


def _network(config: Config) -> nn.Module:
    if config.num_atoms < 2:
        raise UsageError(
            f"fqe_distributional: num_atoms must be at least 2, got {config.num_atoms}"
        )
    if config.torso == "mlp":
        return torsos.MLP((*config.hidden_layers, config.num_atoms))
    if config.torso != "d4pg" or len(config.hidden_layers) != 2:
        raise UsageError(
            "fqe_distributional: torso is mlp, or d4pg with two hidden layers; got "
            f"{config.torso!r} with {len(config.hidden_layers)}"
        )
    return D4PGTorso((config.hidden_layers[0], config.hidden_layers[1]), config.num_atoms)
