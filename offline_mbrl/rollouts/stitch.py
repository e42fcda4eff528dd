"""Windows of a trajectory model stitched to whole episodes: each starts where the last one ended.

Where the model's windows have the law of the target policy given their first observation, so have
the episodes, whatever the windows' length. The rules at an end are those of `unroll`: the reward of
the step that terminates counts, after it nothing happens; where anything is not finite the step did
not happen and `diverged` is 1 from there on.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from offline_mbrl.types import (
    Action,
    Array,
    Key,
    Observation,
    Params,
    Termination,
    Trajectory,
)

# (params, first observation, key) -> a window of T steps; `TrajectoryModel.sample`, or a guided one
SampleWindow = Callable[[Params, Observation, Key], Trajectory]
Rollout = Callable[[Params, Observation, Key], Trajectory]
# (observation, action, next_observation) -> []
Reward = Callable[[Observation, Action, Observation], Array]


class Moment(NamedTuple):
    """One step as the windows have it, whether or not it happened."""

    action: Action
    reward: Array  # []
    ends: Array  # [] bool
    next_observation: Observation


class State(NamedTuple):
    """What the walk over all steps carries."""

    observation: Observation
    alive: Array  # [] bool
    diverged: Array  # [] bool


def same_observation(observation: Observation) -> Observation:
    """The observation as it is."""
    return observation


def stitched(
    sample: SampleWindow,
    *,
    horizon: int,
    window_steps: int,
    terminates: Termination | None = None,
    reward: Reward | None = None,
    seam: Callable[[Observation], Observation] = same_observation,
) -> Rollout:
    """Episodes of `horizon` steps: one scan over windows; vmap for many.

    Args:
      sample: one window, given its first observation.
      horizon: T, steps.
      window_steps: steps of a window, its rows less 1.
      terminates: a rule for true terminals, beside the discounts of the windows.
      reward: of a step, in the place of the windows' own.
      seam: what becomes of an observation before the next window starts there, for example a
        projection to those that are possible.

    Returns:
      A rollout whose trajectory has `extras` `{"diverged": [T]}`.
    """
    num_windows = -(-horizon // window_steps)

    def moments(window: Trajectory) -> Moment:
        before = jax.tree.map(lambda leaf: leaf[:-1], window.observation)
        after = jax.tree.map(lambda leaf: leaf[1:], window.observation)
        step = (before, window.action, after)
        ends = window.discount == 0
        return Moment(
            action=window.action,
            reward=window.reward if reward is None else jax.vmap(reward)(*step),
            ends=ends if terminates is None else ends | jax.vmap(terminates)(*step),
            next_observation=after,
        )

    def rollout(params: Params, observation: Observation, key: Key) -> Trajectory:
        def body(start: Observation, key: Key) -> tuple[Observation, Moment]:
            window = sample(params, start, key)
            last = seam(jax.tree.map(lambda leaf: leaf[-1], window.observation))
            finite = _finite(last)
            return jax.tree.map(lambda new, old: jnp.where(finite, new, old), last, start), moments(
                window
            )

        _, stacked = jax.lax.scan(body, observation, jax.random.split(key, num_windows))
        steps = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:horizon], stacked)
        return _lived(observation, steps)

    return rollout


def _lived(observation: Observation, steps: Moment) -> Trajectory:
    """The trajectory of steps `[T, ...]` of which those after an end did not happen."""

    def body(state: State, moment: Moment) -> tuple[State, tuple[Trajectory, Array]]:
        finite = _finite((moment.action, moment.reward, moment.next_observation))
        happened = state.alive & finite
        diverged = state.diverged | (state.alive & ~finite)
        alive = happened & ~moment.ends
        after = State(
            observation=jax.tree.map(
                lambda new, old: jnp.where(happened, new, old),
                moment.next_observation,
                state.observation,
            ),
            alive=alive,
            diverged=diverged,
        )
        row = Trajectory(
            observation=after.observation,
            action=jnp.where(happened, moment.action, jnp.zeros_like(moment.action)),
            reward=jnp.where(happened, moment.reward, 0.0),
            discount=(alive | diverged).astype(jnp.float32),
            mask=happened.astype(jnp.float32),
        )
        return after, (row, diverged.astype(jnp.float32))

    start = State(observation=observation, alive=jnp.array(True), diverged=jnp.array(False))
    _, (rows, diverged) = jax.lax.scan(body, start, steps)
    whole = jax.tree.map(
        lambda first, rest: jnp.concatenate([first[None], rest]), observation, rows.observation
    )
    return rows._replace(observation=whole, extras={"diverged": diverged})


def _finite(tree: Observation) -> Array:
    return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]).all()
