"""Imagined transitions beside the data: any learner of transitions, on both.

Every `every` updates the policy is rolled out in a model from states of the data, and the steps
that happened enter a ring buffer, the learner's cache. A batch is `int(B real_fraction)` rows of
the data, then imagined ones (MBPO, arXiv:1906.08253, algorithm 2; MOPO, arXiv:2005.13239,
algorithm 2). Batches are `Transition`s with extras `{"is_imagined": [B]}`, 1 for an imagined row
and 0 for one of the data.

Of public code it does not take over: rows after the end of an episode, and rows of a buffer that
were never written.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from offline_mbrl.data import ring
from offline_mbrl.data.memory import Dataset
from offline_mbrl.rollouts import shares
from offline_mbrl.rollouts.adjust import Adjust, identity
from offline_mbrl.rollouts.step import Bounds, Measure, no_measure
from offline_mbrl.rollouts.unroll import unroll
from offline_mbrl.settings import at_least, between
from offline_mbrl.types import (
    Action,
    Actor,
    Array,
    BoundedActions,
    Context,
    DynamicsModel,
    EnvironmentSpec,
    Key,
    Learner,
    Metrics,
    Observation,
    Params,
    Policy,
    PyTree,
    Trajectory,
    Transition,
    UsageError,
)


@dataclass(frozen=True)
class ImaginationConfig:
    """The released MOPO."""

    num_starts: Annotated[int, at_least(1)] = 50_000  # rollouts of each refresh
    horizon: Annotated[int, at_least(1)] = 5  # steps of a rollout
    every: Annotated[int, at_least(1)] = 1_000  # updates between refreshes
    # Refreshes whose rows are kept: the cache has room for retain * horizon * num_starts.
    retain: Annotated[int, at_least(1)] = 5
    real_fraction: Annotated[float, between(0, 1)] = 0.05  # of a batch
    starts: Literal["data", "initial"] = "data"  # all states, or the first of each episode
    actions: Literal["policy", "uniform"] = "policy"  # of the rollouts
    # Rollouts side by side, at most: what they take of memory beside the cache grows with it.
    starts_at_once: Annotated[int, at_least(1)] = 10_000


# (context, policy params, observations [B, ...], updates done [] int32, key) -> [B, T] trajectories
Imagine = Callable[[Context, Params, Observation, Array, Key], Trajectory]
# (dataset, how many, key) -> observations [B, ...]
Starts = Callable[[Dataset, int, Key], Observation]


# --- where rollouts start ---


def uniform_starts(dataset: Dataset, num_starts: int, key: Key) -> Observation:
    """Observations `[B, ...]` of the data's transitions, uniform with replacement."""
    chosen = jax.random.randint(key, (num_starts,), 0, dataset.starts.shape[0])
    return _observations(dataset, chosen)


def weighted_starts(weight: Callable[[Dataset], Array]) -> Starts:
    """Observations of the data's transitions by weight, with replacement.

    Args:
      weight: (dataset) -> `[N]`, at least 0, of the transitions that begin at `dataset.starts`.
    """

    def starts(dataset: Dataset, num_starts: int, key: Key) -> Observation:
        sums = jax.lax.cummax(jnp.cumsum(weight(dataset), dtype=jnp.float32))
        position = jax.random.uniform(key, (num_starts,)) * sums[-1]
        return _observations(dataset, jnp.searchsorted(sums, position, side="right"))

    return starts


def is_initial(dataset: Dataset) -> Array:
    """Which transitions, `[N]` bool, are the first of their episodes."""
    rows = jnp.asarray(dataset.starts)
    ends = jnp.asarray(dataset.episode_end)
    return (rows == 0) | (ends[jnp.maximum(rows - 1, 0)] != ends[rows])


initial_starts = weighted_starts(is_initial)
STARTS: Mapping[str, Starts] = {"data": uniform_starts, "initial": initial_starts}


def _observations(dataset: Dataset, chosen: Array) -> Observation:
    rows = jnp.asarray(dataset.starts)[chosen]
    return jax.tree.map(lambda column: jnp.asarray(column)[rows], dataset.observation)


# --- how they go on ---


def uniform_policy(spec: EnvironmentSpec) -> Policy:
    """All actions alike, whatever the parameters; the mode is the middle, or action 0."""
    action = spec.action

    def sample(params: Params, observation: Observation, key: Key) -> Action:
        del params, observation
        if isinstance(action, BoundedActions):
            return jax.random.uniform(key, (action.size,), minval=-1.0, maxval=1.0)
        return jax.random.randint(key, (), 0, action.num_actions)

    def mode(params: Params, observation: Observation) -> Action:
        del params, observation
        return jnp.zeros(action.size) if isinstance(action, BoundedActions) else jnp.int32(0)

    return Policy(sample=sample, mode=mode)


def acting(config: ImaginationConfig, learner: Learner, spec: EnvironmentSpec) -> Policy | Actor:
    """The policy of the rollouts that a config asks for.

    Raises:
      UsageError: it is the learner's, which has none.
    """
    if config.actions == "uniform":
        return uniform_policy(spec)
    return _policy_of(learner)


def unadjusted(context: Context) -> Adjust:
    """Predictions as they are, in every run."""
    del context
    return identity


def unmeasured(context: Context) -> Measure:
    """No scalars, in every run."""
    del context
    return no_measure


def by_rollout(
    model: DynamicsModel,
    policy: Policy | Actor,
    *,
    horizon: int,
    adjust: Callable[[Context], Adjust] = unadjusted,
    spread: shares.Spread = shares.jointly,
    measure: Callable[[Context], Measure] = unmeasured,
    upstream: str = "model",
    bounds: Bounds = (-1.0, 1.0),
) -> Imagine:
    """Rollouts of a policy in an explicit model.

    Args:
      model: steps from one observation to the next.
      policy: acts.
      horizon: T, steps.
      adjust: (context) -> what becomes of each prediction, for example of a threshold upstream.
      spread: `shares.jointly`, where the model's own `step` draws a member each time, or
        `shares.by_member`, each member alone in its share of the starts: E times cheaper, where
        nothing compares members. A model made with `explicit.MEAN` draws none.
      measure: (context) -> scalars of each step, reported as means.
      upstream: name of the stage that hands on the model's parameters.
      bounds: of continuous actions.

    Raises:
      UsageError: when called, something compares members that are rolled out alone.
    """

    def imagine(
        context: Context, policy_params: Params, observation: Observation, update: Array, key: Key
    ) -> Trajectory:
        del update
        run = unroll(
            model,
            policy,
            horizon=horizon,
            adjust=adjust(context),
            measure=measure(context),
            bounds=bounds,
        )
        keys = jax.random.split(key, jax.tree.leaves(observation)[0].shape[0])
        rollouts = spread.apply(model, run)
        return rollouts(context.upstream[upstream], policy_params, observation, keys)

    return imagine


def in_parts(imagine: Imagine, starts_at_once: int) -> Imagine:
    """Rollouts of at most `starts_at_once` starts after one another, each part with its own key."""

    def imagine_all(
        context: Context, policy_params: Params, observation: Observation, update: Array, key: Key
    ) -> Trajectory:
        num_starts = jax.tree.leaves(observation)[0].shape[0]
        num_parts = -(-num_starts // starts_at_once)
        if num_parts == 1:
            return imagine(context, policy_params, observation, update, key)
        size = -(-num_starts // num_parts)
        rows = (jnp.arange(num_parts * size) % num_starts).reshape(num_parts, size)

        def part(inputs: tuple[Array, Key]) -> Trajectory:
            rows, key = inputs
            starts = jax.tree.map(lambda leaf: leaf[rows], observation)
            return imagine(context, policy_params, starts, update, key)

        parts = jax.lax.map(part, (rows, jax.random.split(key, num_parts)))
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:num_starts], parts)

    return imagine_all


def transitions(trajectory: Trajectory) -> tuple[Transition, Array]:
    """The steps of trajectories `[B, T]` as rows `[T B, ...]`, all first steps first.

    Returns:
      The rows, and which of them happened, `[T B]`.
    """

    def flat(leaf: Array) -> Array:
        return jnp.swapaxes(leaf, 0, 1).reshape(-1, *leaf.shape[2:])

    rows = Transition(
        observation=jax.tree.map(lambda leaf: flat(leaf[:, :-1]), trajectory.observation),
        action=flat(trajectory.action),
        reward=flat(trajectory.reward),
        discount=flat(trajectory.discount),
        next_observation=jax.tree.map(lambda leaf: flat(leaf[:, 1:]), trajectory.observation),
    )
    return rows, flat(trajectory.mask) > 0


# --- the learner ---


def with_imagination(
    learner: Learner,
    imagine: Imagine,
    config: ImaginationConfig,
    *,
    starts: Starts | None = None,
) -> Learner:
    """The learner on batches of real and imagined rows.

    Real rows keep their own rewards and discounts, and of their extras `next_action` and
    `has_next_action`, which is 0 in imagined rows. While nothing imagined is stored yet, because no
    step of a rollout was finite, real rows take its place.

    Args:
      learner: of batches of `Transition`s; it has a policy and no refresh of its own.
      imagine: rolls out.
      config: how often, from how many starts, and how much of it is kept.
      starts: where rollouts start; None: as the config says.

    Raises:
      UsageError: the learner has no policy, or refreshes something itself.
    """
    _policy_of(learner)
    if learner.refresh_every:
        raise UsageError(
            "with_imagination: this learner has a refresh of its own, which this one would replace"
        )
    draw_starts = starts or STARTS[config.starts]
    imagine_all = in_parts(imagine, config.starts_at_once)

    def sample(dataset: PyTree, cache: PyTree, key: Key) -> Transition:
        real = marked(learner.sample(dataset, None, key))
        if cache is None:
            return real
        num_real = int(real.reward.shape[0] * config.real_fraction)
        return mixed(real, cache, num_real, jax.random.fold_in(key, 1))

    def refresh(
        state: PyTree, context: Context, dataset: PyTree, cache: PyTree, update: Array, key: Key
    ) -> tuple[PyTree, PyTree, Metrics]:
        key_starts, key_rollouts = jax.random.split(key)
        observation = draw_starts(dataset, config.num_starts, key_starts)
        policy_params = learner.policy_params(state, context)
        trajectory = imagine_all(context, policy_params, observation, update, key_rollouts)
        cache = ring.store(cache, *transitions(trajectory))
        return state, cache, figures(trajectory, cache)

    def init_cache(example: Transition) -> ring.Ring:
        row = jax.tree.map(lambda leaf: leaf[0], example._replace(extras=()))
        return ring.empty(row, config.retain * config.horizon * config.num_starts)

    return learner._replace(
        sample=sample, refresh=refresh, refresh_every=config.every, init_cache=init_cache
    )


def _policy_of(learner: Learner) -> Policy | Actor:
    if learner.policy is None:
        raise UsageError("with_imagination: this learner has no policy that could be rolled out")
    return learner.policy


def marked(real: Transition) -> Transition:
    """Real rows `[B, ...]` with the extras of a mixed batch."""
    extras = real.extras if isinstance(real.extras, Mapping) else {}
    kept = {name: extras[name] for name in ("next_action", "has_next_action") if name in extras}
    return real._replace(extras={**kept, "is_imagined": jnp.zeros_like(real.reward)})


def mixed(real: Transition, cache: ring.Ring, num_real: int, key: Key) -> Transition:
    """The first real rows, then imagined ones, or real ones where none are stored.

    Args:
      real: `[B, ...]`, from `marked`.
      cache: imagined rows.
      num_real: how many stay.
      key: consumed.
    """
    batch_size = real.reward.shape[0]
    first, rest = (
        jax.tree.map(lambda leaf, part=part: leaf[part], real)
        for part in (slice(num_real), slice(num_real, None))
    )
    imagined = ring.sample(cache, batch_size - num_real, key)
    no_extras = jax.tree.map(jnp.zeros_like, rest.extras)
    ones = jnp.ones_like(imagined.reward)
    imagined = imagined._replace(extras={**no_extras, "is_imagined": ones})
    has_rows = ring.size(cache) > 0
    rest = jax.tree.map(lambda new, old: jnp.where(has_rows, new, old), imagined, rest)
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), first, rest)


def figures(trajectory: Trajectory, cache: ring.Ring) -> Metrics:
    """Means over the steps that happened, and over the rollouts.

    Args:
      trajectory: `[B, T]`, as `Imagine` returns it.
      cache: into which it was stored.
    """
    mask = trajectory.mask
    num_steps = jnp.maximum(jnp.sum(mask), 1)
    measured = dict(trajectory.extras) if isinstance(trajectory.extras, Mapping) else {}
    diverged = measured.pop("diverged", jnp.zeros_like(mask))
    means = {
        name: jnp.sum(mask * values) / num_steps
        for name, values in {"reward": trajectory.reward, **measured}.items()
    }
    values = {
        **means,
        "length": jnp.mean(jnp.sum(mask, axis=1)),
        "terminals": jnp.mean(jnp.sum(mask * (trajectory.discount == 0), axis=1)),
        "diverged": jnp.mean(jnp.max(diverged, axis=1)),
        "stored": ring.size(cache).astype(jnp.float32),
    }
    return {f"imagination/{name}": value for name, value in values.items()}
