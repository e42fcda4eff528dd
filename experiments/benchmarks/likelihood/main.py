"""Held-out likelihood of dynamics models: feedforward against others, on control tasks.

    python experiments/benchmarks/likelihood/main.py --preset quick
    python experiments/benchmarks/likelihood/main.py --studies time --tasks cheetah_run
    python experiments/benchmarks/likelihood/main.py --families coupled --folder results/coupled
    python experiments/benchmarks/likelihood/main.py --preset quick --report-only

Three studies: models at equal training time; likelihood against the number of parameters; the best
of a sweep. Every run is a row of `runs.csv` in the results' folder, added when the run is finished.
The same command goes on where an earlier one was stopped or killed. A process uses one core; start
it twice to use two, the processes share the work. Training times are CPU seconds of updates: how
many fit in is measured first, once, for all models of a task in turn.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[3])

from experiments.benchmarks import command, rows
from experiments.benchmarks.likelihood import report, runs, settings
from experiments.benchmarks.likelihood.runs import Data, Rate, Row
from experiments.benchmarks.likelihood.settings import Architecture, Piece, Preset, Setting
from offline_mbrl.commands import datasets
from offline_mbrl.data.catalog.load import Loaded

SCRIPT = "experiments/benchmarks/likelihood/main.py"
RATES = "rates"  # folder of the table of updates per second


@dataclasses.dataclass(frozen=True)
class Options:
    """Runs the likelihood study and writes what it shows."""

    preset: Literal["quick", "full"] = "quick"
    studies: str = ""  # comma-separated: time, parameters, grid; default: all
    tasks: str = ""  # comma-separated: of the preset's; default: all
    # Comma-separated: masked, shared, coupled, beside feedforward; default: the preset's.
    families: str | None = None
    max_minutes: float = 0.0  # start nothing new after this long; 0 without limit
    fresh: bool = False  # forget the runs that are there of these studies and tasks
    report_only: bool = False  # from the table alone
    folder: Path | None = None  # of the results; default: under experiments/results/dynamics_nll
    seeds: int | None = None  # default: the preset's; if not, give another folder too
    seconds: float | None = None  # of training, studies `time` and `parameters`
    grid_seconds: float | None = None


def main(options: Options) -> int:
    """Runs what is missing, then reports; the exit code."""
    console = command.screen()
    load = functools.partial(datasets.load, console=console)
    names = ("seeds", "seconds", "grid_seconds")
    changes = command.changes(options, (*names, "families"), folder=options.folder)
    families = changes.pop("families", None)
    preset = settings.PRESETS[options.preset]._replace(**changes)
    if families is not None:
        chosen = command.chosen("family", families, settings.FAMILIES)
        preset = settings.only(preset, chosen)
    folder = options.folder or command.RESULTS / "dynamics_nll" / options.preset
    return command.carry_out(make(options, preset, folder, load), folder, options, console)


def make(
    options: Options, preset: Preset, folder: Path, load: Callable[[str], Loaded]
) -> command.Study:
    """The work and the report.

    Args:
      options: which studies and tasks.
      preset: how much is run.
      folder: of the results.
      load: dataset by name.

    Raises:
      UsageError: a study or a task is unknown.
    """
    studies = command.chosen("study", options.studies, settings.TITLES)
    tasks = tuple(command.chosen("task", options.tasks, preset.tasks))
    pieces = settings.pieces(preset._replace(tasks=tasks), studies)
    origin = command.origin(SCRIPT)

    @functools.cache
    def data_of(task: str) -> Data:
        return runs.split(load(f"local/control/{task}"), task, preset)

    @functools.cache
    def rates_of(task: str) -> dict[Architecture, float]:
        models = [settings.architecture(piece.setting) for piece in pieces]
        own = list(dict.fromkeys(model for model in models if model.task == task))
        return rates(folder / RATES, own, data_of(task), preset)

    def is_done(piece: Piece) -> bool:
        table = runs.finished(rows.read(folder, Row))
        return piece.seed in table.get(piece.setting, {})

    def run(piece: Piece) -> str:
        setting = piece.setting
        rate = rates_of(setting.task)[settings.architecture(setting)]
        row = runs.run(piece, data_of(setting.task), preset, rate, origin)
        rows.append(folder, Row, [row])
        return describe(row)

    def write_report() -> Path:
        table = rows.read(folder, Row)
        return report.write(folder, preset, studies, table, preset_name=options.preset)

    return command.Study(
        pieces=pieces,
        is_done=is_done,
        run=run,
        forget=lambda: forget(folder, pieces, options),
        report=write_report,
    )


def rates(
    folder: Path, models: Sequence[Architecture], data: Data, preset: Preset
) -> dict[Architecture, float]:
    """Updates per second, measured where they are missing; other processes wait for them.

    Args:
      folder: of the table of rates.
      models: of one task.
      data: of that task.
      preset: its batch size.
    """

    def table() -> dict[Architecture, float]:
        return {
            rows.setting_of(row, Architecture): row.updates_per_second
            for row in rows.read(folder, Rate)
            if row.batch_size == preset.batch_size
        }

    with rows.locked(folder, f"rates of {models[0].task}", wait=True):
        measured = table()
        missing = [model for model in models if model not in measured]
        if missing:
            rows.append(folder, Rate, runs.measure_rates(missing, data, preset))
    return table()


def forget(folder: Path, pieces: Sequence[Piece], options: Options) -> None:
    """Takes rows out of the tables: all of the named tasks, or those of the named studies.

    Rates are measured for all models of a task in turn, so that a choice of studies leaves them.
    Where neither is named, the tables go as they are, even damaged ones.

    Args:
      folder: of the results.
      pieces: of the named studies and tasks.
      options: which were named.

    Raises:
      UsageError: a table is damaged, and only some of its rows are to go.
    """
    if options.studies:
        planned = {(piece.setting, piece.seed) for piece in pieces}
        rows.discard(folder, Row, lambda row: (rows.setting_of(row, Setting), row.seed) in planned)
        return
    tasks = {piece.setting.task for piece in pieces}
    for place, kind in ((folder, Row), (folder / RATES, Rate)):
        if options.tasks:
            rows.discard(place, kind, lambda row: row.task in tasks)
        else:
            rows.clear(place)


def describe(row: Row) -> str:
    """One line for what has just been finished."""
    return (
        f"{row.study}: {row.task} {row.family} {row.depth} x {row.hidden} "
        f"lr {row.learning_rate:g} seed {row.seed}: NLL {row.nll_z:.3f} "
        f"(median {row.median_z:.3f}) after {row.updates} updates in {row.train_seconds:.0f} s"
    )


if __name__ == "__main__":
    command.run_script(main, Options, __doc__)
