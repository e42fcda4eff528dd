"""The result of a run: made once from the last checkpoint, shown as a table, written as a report."""

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from offline_mbrl import fit as fitting
from offline_mbrl.commands import folder, playing
from offline_mbrl.data import provenance
from offline_mbrl.types import Learner

LIBRARIES = ("offline_mbrl", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def environment(command: list[str]) -> dict[str, Any]:
    """Where a run was made: command, code revision, versions, device."""
    return {
        "command": [Path(command[0]).name, *command[1:]], "revision": provenance.revision(),
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "device": {"kind": jax.devices()[0].device_kind, "count": jax.device_count()},
    }  # fmt: skip


def read(run_folder: Path) -> dict[str, Any] | None:
    """The result of a complete run, else None."""
    path = run_folder / folder.EVALUATION
    return folder.read_json(path) if path.exists() else None


def finish(run: Any, learner: Learner, result: fitting.FitResult, timings: Mapping[str, float]) -> None:
    """Evaluates the final state, never the best one, and writes the result and the report."""
    from offline_mbrl.commands import report

    params = fitting.policy_params(learner, result.state)
    outcome: dict[str, Any] = {
        "step": int(result.state.step), "seeds": list(run.seeds), "timings": timings,
        "updates_per_second": timings["updates"] / timings["update_seconds"],
        "flops_per_update": result.flops_per_update,
        "failures": {str(seed): what for seed, what in result.failures.items()},
    }  # fmt: skip
    if run.data.simulator is not None and run.options.episodes and learner.policy is not None:
        with run.console.status("evaluating"):
            play = playing.make(
                learner.policy, run.data.simulator, num_seeds=len(run.seeds), num_episodes=run.options.episodes
            )
            outcome["evaluation"] = playing.summarize(play(params, seed=1), run.data.reference)
    else:
        outcome["validation"] = _last_validation(run.folder)
    folder.write_json(run.folder / folder.EVALUATION, outcome)
    report.write(run.folder)


def _last_validation(run_folder: Path) -> dict[str, dict[str, float]]:
    """Per seed, the held-out figures of the last row that has them."""
    last: dict[str, dict[str, float]] = {}
    for row in folder.read_rows(run_folder):
        figures = {name: value for name, value in row.items() if name.startswith("validation/")}
        if row["stage"] == "train" and figures:
            last[str(row["seed"])] = {"step": row["step"]} | figures
    return last


# --- the table ---


def show(console: Console, run_folder: Path) -> None:
    """Prints the result of a complete run, and where its report is."""
    outcome, run = folder.read_json(run_folder / folder.EVALUATION), folder.read_json(run_folder / folder.RUN)
    console.print(table(run, outcome))
    for line in notes(outcome):
        console.print(line)
    console.print(f"report: {run_folder / 'report.md'}")


def table(run: Mapping[str, Any], outcome: Mapping[str, Any]) -> Table:
    """Scores per seed and aggregated, greedy and sampled; or the validation figures where nothing was played."""
    shown = Table(title=f"{run['algorithm']} on {run['dataset']}, update {outcome['step']}")
    evaluation = outcome.get("evaluation")
    if evaluation is None:
        return _validation_table(shown, outcome)
    kind = "normalized score" if evaluation["greedy"]["normalized"] else "return"
    shown.caption = f"{kind}; IQM: interquartile mean, in brackets the 95 % bootstrap interval over seeds"
    shown.add_column("seed")
    for how in evaluation:
        shown.add_column(how, justify="right", no_wrap=True)
        shown.add_column("episodes", justify="right")
    for i, seed in enumerate(outcome["seeds"]):
        frozen = " (frozen)" if str(seed) in outcome["failures"] else ""
        cells = [cell for one in evaluation.values() for cell in (_number(one["scores"][i]), str(one["episodes"][i]))]
        shown.add_row(f"{seed}{frozen}", *cells, end_section=i + 1 == len(outcome["seeds"]))
    cells = [cell for one in evaluation.values() for cell in (aggregate_in_words(one), "")]
    shown.add_row("IQM", *cells)
    return shown


def _validation_table(shown: Table, outcome: Mapping[str, Any]) -> Table:
    rows = outcome["validation"]
    shown.add_column("validation figure")
    for seed in rows:
        shown.add_column(f"seed {seed}", justify="right")
    for name in next(iter(rows.values()), {}):
        shown.add_row(name.removeprefix("validation/"), *(_number(row.get(name)) for row in rows.values()))
    return shown


def aggregate_in_words(one: Mapping[str, Any]) -> str:
    """Interquartile mean and interval of one way of acting."""
    if not one["complete"]:
        return "incomplete"
    low, high = one["interval"]
    return f"{one['interquartile_mean']:.3f} [{low:.3f}, {high:.3f}]"


def notes(outcome: Mapping[str, Any]) -> list[str]:
    """Speed, and whatever went wrong, one line each."""
    timings, seeds = outcome["timings"], len(outcome["seeds"])
    rate = outcome["updates_per_second"]
    lines = [
        f"{rate:.0f} updates per second of {seeds} seed{'s' * (seeds > 1)} together ({rate * seeds:.0f} in all), "
        f"{timings['update_seconds']:.1f} s; compilation apart: {timings['compile_seconds']:.1f} s"
    ]
    lines += [f"seed {seed} was frozen: {what}" for seed, what in outcome["failures"].items()]
    lines += [f"{how}: {one['message']}" for how, one in outcome.get("evaluation", {}).items() if one["message"]]
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None or not np.isfinite(value) else f"{value:.3f}"
