"""The benchmark of policy learners: algorithm x dataset x seed, each beside behavior cloning.

    python experiments/benchmarks/policies/main.py --preset quick
    python experiments/benchmarks/policies/main.py --arms bc,iql --max-minutes 60
    python experiments/benchmarks/policies/main.py --preset quick --report-only

Every run is a row of `runs.csv` in the results' folder, added when the seeds of its setting are
finished. The same command goes on where an earlier one was stopped or killed; runs that outlast
`--max-minutes` are kept and go on, too. A process uses one
core; start it twice to use two, the processes share the work. `quick` and `ogbench-cpu` make their
own small data; `ogbench` makes a million steps a task and is meant for a GPU; `d4rl` needs the
official data.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[3])

import numpy as np

from experiments.benchmarks import command, rows
from experiments.benchmarks.policies import presets, report, runs
from experiments.benchmarks.policies.presets import Preset
from experiments.benchmarks.policies.runs import Piece, Row, Setting
from offline_mbrl.commands import datasets
from offline_mbrl.data.catalog.load import Loaded

SCRIPT = "experiments/benchmarks/policies/main.py"


@dataclasses.dataclass(frozen=True)
class Options:
    """Trains and evaluates policy learners and writes how they compare."""

    preset: Literal["quick", "models", "models-gpu", "d4rl", "ogbench", "ogbench-cpu"] = "quick"
    arms: str = ""  # comma-separated; default: the preset's
    datasets: str = ""  # comma-separated names; default: the preset's
    max_minutes: float = 0.0  # stop at the next evaluation after this long; 0 without limit
    fresh: bool = False  # forget the runs that are there
    report_only: bool = False  # from the table alone
    folder: Path | None = None  # of the results; default: under experiments/results/policies
    seeds: int | None = None  # default: the preset's; if not, give another folder too
    updates: int | None = None
    batch_size: int | None = None
    episodes: int | None = None  # of each evaluation and seed
    evaluations: int | None = None  # along a run


def main(options: Options) -> int:
    """Runs what is missing, then reports; the exit code."""
    console = command.screen()
    load = functools.lru_cache(maxsize=1)(functools.partial(datasets.load, console=console))
    names = ("seeds", "updates", "batch_size", "episodes", "evaluations")
    changes = command.changes(options, names, folder=options.folder)
    preset = presets.PRESETS[options.preset]._replace(**changes)
    if options.updates is not None:
        preset = preset._replace(datasets=tuple(d._replace(updates=None) for d in preset.datasets))
    folder = options.folder or command.RESULTS / "policies" / options.preset
    return command.carry_out(make(options, preset, folder, load), folder, options, console)


def make(
    options: Options, preset: Preset, folder: Path, load: Callable[[str], Loaded]
) -> command.Study:
    """The work and the report.

    Args:
      options: which arms and datasets.
      preset: how much is run.
      folder: of the results.
      load: dataset by name.

    Raises:
      UsageError: an arm or a dataset is unknown.
    """
    arms = command.chosen("arm", options.arms, preset.arms)
    data = {data.name: data for data in preset.datasets}
    chosen = command.chosen("dataset", options.datasets, data)
    origin = command.origin(SCRIPT)
    seeds = tuple(range(preset.seeds))
    minutes = options.max_minutes or np.inf
    place = runs.Place(folder=folder, deadline=time.perf_counter() + 60 * minutes, models={})

    def missing(piece: Piece) -> tuple[int, ...]:
        done = runs.finished(rows.read(folder, Row), preset).get(piece.setting, {})
        return tuple(seed for seed in piece.seeds if seed not in done)

    def run(piece: Piece) -> str:
        rest = piece._replace(seeds=missing(piece))
        new = runs.run(rest, data[piece.setting.dataset], preset, load, origin, place)
        rows.append(folder, Row, new)
        scores = " ".join(f"{row.last_ten:.2f}" for row in new) or command.OUT_OF_TIME
        return f"{piece.setting.arm} on {piece.setting.dataset}: {scores}"

    return command.Study(
        pieces=[Piece(Setting(arm, name), seeds) for name in chosen for arm in arms],
        is_done=lambda piece: not missing(piece),
        run=run,
        forget=lambda: rows.clear(folder),
        report=lambda: report.write(folder, preset, rows.read(folder, Row), options.preset),
    )


if __name__ == "__main__":
    command.run_script(main, Options, __doc__)
