"""Fitted Q evaluation for any critic: the learner, values in raw units, and the estimate.

A `Method` is one kind of critic with its target and its loss; `fqe` and `fqe_distributional` each
provide one.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from offline_mbrl import policies
from offline_mbrl.ope import batches, convergence, critics, errors
from offline_mbrl.ope.critics import FittedParams, Scales
from offline_mbrl.types import (
    Action,
    Array,
    Context,
    EnvironmentSpec,
    Estimate,
    Key,
    Learner,
    Metrics,
    Observation,
    Params,
    Policy,
    PyTree,
    Transition,
)

NUM_SAMPLES = 10  # actions that a state's value is the mean over
WORST_SHARE = 0.1  # of the returns, whose mean is `cvar_10`


class Distribution(NamedTuple):
    """Of the return of one state and action, where a critic has it; in the units of `Method`."""

    support: Callable[[Scales], Array]  # -> [A], ascending
    # (params, scales, observation, action) -> [A] probabilities on the support
    probabilities: critics.Critic


class Method(NamedTuple):
    """One kind of critic of one transition, in units of `(1 - gamma) Q` of standardized rewards."""

    name: str
    spec: EnvironmentSpec
    gamma: float
    init: Callable[[Key, Scales], Params]
    q_value: critics.Critic  # (params, scales, observation, action) -> []
    # (lagging params, scales, transition, next action) -> target
    target: Callable[[Params, Scales, Transition, Action], PyTree]
    mean: Callable[[Scales, PyTree], Array]  # (scales, target) -> [] its Q value
    # (params, scales, transition, target) -> []
    loss: Callable[[Params, Scales, Transition, PyTree], Array]
    optimizer: optax.GradientTransformation
    # (params, lagging params, updates []) -> lagging params
    copy: Callable[[Params, Params, Array], Params]
    needed_updates: float  # that values take to travel back over `convergence.HORIZONS`

    distribution: Distribution | None = None


class State(NamedTuple):
    """What changes in an update, and which resample of the episodes this fit sees."""

    params: Params
    lagging_params: Params  # of the network that targets are computed with
    opt_state: optax.OptState
    bootstrap_key: Key
    convergence: convergence.Track  # of the batches' mean target


class StateValue(Protocol):
    """The value of one observation, as a mean over sampled actions."""

    def __call__(
        self,
        params: FittedParams,
        observation: Observation,
        key: Key,
        num_samples: int = NUM_SAMPLES,
    ) -> Array:
        """Returns `[]` in raw units."""
        ...


class Values(NamedTuple):
    """Values in raw units of `learner.policy_params(state, context)` of one fit; vmap for many."""

    q_value: Callable[[FittedParams, Observation, Action], Array]  # -> []
    state_value: StateValue


# (state, context, initial_observations [N, ...], key) -> estimate of one fit
ReadOut = Callable[[State, Context, Observation, Key], Estimate]


def make(
    method: Method, policy: Policy, *, batch_size: int, bootstrap: bool
) -> tuple[Learner, ReadOut]:
    """The learner and its read-out.

    Args:
      method: the kind of critic.
      policy: the one to evaluate; its parameters are `context.upstream["target"]`.
      batch_size: transitions per update.
      bootstrap: whether each fit sees its own resample of the episodes.

    Raises:
      UsageError: the policy has a memory.
    """
    policy = policies.require_memoryless(policy, method.name)

    def init(key: Key, example: batches.Batch, context: Context) -> State:
        del example
        critics.evaluated_policy_params(context, method.name, policy, method.spec)
        scales = critics.scales(context.statistics, method.name)
        key_network, bootstrap_key = jax.random.split(key)
        params = method.init(key_network, scales)
        return State(
            params=params,
            lagging_params=params,
            opt_state=method.optimizer.init(params),
            bootstrap_key=critics.resample_key(context, bootstrap_key),
            convergence=convergence.start(),
        )

    def step(
        state: State, context: Context, batch: batches.Batch, key: Key
    ) -> tuple[State, Metrics]:
        return _update(method, policy, bootstrap, state, context, batch, key)

    def policy_params(state: State, context: Context) -> FittedParams:
        return FittedParams(
            network=state.lagging_params,
            scales=critics.scales(context.statistics, method.name),
            policy=context.upstream[critics.TARGET],
        )

    def read_out(
        state: State, context: Context, initial_observations: Observation, key: Key
    ) -> Estimate:
        params = policy_params(state, context)
        return _read_out(method, policy, state, params, initial_observations, key)

    learner = Learner(
        sample=batches.Experience(batch_size),
        init=init,
        step=step,
        policy=None,
        policy_params=policy_params,
    )
    return learner, read_out


def values(method: Method, policy: Policy) -> Values:
    """Q and state values in raw units, for doubly robust estimates and the read-out.

    Raises:
      UsageError: the policy has a memory.
    """
    policy = policies.require_memoryless(policy, method.name)

    def q_value(params: FittedParams, observation: Observation, action: Action) -> Array:
        value = method.q_value(params.network, params.scales, observation, action)
        return raw(value, params.scales, method.gamma)

    def state_value(
        params: FittedParams, observation: Observation, key: Key, num_samples: int = NUM_SAMPLES
    ) -> Array:
        def sampled_value(key: Key) -> Array:
            return q_value(params, observation, policy.sample(params.policy, observation, key))

        return jnp.mean(jax.vmap(sampled_value)(jax.random.split(key, num_samples)))

    return Values(q_value=q_value, state_value=state_value)


def raw(value: Array, scales: Scales, gamma: float) -> Array:
    """Standardized `(1 - gamma) Q` to `Q`, elementwise."""
    return (scales.reward_mean + scales.reward_std * value) / (1.0 - gamma)


# --- parts ---


def _update(
    method: Method,
    policy: Policy,
    bootstrap: bool,
    state: State,
    context: Context,
    batch: batches.Batch,
    key: Key,
) -> tuple[State, Metrics]:
    """One step of the optimizer towards the targets of a batch."""
    scales = critics.scales(context.statistics, method.name)
    transition = batch.transition
    policy_params = context.upstream[critics.TARGET]
    next_actions = critics.actions(policy, policy_params, transition.next_observation, key)
    targets = jax.vmap(method.target, (None, None, 0, 0))(
        state.lagging_params, scales, transition, next_actions
    )
    weights = batches.weights(state.bootstrap_key, batch.episode, bootstrap=bootstrap)

    def batch_loss(params: Params) -> Array:
        losses = jax.vmap(functools.partial(method.loss, params, scales))(transition, targets)
        return batches.weighted_mean(losses, weights)

    loss, gradient = jax.value_and_grad(batch_loss)(state.params)
    updates, opt_state = method.optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    target_means = jax.vmap(method.mean, (None, 0))(scales, targets)
    value = raw(batches.weighted_mean(target_means, weights), scales, method.gamma)
    horizon = method.needed_updates / convergence.HORIZONS
    track = convergence.follow(state.convergence, value, over=horizon)
    state = state._replace(
        params=params,
        lagging_params=method.copy(params, state.lagging_params, track.updates),
        opt_state=opt_state,
        convergence=track,
    )
    return state, {"loss/total": loss, "value/batch": value}


def _read_out(
    method: Method,
    policy: Policy,
    state: State,
    params: FittedParams,
    initial_observations: Observation,
    key: Key,
) -> Estimate:
    """The mean value of the initial observations `[N, ...]`: the direct method.

    `stderr` is that of the mean over initial observations alone, 0 for a single one, whose value is
    then meant. The error of the fit shows in fits of several seeds, best each on its own resample
    of the data (`intervals.combine`).

    Raises:
      UsageError: there is no initial observation, or they are of another shape than the data's.
    """
    size = critics.check_starts(params.scales, initial_observations)
    keys = jax.random.split(key, size)
    state_value = values(method, policy).state_value
    start_values = jax.vmap(state_value, (None, 0, 0))(params, initial_observations, keys)
    settling = convergence.diagnostics(
        state.convergence,
        needed_updates=method.needed_updates,
        width=critics.return_range(params.scales, method.gamma),
    )
    return Estimate(
        value=jnp.mean(start_values),
        stderr=jnp.std(start_values) / jnp.sqrt(max(size - 1, 1)),
        per_episode=start_values,
        diagnostics={**settling, **_risk(method, policy, params, initial_observations, keys)},
        errors={errors.EPISODES: errors.of_influence(start_values - jnp.mean(start_values))},
    )


def _risk(
    method: Method, policy: Policy, params: FittedParams, observations: Observation, keys: Key
) -> Metrics:
    """`cvar_10`, the mean of the worst tenth of the returns from the initial observations.

    Of the mixture over observations and an action each, in raw units; nothing without a
    distribution. Projection on the support widens distributions, so that it is rather too low.
    """
    if method.distribution is None:
        return {}
    distribution = method.distribution

    def probabilities(observation: Observation, key: Key) -> Array:
        action = policy.sample(params.policy, observation, key)
        return distribution.probabilities(params.network, params.scales, observation, action)

    mixture = jnp.mean(jax.vmap(probabilities)(observations, keys), axis=0)
    worst = lower_mean(distribution.support(params.scales), mixture, WORST_SHARE)
    return {"cvar_10": raw(worst, params.scales, method.gamma)}


def lower_mean(support: Array, probabilities: Array, share: float) -> Array:
    """The mean `[]` of the lowest share of a distribution: its conditional value at risk.

    Args:
      support: `[A]`, ascending.
      probabilities: `[A]`.
      share: of the probability, in (0, 1].
    """
    below = jnp.cumsum(probabilities) - probabilities
    counted = jnp.clip(share - below, 0.0, probabilities)
    return counted @ support / share
