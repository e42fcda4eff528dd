"""Held-out likelihood of dynamics models: feedforward against autoregressive, on control tasks. For example

    python experiments/benchmarks/likelihood/main.py --preset quick
    python experiments/benchmarks/likelihood/main.py --preset quick --studies time --tasks cheetah_run --max-minutes 20
    python experiments/benchmarks/likelihood/main.py --preset quick --report-only

Three studies: models at equal training time; likelihood against the number of parameters; the best of a sweep. Every
run is a row of `runs.csv` in the results' folder, added when the run is finished. The same command goes on where an
earlier one was stopped or killed. A process uses one core; start it twice to use two, the processes share the work.
Training times are CPU seconds of updates: how many fit in is measured first, once, for all models of a task in turn.
"""

import dataclasses
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Literal

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[3])
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    )

import filelock
from rich.console import Console

from experiments.benchmarks import rows as table
from experiments.benchmarks.likelihood import report, runs, settings
from experiments.benchmarks.likelihood.settings import Architecture, Preset, Setting
from offline_mbrl import provenance
from offline_mbrl.commands import arguments, datasets
from offline_mbrl.training import compilation
from offline_mbrl.types import UsageError

RESULTS = Path(__file__).resolve().parents[2] / "results" / "dynamics_nll"
RATES = "rates"  # folder of the table of updates per second
PIECE_SECONDS = 9.0  # of compiling and evaluation, a run
RATE_SECONDS = 8.0  # an architecture


@dataclasses.dataclass(frozen=True)
class Options:
    """Runs the likelihood study and writes what it shows."""

    preset: Literal["quick", "full"] = "quick"
    studies: str = ""  # comma-separated: time, parameters, grid; default: all
    tasks: str = ""  # comma-separated: of the preset's; default: all
    max_minutes: float = 0.0  # start nothing new after this long; 0 without limit
    fresh: bool = False  # forget the runs that are there of these studies and tasks
    report_only: bool = False  # from the table alone
    folder: Path | None = None  # of the results; default: under experiments/results/dynamics_nll
    seeds: int | None = None  # the rest differs from the preset: give another folder too
    seconds: float | None = None  # of training, studies `time` and `parameters`
    grid_seconds: float | None = None


def main(options: Options) -> int:
    """Runs what is missing, then reports; the exit code."""
    console = Console(highlight=False, soft_wrap=True)
    preset = preset_of(options)
    ahead = preset._replace(tasks=tuple(chosen("task", options.tasks, list(preset.tasks))))
    studies = chosen("study", options.studies, list(settings.TITLES))
    folder = options.folder or RESULTS / options.preset
    folder.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", "experiments/benchmarks/likelihood/main.py", *sys.argv[1:]])
    if not options.report_only:
        if options.fresh:
            forget(folder, ahead, options)
        compilation.enable()
        work(options, ahead, studies, folder, command, console)
    report.write(folder, preset, studies, table.read(folder, runs.Row), preset_name=options.preset)
    console.print(f"written: {folder / report.SUMMARY}")
    return 0


def preset_of(options: Options) -> Preset:
    """The preset with what was given in its place.

    Raises:
      UsageError: it differs from the preset, and the results would go to the preset's folder.
    """
    given = {name: value for name in ("seeds", "seconds", "grid_seconds")
             if (value := getattr(options, name)) is not None}  # fmt: skip
    if given and options.folder is None:
        raise UsageError(f"--{next(iter(given)).replace('_', '-')} differs from the preset: give a --folder as well")
    return settings.PRESETS[options.preset]._replace(**given)


def chosen(what: str, given: str, known: list[str]) -> list[str]:
    """Which of these a comma-separated list names; all where it is empty.

    Raises:
      UsageError: it names something else.
    """
    names = [name for name in given.split(",") if name]
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"unknown {what} {unknown[0]!r}: choose from {', '.join(known)}")
    return [name for name in known if name in (names or known)]


def forget(folder: Path, preset: Preset, options: Options) -> None:
    """Takes rows out of the tables: all of the given tasks, or of the given studies those that they would run.

    Rates are measured for all models of a task in turn, so that a choice of studies leaves them. Where neither is
    given, the tables go as they are, even damaged ones.

    Args:
      folder: of the results.
      preset: with the given tasks alone.
      options: what was given.

    Raises:
      UsageError: a table is damaged, and only some of its rows are to go.
    """
    if options.studies:
        studies = chosen("study", options.studies, list(settings.TITLES))
        planned = {piece[1:] for piece in settings.pieces(preset, studies)}
        table.discard(folder, runs.Row, lambda row: (runs.setting_of(row), row.seed) in planned)
        return
    for place, kind in ((folder, runs.Row), (folder / RATES, runs.Rate)):
        if options.tasks:
            table.discard(place, kind, lambda row: row.task in preset.tasks)
        else:
            (place / table.TABLE).unlink(missing_ok=True)


# --- the work ---


def work(options: Options, preset: Preset, studies: list[str], folder: Path, command: str, console: Console) -> None:
    """Runs every piece that is missing and that no other process is at."""
    began = time.perf_counter()
    over = lambda: options.max_minutes and time.perf_counter() - began > 60 * options.max_minutes  # noqa: E731
    pieces = list(settings.pieces(preset, studies))
    announce(pieces, preset, folder, console)
    data: dict[str, runs.Data] = {}
    if over() or not rates(pieces, preset, folder, data, console, over):
        return console.print("the time is up; the same command goes on from here")
    known, revision = runs.rates(folder / RATES), provenance.revision() or "not under version control"
    for number, (study, one, seed) in enumerate(pieces):
        if over():
            return console.print("the time is up; the same command goes on from here")
        try:
            claim = table.locked(folder, repr((one, seed)))
        except filelock.Timeout:
            continue  # another process is at it
        with claim:
            if there(folder, one, seed):
                continue
            rate = known[architecture(one), preset.batch_size]
            row = runs.run(study, one, seed, loaded(data, one.task, preset, console), preset,
                           updates_per_second=rate, revision=revision, command=command)  # fmt: skip
            table.append(folder, runs.Row, [row])
        left = estimate(missing(pieces[number:], folder)) / 60
        console.print(f"{describe(row)}  about {left:.0f} CPU min left")


def there(folder: Path, one: Setting, seed: int) -> bool:
    """Whether this run has a row."""
    return seed in runs.finished(table.read(folder, runs.Row)).get(one, {})


def missing(pieces: list[tuple[str, Setting, int]], folder: Path) -> list[tuple[str, Setting, int]]:
    """Pieces that have no row yet."""
    found = runs.finished(table.read(folder, runs.Row))
    return [piece for piece in pieces if piece[2] not in found.get(piece[1], {})]


def architecture(one: Setting) -> Architecture:
    """What decides the speed of a run."""
    return Architecture(one.task, one.family, one.hidden, one.depth)


def loaded(data: dict[str, runs.Data], task: str, preset: Preset, console: Console) -> runs.Data:
    """The task's data, read once."""
    if task not in data:
        data[task] = runs.split(datasets.load(f"local/control/{task}", console), task, preset)
    return data[task]


def rates(
    pieces: list[tuple[str, Setting, int]], preset: Preset, folder: Path, data: dict[str, runs.Data],
    console: Console, over,
) -> bool:  # fmt: skip
    """Measures what is missing of the updates per second, tasks that no other process is at first; whether all are."""
    needed: dict[str, list[Architecture]] = {}
    for _, one, _ in missing(pieces, folder):
        needed.setdefault(one.task, []).append(architecture(one))
    place = folder / RATES
    for wait in (False, True):  # the second time for those that another process had
        for task, all_of in needed.items():
            if over():
                return False
            try:
                claim = table.locked(place, f"rates of {task}", wait=wait)
            except filelock.Timeout:
                continue
            with claim:
                known = runs.rates(place)
                new = [one for one in dict.fromkeys(all_of) if (one, preset.batch_size) not in known]
                if new:
                    measured = runs.measure_rates(new, loaded(data, task, preset, console), preset)
                    table.append(place, runs.Rate, measured)
                    console.print(f"{task}: " + ", ".join(
                        f"{one.family} {one.depth} x {one.hidden}: {one.updates_per_second:.0f}" for one in measured
                    ) + " updates a CPU second")  # fmt: skip
    return True


def estimate(pieces: list[tuple[str, Setting, int]]) -> float:
    """CPU seconds, about; the training time is given, so that this holds on any machine."""
    return sum(one.seconds + PIECE_SECONDS for _, one, _ in pieces)


def announce(pieces: list[tuple[str, Setting, int]], preset: Preset, folder: Path, console: Console) -> None:
    """What there is to do, study by study."""
    ahead = missing(pieces, folder)
    for study in dict.fromkeys(study for study, _, _ in pieces):
        mine = [piece for piece in ahead if piece[0] == study]
        count = sum(piece[0] == study for piece in pieces)
        console.print(f"{study}: {len(mine)} runs of {count} to do, about {estimate(mine) / 60:.0f} CPU minutes")
    known = runs.rates(folder / RATES)
    unknown = {architecture(one) for _, one, _ in ahead if (architecture(one), preset.batch_size) not in known}
    total = estimate(ahead) + RATE_SECONDS * len(unknown)
    console.print(f"in all about {total / 60:.0f} CPU minutes, {len(unknown)} measurements of speed included; two "
                  f"processes share them")  # fmt: skip


def describe(row: runs.Row) -> str:
    """One line for what has just been finished."""
    return (f"{row.study}: {row.task} {row.family} {row.depth} x {row.hidden} lr {row.learning_rate:g} seed "
            f"{row.seed}: NLL {row.nll_z:.3f} (median {row.median_z:.3f}) after {row.updates} updates, "
            f"{row.train_seconds:.0f} of {row.cpu_seconds:.0f} s of CPU")  # fmt: skip


if __name__ == "__main__":
    try:
        sys.exit(main(arguments.parse(Options, sys.argv[1:], prog="dynamics_nll.py", description=__doc__)))
    except UsageError as error:
        sys.exit(f"error: {error}")
