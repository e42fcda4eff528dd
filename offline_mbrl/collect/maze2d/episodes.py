"""Episodes of the maze's controller by D4RL's recipe, for any task of `environments.maze2d`.

The controller knows nothing of the task: its goals are random, and rewards are those of the task's
own goal. So no episode goes to that goal and stays there, which is what the best policy does.

Differences: several balls go on side by side, where D4RL's data are one long walk; an episode ends,
as a truncation, where the controller's goal changes, and its last observation is kept.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from offline_mbrl.collect import records
from offline_mbrl.collect.maze2d import waypoints
from offline_mbrl.environments import maze2d
from offline_mbrl.types import Transition

NUM_WALKS = 20  # side by side
CHUNK = 1_000  # steps of all walks between two reports of progress
PREFIX = "maze2d-"  # of the data's names


def collect(
    name: str,
    *,
    num_steps: int,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[dict[str, Any]]:
    """Plays a maze and yields the episodes, walk by walk.

    The last episode of every walk is truncated where its steps are used up.

    Args:
      name: of the data, for example `maze2d-umaze-sparse`.
      num_steps: total number of steps.
      seed: source of everything.
      progress: called with the number of steps done and `num_steps`.

    Returns:
      Episodes `{"steps": {...}, "metadata": {"episode_id", "episode_return"}}` of RLDS records
      `[T + 1, ...]`, float32, without terminals.

    Raises:
      UsageError: there is no such maze.
    """
    return _run(maze2d.maze(name.removeprefix(PREFIX)), num_steps, seed, progress)


def _run(
    task: maze2d.Maze, num_steps: int, seed: int, progress: Callable[[int, int], None]
) -> Iterator[dict[str, Any]]:
    num_walks = min(NUM_WALKS, num_steps)
    lengths = np.diff(np.linspace(0, num_steps, num_walks + 1).astype(np.int64))
    ways = waypoints.next_cells(task)
    key_start, key_play = jax.random.split(jax.random.key(seed))
    start = jax.jit(jax.vmap(functools.partial(waypoints.start, task, ways)))
    walks = start(jax.random.split(key_start, num_walks))
    play = jax.jit(functools.partial(waypoints.play, task, ways, num_steps=CHUNK))
    chunks = []
    for number, begun in enumerate(range(0, int(lengths.max()), CHUNK)):
        walks, walked = play(walks, jax.random.fold_in(key_play, number))
        chunks.append(jax.device_get(walked))
        progress(min((begun + CHUNK) * num_walks, num_steps), num_steps)
    everything = jax.tree.map(lambda *parts: np.concatenate(parts), *chunks)
    number = itertools.count()
    for index, length in enumerate(lengths.tolist()):
        walk = jax.tree.map(lambda leaf, i=index, t=length: leaf[:t, i], everything)
        ends = np.union1d(np.flatnonzero(walk.is_last) + 1, [length])
        for first, last in itertools.pairwise([0, *ends.tolist()]):
            steps = jax.tree.map(lambda leaf, a=first, b=last: leaf[a:b], walk.transition)
            yield _episode(steps, next(number))


def _episode(transitions: Transition, number: int) -> dict[str, Any]:
    """The episode of the transitions `[T, ...]`."""
    return {
        "steps": records.steps(transitions),
        "metadata": {"episode_id": number, "episode_return": records.total(transitions.reward)},
    }
