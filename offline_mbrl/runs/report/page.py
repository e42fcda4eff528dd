"""A run's page, `report.md`, and its learning curve."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from offline_mbrl import files
from offline_mbrl.evaluation import aggregate
from offline_mbrl.runs import folder
from offline_mbrl.runs.report import tables

CURVE = "learning_curve.png"
PAGE = "report.md"


def write(run_folder: Path) -> Path:
    """Writes the page and the picture of a complete run.

    Raises:
      UsageError: the folder is not that of a complete run.
    """
    run = folder.read_json(run_folder / folder.RUN)
    outcome = folder.read_json(run_folder / folder.EVALUATION)
    draw(run_folder, run)
    lines = [
        f"# {run['algorithm']} on {run['dataset']}",
        f"The last checkpoint, update {outcome['step']}; never the best.",
        "\n".join(tables.markdown(outcome)),
        "\n".join(tables.notes(outcome)),
        f"![learning curve]({CURVE})",
        "## Made with",
        "\n".join(_provenance(run)),
        "## Settings",
        f"```json\n{json.dumps(run.get('settings', run['config']), indent=1)}\n```\n",
    ]
    path = run_folder / PAGE
    files.write_whole(path, lambda path: path.write_text("\n\n".join(lines)))
    return path


def _provenance(run: Mapping[str, Any]) -> list[str]:
    return [
        f"- command: `{' '.join(run['command'])}`",
        f"- code: {run['revision'] or 'not under version control'}",
        f"- dataset: {run['dataset']}, fingerprint {run['fingerprint']}",
        f"- device: {run['device']['count']} x {run['device']['kind']}",
        f"- precision of updates: {run.get('precision', 'float32')}",
        "- versions: "
        f"{', '.join(f'{name} {version}' for name, version in run['versions'].items())}",
    ]


# --- the learning curve ---


def draw(run_folder: Path, run: Mapping[str, Any]) -> None:
    """Scores (or held-out loss) against updates: a thin line per seed, a thick one for their
    interquartile mean."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in folder.read_rows(run_folder) if row["stage"] == "train"]
    curves = _curves(rows, run["seeds"], run.get("reference"))
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for color, (name, (steps, table)) in enumerate(curves.items()):
        axes.plot(steps, table, color=f"C{color}", alpha=0.25, linewidth=0.8)
        axes.plot(
            steps, aggregate.interquartile_mean(table[:, :, None]), color=f"C{color}", label=name
        )
    axes.set(
        xlabel="updates", ylabel=_axis(curves, run), title=f"{run['algorithm']} on {run['dataset']}"
    )
    axes.grid(alpha=0.3)
    axes.legend()
    files.write_whole(run_folder / CURVE, lambda path: figure.savefig(path, dpi=150, format="png"))


def _curves(
    rows: Sequence[Mapping[str, Any]], seeds: Sequence[int], reference: Sequence[float] | None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name -> (steps [P], values [P, S]): what was played, else the held-out loss, else the
    training loss."""
    names = {name for row in rows for name in row}
    played = sorted(name for name in names if name.startswith("evaluation/"))
    losses = [name for name in ("validation/loss/total", "loss/total") if name in names]
    curves = {}
    for name in played or losses[:1]:
        table: dict[int, dict[int, float]] = {}
        for row in rows:
            if row.get(name) is not None:
                table.setdefault(row["step"], {})[row["seed"]] = row[name]
        steps = sorted(table)
        values = np.array(
            [[table[step].get(seed, np.nan) for seed in seeds] for step in steps]
        ).reshape(-1, len(seeds))
        if reference is not None and name.startswith("evaluation/"):
            values = aggregate.normalized_score(values, *reference)
        curves[name.removeprefix("evaluation/")] = (np.array(steps), values)
    return curves


def _axis(curves: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    if not {"greedy", "sampled"} & set(curves):
        return "loss"
    return "return" if run.get("reference") is None else "normalized score"
