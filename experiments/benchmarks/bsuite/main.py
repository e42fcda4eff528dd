"""The studies on BSuite: why one-step lookahead is preferred offline, and where it is not.

    python experiments/benchmarks/bsuite/main.py --preset quick
    python experiments/benchmarks/bsuite/main.py --studies coverage,depth --max-minutes 60
    python experiments/benchmarks/bsuite/main.py --preset quick --report-only

Every run is a row of `runs.csv` in the results' folder, added when the run is finished. The same
command goes on where an earlier one was stopped or killed. A process uses one core; start it twice
to use two, the processes share the work. After the runs, or with `--report-only` from the table
alone, each study gets a table, a figure and a paragraph.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

if __name__ == "__main__":  # this file's folder would hide the library `bsuite`
    sys.path[0] = str(Path(__file__).resolve().parents[3])

from experiments.benchmarks import command, rows
from experiments.benchmarks.bsuite import grid, report, runs
from experiments.benchmarks.bsuite.grid import Piece, Preset, Setting
from experiments.benchmarks.bsuite.runs import Row
from offline_mbrl.commands import datasets
from offline_mbrl.data.catalog.load import Loaded

SCRIPT = "experiments/benchmarks/bsuite/main.py"


@dataclasses.dataclass(frozen=True)
class Options:
    """Runs the studies on BSuite and writes what they show."""

    preset: Literal["quick", "full"] = "quick"
    studies: str = ""  # comma-separated: coverage, budget, depth, unroll, noise; default: all
    arms: str = ""  # comma-separated: only these arms are run
    max_minutes: float = 0.0  # start nothing new after this long; 0 without limit
    fresh: bool = False  # forget the runs that are there
    report_only: bool = False  # from the table alone
    folder: Path | None = None  # of the results; default: under experiments/results/bsuite
    seeds: int | None = None  # default: the preset's; if not, give another folder too
    updates: int | None = None
    batch_size: int | None = None
    episodes: int | None = None  # of evaluation, a seed and a way of acting


def main(options: Options) -> int:
    """Runs what is missing, then reports; the exit code."""
    console = command.screen()
    load = functools.partial(datasets.load, console=console)
    names = ("seeds", "updates", "batch_size", "episodes")
    changes = command.changes(options, names, folder=options.folder)
    preset = grid.PRESETS[options.preset]._replace(**changes)
    folder = options.folder or command.RESULTS / "bsuite" / options.preset
    return command.carry_out(make(options, preset, folder, load), folder, options, console)


def make(
    options: Options, preset: Preset, folder: Path, load: Callable[[str], Loaded]
) -> command.Study:
    """The work and the report.

    Args:
      options: which studies and arms.
      preset: how much is run.
      folder: of the results.
      load: dataset by name.

    Raises:
      UsageError: a study or an arm is unknown.
    """
    names = command.chosen("study", options.studies, grid.studies(preset))
    arms = command.chosen("arm", options.arms, grid.ARMS)
    size = runs.size_of(preset)
    origin = command.origin(SCRIPT)

    @functools.lru_cache(maxsize=1)  # a tree's seeds are pieces that follow one another
    def prepared(setting: Setting) -> runs.Prepared:
        return runs.prepare(setting, size, load)

    def missing(piece: Piece) -> list[int]:
        seeds = runs.finished(rows.read(folder, Row), size).get(piece.setting, {})
        return [seed for seed in piece.seeds if seed not in seeds]

    def run(piece: Piece) -> str:
        new = runs.run(prepared(piece.setting), piece.study, missing(piece), size, origin)
        rows.append(folder, Row, new)
        return describe(piece, new)

    def write_report() -> Path:
        table = rows.read(folder, Row)
        return report.write(folder, preset, names, table, preset_name=options.preset)

    return command.Study(
        pieces=grid.pieces(preset, names, arms),
        is_done=lambda piece: not missing(piece),
        run=run,
        forget=lambda: rows.clear(folder),
        report=write_report,
    )


def describe(piece: Piece, new: list[Row]) -> str:
    """One line for what has just been finished."""
    setting = piece.setting
    parts = [f"{piece.study}: {setting.arm} on {setting.environment}"]
    for name, usual in Setting._field_defaults.items():
        value = getattr(setting, name)
        if name != "environment" and value != usual:
            parts.append(f"{name}={value:g}")
    seeds = ", ".join(str(row.seed) for row in new)
    scores = " ".join(f"{row.greedy:.2f}/{row.sampled:.2f}" for row in new)
    return f"{' '.join(parts)} seed {seeds}: {scores}"


if __name__ == "__main__":
    command.run_script(main, Options, __doc__)
