"""What happens between blocks: rows, TensorBoard, evaluations, checkpoints, and the wish to
stop."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from offline_mbrl import export
from offline_mbrl.data import stream
from offline_mbrl.runs import display, folder, playing, tensorboard
from offline_mbrl.runs.run import FolderRun, num_devices, source
from offline_mbrl.training import checkpoint
from offline_mbrl.training import fit as fitting
from offline_mbrl.training.stages import ending_rule
from offline_mbrl.types import Context, PyTree, Stage

POLICY = "policy"  # folder of the run that holds the last checkpoint's policy
VALIDATION_BATCHES = 10


class RecordedStage(NamedTuple):
    """One stage of a run, as its recorder sees it."""

    run: FolderRun
    name: str
    stage: Stage
    context: Context
    saved: Mapping[str, Any]  # metadata of the checkpoint that the stage is resumed from
    player: playing.Player | None = None  # plays its policies; None: nothing is played


class Recorder(NamedTuple):
    """A hook for `fit`, and what to ask when the stage has ended."""

    hook: fitting.Hook
    timings: Callable[[fitting.FitResult], dict[str, float]]  # of the whole stage
    finished_by: Callable[[], str | None]  # the stage's own rule's reason, if that ended it


Figures = Callable[
    [fitting.Progress], dict[str, np.ndarray]
]  # [S] per name; empty where nothing is due


@contextlib.contextmanager
def recorder(recorded: RecordedStage) -> Iterator[Recorder]:
    """The recorder of one stage.

    Args:
      recorded: what is trained.

    Yields:
      A hook that writes one row per block and seed, with the evaluations that are due, and saves a
      checkpoint every `checkpoint_seconds`, when the run is asked to stop, and at the stage's end.
    """
    run = recorded.run
    stage = recorded.stage
    began = time.monotonic()
    earlier = {"compile_seconds": 0.0, "update_seconds": 0.0, "updates": 0}
    earlier |= dict(recorded.saved.get("timings", {}))
    spent = dict(earlier)
    last_saved = began
    planned = dict(recorded.saved.get("planned", {}))
    measures = [_validation(recorded), _evaluation(recorded, planned)]
    rule, finished_by = ending_rule(stage.hooks)
    updates_before = int(spent["updates"])
    log_folder = run.folder / "tensorboard" / recorded.name
    with (
        display.bar(run.console, recorded.name, stage.num_updates, updates_before) as show,
        tensorboard.opened(log_folder, run.seeds, after=updates_before) as log,
    ):
        show(updates_before, "compiling")

        def hook(progress: fitting.Progress) -> str | None:
            nonlocal last_saved
            if spent["compile_seconds"] == earlier["compile_seconds"]:  # known exactly at the end
                spent["compile_seconds"] += time.monotonic() - began - progress.seconds
                folder.write_block(run.folder, recorded.name, progress.block_updates)
            spent["update_seconds"] += progress.seconds
            spent["updates"] = progress.step
            any_alive = bool(np.any(jax.device_get(progress.state.alive)))
            figures = dict(progress.metrics)
            for measure in measures if any_alive else []:
                figures |= measure(progress)
            folder.append_rows(run.folder, _rows(recorded, progress.step, figures))
            log(progress.step, figures)
            show(progress.step, _in_words(figures))
            finished = rule(progress)
            due = time.monotonic() - last_saved >= run.options.checkpoint_seconds
            at_end = finished is not None or progress.step >= stage.num_updates
            # When all seeds have failed nothing is saved: what was written last is the last good
            # state.
            if any_alive and (due or at_end or run.stopping.requested()):
                _save(recorded, progress, spent, planned, finished)
                last_saved = time.monotonic()
            return finished or ("terminated" if run.stopping.requested() else None)

        def timings(result: fitting.FitResult) -> dict[str, float]:
            compile_seconds = earlier["compile_seconds"] + result.compile_seconds
            return spent | {"compile_seconds": compile_seconds}

        yield Recorder(hook=hook, timings=timings, finished_by=finished_by)


def _save(
    recorded: RecordedStage,
    progress: fitting.Progress,
    spent: Mapping[str, float],
    planned: Mapping[str, int],
    finished: str | None,
) -> None:
    """A checkpoint of all, and of a stage that has one the policy alone."""
    run = recorded.run
    metadata = {
        "config": run.identity["config"],
        "fingerprint": run.identity["fingerprint"],
        "timings": dict(spent),
        "planned": dict(planned),
        "failures": {str(seed): reason for seed, reason in progress.failures.items()},
        "devices": num_devices(run.options),
        "streamed": stream.on_disk(run.data.dataset),
        "finished": finished,
    }
    directory = run.folder / "checkpoints" / recorded.name
    checkpoint.save(directory, progress.step, progress.state, metadata)
    if recorded.stage.learner.policy is not None:
        params = fitting.policy_params(recorded.stage.learner, progress.state, recorded.context)
        save_policy(run, params, progress.step)


def save_policy(run: FolderRun, params: PyTree, step: int) -> None:
    """The policies of all seeds in the format of `offline_mbrl.load_policy`."""
    reference = run.data.reference
    export.save(
        run.folder / POLICY,
        algorithm=run.identity["algorithm"],
        config=run.config,
        spec=run.data.spec,
        params=jax.device_get(params),
        seeds=run.seeds,
        description={
            "dataset": run.data.name,
            "simulator": run.data.simulator,
            "step": step,
            "reference": None if reference is None else list(reference),
            "fingerprint": run.data.fingerprint,
        },
    )


# --- figures besides the training metrics ---


def _validation(recorded: RecordedStage) -> Figures:
    """Mean losses of held-out batches."""
    run = recorded.run
    learner = recorded.stage.learner
    if run.data.validation is None or learner.validate is None:
        return lambda progress: {}
    measure = fitting.validation(
        learner,
        source(run, learner, run.data.validation),
        key=jax.random.key(1),
        num_batches=VALIDATION_BATCHES,
        context=recorded.context,
    )

    def figures(progress: fitting.Progress) -> dict[str, np.ndarray]:
        if not _due(recorded, progress, run.options.evaluations):
            return {}
        return {f"validation/{name}": value for name, value in measure(progress.state).items()}

    return figures


def _evaluation(recorded: RecordedStage, planned: dict[str, int]) -> Figures:
    """Mean returns in the simulator, acting greedily and by sampling.

    Args:
      recorded: the stage.
      planned: its "evaluations" is the number of evaluations of the stage, which is decided at the
        first block; later processes keep it.
    """
    run = recorded.run
    learner = recorded.stage.learner
    player = recorded.player
    if player is None or not run.options.evaluations:
        return lambda progress: {}

    def figures(progress: fitting.Progress) -> dict[str, np.ndarray]:
        if "evaluations" not in planned:
            planned["evaluations"] = _num_evaluations(recorded, player, progress)
        if not _due(recorded, progress, planned["evaluations"]):
            return {}
        params = fitting.policy_params(learner, progress.state, recorded.context)
        played = player.play(params, seed=0, num_episodes=run.options.episodes_during)
        for manner, evaluation in played.items():
            if not evaluation.complete:
                run.console.print(
                    f"note: the {manner} evaluation after update {progress.step} is incomplete: "
                    f"{evaluation.message}"
                )
        return {
            f"evaluation/{manner}": playing.mean_returns(evaluation)
            for manner, evaluation in played.items()
        }

    return figures


def _num_evaluations(
    recorded: RecordedStage, player: playing.Player, progress: fitting.Progress
) -> int:
    """The evaluations that the stage's time allows for; prints what they cost."""
    run = recorded.run
    requested = run.options.evaluations
    params = fitting.policy_params(recorded.stage.learner, progress.state, recorded.context)
    length = _mean_episode_length(run)
    evaluation_seconds = player.seconds(params, run.options.episodes_during, length)
    training_seconds = progress.seconds / progress.num_updates * recorded.stage.num_updates
    allowed = playing.affordable(
        requested, evaluation_seconds, training_seconds, run.options.evaluation_share
    )
    run.console.print(playing.cost(requested, allowed, evaluation_seconds))
    return allowed


def _mean_episode_length(run: FolderRun) -> float | None:
    """Steps of the data's episodes; None where they stay on the disk."""
    if stream.on_disk(run.data.dataset):
        return None
    ends = np.asarray(run.data.dataset.episode_end)
    return len(ends) / (1 + np.count_nonzero(ends[1:] != ends[:-1]))


def _due(recorded: RecordedStage, progress: fitting.Progress, count: int) -> bool:
    """Whether one of `count` evenly spread points was passed in this block."""
    total = recorded.stage.num_updates
    before = progress.step - progress.num_updates
    return progress.step * count // total > before * count // total


# --- rows ---


def _rows(
    recorded: RecordedStage, step: int, figures: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    return [
        {"stage": recorded.name, "step": step, "seed": seed}
        | {name: float(value[index]) for name, value in figures.items()}
        for index, seed in enumerate(recorded.run.seeds)
    ]


def _in_words(figures: Mapping[str, np.ndarray]) -> str:
    shown = {
        name.split("/")[-1]: value[np.isfinite(value)]
        for name, value in figures.items()
        if name.startswith(("loss/total", "evaluation/"))
    }
    return "  ".join(
        f"{name} {value.mean():.3f}" if value.size else f"{name} -" for name, value in shown.items()
    )
