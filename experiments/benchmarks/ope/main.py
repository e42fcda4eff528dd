"""How well off-policy estimators rank policies whose true returns are known.

    python experiments/benchmarks/ope/main.py --preset quick
    python experiments/benchmarks/ope/main.py --tasks cartpole_swingup --groups model_ff,model_ar
    python experiments/benchmarks/ope/main.py --preset quick --report-only

For each task: snapshots of training runs are the policies to evaluate, their true discounted
returns are played in the simulator, and every estimator sees logged data of other runs alone. Every
fit is rows of `runs.csv`, added when it is finished; the same command goes on where an earlier one
was stopped. A process uses one core; start it twice to use two, the processes share the work. After
the work, or with `--report-only` from the tables alone: metrics with intervals over policies,
scatter plots, and which claims of the sources held.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Literal

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[3])

from experiments.benchmarks import command, rows
from experiments.benchmarks.ope import report, runs
from experiments.benchmarks.ope.runs import TRUTH, Piece, Preset, Row, Truth
from offline_mbrl.commands import datasets
from offline_mbrl.selection import estimators

SCRIPT = "experiments/benchmarks/ope/main.py"


@dataclasses.dataclass(frozen=True)
class Options:
    """Runs every estimator on every task and says how well each ranks the policies."""

    preset: Literal["quick", "equal_time", "full"] = "quick"
    tasks: str = ""  # comma-separated: to work at; default: all. The report is of all with rows
    # Comma-separated: estimators that share a fit; default: all but model_coupled.
    groups: str = ""
    max_minutes: float = 0.0  # start nothing new after this long; 0 without limit
    fresh: bool = False  # forget the rows that are there of these tasks and groups
    report_only: bool = False  # from the tables alone
    folder: Path | None = None  # of the results; default: under experiments/results/ope
    seeds: int | None = None  # default: the preset's; if not, give another folder too
    policies: int | None = None  # of a task, at most
    episodes: int | None = None  # of each policy in the simulator


def main(options: Options) -> int:
    """Does what is missing, then reports; the exit code."""
    console = command.screen()
    load = functools.partial(datasets.load, console=console)
    names = ("seeds", "policies", "episodes")
    changes = command.changes(options, names, folder=options.folder)
    preset = dataclasses.replace(runs.PRESETS[options.preset], **changes)
    folder = options.folder or command.RESULTS / "ope" / options.preset
    prepare = functools.partial(runs.prepare, preset=preset, load=load)
    return command.carry_out(make(options, preset, folder, prepare), folder, options, console)


def make(
    options: Options, preset: Preset, folder: Path, prepare: Callable[[str], runs.Prepared]
) -> command.Study:
    """The work and the report.

    Args:
      options: which tasks and groups.
      preset: how much is run.
      folder: of the results.
      prepare: task by name.

    Raises:
      UsageError: a task or a group is unknown.
    """
    tasks = command.chosen("task", options.tasks, preset.tasks)
    groups = command.chosen("group", options.groups or ",".join(runs.GROUPS), estimators.GROUPS)
    ahead = dataclasses.replace(preset, tasks=tuple(tasks))
    prepared = functools.lru_cache(maxsize=1)(prepare)
    origin = command.origin(SCRIPT)

    def run(piece: Piece) -> str:
        runs.run(folder, piece, prepared(piece.task), preset, origin)
        return f"{piece.task} {piece.group} seed {piece.seed}"

    def forget_choice() -> None:
        forget(folder, tasks if options.tasks else (), groups if options.groups else ())

    return command.Study(
        pieces=runs.pieces(ahead, groups),
        is_done=lambda piece: runs.is_done(folder, piece, preset),
        run=run,
        forget=forget_choice,
        report=lambda: report.write(folder, preset, preset_name=options.preset),
    )


def forget(folder: Path, tasks: Collection[str], groups: Collection[str]) -> None:
    """Takes rows out of the tables.

    True values belong to all groups, so that a choice of groups leaves them.

    Args:
      folder: of the results.
      tasks: to forget; all where empty.
      groups: the same. Where both are empty, the tables go as they are, even damaged ones.

    Raises:
      UsageError: a table is damaged, and only some of its rows are to go.
    """
    if not tasks and not groups:
        rows.clear(folder)
        rows.clear(folder / TRUTH)
        return

    def goes(row: Row) -> bool:
        return row.task in (tasks or [row.task]) and row.group in (groups or [row.group])

    rows.discard(folder, Row, goes)
    if not groups:
        rows.discard(folder / TRUTH, Truth, lambda row: row.task in tasks)


if __name__ == "__main__":
    command.run_script(main, Options, __doc__)
