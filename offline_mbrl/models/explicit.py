"""Explicit dynamics models: a conditional density made into an ensemble that predicts in raw units.

The density sees standardized observations and actions and tells the change of the observation and the reward in units
that `make` is given. An entry that never varied in the data is copied with its constant change and counts in no
likelihood; during training its target is unit noise, because a target that is always the same would drive its scale to
the floor and let its gradient rule the shared layers.

Of a terminal step whose next observation is not known (`coordinates.known_entries`) only the reward, and that the
episode ended, are learned. An autoregressive density conditions that reward on the copy that stands in the data, while
in rollouts it follows a change that the density extrapolates: give true next observations where you can.

Whatever is left of a member's choices is one function: `draw`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from offline_mbrl.models import coordinates
from offline_mbrl.models.density import Density
from offline_mbrl.networks import torsos
from offline_mbrl.types import (
    Array,
    DynamicsModel,
    EnvironmentSpec,
    Metrics,
    Prediction,
    PyTree,
    Transition,
    UsageError,
    action_size,
)  # fmt: skip

# --- how one outcome is taken from the members ---


class Draw(NamedTuple):
    """How a step chooses among what the members say."""

    target: Callable[[Density, PyTree, Array, Array], Array]  # (density, params, x, key) -> y [D]
    goes_on: Callable[[Array, Array], Array]  # (probability [], key) -> [] bool


def over_members(function: Callable, params: PyTree, *args: Array) -> PyTree:
    """`function(member's params, shared, *args)` of every member, `[E, ...]`."""
    network = params["network"]
    axes = (0, None, *[None] * len(args))
    return jax.vmap(function, axes)(network["members"], network["shared"], *args)


def _sample_elite(density: Density, params: PyTree, x: Array, key: Array) -> Array:
    key_member, key_sample = jax.random.split(key)
    elites = params["elites"]
    chosen = elites[jax.random.randint(key_member, (), 0, elites.shape[0])]
    # One draw of noise serves all members: only one of them is heard.
    return over_members(density.sample, params, x, key_sample)[chosen]


def _mean_of_elites(density: Density, params: PyTree, x: Array, key: Array) -> Array:
    del key  # deterministic
    return jnp.mean(over_members(density.mode, params, x)[params["elites"]], axis=0)


SAMPLE = Draw(_sample_elite, lambda probability, key: jax.random.bernoulli(key, probability))  # ts1
MEAN = Draw(_mean_of_elites, lambda probability, key: probability >= 0.5)


# --- termination ---


def never(observation: Array, action: Array, next_observation: Array) -> Array:
    """The termination function of tasks that only time ends."""
    del observation, action, next_observation
    return jnp.zeros((), bool)


class Continuation(NamedTuple):
    """Whether the episode goes on after a transition, where no function knows it."""

    init: Callable[[Array], PyTree]  # (key) -> params
    logit: Callable[[PyTree, Array, Array], Array]  # (params, x, y) -> [] log odds of going on


def learned_continuation(spec: EnvironmentSpec, *, hidden_layers: tuple[int, ...] = (64, 64)) -> Continuation:
    """A Bernoulli head on a transition in the model's units."""
    state_size, num_actions = sizes(spec)
    network = torsos.MLP((*hidden_layers, 1))

    def logit(params: PyTree, x: Array, y: Array) -> Array:
        return torsos.apply(network, params, jnp.concatenate([x, y]))[0]

    inputs = jnp.zeros(2 * state_size + num_actions + 1)
    return Continuation(lambda key: torsos.init(network, key, inputs), logit)


# --- assembly ---


def sizes(spec: EnvironmentSpec) -> tuple[int, int]:
    """Sizes of the flat observation and of the action.

    Raises:
      UsageError: the observation is not one vector, or the actions are discrete.
    """
    shape = getattr(spec.observation, "shape", None)
    if shape is None or len(shape) != 1:
        raise UsageError("explicit models need one flat observation vector; flatten it first (catalog.flattened)")
    return shape[0], action_size(spec, "explicit models")


def transition_statistics(statistics: PyTree) -> PyTree:
    """The statistics of transitions as a dict of arrays.

    Raises:
      UsageError: there are none.
    """
    found: Any = getattr(statistics, "transitions", None)
    if not found:
        raise UsageError("explicit models are normalized by statistics of transitions, but `statistics.transitions` "
                         "is empty: fill it with data.normalize.transition_statistics(dataset)")  # fmt: skip
    return {name: jnp.asarray(value) for name, value in found._asdict().items()}


def make(
    density: Density, spec: EnvironmentSpec, *, num_members: int = 1,
    units: coordinates.Units = coordinates.unit_variance, draw: Draw = SAMPLE,
    terminate: Callable[[Array, Array, Array], Array] = never, continuation: Continuation | None = None,
) -> DynamicsModel:  # fmt: skip
    """An ensemble of `num_members` such densities as a model in raw units.

    Args:
      density: of one member, for x of observation and action, y of change and reward.
      spec: shapes; observations `[n]`, so D = n + 1.
      num_members: E.
      units: of the targets y.
      draw: `SAMPLE`, one of the elites each step (ts1), or `MEAN`, the mean over elites, deterministic.
      terminate: (observation, action, next_observation) -> [] bool, where the task's rule is known.
      continuation: a learned head for where it is not; its parameters join the members'.

    Raises:
      UsageError: the observation is not one vector, the actions are discrete, or there is no member.
    """
    sizes(spec)
    if num_members < 1:
        raise UsageError(f"an ensemble needs at least one member, got num_members={num_members}")

    def init(key: Array, statistics: PyTree) -> PyTree:
        known = transition_statistics(statistics)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_members))
        network = {"members": jax.vmap(density.init)(keys), "shared": density.shared()}
        if continuation:
            network["continuation"] = jax.vmap(continuation.init)(jax.vmap(jax.random.fold_in, (0, None))(keys, 1))
        return {"network": network, "statistics": known, "elites": jnp.arange(num_members, dtype=jnp.int32)}

    def log_prob(params: PyTree, observation: Array, action: Array, next_observation: Array, reward: Array) -> Array:
        known = params["statistics"]
        x = coordinates.inputs(known, observation, action)
        y = coordinates.targets(units, known, observation, next_observation, reward)
        found = over_members(density.log_prob, params, x, y)
        return jnp.where(known["varies"][None], found - jnp.log(units(known)[1])[None], 0.0)

    def reset(params: PyTree, observation: Array, key: Array) -> Array:
        del params, key  # deterministic; the observation is all that is carried
        return observation

    def step(params: PyTree, model_state: Array, action: Array, key: Array) -> tuple[Array, Prediction]:
        key_draw, key_end = jax.random.split(key)
        known = params["statistics"]
        x = coordinates.inputs(known, model_state, action)
        y = draw.target(density, params, x, key_draw)
        following, reward = coordinates.outcome(units, known, model_state, y)
        goes_on = ~terminate(model_state, action, following)
        if continuation:
            varying = jnp.where(known["varies"], y, 0.0)
            logits = jax.vmap(continuation.logit, (0, None, None))(params["network"]["continuation"], x, varying)
            probability = jnp.mean(jax.nn.sigmoid(logits[params["elites"]]))
            goes_on &= draw.goes_on(probability, key_end)
        members = coordinates.in_raw_units(units, known, model_state, *over_members(density.moments, params, x, y))
        return following, Prediction(following, reward, goes_on.astype(jnp.float32), members)

    return DynamicsModel(init=init, loss=functools.partial(_loss, density, units, continuation), log_prob=log_prob,
                         reset=reset, step=step, member=member)  # fmt: skip


def _loss(
    density: Density, units: coordinates.Units, continuation: Continuation | None, params: PyTree, batch: Transition,
    key: Array,
) -> tuple[Array, Metrics]:  # fmt: skip
    """The sum of all members' losses, each on its own batch `[E, B, ...]`."""
    network, known = params["network"], params["statistics"]

    def of_member(member: PyTree, head: PyTree, batch: Transition, key: Array) -> tuple[Array, Array]:
        key_noise, key_loss = jax.random.split(key)
        x, y = jax.vmap(lambda one: coordinates.of_transition(units, known, one))(batch)
        target = jnp.where(known["varies"][None], y, jax.random.normal(key_noise, y.shape))
        keys = jax.random.split(key_loss, y.shape[0])
        known_entries = jax.vmap(coordinates.known_entries)(batch)
        weight = known_entries.astype(jnp.float32)
        wrong = jax.vmap(density.loss, (None, None, 0, 0, 0, 0))(member, network["shared"], x, target, weight, keys)
        if not continuation:
            return jnp.mean(wrong), jnp.zeros(())
        # An invented change would give the terminal away; in rollouts the head judges what the density says.
        said = jax.vmap(density.sample, (None, None, 0, 0))(member, network["shared"], x, keys)
        said = jnp.where(known["varies"][None], jax.lax.stop_gradient(said), 0.0)
        logits = jax.vmap(continuation.logit, (None, 0, 0))(head, x, jnp.where(known_entries, y, said))
        return jnp.mean(wrong), jnp.mean(optax.sigmoid_binary_cross_entropy(logits, batch.discount))

    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch.reward.shape[0]))
    each = jax.vmap(of_member)(network["members"], network.get("continuation", {}), batch, keys)
    wrong, ended = (jnp.sum(part) for part in each)
    penalty = density.penalty(network["members"], network["shared"])
    metrics = {"loss/density": wrong, "loss/continuation": ended, "loss/penalty": penalty}
    return wrong + ended + penalty, metrics | {"loss/total": wrong + ended + penalty}


def member(params: PyTree, e: Array | int) -> PyTree:
    """Parameters of member `e` alone, an ensemble of one."""
    alone = lambda tree: jax.tree.map(lambda leaf: jnp.asarray(leaf)[e][None], tree)  # noqa: E731
    network = {name: part if name == "shared" else alone(part) for name, part in params["network"].items()}
    return params | {"network": network, "elites": jnp.zeros(1, jnp.int32)}


# --- what the members say of data ---


def conditionals(
    density: Density, *, units: coordinates.Units = coordinates.unit_variance
) -> Callable[[PyTree, Transition], PyTree]:
    """Means and deviations `[E, D]`, in raw units, of every conditional at what really happened.

    Returns:
      (params, one transition) -> (means, stds); where the density is autoregressive each is given the entries before.
    """

    def of(params: PyTree, transition: Transition) -> tuple[Array, Array]:
        known = params["statistics"]
        x, y = coordinates.of_transition(units, known, transition)
        found = over_members(density.moments, params, x, y)
        return coordinates.in_raw_units(units, known, transition.observation, *found)

    return of


def mixture_log_prob(log_prob: Array, elites: Array | None = None) -> Array:
    """`log mean_e p_e(y | x)` `[]` of what `DynamicsModel.log_prob` returns `[E, D]`; over `elites` alone if given."""
    sums = jnp.sum(log_prob if elites is None else log_prob[elites], axis=1)
    return jax.nn.logsumexp(sums) - jnp.log(sums.shape[0])
