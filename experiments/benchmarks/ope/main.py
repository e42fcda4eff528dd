"""How well off-policy estimators rank policies whose true returns are known. For example

    python experiments/benchmarks/ope/main.py --preset quick
    python experiments/benchmarks/ope/main.py --preset quick --tasks cartpole_swingup --groups model_ff,model_ar
    python experiments/benchmarks/ope/main.py --preset quick --report-only

For each task: snapshots of training runs are the policies to evaluate, their true discounted returns are played in the
simulator, and every estimator sees logged data of other runs alone. Every fit is rows of `runs.csv`, added when it is
finished; the same command goes on where an earlier one was stopped. A process uses one core; start it twice to use two,
the processes share the work. After the work, or with `--report-only` from the tables alone: metrics with intervals over
policies, scatter plots, and which claims of the sources held.
"""

import dataclasses
import os
import shlex
import sys
import time
from collections.abc import Collection
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
from experiments.benchmarks.ope import report as ope_report
from experiments.benchmarks.ope import runs as ope_runs
from offline_mbrl import provenance
from offline_mbrl.commands import arguments
from offline_mbrl.selection import estimators
from offline_mbrl.training import compilation
from offline_mbrl.types import UsageError

RESULTS = Path(__file__).resolve().parents[2] / "results" / "ope"


@dataclasses.dataclass(frozen=True)
class Options:
    """Runs every estimator on every task and says how well each ranks the policies."""

    preset: Literal["quick", "full"] = "quick"
    tasks: str = ""  # comma-separated: to work at; default: the preset's. The report is of all that have rows
    groups: str = ""  # comma-separated: estimators that share a fit; default: all
    seeds: int | None = None  # default: the preset's; the next likewise
    policies: int | None = None  # at most so many for a task
    episodes: int | None = None  # of each policy in the simulator
    max_minutes: float = 0.0  # start nothing new after this long; 0 without limit
    fresh: bool = False  # forget what is there of these tasks and groups
    report_only: bool = False  # from the tables alone
    folder: Path | None = None  # of the results; default: beside this file, under experiments/results/ope


def main(options: Options) -> int:
    """Does what is missing, then reports; the exit code."""
    console = Console(highlight=False, soft_wrap=True)
    preset = preset_of(options)
    ahead = dataclasses.replace(preset, tasks=tuple(chosen("task", options.tasks, list(preset.tasks))))
    groups = chosen("group", options.groups, list(estimators.GROUPS))
    folder = options.folder or RESULTS / options.preset
    folder.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", "experiments/benchmarks/ope/main.py", *sys.argv[1:]])
    if not options.report_only:
        if options.fresh:
            forget(folder, ahead.tasks if options.tasks else (), groups if options.groups else ())
        compilation.enable()
        work(options, ahead, groups, folder, command, console)
    ope_report.write(folder, preset, preset_name=options.preset)
    console.print(f"written: {folder / ope_report.SUMMARY}")
    return 0


def preset_of(options: Options) -> ope_runs.Preset:
    """The preset with what was given in its place.

    Raises:
      UsageError: something differs from the preset but not the folder.
    """
    preset = ope_runs.PRESETS[options.preset]
    given = {name: value for name in ("seeds", "policies", "episodes")
             if (value := getattr(options, name)) is not None}  # fmt: skip
    if given and options.folder is None:
        raise UsageError(f"--{next(iter(given))} differs from the preset: give a --folder as well")
    return dataclasses.replace(preset, **given)


def forget(folder: Path, tasks: Collection[str], groups: Collection[str]) -> None:
    """Takes rows out of the tables. True values belong to all groups, so that a choice of groups leaves them.

    Args:
      folder: of the results.
      tasks: to forget; all where empty.
      groups: the same. Where both are empty, the tables go as they are, even damaged ones.

    Raises:
      UsageError: a table is damaged, and only some of its rows are to go.
    """
    if not tasks and not groups:
        for part in (folder, folder / ope_runs.TRUTH):
            (part / table.TABLE).unlink(missing_ok=True)
        return
    table.discard(folder, ope_runs.Row, lambda row: row.task in (tasks or [row.task])
                  and row.group in (groups or [row.group]))  # fmt: skip
    if not groups:
        table.discard(folder / ope_runs.TRUTH, ope_runs.Truth, lambda row: row.task in tasks)


def chosen(what: str, given: str, known: list[str]) -> list[str]:
    """Which of these a comma-separated list names; all where it is empty.

    Raises:
      UsageError: it names something else.
    """
    names = [name for name in given.split(",") if name]
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"unknown {what} {unknown[0]!r}: choose from {', '.join(known)}")
    return [name for name in known if name in (names or known)]


def work(
    options: Options, preset: ope_runs.Preset, groups: list[str], folder: Path, command: str, console: Console
) -> None:
    """Every piece that is missing and that no other process is at; the truth of a task first."""
    began, revision = time.perf_counter(), provenance.revision() or "not under version control"
    pieces = ope_runs.pieces(preset, groups)
    missing = [piece for piece in pieces if not ope_runs.is_done(folder, piece, preset)]
    console.print(f"{len(missing)} pieces of {len(pieces)} to do")
    prepared: ope_runs.Prepared | None = None
    for piece in missing:
        if options.max_minutes and time.perf_counter() - began > 60 * options.max_minutes:
            console.print("the time is up; the same command goes on from here")
            return
        try:
            claim = table.locked(folder, repr(piece))
        except filelock.Timeout:
            continue  # another process is at it
        with claim:
            if ope_runs.is_done(folder, piece, preset):
                continue
            if prepared is None or prepared.task != piece.task:
                prepared = ope_runs.prepare(piece.task, preset, console)
            start = time.process_time()
            ope_runs.run(folder, piece, prepared, preset, revision=revision, command=command)
            console.print(f"{piece.task} {piece.group} seed {piece.seed}: {time.process_time() - start:.0f} s of CPU")


if __name__ == "__main__":
    try:
        sys.exit(main(arguments.parse(Options, sys.argv[1:], prog="ope.py", description=__doc__)))
    except UsageError as error:
        sys.exit(f"error: {error}")
