"""Replay of n-step transitions in preallocated numpy arrays, filled an episode at a time."""

from collections.abc import Mapping

import numpy as np

from offline_mbrl.collect.dqn import Batch


def make(capacity: int, observation_shape: tuple[int, ...]) -> Batch:
    """Room for `capacity` transitions."""
    frames = (capacity, *observation_shape)
    return Batch(
        np.zeros(frames, np.float32),
        np.zeros(capacity, np.int32),
        np.zeros(capacity, np.float32),
        np.zeros(capacity, np.float32),
        np.zeros(frames, np.float32),
    )


def n_step(steps: Mapping[str, np.ndarray], *, td_steps: int, gamma: float) -> Batch:
    """The n-step transitions of one whole episode, `[T]` of them.

    Near the end the sum is shorter and the bootstrap is the last observation; a terminal state's
    discount of 0 turns the bootstrap off, a truncation's 1 does not.

    Args:
      steps: RLDS records `[T + 1, ...]`; the last holds only an observation.
      td_steps: rewards in a full sum.
      gamma: the agent's discount factor.
    """
    length = len(steps["reward"]) - 1
    rewards, discounts = np.zeros(length, np.float32), np.ones(length, np.float32)
    for offset in range(td_steps):
        # The starts from which step `start + offset` is still in the episode
        reached = np.arange(length - offset)
        if not len(reached):
            break
        rewards[reached] += discounts[reached] * steps["reward"][reached + offset]
        discounts[reached] *= np.float32(gamma) * steps["discount"][reached + offset]
    bootstrap = np.minimum(np.arange(length) + td_steps, length)
    observation = steps["observation"]
    return Batch(observation[:-1], steps["action"][:-1], rewards, discounts, observation[bootstrap])


def store(replay: Batch, num_stored: int, transitions: Batch) -> int:
    """Writes transitions after the `num_stored` so far, over the oldest when full; returns the new
    count."""
    added = len(transitions.action)
    rows = np.arange(num_stored, num_stored + added) % len(replay.action)
    for column, values in zip(replay, transitions, strict=True):
        column[rows] = values
    return num_stored + added


def sample(replay: Batch, num_stored: int, batch_size: int, rng: np.random.Generator) -> Batch:
    """`batch_size` transitions, uniform with replacement."""
    rows = rng.integers(min(num_stored, len(replay.action)), size=batch_size)
    return Batch(*(column[rows] for column in replay))
