"""`offline-mbrl report RUN ...`: a page and a learning curve per run, and one table over several."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.table import Table

from offline_mbrl.commands import arguments, display, folder, results
from offline_mbrl.evaluation import aggregate
from offline_mbrl.types import UsageError

CURVE, PAGE = "learning_curve.png", "report.md"


@dataclass(frozen=True)
class Options:
    """Writes report.md and learning_curve.png into each run's folder, and prints a table over all of them."""

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
    for run_folder in options.runs:
        run, outcome = folder.read_json(run_folder / folder.RUN), folder.read_json(run_folder / folder.EVALUATION)
        write(run_folder)
        played = [results.aggregate_in_words(one) for one in outcome.get("evaluation", {}).values()] or ["-", "-"]
        sizes = (str(outcome["step"]), str(len(outcome["seeds"])))
        compared.add_row(run_folder.name, run["algorithm"], run["dataset"], *sizes, *played)
    console.print(compared)
    for run_folder in options.runs:
        console.print(f"report: {run_folder / PAGE}")
    return 0


def write(run_folder: Path) -> Path:
    """Writes the page and the picture of a complete run.

    Raises:
      UsageError: the folder is not that of a complete run.
    """
    run, outcome = folder.read_json(run_folder / folder.RUN), folder.read_json(run_folder / folder.EVALUATION)
    draw(run_folder, run)
    lines = [
        f"# {run['algorithm']} on {run['dataset']}",
        f"The last checkpoint, update {outcome['step']}; never the best.",
        "\n".join(_table(outcome)),
        "\n".join(results.notes(outcome)),
        f"![learning curve]({CURVE})",
        "## Made with",
        "\n".join(_provenance(run)),
        "## Settings",
        f"```json\n{json.dumps(run['config'], indent=1)}\n```\n",
    ]
    path, unfinished = run_folder / PAGE, run_folder / f".{PAGE}.unfinished"
    unfinished.write_text("\n\n".join(lines))
    unfinished.rename(path)
    return path


def _provenance(run: Mapping[str, Any]) -> list[str]:
    return [
        f"- command: `{' '.join(run['command'])}`",
        f"- code: {run['revision'] or 'not under version control'}",
        f"- dataset: {run['dataset']}, fingerprint {run['fingerprint']}",
        f"- device: {run['device']['count']} x {run['device']['kind']}",
        f"- versions: {', '.join(f'{name} {version}' for name, version in run['versions'].items())}",
    ]


def _table(outcome: Mapping[str, Any]) -> list[str]:
    evaluation = outcome.get("evaluation")
    if evaluation is None:
        rows = outcome["figures"]
        names = list(next(iter(rows.values()), {}))
        lines = [["figure", *(f"seed {seed}" for seed in rows)]]
        return _markdown(lines + [[name, *(results.number(row.get(name)) for row in rows.values())] for name in names])
    kind = "normalized score" if evaluation["greedy"]["normalized"] else "return"
    lines = [["seed", *(f"{how}: {kind}" for how in evaluation), "episodes"]]
    for i, seed in enumerate(outcome["seeds"]):
        scores = [results.number(one["scores"][i]) for one in evaluation.values()]
        lines.append([str(seed), *scores, str(evaluation["greedy"]["episodes"][i])])
    lines.append(["interquartile mean [95 %]", *map(results.aggregate_in_words, evaluation.values()), ""])
    return _markdown(lines)


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [lines[0], f"|{'---|' * len(rows[0])}", *lines[1:]]


# --- the learning curve ---


def draw(run_folder: Path, run: Mapping[str, Any]) -> None:
    """Scores (or held-out loss) against updates: a thin line per seed, a thick one for their interquartile mean."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in folder.read_rows(run_folder) if row["stage"] == "train"]
    curves = _curves(rows, run["seeds"], run.get("reference"))
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for color, (name, (steps, table)) in enumerate(curves.items()):
        axes.plot(steps, table, color=f"C{color}", alpha=0.25, linewidth=0.8)
        axes.plot(steps, aggregate.interquartile_mean(table[:, :, None]), color=f"C{color}", label=name)
    axes.set(xlabel="updates", ylabel=_axis(curves, run), title=f"{run['algorithm']} on {run['dataset']}")
    axes.grid(alpha=0.3)
    axes.legend()
    unfinished = run_folder / f".{CURVE}.unfinished"
    figure.savefig(unfinished, dpi=150, format="png")
    unfinished.rename(run_folder / CURVE)


def _curves(
    rows: Sequence[Mapping[str, Any]], seeds: Sequence[int], reference: Sequence[float] | None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name -> (steps [P], values [P, S]): what was played, else the held-out loss, else the training loss."""
    known = {name for row in rows for name in row}
    played = sorted(name for name in known if name.startswith("evaluation/"))
    losses = [name for name in ("validation/loss/total", "loss/total") if name in known]
    curves = {}
    for name in played or losses[:1]:
        table: dict[int, dict[int, float]] = {}
        for row in rows:
            if row.get(name) is not None:
                table.setdefault(row["step"], {})[row["seed"]] = row[name]
        steps = sorted(table)
        values = np.array([[table[step].get(seed, np.nan) for seed in seeds] for step in steps]).reshape(-1, len(seeds))
        if reference is not None and name.startswith("evaluation/"):
            values = aggregate.normalized_score(values, *reference)
        curves[name.removeprefix("evaluation/")] = (np.array(steps), values)
    return curves


def _axis(curves: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    if not {"greedy", "sampled"} & set(curves):
        return "loss"
    return "return" if run.get("reference") is None else "normalized score"
