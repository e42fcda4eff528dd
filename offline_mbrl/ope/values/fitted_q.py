"""Fitted Q evaluation, whatever the critic says: the learner, values in raw units, and the estimate made of them.

A `Method` is one kind of critic with its target and its loss; `fqe` and `fqe_distributional` each make one.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from offline_mbrl.ope import batches, convergence, critics
from offline_mbrl.types import Array, EnvironmentSpec, Estimate, Learner, Metrics, Policy, PyTree, Transition

NUM_SAMPLES = 10  # actions that a state's value is the mean over


class Method(NamedTuple):
    """One kind of critic, of one transition. Its unit is `(1 - gamma) Q` of standardized rewards."""

    name: str
    spec: EnvironmentSpec
    gamma: float
    init: Callable[[Array], PyTree]  # (key) -> params
    q_value: critics.Critic  # (params, scales, observation, action) -> []
    target: Callable[[PyTree, PyTree, Transition, Array], PyTree]  # (params, scales, transition, next_action) -> target
    mean: Callable[[PyTree, PyTree], Array]  # (scales, target) -> [] the Q value that a target stands for
    loss: Callable[[PyTree, PyTree, Transition, PyTree], Array]  # (params, scales, transition, target) -> []
    optimizer: optax.GradientTransformation
    copy: Callable[[PyTree, PyTree, Array], PyTree]  # (params, target_params, updates []) -> target_params
    needed_updates: float  # that values take to travel back over the effective horizon


class State(NamedTuple):
    """Everything that an update needs; `target` and `scales` are constants, in the state so that they are vmapped."""

    params: PyTree
    target_params: PyTree
    opt_state: optax.OptState
    target: PyTree  # parameters of the policy that is evaluated
    scales: dict[str, Array]  # of `critics.scales`
    key_bootstrap: Array  # which resample of the episodes
    track: convergence.Track  # of the batches' mean target


class Values(NamedTuple):
    """Values in raw units, as functions of `policy_params(state)` of one fit; vmap for many."""

    q_value: Callable[[PyTree, PyTree, Array], Array]  # (params, observation, action) -> []
    state_value: Callable[..., Array]  # (params, observation, key, num_samples=10) -> [], the mean over actions


ReadOut = Callable[[State, PyTree, Array], Estimate]  # (state, initial_observations [N, ...], key), of one fit


def make(method: Method, target_policy: Policy, *, batch_size: int, bootstrap: bool) -> tuple[Learner, ReadOut]:
    """The learner and its read-out.

    Args:
      method: the kind of critic.
      target_policy: the policy to evaluate; its parameters come by `given={"target": params}`.
      batch_size: transitions per update.
      bootstrap: whether each fit sees its own resample of the episodes.
    """

    def init(key: Array, example: batches.Batch, statistics: PyTree, given: PyTree) -> State:
        del example
        key_network, key_bootstrap = jax.random.split(key)
        params = method.init(key_network)
        return State(
            params, params, method.optimizer.init(params),
            critics.target_params(given, method.name, target_policy, method.spec),
            critics.scales(statistics, method.name), key_bootstrap, convergence.start())  # fmt: skip

    def step(state: State, batch: batches.Batch, key: Array) -> tuple[State, Metrics]:
        next_actions = critics.actions(target_policy, state.target, batch.transition.next_observation, key)
        targets = jax.vmap(method.target, (None, None, 0, 0))(
            state.target_params, state.scales, batch.transition, next_actions)  # fmt: skip
        weights = batches.weights(state.key_bootstrap, batch.episode, bootstrap=bootstrap)

        def loss(params: PyTree) -> Array:
            each = jax.vmap(functools.partial(method.loss, params, state.scales))(batch.transition, targets)
            return batches.weighted_mean(each, weights)

        error, gradient = jax.value_and_grad(loss)(state.params)
        updates, opt_state = method.optimizer.update(gradient, state.opt_state, state.params)
        means = jax.vmap(method.mean, (None, 0))(state.scales, targets)
        value = raw(batches.weighted_mean(means, weights), state.scales, method.gamma)
        params = optax.apply_updates(state.params, updates)
        track = convergence.follow(state.track, value, over=method.needed_updates)
        return state._replace(
            params=params, target_params=method.copy(params, state.target_params, track.updates),
            opt_state=opt_state, track=track), {"loss/total": error, "value/batch": value}  # fmt: skip

    learner = Learner(batches.experience(batch_size), init, step, None, policy_params)
    return learner, functools.partial(read_out, method, values(method, target_policy))


def policy_params(state: State) -> dict[str, PyTree]:
    """What `Values` and the read-out need: the lagging network, the scales, and the policy's own parameters."""
    return {"network": state.target_params, "scales": state.scales, "target": state.target}


def values(method: Method, target_policy: Policy) -> Values:
    """Q and state values in raw units, for doubly robust estimates and the read-out."""

    def q_value(params: PyTree, observation: PyTree, action: Array) -> Array:
        value = method.q_value(params["network"], params["scales"], observation, action)
        return raw(value, params["scales"], method.gamma)

    def state_value(params: PyTree, observation: PyTree, key: Array, num_samples: int = NUM_SAMPLES) -> Array:
        def one(key: Array) -> Array:
            return q_value(params, observation, target_policy.sample(params["target"], observation, key))

        return jnp.mean(jax.vmap(one)(jax.random.split(key, num_samples)))

    return Values(q_value, state_value)


def raw(value: Array, scales: PyTree, gamma: float) -> Array:
    """Standardized `(1 - gamma) Q` to `Q`, elementwise."""
    return (scales["reward_mean"] + scales["reward_std"] * value) / (1.0 - gamma)


def read_out(method: Method, values: Values, state: State, initial_observations: PyTree, key: Array) -> Estimate:
    """The mean value of the initial observations `[N, ...]`: the direct method.

    `stderr` is that of the mean over initial observations alone, 0 for a single one, whose value is then asked for.
    What the fit adds is seen by fitting several seeds, best each on its own resample of the data (`combine`).

    Raises:
      UsageError: there is no initial observation, or they are of another shape than the data's.
    """
    size = critics.check_starts(state.scales, initial_observations)
    keys = jax.random.split(key, size)
    each = jax.vmap(values.state_value, (None, 0, 0))(policy_params(state), initial_observations, keys)
    width = (state.scales["high"] - state.scales["low"]) / (1.0 - method.gamma)
    return Estimate(
        jnp.mean(each), jnp.std(each) / jnp.sqrt(max(size - 1, 1)), each,
        convergence.diagnostics(state.track, needed_updates=method.needed_updates, width=width))  # fmt: skip
