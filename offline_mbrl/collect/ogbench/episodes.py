"""Episodes of OGBench's environments by its scripted policies, with the settings of its datasets.

| kind | behavior |
|---|---|
| play | plans of key poses with smoothed noise; a new random target when a plan ends |
| noisy | feedback policies with Gaussian noise of an episode's own size, and some random actions |
| navigate | the shortest way to a random goal with noise; a new goal where it is reached |
| stitch | the shortest way to a goal four cells away with noise, and staying there |

The policies of a robot arm are the package's (`ogbench.manipspace.oracles`); who is called when,
and the settings, are those of the released scripts (`data_gen_scripts`). Differences: every episode
has a seed of its own, so that a longer dataset begins with the episodes of a shorter one; an action
is rounded to float32 before it is taken, as it is stored; the step after an episode's last
observation is not taken.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from offline_mbrl.collect.ogbench import manipulation, mazes
from offline_mbrl.collect.ogbench.playing import Play, Played
from offline_mbrl.data.catalog import ogbench
from offline_mbrl.types import UsageError

STREAM = 17  # keeps the seeds of these episodes apart from others of the same seed


def collect(
    name: str,
    *,
    num_steps: int,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[dict[str, Any]]:
    """Plays episodes of a dataset's length; the last one is cut where the steps are used up.

    Args:
      name: environment and kind, for example `cube-single-play`.
      num_steps: total number of steps.
      seed: source of everything.
      progress: called with the number of steps done and `num_steps`.

    Returns:
      Episodes `{"steps": {...}, "metadata": {...}}` as RLDS records without a task: rewards are 0,
      all ends are truncations. `steps` holds the simulator's state before each action too (`qpos`,
      `button_states`), from which the labels of a task follow.

    Raises:
      UsageError: the name is unknown.
    """
    if name not in ogbench.COLLECTED:
        raise UsageError(
            f"unknown OGBench data {name!r}; these are collected here: "
            f"{', '.join(ogbench.COLLECTED)}"
        )
    return _run(name, num_steps, seed, progress)


def _run(
    name: str, num_steps: int, seed: int, progress: Callable[[int, int], None]
) -> Iterator[dict[str, Any]]:
    play = _player(name)
    horizon = ogbench.COLLECTED[name].horizon
    for number, start in enumerate(range(0, num_steps, horizon)):
        length = min(horizon, num_steps - start)
        (word,) = np.random.SeedSequence([seed, STREAM, number]).generate_state(1)
        played = play(int(word) >> 1, length)  # 31 bits: what every simulator takes
        progress(start + length, num_steps)
        yield {"steps": _records(played), "metadata": {"episode_id": number}}


def _player(name: str) -> Play:
    environment = ogbench.environment(name)
    kind = name.removeprefix(f"{environment}-")
    make = mazes.player if environment.startswith("pointmaze") else manipulation.player
    return make(environment, kind)


def _records(played: Played) -> dict[str, np.ndarray]:
    """RLDS records `[T + 1, ...]`; the action of the last one is meaningless."""
    length = len(played.action)
    is_last = np.arange(length + 1) == length
    return {
        "observation": played.observation,
        "action": np.concatenate([played.action, np.zeros_like(played.action[:1])]),
        "reward": np.zeros(length + 1, np.float32),
        "discount": np.ones(length + 1, np.float32),
        "is_first": np.arange(length + 1) == 0,
        "is_last": is_last,
        "is_terminal": np.zeros(length + 1, bool),
        **played.state,
    }
