"""One run of `offline-mbrl train`: its stages one after the other, each from its last checkpoint on."""

import dataclasses
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from rich.console import Console

from offline_mbrl.data import stream
from offline_mbrl.data.catalog import names
from offline_mbrl.data.catalog.load import Loaded
from offline_mbrl.runs import display, folder, playing, recording, results, stopping
from offline_mbrl.runs import memory as process_memory
from offline_mbrl.runs.options import Options
from offline_mbrl.training import checkpoint, compilation, feeding, sharding
from offline_mbrl.training import fit as fitting
from offline_mbrl.types import Algorithm, Learner, PyTree, Stream, UsageError

MAIN = "train"  # the name of the last stage
# Bytes of the columns from which on they stay on the disk. No share of this machine's memory: whether a run streams
# decides which batches it draws, and that must not depend on where it runs.
STREAM_ABOVE = {"auto": 2 * 2**30, "always": -1, "never": None}


class Run(NamedTuple):
    """What a run is made of; nothing here changes."""

    folder: Path
    options: Options
    seeds: tuple[int, ...]
    stages: dict[str, Learner]  # in order; the last is MAIN
    config: Any
    data: Loaded
    identity: dict[str, Any]  # what `folder.opened` compares
    console: Console
    stopping: stopping.Stopping


class StageEnd(NamedTuple):
    """How a stage ended, in this process or in an earlier one."""

    state: fitting.FitState
    failures: dict[int, str]  # seed -> what became non-finite
    stopped: str | None  # why before its last update
    timings: dict[str, float]  # over all processes
    memory: process_memory.Resident  # of this process, the largest while training


def run(
    name: str, algorithm: Algorithm, options: Options, config: Any, preset: str, *, load: Callable[..., Loaded]
) -> int:  # fmt: skip
    """Trains, evaluates and reports; or goes on where an earlier process stopped.

    Args:
      name: of the algorithm.
      algorithm: its registry entry.
      options: of the command.
      config: the algorithm's settings.
      preset: the name of the settings that `config` started from, or "".
      load: `(name, console, **settings)` to the data; what is absent is generated.

    Returns:
      The exit code; see `cli`.

    Raises:
      UsageError: bad input.
    """
    _keep_quiet()
    compilation.enable()
    _check_devices(options)
    console = display.console(plain=options.plain)
    path = options.run_dir or Path("runs") / f"{name}-{_slug(names.lookup(options.dataset).name)}"
    folder.check_writable(path)  # before an hour of data generation, not after
    try:
        with stopping.on_sigterm() as asked:
            data = load(
                options.dataset, console, verify=options.verify, on_nonfinite=options.on_nonfinite,
                stream_above=STREAM_ABOVE[options.stream])  # fmt: skip
            # Learners refuse what does not fit before there is a folder.
            stages = {**algorithm.pretrain(config, data.spec), MAIN: algorithm.make(config, data.spec)}
            seeds = tuple(range(options.first_seed, options.first_seed + options.seeds))
            identity = {
                "algorithm": name, "dataset": data.name, "fingerprint": data.fingerprint, "seeds": seeds,
                "config": dataclasses.asdict(config),
            }  # fmt: skip
            about = {"preset": preset, "reference": data.reference, "simulator": data.simulator}
            made = Run(path, options, seeds, stages, config, data, identity, console, asked)
            _say_whether_streaming(made)
            _check_split(made)
            _check_simulator(made)
            with folder.opened(path, identity | about | results.environment(sys.argv)):
                return _train(made)
    except stopping.Terminated:
        console.print("Terminated; the same command goes on from the last checkpoint.")
        return stopping.EXIT_CODE


def _keep_quiet() -> None:
    """Keeps libraries from printing what costs the run nothing, or is told anyway."""
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:  # of array writers that answer after a failed save, which has been reported
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._" else "-" for c in name).strip("-.")


def _check_devices(options: Options) -> None:
    if options.devices is not None and options.devices > len(jax.devices()):
        raise UsageError(f"--devices must lie in 1..{len(jax.devices())} here, got {options.devices}")


def _say_whether_streaming(run: Run) -> None:
    if not stream.on_disk(run.data.dataset):
        return
    for stage in run.stages.values():  # what cannot be streamed is refused here
        recording.source(run, stage, run.data.dataset)
    size = process_memory.in_words(stream.size(run.data.dataset))
    run.console.print(
        f"Streaming {run.data.name}: {size} of columns stay on the disk, {run.options.stream_mib} MiB of batches are "
        "read ahead; `--stream never` would load the columns whole.")  # fmt: skip


def _check_split(run: Run) -> None:
    """Refuses batches that cannot be split over the devices."""
    if (mesh := _mesh(run.options)) is None:
        return
    split = sharding.split_batch(mesh)
    for stage in run.stages.values():
        drawing, dataset = feeding.drawn(stage, recording.source(run, stage, run.data.dataset))
        jax.eval_shape(lambda data, key: split(drawing.sample(data, key)), dataset, stage_key(MAIN))  # noqa: B023


def _mesh(options: Options) -> Mesh | None:
    devices = jax.devices()[: options.devices]
    return sharding.mesh(devices) if len(devices) > 1 else None


def _check_simulator(run: Run) -> None:
    """Refuses a simulator that is missing or does not fit, before any training."""
    if not results.plays(run, run.stages[MAIN]) or (run.folder / folder.EVALUATION).exists():
        return
    try:
        playing.check(run.data.simulator or "", run.data.spec)
    except UsageError as error:
        raise UsageError(f"{error}; --episodes 0 trains without a simulator") from error


def _train(run: Run) -> int:
    done = results.read(run.folder)
    if done and results.is_complete(done):
        run.console.print(f"The run in {run.folder} is complete; nothing is trained again.")
        results.restore_report(run.folder)
        results.show(run.console, run.folder)
        return 0
    given: dict[str, PyTree] = {}
    failures: dict[int, str] = {}
    end = None
    for name, stage in run.stages.items():
        end = _run_stage(run, name, stage, given)
        if run.stopping.requested():
            run.console.print(f"Terminated after update {int(end.state.step)} of {name}; the same command goes on.")
            return stopping.EXIT_CODE
        if end.stopped:
            return _failed(run, name, end.stopped)
        failures = {seed: f"{what}, stage {name}" for seed, what in end.failures.items()} | failures
        given[name] = fitting.policy_params(stage, end.state)
    assert end is not None
    outcome = results.finish(run, run.stages[MAIN], end.state, failures, end.timings, end.memory)
    run.console.print(f"resident memory, largest while training: {process_memory.describe(end.memory)}")
    results.show(run.console, run.folder)
    return 0 if results.is_complete(outcome) else 1


def _failed(run: Run, stage: str, why: str) -> int:
    """Says which figure ended the run and what is left of it."""
    step = checkpoint.latest(directory := run.folder / "checkpoints" / stage)
    left = f"the last good checkpoint is {directory / f'{step:09d}'}" if step else "no checkpoint was made before that"
    print(f"error: stage {stage}: {why}; {left}", file=sys.stderr)
    return 1


# --- a stage ---


def num_updates(config: Any, stage: str) -> int:
    """Updates of a stage: `config.STAGE_updates` where the config has it, else `config.num_updates`."""
    return config.num_updates if stage == MAIN else getattr(config, f"{stage}_updates", config.num_updates)


def stage_key(stage: str) -> jax.Array:
    """The key of a stage; seeds are folded into it."""
    return jax.random.fold_in(jax.random.key(0), zlib.crc32(stage.encode()))


def _run_stage(run: Run, name: str, stage: Learner, given: dict[str, PyTree]) -> StageEnd:
    """Trains one stage from its last checkpoint on; a finished one is only restored."""
    dataset = recording.source(run, stage, run.data.dataset)
    if not isinstance(dataset, Stream):
        dataset = jax.tree.map(jax.device_put, dataset)
    shared = {"key": stage_key(name), "seeds": run.seeds, "statistics": run.data.statistics, "given": given}
    total = num_updates(run.config, name)
    start, saved = _restore(run, name, fitting.template(stage, dataset, **shared))
    failures = {int(seed): what for seed, what in saved.get("failures", {}).items()}
    if start is not None and int(start.step) >= total:
        return StageEnd(start, failures, None, saved["timings"], process_memory.now())
    folder.rewind(run.folder, name, int(start.step) if start is not None else 0)
    watch, largest = process_memory.watching()
    with run.stopping.deferred(), recording.recorder(recording.Stage(run, name, stage, total, saved)) as record:
        result = fitting.fit(
            stage, dataset, num_updates=total, start=start, failures=failures,
            block_updates=run.options.block_updates or folder.read_block(run.folder, name),
            mesh=_mesh(run.options), hooks=[record.hook, watch], **shared,
        )  # fmt: skip
        return StageEnd(result.state, result.failures, result.stopped, record.close(result), largest())


def _restore(run: Run, name: str, template: fitting.FitState) -> tuple[fitting.FitState | None, dict[str, Any]]:
    """The state of a stage's last whole checkpoint and what was saved with it, or (None, {})."""
    directory = run.folder / "checkpoints" / name
    if checkpoint.latest(directory) is None:
        return None, {}
    restored = checkpoint.restore(directory, template, expect=run.identity["config"])
    streamed, streams = restored.metadata.get("streamed", False), stream.on_disk(run.data.dataset)
    if streamed != streams:
        how = {False: "batches drawn from memory", True: "streamed batches"}
        restored.messages.append(f"saved with {how[streamed]}, going on with {how[streams]}: the result will not be "
                                 "bit-identical (see --stream)")  # fmt: skip
    before, now = restored.metadata.get("devices"), recording.num_devices(run.options)
    if before != now:
        restored.messages.append(f"saved with batches split over {before} devices, going on with {now}: "
                                 "the result will not be bit-identical")  # fmt: skip
    for message in restored.messages:
        run.console.print(f"note: {message}")
    run.console.print(f"Going on with {name} from update {restored.step}.")
    return restored.state, restored.metadata
