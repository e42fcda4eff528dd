"""The studies on BSuite: why one-step lookahead is preferred offline, and where it is not. For example

    python experiments/benchmarks/bsuite/main.py --preset quick
    python experiments/benchmarks/bsuite/main.py --preset quick --studies coverage,depth --max-minutes 60
    python experiments/benchmarks/bsuite/main.py --preset quick --report-only

Every run is a row of `runs.csv` in the results' folder, added when the run is finished. The same command goes on where
an earlier one was stopped or killed. A process uses one core; start it twice to use two, the processes share the work.
After the runs, or with `--report-only` from the table alone, each study gets a table, a picture and a paragraph.
"""

import dataclasses
import os
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[3])  # this file's folder would hide the library `bsuite`
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    )

import filelock
from rich.console import Console

from experiments.benchmarks import rows as table
from experiments.benchmarks.bsuite import grid, report
from experiments.benchmarks.bsuite import runs as study
from offline_mbrl import provenance
from offline_mbrl.commands import arguments, datasets
from offline_mbrl.training import compilation
from offline_mbrl.types import UsageError

RESULTS = Path(__file__).resolve().parents[2] / "results" / "bsuite"
PIECE_SECONDS = 10.0  # of compiling, a setting
EVALUATION_SECONDS = {"catch": 1.5, "cartpole": 40.0, "mountain_car": 40.0}  # of 200 episodes, both ways, a seed


@dataclasses.dataclass(frozen=True)
class Options:
    """Runs the studies on BSuite and writes what they show."""

    preset: Literal["quick", "full"] = "quick"
    studies: str = ""  # comma-separated: coverage, budget, depth, unroll, noise; default: all
    max_minutes: float = 0.0  # start nothing new after this long; 0 without limit
    fresh: bool = False  # forget the runs that are there
    report_only: bool = False  # from the table alone
    folder: Path | None = None  # of the results; default: beside this file, under experiments/results/bsuite
    seeds: int | None = None  # the rest differs from the preset: give another folder too
    updates: int | None = None
    batch_size: int | None = None
    episodes: int = 200  # of evaluation, a seed and a way of acting
    arms: str = ""  # comma-separated: only these arms are run


def main(options: Options) -> int:
    """Runs what is missing, then reports; the exit code."""
    console = Console(highlight=False, soft_wrap=True)
    preset = preset_of(options)
    names = chosen("study", options.studies, list(grid.studies(preset)))
    size = study.Size(preset.updates, preset.batch_size, options.episodes)
    folder = options.folder or RESULTS / options.preset
    folder.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", "experiments/benchmarks/bsuite/main.py", *sys.argv[1:]])
    if not options.report_only:
        if options.fresh:
            (folder / table.TABLE).unlink(missing_ok=True)
        compilation.enable()
        work(options, preset, names, size, folder, command, console)
    rows = table.read(folder, study.Row)
    report.write(folder, preset, names, rows, size, preset_name=options.preset)
    console.print(f"written: {folder / report.SUMMARY}")
    return 0


def preset_of(options: Options) -> grid.Preset:
    """The preset with what was given in its place."""
    given = {name: value for name in ("seeds", "updates", "batch_size")
             if (value := getattr(options, name)) is not None}  # fmt: skip
    if options.episodes != Options.episodes:
        given["episodes"] = options.episodes
    if given and options.folder is None:
        raise UsageError(f"--{next(iter(given)).replace('_', '-')} differs from the preset: give a --folder as well")
    given.pop("episodes", None)
    return grid.PRESETS[options.preset]._replace(**given)


def chosen(what: str, given: str, known: list[str]) -> list[str]:
    """Which of these a comma-separated list names; all where it is empty.

    Raises:
      UsageError: it names something else.
    """
    names = [name for name in given.split(",") if name]
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"unknown {what} {unknown[0]!r}: choose from {', '.join(known)}")
    return [name for name in known if name in (names or known)]


# --- the work ---


def work(
    options: Options, preset: grid.Preset, names: list[str], size: study.Size, folder: Path, command: str,
    console: Console,
) -> None:  # fmt: skip
    """Runs every piece that is missing and that no other process is at."""
    arms = chosen("arm", options.arms, list(grid.ARMS))
    pieces = [piece for piece in grid.pieces(preset, names) if piece[1].arm in arms]
    began, done = time.perf_counter(), Pace()
    announce(pieces, preset, size, folder, console)
    revision = provenance.revision() or "not under version control"
    for number, (name, setting) in enumerate(pieces):
        prepared = None
        for seeds in study.groups(setting, missing(setting, preset, size, folder)):
            if options.max_minutes and time.perf_counter() - began > 60 * options.max_minutes:
                console.print("the time is up; the same command goes on from here")
                return
            try:
                claim = table.locked(folder, repr((setting, seeds)))
            except filelock.Timeout:
                continue  # another process is at it
            with claim:
                left = [seed for seed in seeds if seed in missing(setting, preset, size, folder)]
                if not left:
                    continue
                start = time.process_time()
                prepared = prepared or study.prepare(setting, size, lambda name: datasets.load(name, console))
                rows = study.run(prepared, name, left, size, revision=revision, command=command)
                table.append(folder, study.Row, rows)
                done = done.after(estimate([(setting, left)], size), time.process_time() - start)
            ahead = [(one, missing(one, preset, size, folder)) for _, one in pieces[number:]]
            console.print(describe(name, rows) + f"  about {done.factor * estimate(ahead, size) / 60:.0f} min left")


def missing(setting: grid.Setting, preset: grid.Preset, size: study.Size, folder: Path) -> list[int]:
    """Seeds of a setting that have no row yet."""
    there = study.finished(table.read(folder, study.Row), size).get(setting, {})
    return [seed for seed in range(preset.seeds) if seed not in there]


@dataclasses.dataclass(frozen=True)
class Pace:
    """How the estimates compare with what pieces took."""

    estimated: float = 0.0
    spent: float = 0.0

    def after(self, estimated: float, spent: float) -> "Pace":
        """With one piece more."""
        return Pace(self.estimated + estimated, self.spent + spent)

    @property
    def factor(self) -> float:
        """Seconds spent per second estimated."""
        return self.spent / self.estimated if self.estimated else 1.0


def estimate(work: list[tuple[grid.Setting, list[int]]], size: study.Size) -> float:
    """CPU seconds, about."""
    return sum(
        PIECE_SECONDS + len(seeds) * (
            EVALUATION_SECONDS[setting.environment] * size.episodes / 200
            + size.updates * grid.milliseconds(setting, size.batch_size) / 1e3)
        for setting, seeds in work if seeds)  # fmt: skip


def announce(
    pieces: list[tuple[str, grid.Setting]], preset: grid.Preset, size: study.Size, folder: Path, console: Console
) -> None:
    """What there is to do, study by study."""
    total = 0.0
    for name in dict.fromkeys(name for name, _ in pieces):
        ahead = [(setting, missing(setting, preset, size, folder)) for owner, setting in pieces if owner == name]
        minutes = estimate(ahead, size) / 60
        total += minutes
        console.print(f"{name}: {sum(len(seeds) for _, seeds in ahead)} runs of {len(ahead) * preset.seeds} to do, "
                      f"about {minutes:.0f} CPU minutes")  # fmt: skip
    console.print(f"in all about {total:.0f} CPU minutes on one core ({size.updates} updates at batch "
                  f"{size.batch_size}, {preset.seeds} seeds)")  # fmt: skip


def describe(name: str, rows: list[study.Row]) -> str:
    """One line for what has just been finished."""
    first = rows[0]
    setting = " ".join(_told(study.setting_of(first)))
    scores = " ".join(f"{row.greedy:.2f}/{row.sampled:.2f}" for row in rows)
    seconds = sum(row.cpu_seconds for row in rows)
    return f"{name}: {setting} seed {', '.join(str(row.seed) for row in rows)}: {scores}, {seconds:.0f} s of CPU"


def _told(setting: grid.Setting) -> Iterator[str]:
    """What differs from the usual."""
    yield f"{setting.arm} on {setting.environment}"
    for name, usual in grid.Setting._field_defaults.items():
        if name != "environment" and (value := getattr(setting, name)) != usual:
            yield f"{name}={value:g}"


if __name__ == "__main__":
    try:
        sys.exit(main(arguments.parse(Options, sys.argv[1:], prog="bsuite.py", description=__doc__)))
    except UsageError as error:
        sys.exit(f"error: {error}")
