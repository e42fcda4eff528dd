"""Which episodes an evaluation plays: drawn, or each start of a simulator once."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Schedule(NamedTuple):
    """Which episodes are played."""

    seeds: list[int]  # S * width simulators
    width: int  # simulators of a seed
    num_episodes: int  # of a seed
    greedy: bool
    repeats: int = 0  # how often each episode counts where it is one of all starts; 0: it is drawn


def make(
    starts: tuple[int, ...],
    *,
    seed: int,
    num_seeds: int,
    batch_size: int,
    num_episodes: int,
    greedy: bool,
) -> Schedule:
    """All starts once where greedy episodes can count them alike, else episodes that are drawn.

    Args:
      starts: seeds of simulators, one for each start; none where they are not listed.
      seed: of the episodes that are drawn.
      num_seeds: S.
      batch_size: simulators of a seed at most.
      num_episodes: of a seed.
      greedy: whether the policy acts without exploration.
    """
    width = min(batch_size, num_episodes)
    if starts and greedy and len(starts) <= width and num_episodes % len(starts) == 0:
        return Schedule(
            seeds=list(starts) * num_seeds,
            width=len(starts),
            num_episodes=len(starts),
            greedy=True,
            repeats=num_episodes // len(starts),
        )
    return Schedule(
        seeds=draw_seeds(seed, num_seeds, width),
        width=width,
        num_episodes=num_episodes,
        greedy=greedy,
    )


def draw_seeds(seed: int, num_seeds: int, width: int) -> list[int]:
    """A seed for each simulator, in the order of seeds and slots.

    Args:
      seed: of the evaluation.
      num_seeds: S.
      width: simulators of each.
    """
    sequences = np.random.SeedSequence(seed).spawn(num_seeds)
    states = np.stack([sequence.generate_state(width) for sequence in sequences])
    return (states >> 1).ravel().tolist()  # 31 bits: what every simulator takes


def counting(ended: Callable[[int], None], schedule: Schedule) -> Callable[[int], None]:
    """`ended` for each episode that is counted, when the episode that stands for it has ended."""
    repeats = max(schedule.repeats, 1)

    def ended_once(count: int) -> None:
        for number in range((count - 1) * repeats, count * repeats):
            ended(number + 1)

    return ended_once
