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
from offline_mbrl.commands import display, folder, playing, recording
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


def is_complete(outcome: Mapping[str, Any]) -> bool:
    """Whether every episode of the last evaluation was finished; one without a simulator always is."""
    return all(one["complete"] for one in outcome.get("evaluation", {}).values())


def plays(run: Any, learner: Learner) -> bool:
    """Whether a run's policies are evaluated in a simulator."""
    return run.data.simulator is not None and run.options.episodes > 0 and learner.policy is not None


def finish(
    run: Any, learner: Learner, state: fitting.FitState, failures: Mapping[int, str], timings: Mapping[str, float]
) -> dict[str, Any]:
    """Evaluates the final state, never the best one, and writes the policies, the result and the report.

    Args:
      run: commands.running.Run.
      learner: of the last stage.
      state: its last.
      failures: seed -> what became non-finite, over all stages.
      timings: of the last stage.

    Returns:
      What was written to `evaluation.json`.
    """
    from offline_mbrl.commands import report

    params = fitting.policy_params(learner, state)
    if learner.policy is not None:
        recording.save_policy(run, params, int(state.step))  # a process killed while saving left an earlier one
    outcome: dict[str, Any] = {
        "step": int(state.step), "seeds": list(run.seeds), "timings": dict(timings),
        "updates_per_second": timings["updates"] / max(timings["update_seconds"], 1e-9),
        "failures": {str(seed): what for seed, what in failures.items()},
    }  # fmt: skip
    if learner.policy is not None and plays(run, learner):
        size = {"num_seeds": len(run.seeds), "num_episodes": run.options.episodes}
        play = playing.make(learner.policy, run.data.simulator, **size)
        with display.bar(run.console, "evaluation", playing.num_played(**size)) as show:
            outcome["evaluation"] = playing.summarize(play(params, seed=1, show=show), run.data.reference)
    else:
        outcome["figures"] = _last_figures(run.folder)
    folder.write_json(run.folder / folder.EVALUATION, outcome)
    report.write(run.folder)
    return outcome


def restore_report(run_folder: Path) -> None:
    """Writes the report of a complete run again if a process was killed before it had."""
    from offline_mbrl.commands import report

    if not (run_folder / report.PAGE).exists():
        report.write(run_folder)


def _last_figures(run_folder: Path) -> dict[str, dict[str, float | None]]:
    """Per seed, the last row's held-out figures; the training losses where nothing was held out."""
    rows = [row for row in folder.read_rows(run_folder) if row["stage"] == "train"]
    for prefix in ("validation/", ""):
        having = [row for row in rows if any(name.startswith(prefix) and "/" in name for name in row)]
        last = [row for row in having if row["step"] == having[-1]["step"]]
        if last:
            return {str(row["seed"]): _figures(row, prefix) for row in last}
    return {}


def _figures(row: Mapping[str, Any], prefix: str) -> dict[str, float | None]:
    return {name: value for name, value in row.items() if name.startswith(prefix) and "/" in name}


# --- the table ---


def show(console: Console, run_folder: Path) -> None:
    """Prints the result of a complete run, and where its report is."""
    outcome, run = folder.read_json(run_folder / folder.EVALUATION), folder.read_json(run_folder / folder.RUN)
    console.print(table(run, outcome))
    for line in notes(outcome):
        console.print(line)
    console.print(f"report: {run_folder / 'report.md'}")


def table(run: Mapping[str, Any], outcome: Mapping[str, Any]) -> Table:
    """Scores per seed and aggregated, greedy and sampled; or the held-out figures where nothing was played."""
    shown = Table(title=f"{run['algorithm']} on {run['dataset']}, update {outcome['step']}")
    evaluation = outcome.get("evaluation")
    if evaluation is None:
        return _figures_table(shown, outcome["figures"])
    kind = "normalized score" if evaluation["greedy"]["normalized"] else "return"
    shown.caption = f"{kind}; IQM: interquartile mean, in brackets the 95 % bootstrap interval over seeds"
    shown.add_column("seed")
    for how in evaluation:
        shown.add_column(how, justify="right", no_wrap=True)
        shown.add_column("episodes", justify="right")
    for i, seed in enumerate(outcome["seeds"]):
        frozen = " (frozen)" if str(seed) in outcome["failures"] else ""
        cells = [cell for one in evaluation.values() for cell in (number(one["scores"][i]), str(one["episodes"][i]))]
        shown.add_row(f"{seed}{frozen}", *cells, end_section=i + 1 == len(outcome["seeds"]))
    cells = [cell for one in evaluation.values() for cell in (aggregate_in_words(one), "")]
    shown.add_row("IQM", *cells)
    return shown


def _figures_table(shown: Table, figures: Mapping[str, Mapping[str, float | None]]) -> Table:
    shown.add_column("figure")
    for seed in figures:
        shown.add_column(f"seed {seed}", justify="right")
    for name in next(iter(figures.values()), {}):
        shown.add_row(name, *(number(row.get(name)) for row in figures.values()))
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
        f"{rate:.0f} updates per second{f' of {seeds} seeds together ({rate * seeds:.0f} in all)' * (seeds > 1)}, "
        f"{timings['update_seconds']:.1f} s; compilation apart: {timings['compile_seconds']:.1f} s"
    ]
    lines += [f"seed {seed} was frozen: {what}" for seed, what in outcome["failures"].items()]
    lines += [f"{how}: {one['message']}" for how, one in outcome.get("evaluation", {}).items() if one["message"]]
    return lines


def number(value: float | None) -> str:
    """Three digits, or a dash for what is not there."""
    return "-" if value is None or not np.isfinite(value) else f"{value:.3f}"
