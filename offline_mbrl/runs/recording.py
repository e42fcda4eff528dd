"""What happens between blocks: rows, TensorBoard, evaluations, checkpoints, and the wish to stop."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from offline_mbrl import export
from offline_mbrl.data import memory, stream
from offline_mbrl.runs import display, folder, playing, tensorboard
from offline_mbrl.training import checkpoint
from offline_mbrl.training import fit as fitting
from offline_mbrl.types import Learner, PyTree, Stream

POLICY = "policy"  # folder of the run that holds the last checkpoint's policy
VALIDATION_BATCHES = 10


class Stage(NamedTuple):
    """One stage of a run, as its recorder sees it."""

    run: Any  # commands.running.Run
    name: str
    learner: Learner
    num_updates: int
    saved: Mapping[str, Any]  # metadata of the checkpoint that the stage goes on from


class Recorder(NamedTuple):
    """A hook for `fit`, and what to call when the stage has ended."""

    hook: fitting.Hook
    close: Callable[[fitting.FitResult], dict[str, float]]  # saves the last checkpoint; timings of the whole stage


Figures = Callable[[fitting.Progress], dict[str, np.ndarray]]  # [S] per name; empty where nothing is due


@contextlib.contextmanager
def recorder(stage: Stage) -> Iterator[Recorder]:
    """The recorder of one stage.

    Args:
      stage: what is trained.

    Yields:
      A hook that writes one row per block and seed, with the evaluations that are due, and saves a checkpoint every
      `checkpoint_seconds` and when the run is asked to stop.
    """
    run, began = stage.run, time.monotonic()
    before = {"compile_seconds": 0.0, "update_seconds": 0.0, "updates": 0} | dict(stage.saved.get("timings", {}))
    spent, last_saved = dict(before), [began]
    extra = [_validation(stage), _evaluation(stage)]

    done, place = int(spent["updates"]), run.folder / "tensorboard" / stage.name
    with (
        display.bar(run.console, stage.name, stage.num_updates, done) as show,
        tensorboard.opened(place, run.seeds, after=done) as log,
    ):
        show(done, "compiling")

        def hook(progress: fitting.Progress) -> str | None:
            if spent["compile_seconds"] == before["compile_seconds"]:  # until `close` knows it exactly
                spent["compile_seconds"] += time.monotonic() - began - progress.seconds
                folder.write_block(run.folder, stage.name, progress.block_updates)
            spent["update_seconds"] += progress.seconds
            spent["updates"] = progress.step
            figures = dict(progress.metrics)
            any_alive = bool(np.any(jax.device_get(progress.state.alive)))
            for figure in extra if any_alive else []:
                figures |= figure(progress)
            folder.append_rows(run.folder, _rows(stage, progress.step, figures))
            log(progress.step, figures)
            show(progress.step, _in_words(figures))
            due = time.monotonic() - last_saved[0] >= run.options.checkpoint_seconds
            # When all seeds have failed, nothing is saved: what was written last is the last good state.
            if any_alive and (due or run.stopping.requested() or progress.step >= stage.num_updates):
                _save(stage, progress, spent)
                last_saved[0] = time.monotonic()
            return "terminated" if run.stopping.requested() else None

        def close(result: fitting.FitResult) -> dict[str, float]:
            return spent | {"compile_seconds": before["compile_seconds"] + result.compile_seconds}

        yield Recorder(hook, close)


def num_devices(options: Any) -> int:
    """Devices that batches of a run are split over."""
    return len(jax.devices()[: options.devices])


def source(run: Any, learner: Learner, dataset: memory.Dataset) -> memory.Dataset | Stream:
    """What `fit` is given for a dataset: itself, or the stream of what stays on the disk.

    Raises:
      UsageError: the learner's batches cannot be streamed.
    """
    if not stream.on_disk(dataset):
        return dataset
    return stream.bind(dataset, learner.sample, block_bytes=run.options.stream_mib * 2**20)


def _save(stage: Stage, progress: fitting.Progress, spent: Mapping[str, float]) -> None:
    """A checkpoint of all, and for the last stage the policy alone."""
    run = stage.run
    metadata = {
        "config": run.identity["config"], "fingerprint": run.identity["fingerprint"], "timings": dict(spent),
        "failures": {str(seed): what for seed, what in progress.failures.items()},
        "devices": num_devices(run.options), "streamed": stream.on_disk(run.data.dataset),
    }  # fmt: skip
    checkpoint.save(run.folder / "checkpoints" / stage.name, progress.step, progress.state, metadata)
    if stage.learner.policy is not None:
        save_policy(run, fitting.policy_params(stage.learner, progress.state), progress.step)


def save_policy(run: Any, params: PyTree, step: int) -> None:
    """The policies of all seeds in the format of `offline_mbrl.load_policy`."""
    reference = run.data.reference
    export.save(
        run.folder / POLICY, algorithm=run.identity["algorithm"], config=run.config, spec=run.data.spec,
        params=jax.device_get(params), seeds=run.seeds, description={
            "dataset": run.data.name, "simulator": run.data.simulator, "step": step,
            "reference": None if reference is None else list(reference), "fingerprint": run.data.fingerprint,
        })  # fmt: skip


# --- figures besides the training metrics ---


def _validation(stage: Stage) -> Figures:
    """Mean metrics of held-out batches."""
    run = stage.run
    if run.data.validation is None:
        return lambda progress: {}
    dataset = source(run, stage.learner, run.data.validation)
    measure = fitting.validation(stage.learner, dataset, key=jax.random.key(1), num_batches=VALIDATION_BATCHES)

    def figures(progress: fitting.Progress) -> dict[str, np.ndarray]:
        if not _due(stage, progress):
            return {}
        return {f"validation/{name}": value for name, value in measure(progress.state).items()}

    return figures


def _evaluation(stage: Stage) -> Figures:
    """Mean returns in the simulator, acting greedily and by sampling."""
    run = stage.run
    if stage.learner.policy is None or run.data.simulator is None or not run.options.episodes:
        return lambda progress: {}
    play = playing.make(
        stage.learner.policy, run.data.simulator, num_seeds=len(run.seeds), num_episodes=run.options.episodes_during
    )

    def figures(progress: fitting.Progress) -> dict[str, np.ndarray]:
        if not _due(stage, progress):
            return {}
        played = play(fitting.policy_params(stage.learner, progress.state), seed=0)
        for how, one in played.items():
            if not one.complete:
                run.console.print(
                    f"note: the {how} evaluation after update {progress.step} is incomplete: {one.message}"
                )
        return {f"evaluation/{how}": playing.mean_returns(one) for how, one in played.items()}

    return figures


def _due(stage: Stage, progress: fitting.Progress) -> bool:
    """Whether one of the evenly spread evaluation points was passed in this block."""
    count = stage.run.options.evaluations
    before = progress.step - progress.num_updates
    return progress.step * count // stage.num_updates > before * count // stage.num_updates


# --- rows ---


def _rows(stage: Stage, step: int, figures: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    return [
        {"stage": stage.name, "step": step, "seed": seed} | {name: float(value[i]) for name, value in figures.items()}
        for i, seed in enumerate(stage.run.seeds)
    ]


def _in_words(figures: Mapping[str, np.ndarray]) -> str:
    shown = {
        name.split("/")[-1]: value[np.isfinite(value)]
        for name, value in figures.items()
        if name.startswith(("loss/total", "evaluation/"))
    }
    return "  ".join(f"{name} {value.mean():.3f}" if value.size else f"{name} -" for name, value in shown.items())
