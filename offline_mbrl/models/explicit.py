"""Explicit dynamics models: a conditional density made into an ensemble that predicts in raw units.

The density sees standardized observations and actions and tells the change of the observation and the reward in units
that `make` is given. An entry that never varied in the data is copied with its constant change and counts in no
likelihood; during training its target is unit noise, because a target that is always the same would drive its scale to
the floor and let its gradient rule the shared layers. Whatever is left of a member's choices is one function: `draw`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

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

# --- units of the targets: statistics -> shift [D], scale [D]; target = ((change, reward) - shift) / scale ---

Units = Callable[[PyTree], tuple[Array, Array]]


def unit_variance(statistics: PyTree) -> tuple[Array, Array]:
    """Changes over their deviation, unshifted; standardized reward."""
    shift = jnp.append(jnp.zeros_like(statistics["delta_mean"]), statistics["reward_mean"])
    return shift, jnp.append(statistics["delta_std"], statistics["reward_std"])


def standardized(statistics: PyTree) -> tuple[Array, Array]:
    """Changes and reward with mean 0 and deviation 1 (CBOP)."""
    shift = jnp.append(statistics["delta_mean"], statistics["reward_mean"])
    return shift, jnp.append(statistics["delta_std"], statistics["reward_std"])


def raw(statistics: PyTree) -> tuple[Array, Array]:
    """Changes and reward as they are (MBPO, MOPO)."""
    size = statistics["varies"].shape
    return jnp.zeros(size), jnp.ones(size)


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
    found = getattr(statistics, "transitions", ())
    if isinstance(found, tuple) and not len(found):
        raise UsageError("explicit models are normalized by statistics of transitions, but `statistics.transitions` "
                         "is empty: fill it with data.normalize.transition_statistics(dataset)")  # fmt: skip
    return {name: jnp.asarray(value) for name, value in found._asdict().items()}


def make(
    density: Density, spec: EnvironmentSpec, *, num_members: int = 1, units: Units = unit_variance,
    draw: Draw = SAMPLE, terminate: Callable[[Array, Array, Array], Array] = never,
    continuation: Continuation | None = None,
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
        keys = jax.vmap(lambda e: jax.random.fold_in(key, e))(jnp.arange(num_members))
        network = {"members": jax.vmap(density.init)(keys), "shared": density.shared()}
        if continuation:
            network["continuation"] = jax.vmap(lambda key: continuation.init(jax.random.fold_in(key, 1)))(keys)
        return {"network": network, "statistics": known, "elites": jnp.arange(num_members, dtype=jnp.int32)}

    def loss(params: PyTree, batch: Transition, key: Array) -> tuple[Array, Metrics]:
        network, known = params["network"], params["statistics"]

        def one(member: PyTree, head: PyTree, example: Transition, key: Array) -> tuple[Array, Array]:
            key_noise, key_loss = jax.random.split(key)
            x = inputs(known, example.observation, example.action)
            y = targets(units, known, example.observation, example.next_observation, example.reward)
            target = jnp.where(known["varies"], y, jax.random.normal(key_noise, y.shape))
            wrong = density.loss(member, network["shared"], x, target, key_loss)
            if not continuation:
                return wrong, jnp.zeros(())
            return wrong, optax.sigmoid_binary_cross_entropy(continuation.logit(head, x, y), example.discount)

        keys = jax.random.split(key, batch.reward.shape)
        many = jax.vmap(jax.vmap(one, (None, None, 0, 0)))  # over members, and over each one's batch
        each = many(network["members"], network.get("continuation", {}), batch, keys)
        wrong, ended = (jnp.sum(jnp.mean(part, axis=1)) for part in each)
        penalty = density.penalty(network["members"], network["shared"])
        metrics = {"loss/density": wrong, "loss/continuation": ended, "loss/penalty": penalty}
        return wrong + ended + penalty, metrics | {"loss/total": wrong + ended + penalty}

    def log_prob(params: PyTree, observation: Array, action: Array, next_observation: Array, reward: Array) -> Array:
        known = params["statistics"]
        y = targets(units, known, observation, next_observation, reward)
        found = over_members(density.log_prob, params, inputs(known, observation, action), y)
        return jnp.where(known["varies"][None], found - jnp.log(units(known)[1])[None], 0.0)

    def reset(params: PyTree, observation: Array, key: Array) -> Array:
        del params, key  # deterministic; the observation is all that is carried
        return observation

    def step(params: PyTree, model_state: Array, action: Array, key: Array) -> tuple[Array, Prediction]:
        key_draw, key_end = jax.random.split(key)
        known = params["statistics"]
        x = inputs(known, model_state, action)
        y = draw.target(density, params, x, key_draw)
        following, reward = outcome(units, known, model_state, y)
        goes_on = ~terminate(model_state, action, following)
        if continuation:
            varying = jnp.where(known["varies"], y, 0.0)
            logits = jax.vmap(continuation.logit, (0, None, None))(params["network"]["continuation"], x, varying)
            probability = jnp.mean(jax.nn.sigmoid(logits[params["elites"]]))
            goes_on &= draw.goes_on(probability, key_end)
        members = in_raw_units(units, known, model_state, *over_members(density.moments, params, x, y))
        return following, Prediction(following, reward, goes_on.astype(jnp.float32), members)

    return DynamicsModel(init=init, loss=loss, log_prob=log_prob, reset=reset, step=step, member=member)


def member(params: PyTree, e: Array | int) -> PyTree:
    """Parameters of member `e` alone, an ensemble of one."""
    alone = lambda tree: jax.tree.map(lambda leaf: jnp.asarray(leaf)[e][None], tree)  # noqa: E731
    network = {name: part if name == "shared" else alone(part) for name, part in params["network"].items()}
    return params | {"network": network, "elites": jnp.zeros(1, jnp.int32)}


# --- between raw units and the density's ---


def inputs(statistics: PyTree, observation: Array, action: Array) -> Array:
    """What a density is conditioned on: standardized observation `[n]` and action, one vector x."""
    return jnp.concatenate([
        (observation - statistics["observation_mean"]) / statistics["observation_std"],
        (action - statistics["action_mean"]) / statistics["action_std"],
    ])  # fmt: skip


def targets(units: Units, statistics: PyTree, observation: Array, next_observation: Array, reward: Array) -> Array:
    """What a density describes: change and reward in its units, `[D]`; 0 where the data never varied."""
    shift, scale = units(statistics)
    y = (jnp.append(next_observation - observation, reward) - shift) / scale
    return jnp.where(statistics["varies"], y, 0.0)


def outcome(units: Units, statistics: PyTree, observation: Array, y: Array) -> tuple[Array, Array]:
    """The next observation `[n]` and the reward of a target y `[D]`; a constant change is copied."""
    shift, scale = units(statistics)
    constant = jnp.append(statistics["delta_mean"], statistics["reward_mean"])
    change = jnp.where(statistics["varies"], y * scale + shift, constant)
    return observation + change[:-1], change[-1]


def in_raw_units(
    units: Units, statistics: PyTree, observation: Array, means: Array, stds: Array
) -> tuple[Array, Array]:
    """Means and deviations `[E, D]` of targets as those of the next observation and the reward."""
    state, reward = jax.vmap(outcome, (None, None, None, 0))(units, statistics, observation, means)
    stds = jnp.where(statistics["varies"][None], stds * units(statistics)[1][None], 0.0)
    return jnp.concatenate([state, reward[:, None]], axis=1), stds


def conditionals(density: Density, *, units: Units = unit_variance) -> Callable[[PyTree, Transition], PyTree]:
    """Means and deviations `[E, D]`, in raw units, of every conditional at what really happened.

    Returns:
      (params, one transition) -> (means, stds); where the density is autoregressive each is given the entries before.
    """

    def of(params: PyTree, transition: Transition) -> tuple[Array, Array]:
        statistics, observation = params["statistics"], transition.observation
        x = inputs(statistics, observation, transition.action)
        y = targets(units, statistics, observation, transition.next_observation, transition.reward)
        return in_raw_units(units, statistics, observation, *over_members(density.moments, params, x, y))

    return of


def mixture_log_prob(log_prob: Array, elites: Array | None = None) -> Array:
    """`log mean_e p_e(y | x)` `[]` of what `DynamicsModel.log_prob` returns `[E, D]`; over `elites` alone if given."""
    sums = jnp.sum(log_prob if elites is None else log_prob[elites], axis=1)
    return jax.nn.logsumexp(sums) - jnp.log(sums.shape[0])


# --- adjustments of predictions ---


def clip_to_data(params: PyTree, observation: Array, action: Array, prediction: Prediction, key: Array) -> Prediction:
    """Next observation and reward inside the range of the training data."""
    del observation, action, key
    known = params["statistics"]
    return prediction._replace(
        observation=jnp.clip(prediction.observation, known["observation_min"], known["observation_max"]),
        reward=jnp.clip(prediction.reward, known["reward_min"], known["reward_max"]))  # fmt: skip


def clipped(model: DynamicsModel) -> DynamicsModel:
    """The model whose steps stay inside the range of the training data, and go on from there."""

    def step(params: PyTree, model_state: Array, action: Array, key: Array) -> tuple[Array, Prediction]:
        prediction = clip_to_data(params, model_state, action, model.step(params, model_state, action, key)[1], key)
        return prediction.observation, prediction

    return model._replace(step=step)
