"""Fitted Q evaluation with squared error (FQE-L2): the critic of the policy to evaluate, fitted to logged transitions.

Regression of `Q(s, a)` to `r + gamma discount Q'(s', a')` with `a'` of the evaluated policy and a Polyak copy `Q'`; the
estimate is the mean value of the initial observations (the direct method). Le, Voloshin and Yue, arXiv:1903.08738;
settings and scaling of `policy_eval` in google-research, against which these are the departures:

* the loss is that of `(1 - gamma) Q`, so that Adam's epsilon acts on figures of order one; the minimizer is the same;
* where the data have true terminals the targets' range includes 0, since an episode may end at once;
* the value of an initial observation is a mean over several actions instead of one;
* bootstrap resamples are Poisson counts of whole episodes, and rewards get no added noise.

A value goes on past a time limit: only `discount` stops it. `fqe_distributional` is the categorical form.
"""

import functools
from dataclasses import dataclass

import chex
import jax.numpy as jnp
import optax

from offline_mbrl.networks import torsos
from offline_mbrl.ope import critics
from offline_mbrl.ope.values import fitted_q
from offline_mbrl.types import Array, EnvironmentSpec, Learner, Policy, PyTree, Transition


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


def backup(reward: Array, discount: Array, next_value: Array, *, gamma: float, low: Array, high: Array) -> Array:
    """`clip((1 - gamma) r + gamma discount Q', low, high)`, `[]`, in units of `(1 - gamma) Q`.

    Args:
      reward: `[]`.
      discount: `[]` 0 at a true terminal, else 1: a time limit bootstraps.
      next_value: `[]` `(1 - gamma) Q'(s', a')`.
      gamma: discount factor.
      low: `[]` smallest reward that there can be.
      high: `[]` largest.
    """
    chex.assert_rank([reward, discount, next_value], 0)
    return jnp.clip((1.0 - gamma) * reward + gamma * discount * next_value, low, high)


def target(apply: critics.Critic, params: PyTree, scales: PyTree, transition: Transition, next_action: Array, *,
           gamma: float) -> Array:  # fmt: skip
    """What `(1 - gamma) Q(s, a)` of one transition regresses to, standardized, `[]`.

    Args:
      apply: the critic, `[]`.
      params: of the lagging network.
      scales: of `critics.scales`.
      transition: the data's.
      next_action: of the evaluated policy at `transition.next_observation`.
      gamma: discount factor.
    """
    standard = lambda reward: (reward - scales["reward_mean"]) / scales["reward_std"]  # noqa: E731
    next_value = apply(params, scales, transition.next_observation, next_action)
    return backup(standard(transition.reward), transition.discount, next_value, gamma=gamma,
                  low=standard(scales["low"]), high=standard(scales["high"]))  # fmt: skip


def td_error(apply: critics.Critic, params: PyTree, scales: PyTree, transition: Transition, target: Array) -> Array:
    """`target - (1 - gamma) Q(s, a)`, standardized, `[]`."""
    error = target - apply(params, scales, transition.observation, transition.action)
    chex.assert_rank(error, 0)
    return error


# --- assembly ---


def make(config: Config, spec: EnvironmentSpec, target_policy: Policy) -> tuple[Learner, fitted_q.ReadOut]:
    """The learner and its read-out `(state, initial_observations [N, ...], key) -> Estimate`, of one fit.

    `fit` is given `statistics` with those of the transitions, and `given={"target": params of the policy}`; stack the
    parameters of P policies on the axis of seeds and they are one compiled fit.

    Raises:
      UsageError: gamma is not inside [0, 1); when fitted: statistics or policy parameters are missing.
    """
    return fitted_q.make(
        _method(config, spec), target_policy, batch_size=config.batch_size, bootstrap=config.bootstrap)  # fmt: skip


def values(config: Config, spec: EnvironmentSpec, target_policy: Policy) -> fitted_q.Values:
    """Q and state values in raw units, functions of `learner.policy_params(state)`; for doubly robust estimates.

    Raises:
      UsageError: gamma is not inside [0, 1).
    """
    return fitted_q.values(_method(config, spec), target_policy)


def _method(config: Config, spec: EnvironmentSpec) -> fitted_q.Method:
    gamma = critics.discount_factor(config.gamma, spec, "fqe")
    init, apply = critics.critic(torsos.MLP((*config.hidden_layers, 1)), spec)
    q_value = lambda *inputs: apply(*inputs)[0]  # noqa: E731
    return fitted_q.Method(
        name="fqe", spec=spec, gamma=gamma, init=init, q_value=q_value,
        target=functools.partial(target, q_value, gamma=gamma),
        mean=lambda scales, target: target,
        loss=lambda *inputs: jnp.square(td_error(q_value, *inputs)),
        optimizer=critics.adam(config.learning_rate, config.weight_decay),
        copy=lambda params, target_params, updates: optax.incremental_update(params, target_params, config.tau),
        needed_updates=1.0 / (config.tau * (1.0 - gamma)))  # fmt: skip
