"""`offline-mbrl report RUN ...`: a page and a learning curve per run, and a table over several."""

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.table import Table

from offline_mbrl.commands import arguments
from offline_mbrl.runs import display, folder
from offline_mbrl.runs.report import page, tables
from offline_mbrl.types import UsageError


@dataclass(frozen=True)
class Options:
    """Writes report.md and learning_curve.png into each run's folder; prints a table of all."""

    runs: tyro.conf.Positional[tuple[Path, ...]]  # run folders


def main(argv: list[str]) -> int:
    """Runs the command; see `cli`."""
    options = arguments.parse(Options, argv, prog="offline-mbrl report")
    if not options.runs:
        raise UsageError("name at least one run folder: offline-mbrl report RUN ...")
    console = display.console()
    compared = Table(title="runs")
    for column in ("run", "algorithm", "dataset", "update", "seeds", "greedy", "sampled"):
        compared.add_column(column)
    complete = [run for run in options.runs if (run / folder.EVALUATION).exists()]
    for run_folder in sorted(set(options.runs) - set(complete)):
        console.print(f"note: {run_folder} is passed over: it holds no complete run")
    if not complete:
        raise UsageError(
            "none of these folders holds a complete run: `offline-mbrl train` completes one"
        )
    for run_folder in complete:
        run = folder.read_json(run_folder / folder.RUN)
        outcome = folder.read_json(run_folder / folder.EVALUATION)
        page.write(run_folder)
        evaluations = outcome.get("evaluation", {}).values()
        scores = [tables.aggregate_in_words(evaluation) for evaluation in evaluations]
        compared.add_row(
            run_folder.name,
            run["algorithm"],
            run["dataset"],
            str(outcome["step"]),
            str(len(outcome["seeds"])),
            *(scores or ["-", "-"]),
        )
    console.print(compared)
    for run_folder in complete:
        console.print(f"report: {run_folder / page.PAGE}")
    return 0
