"""The folder that a lent machine is given: data of the nine control tasks, small enough to copy.

    python experiments/gpu/data.py --folder ../gpu-data
    python experiments/gpu/data.py --small --folder ../try-data

Needs no GPU, but the data: those that are absent are generated, which trains their policies first
(`offline-mbrl data build local/control/TASK`). The first transitions of as many steps a task as fit
are kept, whole episodes alone.
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np

from experiments.benchmarks import command
from experiments.benchmarks.likelihood import settings
from offline_mbrl import files
from offline_mbrl.commands import arguments, datasets
from offline_mbrl.data import memory
from offline_mbrl.types import UsageError

MOST_BYTES = 60 * 2**20  # of the folder
SETTINGS = "settings.json"
COLUMNS = ("observation", "action", "reward", "is_terminal", "is_last")


@dataclasses.dataclass(frozen=True)
class Options:
    """Writes the folder."""

    folder: Path
    tasks: str = ",".join(settings.TASKS)  # comma-separated
    steps: int = 40_000  # of a task, at most
    small: bool = False  # a linear system's numbers in the place of data, of the tasks' sizes


def main(options: Options) -> int:
    """Runs the script; the exit code."""
    console = command.screen()
    tasks = command.chosen("task", options.tasks, settings.TASKS)
    load = functools.partial(datasets.load, console=console)
    columns_of = linear_system if options.small else functools.partial(logged, load=load)
    options.folder.mkdir(parents=True, exist_ok=True)
    steps = 400 if options.small else options.steps
    for task in tasks:
        write(options.folder, task, columns_of(task, steps))
    about = json.dumps({"tasks": tasks, "small": options.small}, indent=1)
    files.write_whole(options.folder / SETTINGS, lambda place: place.write_text(about))
    size = sum(path.stat().st_size for path in options.folder.iterdir())
    if size > MOST_BYTES:
        raise UsageError(f"{options.folder} has {size / 2**20:.0f} MiB: give fewer --steps")
    console.print(f"{options.folder}: {len(tasks)} tasks, {size / 2**20:.1f} MiB")
    return 0


def write(folder: Path, task: str, columns: dict[str, np.ndarray]) -> None:
    """A task's columns, compressed."""

    def save(place: Path) -> None:
        with place.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **columns)

    files.write_whole(folder / f"{task}.npz", save)


def read(folder: Path, task: str) -> memory.Dataset:
    """A task's data.

    Raises:
      UsageError: they are not there.
    """
    path = folder / f"{task}.npz"
    if not path.exists():
        raise UsageError(f"{path} is missing: write it by experiments/gpu/data.py")
    with np.load(path, allow_pickle=False) as columns:
        size = settings.TASKS[task].action_size
        bounds = ([-1.0] * size, [1.0] * size)
        return memory.Dataset.from_arrays(dict(columns), action_bounds=bounds)


def about(folder: Path) -> dict[str, Any]:
    """The settings of the folder.

    Raises:
      UsageError: it has none.
    """
    if not (folder / SETTINGS).exists():
        raise UsageError(f"{folder / SETTINGS} is missing: write it by experiments/gpu/data.py")
    return json.loads((folder / SETTINGS).read_text())


def logged(task: str, steps: int, *, load: Callable) -> dict[str, np.ndarray]:
    """The first whole episodes of `local/control/TASK`.

    Args:
      task: its name.
      steps: at most.
      load: dataset by name.
    """
    return whole_episodes(load(f"local/control/{task}").dataset, steps)


def whole_episodes(dataset: memory.Dataset, steps: int) -> dict[str, np.ndarray]:
    """Columns of the first episodes that have at most so many records.

    Raises:
      UsageError: the first episode has more.
    """
    ends = np.unique(np.asarray(dataset.episode_end))  # rows of the last records
    ends = ends[ends < steps]
    if not len(ends):
        raise UsageError(f"the first episode has more than {steps} steps: give more --steps")
    count = int(ends[-1]) + 1
    is_last = np.isin(np.arange(count), ends)
    before_end = np.append(is_last[1:], False)
    discount = np.asarray(dataset.discount[:count])
    return {
        "observation": np.asarray(dataset.observation[:count]),
        "action": np.asarray(dataset.action[:count]),
        "reward": np.asarray(dataset.reward[:count]),
        "is_last": is_last,
        "is_terminal": is_last & np.append(False, (before_end & (discount == 0))[:-1]),
    }


def linear_system(task: str, steps: int) -> dict[str, np.ndarray]:
    """Episodes of a hundred steps of a noisy linear system of a task's sizes."""
    sizes = settings.TASKS[task]
    rng = np.random.default_rng(0)
    action = rng.uniform(-1, 1, (steps, sizes.action_size)).astype(np.float32)
    gain = rng.normal(size=(sizes.action_size, sizes.state_size)) / sizes.action_size**0.5
    observation = np.zeros((steps, sizes.state_size), np.float32)
    for row in range(1, steps):
        noise = rng.normal(size=sizes.state_size)
        observation[row] = 0.9 * observation[row - 1] + action[row - 1] @ gain + 0.1 * noise
    is_last = np.arange(steps) % 100 == 99
    return {
        "observation": observation,
        "action": action,
        "reward": observation[:, 0],
        "is_last": is_last,
        "is_terminal": np.zeros(steps, bool),
    }


if __name__ == "__main__":
    try:
        sys.exit(
            main(arguments.parse(Options, sys.argv[1:], prog=sys.argv[0], description=__doc__))
        )
    except UsageError as error:
        sys.exit(f"error: {error}")
