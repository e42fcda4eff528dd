"""One run of `offline-mbrl train`: its stages one after the other, each from its last checkpoint
on."""

import contextlib
import functools
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from offline_mbrl import config_json, registry, settings
from offline_mbrl.data import stream
from offline_mbrl.data.catalog import names
from offline_mbrl.data.catalog.load import Loaded
from offline_mbrl.networks import precision
from offline_mbrl.runs import display, folder, playing, recording, results, stopping
from offline_mbrl.runs import memory as process_memory
from offline_mbrl.runs.options import Options
from offline_mbrl.runs.run import FolderRun, mesh, num_devices, source
from offline_mbrl.streams import Stream
from offline_mbrl.training import checkpoint, compilation, feeding, sharding
from offline_mbrl.training import fit as fitting
from offline_mbrl.training.stages import MAIN, StageEnd, of_algorithm, train_stages
from offline_mbrl.types import Algorithm, Context, Key, PyTree, Stage, UsageError

KEY = 0  # of every run: seeds are what differs
# Bytes of the columns from which on they stay on the disk. No share of this machine's memory:
# whether a run streams decides which batches it draws, and that must not depend on where it runs.
STREAM_ABOVE = {"auto": 2 * 2**30, "always": -1, "never": None}


class Measured(NamedTuple):
    """What training a stage took."""

    timings: dict[str, float]  # over all processes
    memory: process_memory.Resident  # of this process, the largest while training


def train(
    name: str,
    algorithm: Algorithm,
    options: Options,
    config: Any,
    preset: str,
    *,
    load: Callable[..., Loaded],
) -> int:
    """Trains, evaluates and reports; or resumes where an earlier process stopped.

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
    path = (
        options.run_dir
        or Path("runs") / f"{registry.label(name)}-{_slug(names.lookup(options.dataset).name)}"
    )
    folder.check_writable(path)  # before an hour of data generation, not after
    try:
        with stopping.on_sigterm() as interrupt:
            data = load(
                options.dataset,
                console,
                verify=options.verify,
                on_nonfinite=options.on_nonfinite,
                stream_above=STREAM_ABOVE[options.stream],
            )
            # Learners refuse what does not fit before there is a folder.
            stages = precision.stages_in(
                of_algorithm(algorithm, config, data.spec), options.precision
            )
            seeds = tuple(range(options.first_seed, options.first_seed + options.seeds))
            identity = {
                "algorithm": registry.absolute(name),
                "dataset": data.name,
                "fingerprint": data.fingerprint,
                "seeds": seeds,
                "config": config_json.to_json(config),
                "precision": options.precision,
            }
            description = {
                "preset": preset,
                "settings": settings.in_use(config, data.spec),
                "reference": data.reference,
                "simulator": data.simulator,
            }
            run = FolderRun(
                folder=path,
                options=options,
                seeds=seeds,
                stages=stages,
                config=config,
                data=data,
                identity=identity,
                console=console,
                stopping=interrupt,
            )
            _say_whether_streaming(run)
            _check_split(run)
            _check_simulator(run)
            with folder.opened(path, identity | description | results.environment(sys.argv)):
                return _train(run)
    except stopping.Terminated:
        console.print("Terminated; the same command resumes from the last checkpoint.")
        return stopping.EXIT_CODE


def _keep_quiet() -> None:
    """Keeps libraries from printing what costs the run nothing, or is told anyway."""
    warnings.filterwarnings(
        "ignore", message="Error (reading|writing) persistent compilation cache"
    )
    before = sys.unraisablehook

    def hook(
        unraisable: Any,
    ) -> None:  # of array writers that answer after a failed save, which has been reported
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._" else "-" for c in name).strip("-.")


def _check_devices(options: Options) -> None:
    if options.devices is not None and options.devices > len(jax.devices()):
        raise UsageError(
            f"--devices must lie in 1..{len(jax.devices())} here, got {options.devices}"
        )


def _say_whether_streaming(run: FolderRun) -> None:
    if not stream.on_disk(run.data.dataset):
        return
    for stage in run.stages.values():  # what cannot be streamed is refused here
        source(run, stage.learner, run.data.dataset)
    size = process_memory.in_words(stream.size(run.data.dataset))
    run.console.print(
        f"Streaming {run.data.name}: {size} of columns stay on the disk, {run.options.stream_mib} "
        "MiB of batches are read ahead; `--stream never` would load the columns whole."
    )


def _check_split(run: FolderRun) -> None:
    """Refuses batches that cannot be split over the devices."""
    devices = mesh(run.options)
    if devices is None:
        return
    split = sharding.split_batch(devices)
    for stage in run.stages.values():
        learner, dataset = feeding.source(
            stage.learner, source(run, stage.learner, run.data.dataset)
        )

        def draw(dataset: PyTree, key: Key, sample: Callable = learner.sample) -> PyTree:
            return split(sample(dataset, None, key))

        jax.eval_shape(draw, dataset, jax.random.key(KEY))


def _check_simulator(run: FolderRun) -> None:
    """Refuses a simulator that is missing or does not fit, before any training."""
    if (
        not results.plays(run, run.stages[MAIN].learner)
        or (run.folder / folder.EVALUATION).exists()
    ):
        return
    try:
        playing.check(run.data.simulator or "", run.data.spec)
    except UsageError as error:
        raise UsageError(f"{error}; --episodes 0 trains without a simulator") from error


def _train(run: FolderRun) -> int:
    outcome = results.read(run.folder)
    if outcome and results.is_complete(outcome):
        run.console.print(f"The run in {run.folder} is complete; nothing is trained again.")
        results.restore_report(run.folder)
        results.show(run.console, run.folder)
        return 0
    with _player(run) as player:
        return _train_stages(run, player)


@contextlib.contextmanager
def _player(run: FolderRun) -> Iterator[playing.Player | None]:
    """What plays the run's policies, in simulators that all its evaluations share."""
    policy = run.stages[MAIN].learner.policy
    if policy is None or not results.plays(run, run.stages[MAIN].learner):
        yield None
        return
    with playing.opened(
        policy,
        run.data.simulator or "",
        num_seeds=len(run.seeds),
        processes=run.options.simulator_processes,
    ) as player:
        yield player


def _train_stages(run: FolderRun, player: playing.Player | None) -> int:
    measured: dict[str, Measured] = {}

    def run_stage(name: str, stage: Stage, dataset: PyTree, context: Context, key: Key) -> StageEnd:
        plays = player if name == MAIN else None
        end, measured[name] = _run_stage(run, name, stage, dataset, context, key, plays)
        return end

    trained = train_stages(
        run.stages,
        run.data.dataset,
        key=jax.random.key(KEY),
        run_stage=run_stage,
        statistics=run.data.statistics,
    )
    if run.stopping.requested():
        step = int(trained.end.state.step)
        run.console.print(
            f"Terminated after update {step} of {trained.name}; the same command resumes."
        )
        return stopping.EXIT_CODE
    if trained.end.stopped:
        return _failed(run, trained.name, trained.end.stopped)
    timings, memory = measured[MAIN]
    outcome = results.finish(
        run,
        run.stages[MAIN].learner,
        trained.end.state,
        trained.context,
        failures=trained.failures,
        timings=timings,
        memory=memory,
        player=player,
    )
    description = process_memory.describe(memory)
    run.console.print(f"resident memory, largest while training: {description}")
    results.show(run.console, run.folder)
    return 0 if results.is_complete(outcome) else 1


def _failed(run: FolderRun, stage: str, reason: str) -> int:
    """Says which figure ended the run and what is left of it."""
    directory = run.folder / "checkpoints" / stage
    step = checkpoint.latest(directory)
    left = "no checkpoint was made before that"
    if step:
        left = f"the last good checkpoint is {directory / f'{step:09d}'}"
    print(f"error: stage {stage}: {reason}; {left}", file=sys.stderr)
    return 1


# --- a stage ---


def _run_stage(
    run: FolderRun,
    name: str,
    stage: Stage,
    dataset: PyTree,
    context: Context,
    key: Key,
    player: playing.Player | None,
) -> tuple[StageEnd, Measured]:
    """Trains one stage from its last checkpoint on; a finished one is only restored."""
    learner = stage.learner
    data = source(run, learner, dataset)
    if not isinstance(data, Stream):
        data = jax.tree.map(jax.device_put, data)
    shared = {"key": key, "seeds": run.seeds, "context": context}
    shapes = fitting.template(learner, data, **shared)
    start, saved = _restore(run, name, shapes)
    failures = {int(seed): reason for seed, reason in saved.get("failures", {}).items()}
    if start is not None and (int(start.step) >= stage.num_updates or saved.get("finished")):
        end = StageEnd(state=start, failures=failures, stopped=None)
        return end, Measured(timings=saved["timings"], memory=process_memory.now())
    _say_what_imagination_takes(run, shapes)
    folder.rewind(run.folder, name, int(start.step) if start is not None else 0)
    watch, largest = process_memory.watching()
    recorded = recording.RecordedStage(
        run=run, name=name, stage=stage, context=context, saved=saved, player=player
    )
    with run.stopping.deferred(), recording.recorder(recorded) as record:
        result = fitting.fit(
            learner,
            data,
            num_updates=stage.num_updates,
            start=start,
            failures=failures,
            block_updates=run.options.block_updates or folder.read_block(run.folder, name),
            mesh=mesh(run.options),
            hooks=[record.hook, watch],
            announce=functools.partial(_say_what_it_takes, run, name),
            **shared,
        )
        stopped = None if record.finished_by() else result.stopped
        end = StageEnd(state=result.state, failures=result.failures, stopped=stopped)
        return end, Measured(timings=record.timings(result), memory=largest())


def _say_what_imagination_takes(run: FolderRun, shapes: fitting.FitState) -> None:
    size = fitting.cache_bytes(shapes)
    if size:
        per_seed = process_memory.in_words(size // len(run.seeds))
        run.console.print(
            f"Imagined data take {process_memory.in_words(size)} on the device, {per_seed} for "
            f"each of {len(run.seeds)} seeds; checkpoints hold them too."
        )


def _say_what_it_takes(run: FolderRun, name: str, memory: fitting.DeviceMemory) -> None:
    """Where imagined data are held; elsewhere the data's own size says it."""
    if memory.cache:
        run.console.print(f"Stage {name} takes {process_memory.describe_device(memory)}.")


def _restore(
    run: FolderRun, name: str, shapes: fitting.FitState
) -> tuple[fitting.FitState | None, dict[str, Any]]:
    """The state of a stage's last whole checkpoint and its metadata, or (None, {})."""
    directory = run.folder / "checkpoints" / name
    if checkpoint.latest(directory) is None:
        return None, {}
    restored = checkpoint.restore(directory, shapes, expect=run.identity["config"])
    messages = [*restored.messages, *_differences(run, restored.metadata)]
    for message in messages:
        run.console.print(f"note: {message}")
    run.console.print(f"Resuming {name} from update {restored.step}.")
    return restored.state, restored.metadata


def _differences(run: FolderRun, saved: dict[str, Any]) -> list[str]:
    """What keeps the result from being bit-identical, in sentences."""
    messages = []
    streamed = saved.get("streamed", False)
    streams = stream.on_disk(run.data.dataset)
    if streamed != streams:
        manner = {False: "batches drawn from memory", True: "streamed batches"}
        messages.append(
            f"saved with {manner[streamed]}, resumed with {manner[streams]}: the result will not "
            "be bit-identical (see --stream)"
        )
    before = saved.get("devices")
    now = num_devices(run.options)
    if before != now:
        messages.append(
            f"saved with batches split over {before} devices, resumed with {now}: the result will "
            "not be bit-identical"
        )
    return messages
