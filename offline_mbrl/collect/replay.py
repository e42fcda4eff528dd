"""Replay of n-step transitions in preallocated numpy arrays, filled episode by episode."""

from collections.abc import Mapping

import numpy as np

from offline_mbrl.collect.dqn import Batch


def make(capacity: int, observation_shape: tuple[int, ...]) -> Batch:
    """An empty replay for `capacity` transitions."""
    frames = (capacity, *observation_shape)
    return Batch(
        observation=np.zeros(frames, np.float32),
        action=np.zeros(capacity, np.int32),
        reward=np.zeros(capacity, np.float32),
        discount=np.zeros(capacity, np.float32),
        bootstrap_observation=np.zeros(frames, np.float32),
    )


def n_step(steps: Mapping[str, np.ndarray], *, td_steps: int, gamma: float) -> Batch:
    """The T n-step transitions of a whole episode of T steps.

    Near the end the sum is shorter and the bootstrap is the last observation; a terminal state's
    discount of 0 turns the bootstrap off, a truncation's 1 does not.

    Args:
      steps: RLDS records `[T + 1, ...]`; the last holds only an observation.
      td_steps: number of rewards in a full sum.
      gamma: the agent's discount factor.
    """
    length = len(steps["reward"]) - 1
    rewards = np.zeros(length, np.float32)
    discounts = np.ones(length, np.float32)
    for offset in range(min(td_steps, length)):
        starts = np.arange(length - offset)  # their step `start + offset` is in the episode
        rewards[starts] += discounts[starts] * steps["reward"][starts + offset]
        discounts[starts] *= np.float32(gamma) * steps["discount"][starts + offset]
    bootstrap = np.minimum(np.arange(length) + td_steps, length)
    return Batch(
        observation=steps["observation"][:-1],
        action=steps["action"][:-1],
        reward=rewards,
        discount=discounts,
        bootstrap_observation=steps["observation"][bootstrap],
    )


def store(replay: Batch, num_stored: int, transitions: Batch) -> int:
    """Stores transitions in place, over the oldest ones when full.

    Args:
      replay: arrays `[C, ...]`, which are changed.
      num_stored: number of transitions stored so far, overwritten ones included.
      transitions: `[N, ...]`.

    Returns:
      The new `num_stored`.
    """
    num_added = len(transitions.action)
    rows = np.arange(num_stored, num_stored + num_added) % len(replay.action)
    for column, values in zip(replay, transitions, strict=True):
        column[rows] = values
    return num_stored + num_added


def sample(replay: Batch, num_stored: int, batch_size: int, rng: np.random.Generator) -> Batch:
    """Draws transitions `[B, ...]`, uniform with replacement.

    Args:
      replay: arrays `[C, ...]`.
      num_stored: number of transitions stored so far, at least 1.
      batch_size: B.
      rng: advanced by the draw.
    """
    rows = rng.integers(min(num_stored, len(replay.action)), size=batch_size)
    return Batch(*(column[rows] for column in replay))
