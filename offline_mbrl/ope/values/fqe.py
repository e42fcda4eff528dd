"""Fitted Q evaluation with squared error (FQE-L2).

Regression of `Q(s, a)` on logged transitions to `r + gamma discount Q'(s', a')` with `a'` of the
evaluated policy and a Polyak copy `Q'`; the estimate is the mean value of the initial observations
(the direct method). Le, Voloshin and Yue, arXiv:1903.08738; settings and scaling of `policy_eval`
in google-research, against which these are the departures:

* the loss is that of `(1 - gamma) Q`, so that Adam's epsilon acts on values of order one; the
  minimizer is the same;
* where the data have true terminals the targets' range includes 0, since an episode may end at
  once;
* the value of an initial observation is a mean over several actions instead of one;
* bootstrap resamples are Poisson counts of whole episodes, and rewards get no added noise.

Values continue past a time limit: only `discount` stops them. `fqe_distributional` is the
categorical form.
"""

import functools
from dataclasses import dataclass

import chex
import jax.numpy as jnp
import optax

from offline_mbrl.networks import torsos
from offline_mbrl.ope import convergence, critics
from offline_mbrl.ope.critics import Scales
from offline_mbrl.ope.values import fitted_q
from offline_mbrl.types import (
    Action,
    Array,
    EnvironmentSpec,
    Learner,
    Observation,
    Params,
    Policy,
    Transition,
)


@dataclass(frozen=True)
class Config:
    """The reference's settings; quick benchmarks take hidden_layers (64, 64) and fewer updates."""

    num_updates: int = 1_000_000
    batch_size: int = 256  # transitions per update
    hidden_layers: tuple[int, ...] = (256, 256)
    learning_rate: float = 3e-4  # Adam
    weight_decay: float = 1e-5  # per update, not times the learning rate, on all parameters
    tau: float = 0.005  # Polyak, every update
    gamma: float | None = None  # None: the spec's
    bootstrap: bool = False  # each seed sees its own resample of the episodes


# --- the method's own equations, one transition ---


def backup(
    reward: Array, discount: Array, next_value: Array, *, gamma: float, low: Array, high: Array
) -> Array:
    """`clip((1 - gamma) r + gamma discount Q', low, high)`, `[]`, in units of `(1 - gamma) Q`.

    Args:
      reward: `[]`.
      discount: `[]` 0 at a true terminal, else 1: a time limit bootstraps.
      next_value: `[]` `(1 - gamma) Q'(s', a')`.
      gamma: discount factor.
      low: `[]` smallest possible reward.
      high: `[]` largest.
    """
    chex.assert_rank([reward, discount, next_value], 0)
    return jnp.clip((1.0 - gamma) * reward + gamma * discount * next_value, low, high)


def target(
    apply: critics.Critic,
    params: Params,
    scales: Scales,
    transition: Transition,
    next_action: Action,
    *,
    gamma: float,
) -> Array:
    """What `(1 - gamma) Q(s, a)` of one transition regresses to, standardized, `[]`.

    Args:
      apply: the critic, `[]`.
      params: of the lagging network.
      scales: of `critics.scales`.
      transition: the data's.
      next_action: of the evaluated policy at `transition.next_observation`.
      gamma: discount factor.
    """
    next_value = apply(params, scales, transition.next_observation, next_action)
    return backup(
        critics.standardized_reward(scales, transition.reward),
        transition.discount,
        next_value,
        gamma=gamma,
        low=critics.standardized_reward(scales, scales.low),
        high=critics.standardized_reward(scales, scales.high),
    )


def td_error(
    apply: critics.Critic, params: Params, scales: Scales, transition: Transition, target: Array
) -> Array:
    """`target - (1 - gamma) Q(s, a)`, standardized, `[]`.

    Args:
      apply: the critic, `[]`.
      params: its parameters.
      scales: of `critics.scales`.
      transition: the data's.
      target: `[]`.
    """
    error = target - apply(params, scales, transition.observation, transition.action)
    chex.assert_rank(error, 0)
    return error


# --- assembly ---


def make(config: Config, spec: EnvironmentSpec, policy: Policy) -> tuple[Learner, fitted_q.ReadOut]:
    """The learner and its read-out of one fit.

    `fit` takes `context=Context(statistics=normalize.full_statistics(dataset),
    upstream={"target": params of the policy})`. With the parameters of P policies stacked on the
    axis of seeds they are one compiled fit.

    Args:
      config: the settings.
      spec: of the data.
      policy: the one to evaluate.

    Returns:
      (learner, `(state, context, initial_observations [N, ...], key) -> Estimate`).

    Raises:
      UsageError: gamma is not inside [0, 1) or unknown, or the policy has a memory; when fitted:
        statistics or policy parameters are missing.
    """
    return fitted_q.make(
        _method(config, spec), policy, batch_size=config.batch_size, bootstrap=config.bootstrap
    )


def values(config: Config, spec: EnvironmentSpec, policy: Policy) -> fitted_q.Values:
    """Q and state values in raw units, for doubly robust estimates.

    They are functions of `learner.policy_params(state, context)`.

    Args:
      config: the settings of the fit.
      spec: of the data.
      policy: the evaluated one.

    Raises:
      UsageError: gamma is not inside [0, 1) or unknown, or the policy has a memory.
    """
    return fitted_q.values(_method(config, spec), policy)


def _method(config: Config, spec: EnvironmentSpec) -> fitted_q.Method:
    gamma = critics.discount_factor(config.gamma, spec, "fqe")
    init, apply = critics.critic(torsos.MLP((*config.hidden_layers, 1)), spec)

    def q_value(params: Params, scales: Scales, observation: Observation, action: Action) -> Array:
        return apply(params, scales, observation, action)[0]

    def mean(scales: Scales, target: Array) -> Array:
        del scales
        return target

    def loss(params: Params, scales: Scales, transition: Transition, target: Array) -> Array:
        return jnp.square(td_error(q_value, params, scales, transition, target))

    def copy(params: Params, lagging_params: Params, updates: Array) -> Params:
        del updates
        return optax.incremental_update(params, lagging_params, config.tau)

    return fitted_q.Method(
        name="fqe",
        spec=spec,
        gamma=gamma,
        init=lambda key, scales: init(key),
        q_value=q_value,
        target=functools.partial(target, q_value, gamma=gamma),
        mean=mean,
        loss=loss,
        optimizer=critics.adam(config.learning_rate, config.weight_decay),
        copy=copy,
        needed_updates=convergence.HORIZONS / (config.tau * (1.0 - gamma)),
    )
