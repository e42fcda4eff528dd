"""The result of a run: made once from the last checkpoint, shown as a table, written as a
report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from offline_mbrl import provenance
from offline_mbrl.data.catalog import official
from offline_mbrl.runs import display, folder, playing, recording
from offline_mbrl.runs import memory as process_memory
from offline_mbrl.runs.report import page, tables
from offline_mbrl.runs.run import FolderRun
from offline_mbrl.training import fit as fitting
from offline_mbrl.types import Context, Learner


def environment(command: list[str]) -> dict[str, Any]:
    """Where a run was made: command, code revision, versions, device."""
    return {
        "command": [Path(command[0]).name, *command[1:]],
        "revision": provenance.revision(),
        "versions": provenance.versions(),
        "device": {"kind": jax.devices()[0].device_kind, "count": jax.device_count()},
    }


def read(run_folder: Path) -> dict[str, Any] | None:
    """The result of a complete run, else None."""
    path = run_folder / folder.EVALUATION
    return folder.read_json(path) if path.exists() else None


def is_complete(outcome: Mapping[str, Any]) -> bool:
    """Whether every episode of the last evaluation was finished, or none was to be played."""
    return all(summary["complete"] for summary in outcome.get("evaluation", {}).values())


def plays(run: FolderRun, learner: Learner) -> bool:
    """Whether a run's policies are evaluated in a simulator."""
    return (
        run.data.simulator is not None and run.options.episodes > 0 and learner.policy is not None
    )


def finish(
    run: FolderRun,
    learner: Learner,
    state: fitting.FitState,
    context: Context,
    *,
    failures: Mapping[int, str],
    timings: Mapping[str, float],
    memory: process_memory.Resident,
    player: playing.Player | None,
) -> dict[str, Any]:
    """Evaluates the final state, never the best, and writes policies, result and report.

    Args:
      run: the run.
      learner: of the last stage.
      state: its last.
      context: its constants.
      failures: seed -> what became non-finite, over all stages.
      timings: of the last stage.
      memory: what this process had resident while training.
      player: plays the policies; None where there is no simulator.

    Returns:
      What was written to `evaluation.json`.
    """
    params = fitting.policy_params(learner, state, context)
    if learner.policy is not None:
        # A process killed while saving left an earlier policy.
        recording.save_policy(run, params, int(state.step))
    outcome: dict[str, Any] = {
        "step": int(state.step),
        "seeds": list(run.seeds),
        "timings": dict(timings),
        "updates_per_second": timings["updates"] / max(timings["update_seconds"], 1e-9),
        "failures": {str(seed): reason for seed, reason in failures.items()},
        "resident_bytes": memory._asdict(),
    }
    if player is not None:
        num_episodes = run.options.episodes
        total = playing.num_played(len(run.seeds), num_episodes)
        with display.bar(run.console, "evaluation", total) as show:
            played = player.play(params, seed=1, num_episodes=num_episodes, show=show)
        human = official.human_reference(run.data.simulator or "")
        outcome["evaluation"] = playing.summarize(played, run.data.reference, human)
    else:
        outcome["figures"] = _last_figures(run.folder)
    folder.write_json(run.folder / folder.EVALUATION, outcome)
    page.write(run.folder)
    return outcome


def restore_report(run_folder: Path) -> None:
    """Writes the report of a complete run again if a process was killed before it had."""
    if not (run_folder / page.PAGE).exists():
        page.write(run_folder)


def _last_figures(run_folder: Path) -> dict[str, dict[str, float | None]]:
    """Per seed, the last row's held-out figures; the training losses where nothing was held out."""
    rows = [row for row in folder.read_rows(run_folder) if row["stage"] == "train"]
    for prefix in ("validation/", ""):
        having = [
            row for row in rows if any(name.startswith(prefix) and "/" in name for name in row)
        ]
        last = [row for row in having if row["step"] == having[-1]["step"]]
        if last:
            return {str(row["seed"]): _figures(row, prefix) for row in last}
    return {}


def _figures(row: Mapping[str, Any], prefix: str) -> dict[str, float | None]:
    return {name: value for name, value in row.items() if name.startswith(prefix) and "/" in name}


def show(console: Console, run_folder: Path) -> None:
    """Prints the result of a complete run, and where its report is."""
    outcome = folder.read_json(run_folder / folder.EVALUATION)
    run = folder.read_json(run_folder / folder.RUN)
    console.print(tables.table(run, outcome))
    for line in tables.notes(outcome):
        console.print(line)
    console.print(f"report: {run_folder / page.PAGE}")
