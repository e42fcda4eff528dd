"""Explicit dynamics models: a conditional density made into an ensemble that predicts in raw units.

The density sees standardized observations and actions and describes the change of the observation
and the reward, in units that `make` is given. An entry that never varied in the data is copied with
its constant change and counts in no likelihood; during training its target is unit noise, because a
target that is always the same would drive its scale to the floor and let its gradient rule the
shared layers.

Of a terminal step whose next observation is unknown (`coordinates.observed_mask`) only the reward,
and that the episode ended, are learned. An autoregressive density conditions that reward on the
copy that stands in the data, while in rollouts it follows a change that the density extrapolates:
give true next observations where you can.

A step chooses among the members' predictions by one function, `Draw`. `Prediction.members` has the
moments of all E members, elites or not. Where a density is autoregressive these are conditional on
the outcome that was sampled: the spread between members then tells how they would continue that
outcome, not how far apart their own outcomes lie.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from offline_mbrl.data.normalize import TransitionStatistics
from offline_mbrl.models.densities import coordinates
from offline_mbrl.models.densities.density import Density
from offline_mbrl.networks import torsos
from offline_mbrl.types import (
    Action,
    Array,
    DynamicsModel,
    EnvironmentSpec,
    Key,
    MemberPredictions,
    Metrics,
    ModelParams,
    ModelState,
    Observation,
    Params,
    Prediction,
    PyTree,
    Termination,
    Transition,
    UsageError,
    action_size,
)

# --- how one outcome is chosen among the members ---


class Draw(NamedTuple):
    """How a step chooses among the predictions of the members."""

    target: Callable[
        [Density, ModelParams, Array, Key], Array
    ]  # (density, params, x, key) -> y [D]
    continues: Callable[[Array, Key], Array]  # (probability [], key) -> [] bool


def over_members(function: Callable, network: Params, *arguments: Array) -> PyTree:
    """`function(params of a member, shared params, *arguments)` of every member, `[E, ...]`."""
    axes = (0, None, *[None] * len(arguments))
    return jax.vmap(function, axes)(network["members"], network["shared"], *arguments)


def _sample_elite(density: Density, params: ModelParams, x: Array, key: Key) -> Array:
    key_member, key_sample = jax.random.split(key)
    elites = params.elites
    chosen = elites[jax.random.randint(key_member, (), 0, elites.shape[0])]
    # One draw of noise serves all members: only one of their samples is used.
    return over_members(density.sample, params.network, x, key_sample)[chosen]


def _mean_of_elites(density: Density, params: ModelParams, x: Array, key: Key) -> Array:
    del key  # deterministic
    return jnp.mean(over_members(density.mode, params.network, x)[params.elites], axis=0)


def _sample_continuation(probability: Array, key: Key) -> Array:
    return jax.random.bernoulli(key, probability)


def _likelier_continuation(probability: Array, key: Key) -> Array:
    del key  # deterministic
    return probability >= 0.5


SAMPLE = Draw(target=_sample_elite, continues=_sample_continuation)  # TS1 of PETS
MEAN = Draw(target=_mean_of_elites, continues=_likelier_continuation)


# --- termination ---


class Continuation(NamedTuple):
    """Whether the episode continues after a transition, where no rule is known."""

    init: Callable[[Key], Params]
    logit: Callable[[Params, Array, Array], Array]  # (params, x, y) -> [] log odds


def learned_continuation(
    spec: EnvironmentSpec, *, hidden_layers: tuple[int, ...] = (64, 64)
) -> Continuation:
    """A Bernoulli head on a transition in the model's units."""
    state_size, num_actions = sizes(spec)
    network = torsos.MLP((*hidden_layers, 1))
    inputs = jnp.zeros(2 * state_size + num_actions + 1)

    def init(key: Key) -> Params:
        return torsos.init(network, key, inputs)

    def logit(params: Params, x: Array, y: Array) -> Array:
        return torsos.apply(network, params, jnp.concatenate([x, y]))[0]

    return Continuation(init=init, logit=logit)


# --- what a model needs ---


def sizes(spec: EnvironmentSpec) -> tuple[int, int]:
    """Sizes of the flat observation and of the action.

    Raises:
      UsageError: the observation is not one vector, or the actions are discrete.
    """
    shape = getattr(spec.observation, "shape", None)
    if shape is None or len(shape) != 1:
        raise UsageError(
            "explicit models need one flat observation vector; flatten it first (catalog.flattened)"
        )
    return shape[0], action_size(spec, "explicit models")


def require_statistics(statistics: PyTree) -> TransitionStatistics:
    """The statistics of transitions as arrays of jax.

    Args:
      statistics: `data.normalize.Statistics`.

    Raises:
      UsageError: they lack those of transitions.
    """
    transitions = getattr(statistics, "transitions", None)
    if not isinstance(transitions, TransitionStatistics):
        raise UsageError(
            "explicit models are normalized by statistics of transitions, but "
            "`statistics.transitions` is empty: pass data.normalize.full_statistics(dataset)"
        )
    return jax.tree.map(jnp.asarray, transitions)


# --- assembly ---


class _Parts(NamedTuple):
    """What the functions of one model share."""

    density: Density
    units: coordinates.Units
    draw: Draw
    terminate: Termination | None
    continuation: Continuation | None


def make(
    density: Density,
    spec: EnvironmentSpec,
    *,
    num_members: int = 1,
    units: coordinates.Units = coordinates.unit_variance,
    draw: Draw = SAMPLE,
    terminate: Termination | None = None,
    continuation: Continuation | None = None,
) -> DynamicsModel:
    """An ensemble of `num_members` such densities as a model in raw units.

    Args:
      density: of one member, for x of observation and action, y of change and reward.
      spec: shapes; observations `[n]`, so D = n + 1.
      num_members: E.
      units: of the targets y.
      draw: `SAMPLE`, one of the elites each step (TS1), or `MEAN`, the mean over elites,
        deterministic.
      terminate: the task's rule for true terminals, where one is known.
      continuation: a learned head for where none is; its parameters join the members'.

    Raises:
      UsageError: the observation is not one vector, the actions are discrete, or there is no
        member.
    """
    sizes(spec)
    if num_members < 1:
        raise UsageError(f"an ensemble needs at least one member, got num_members={num_members}")
    parts = _Parts(
        density=density, units=units, draw=draw, terminate=terminate, continuation=continuation
    )
    return DynamicsModel(
        init=functools.partial(_init, parts, num_members),
        loss=functools.partial(_loss, parts),
        log_prob=functools.partial(_log_prob, parts),
        reset=_reset,
        step=functools.partial(_step, parts),
        member=member,
    )


def _init(parts: _Parts, num_members: int, key: Key, statistics: PyTree) -> ModelParams:
    transitions = require_statistics(statistics)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_members))
    network = {"members": jax.vmap(parts.density.init)(keys), "shared": parts.density.shared()}
    if parts.continuation:
        keys_head = jax.vmap(jax.random.fold_in, (0, None))(keys, 1)
        network["continuation"] = jax.vmap(parts.continuation.init)(keys_head)
    return ModelParams(
        network=network,
        statistics=transitions,
        elites=jnp.arange(num_members, dtype=jnp.int32),
    )


def _log_prob(
    parts: _Parts,
    params: ModelParams,
    observation: Observation,
    action: Action,
    next_observation: Observation,
    reward: Array,
) -> Array:
    statistics = params.statistics
    x = coordinates.inputs(statistics, observation, action)
    y = coordinates.targets(parts.units, statistics, observation, next_observation, reward)
    log_prob = over_members(parts.density.log_prob, params.network, x, y)
    log_scale = jnp.log(parts.units(statistics)[1])
    return jnp.where(statistics.varies[None], log_prob - log_scale[None], 0.0)


def _reset(params: ModelParams, observation: Observation, key: Key) -> Observation:
    del params, key  # deterministic; the observation is all that is carried
    return observation


def _step(
    parts: _Parts, params: ModelParams, model_state: ModelState, action: Action, key: Key
) -> tuple[ModelState, Prediction]:
    key_draw, key_end = jax.random.split(key)
    statistics = params.statistics
    x = coordinates.inputs(statistics, model_state, action)
    y = parts.draw.target(parts.density, params, x, key_draw)
    next_observation, reward = coordinates.outcome(parts.units, statistics, model_state, y)
    continues = jnp.ones((), bool)
    if parts.terminate:
        continues = ~parts.terminate(model_state, action, next_observation)
    if parts.continuation:
        probability = _continuation_probability(parts.continuation, params, x, y)
        continues &= parts.draw.continues(probability, key_end)
    means, stds = over_members(parts.density.moments, params.network, x, y)
    prediction = Prediction(
        observation=next_observation,
        reward=reward,
        discount=continues.astype(jnp.float32),
        members=coordinates.in_raw_units(parts.units, statistics, model_state, means, stds),
    )
    return next_observation, prediction


def _continuation_probability(
    continuation: Continuation, params: ModelParams, x: Array, y: Array
) -> Array:
    """The mean over elites, `[]`."""
    varying = jnp.where(params.statistics.varies, y, 0.0)
    heads = params.network["continuation"]
    logits = jax.vmap(continuation.logit, (0, None, None))(heads, x, varying)
    return jnp.mean(jax.nn.sigmoid(logits[params.elites]))


def member(params: ModelParams, e: Array | int) -> ModelParams:
    """Parameters of member `e` alone, an ensemble of one."""

    def alone(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[e][None], tree)

    network = {
        name: part if name == "shared" else alone(part) for name, part in params.network.items()
    }
    return params._replace(network=network, elites=jnp.zeros(1, jnp.int32))


# --- loss ---


def _loss(parts: _Parts, params: ModelParams, batch: Transition, key: Key) -> tuple[Array, Metrics]:
    """The sum of all members' losses, each on its own batch `[E, B, ...]`."""
    network = params.network
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch.reward.shape[0]))
    member_loss = functools.partial(_member_loss, parts, params.statistics, network["shared"])
    heads = network.get("continuation", {})
    losses = jax.vmap(member_loss)(network["members"], heads, batch, keys)
    density_loss, continuation_loss = (jnp.sum(part) for part in losses)
    penalty = parts.density.penalty(network["members"], network["shared"])
    total = density_loss + continuation_loss + penalty
    metrics = {
        "loss/density": density_loss,
        "loss/continuation": continuation_loss,
        "loss/penalty": penalty,
        "loss/total": total,
    }
    return total, metrics


def _member_loss(
    parts: _Parts,
    statistics: TransitionStatistics,
    shared: Params,
    member_params: Params,
    head: Params,
    batch: Transition,
    key: Key,
) -> tuple[Array, Array]:
    """One member's mean losses over its batch `[B, ...]`: of its density and its continuation."""
    key_noise, key_loss = jax.random.split(key)
    of_transition = functools.partial(coordinates.of_transition, parts.units, statistics)
    x, y = jax.vmap(of_transition)(batch)
    target = jnp.where(statistics.varies[None], y, jax.random.normal(key_noise, y.shape))
    keys = jax.random.split(key_loss, y.shape[0])
    observed = jax.vmap(coordinates.observed_mask)(batch)
    over_batch = jax.vmap(parts.density.loss, (None, None, 0, 0, 0, 0))
    losses = over_batch(member_params, shared, x, target, observed.astype(jnp.float32), keys)
    if not parts.continuation:
        return jnp.mean(losses), jnp.zeros(())
    # A change that is only a copy would give the terminal away; in rollouts the head judges what
    # the density predicts.
    sampled = jax.vmap(parts.density.sample, (None, None, 0, 0))(member_params, shared, x, keys)
    sampled = jnp.where(statistics.varies[None], jax.lax.stop_gradient(sampled), 0.0)
    outcomes = jnp.where(observed, y, sampled)
    logits = jax.vmap(parts.continuation.logit, (None, 0, 0))(head, x, outcomes)
    entropies = optax.sigmoid_binary_cross_entropy(logits, batch.discount)
    return jnp.mean(losses), jnp.mean(entropies)


# --- what the members predict of data ---


def conditionals(
    density: Density, *, units: coordinates.Units = coordinates.unit_variance
) -> Callable[[ModelParams, Transition], MemberPredictions]:
    """Moments `[E, D]`, in raw units, of every conditional at what really happened.

    Returns:
      (params, one transition) -> means and deviations; where the density is autoregressive each is
      conditional on the transition's own entries before it.
    """

    def moments(params: ModelParams, transition: Transition) -> MemberPredictions:
        statistics = params.statistics
        x, y = coordinates.of_transition(units, statistics, transition)
        means, stds = over_members(density.moments, params.network, x, y)
        return coordinates.in_raw_units(units, statistics, transition.observation, means, stds)

    return moments


def mixture_log_prob(log_prob: Array, elites: Array | None = None) -> Array:
    """`log mean_e p_e(y | x)`, `[]`.

    Args:
      log_prob: `[E, D]`, from `DynamicsModel.log_prob`.
      elites: `[k]` members that are mixed; None: all.
    """
    sums = jnp.sum(log_prob if elites is None else log_prob[elites], axis=1)
    return jax.nn.logsumexp(sums) - jnp.log(sums.shape[0])
