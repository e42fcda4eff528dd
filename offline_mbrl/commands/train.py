"""`offline-mbrl train ALGORITHM --dataset NAME`: data, stages, evaluation, report. Run again to resume."""

import dataclasses
import sys
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import tyro
from rich.console import Console

from offline_mbrl import checkpoint, compilation, registry, sharding
from offline_mbrl import fit as fitting
from offline_mbrl.commands import arguments, datasets, display, folder, recording, results, stopping
from offline_mbrl.data.catalog import Loaded
from offline_mbrl.types import Algorithm, Learner, PyTree, UsageError

MAIN = "train"  # the name of the last stage


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of the run; the algorithm's own are under `--config`."""

    dataset: str  # name from `offline-mbrl data list`, or a path (RLDS directory, HDF5 file, Minari dataset)
    seeds: int = 1  # number of seeds, trained side by side in one program
    first_seed: int = 0  # seeds are first_seed, first_seed + 1, ...
    run_dir: Path | None = None  # default: runs/ALGORITHM-DATASET
    evaluations: int = 10  # during training, spread evenly; 0 for none
    episodes: int = 500  # of the last evaluation, per seed, greedy and again sampled; 0 trains without a simulator
    episodes_during: int = 50  # of each evaluation during training, per seed
    block_updates: int | None = None  # updates per dispatch; default: about a second's worth, measured
    checkpoint_seconds: float = 20.0  # between checkpoints; one is always written at the end and at SIGTERM
    devices: int | None = None  # devices to split every batch over; default: all
    verify: Literal["touched", "full"] = "touched"  # which chunks of the dataset are compared with their hashes
    on_nonfinite: Literal["refuse", "drop-episode"] = "refuse"  # what to do with NaN and infinity in the data
    plain: bool = False  # lines instead of a progress bar


class Run(NamedTuple):
    """What a run is made of; nothing here changes."""

    folder: Path
    options: Options
    seeds: tuple[int, ...]
    algorithm: Algorithm
    config: Any
    data: Loaded
    identity: dict[str, Any]  # what `folder.opened` compares
    console: Console
    terminated: Callable[[], bool]  # whether the process was asked to stop


def main(argv: list[str]) -> int:
    """Runs the command; see `cli`."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0
    name, *rest = argv
    if name.startswith("-"):
        raise UsageError("name the algorithm first: offline-mbrl train ALGORITHM --dataset NAME")
    algorithm = registry.lookup(name)
    options, config, preset = _parse(name, algorithm, rest)
    compilation.enable()
    console = display.console(plain=options.plain)
    with stopping.on_sigterm() as terminated:
        data = datasets.load(options.dataset, console, verify=options.verify, on_nonfinite=options.on_nonfinite)
        run = _describe(name, algorithm, options, config, data)._replace(console=console, terminated=terminated)
        about = {"preset": preset, "reference": data.reference, "simulator": data.simulator}
        with folder.opened(run.folder, run.identity | about | results.environment(sys.argv)):
            return _train(run)


def _usage() -> str:
    summaries = [
        f"  {name:<10} {(sys.modules[algorithm.make.__module__].__doc__ or '').splitlines()[0]}"
        for name, algorithm in registry.ALGORITHMS.items()
    ]
    return "\n".join(
        ["usage: offline-mbrl train ALGORITHM --dataset NAME ...", "", "algorithms:", *summaries, "",
         "offline-mbrl train ALGORITHM --help lists all settings; offline-mbrl data list lists datasets."]
    )  # fmt: skip


def _parse(name: str, algorithm: Algorithm, argv: list[str]) -> tuple[Options, Any, str]:
    """Options, the algorithm's config, and the preset's name. A preset is the default that flags then change."""
    preset, argv = _take_preset(name, algorithm, argv)
    default = algorithm.config(**algorithm.presets.get(preset, {}))
    fields = [
        ("options", Annotated[Options, tyro.conf.arg(name="")]),
        ("config", algorithm.config, dataclasses.field(default=default)),
    ]
    command = dataclasses.make_dataclass("Train", fields, frozen=True)
    presets = (
        f" Presets (--preset NAME, before other settings): {', '.join(algorithm.presets)}." if algorithm.presets else ""
    )
    summary = (sys.modules[algorithm.make.__module__].__doc__ or "").split("\n\n")[0]
    parsed = arguments.parse(command, argv, prog=f"offline-mbrl train {name}", description=summary + presets)
    _check_numbers(parsed.options)
    return parsed.options, parsed.config, preset


def _take_preset(name: str, algorithm: Algorithm, argv: list[str]) -> tuple[str, list[str]]:
    joined = [
        part
        for argument in argv
        for part in (argument.split("=", 1) if argument.startswith("--preset=") else [argument])
    ]
    if "--preset" not in joined:
        return "", argv
    at = joined.index("--preset")
    preset = joined[at + 1] if at + 1 < len(joined) else ""
    if preset not in algorithm.presets:
        raise UsageError(f"{name} has no preset {preset!r}: known: {', '.join(algorithm.presets) or 'none'}")
    return preset, joined[:at] + joined[at + 2 :]


def _check_numbers(options: Options) -> None:
    for name, least in {"seeds": 1, "evaluations": 0, "episodes": 0, "episodes_during": 1, "first_seed": 0}.items():
        if getattr(options, name) < least:
            raise UsageError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(options, name)}")
    if options.block_updates is not None and options.block_updates < 1:
        raise UsageError(f"--block-updates must be at least 1, got {options.block_updates}")
    if options.devices is not None and not 1 <= options.devices <= len(jax.devices()):
        raise UsageError(f"--devices must lie in 1..{len(jax.devices())} here, got {options.devices}")


def _describe(name: str, algorithm: Algorithm, options: Options, config: Any, data: Loaded) -> Run:
    if config.num_updates < 1:
        raise UsageError(f"--config.num-updates must be at least 1, got {config.num_updates}")
    seeds = tuple(range(options.first_seed, options.first_seed + options.seeds))
    slug = "".join(c if c.isalnum() or c in "._" else "-" for c in data.name).strip("-.")
    identity = {
        "algorithm": name, "dataset": data.name, "fingerprint": data.fingerprint, "seeds": seeds,
        "config": dataclasses.asdict(config),
    }  # fmt: skip
    path = options.run_dir or Path("runs") / f"{name}-{slug}"
    return Run(path, options, seeds, algorithm, config, data, identity, display.console(), lambda: False)


def _train(run: Run) -> int:
    done = results.read(run.folder)
    if done:
        run.console.print(f"The run in {run.folder} is complete; nothing is trained again.")
        results.show(run.console, run.folder)
        return 0
    stages = run.algorithm.pretrain(run.config, run.data.spec)
    learner = run.algorithm.make(run.config, run.data.spec)  # refuses what does not fit before any stage runs
    given: dict[str, PyTree] = {}
    order = [*stages, MAIN]
    timings: Mapping[str, float] = {}
    for name, stage in {**stages, MAIN: learner}.items():
        result, timings = _run_stage(run, name, stage, order, given)
        if run.terminated():
            run.console.print(f"Terminated: saved update {int(result.state.step)} of {name}; the same command goes on.")
            return stopping.EXIT_CODE
        if result.stopped:
            print(f"error: {result.stopped}; the last good checkpoint is in {run.folder}", file=sys.stderr)
            return 1
        given[name] = fitting.policy_params(stage, result.state)
    results.finish(run, learner, result, timings)
    results.show(run.console, run.folder)
    return 0


def num_updates(config: Any, stage: str) -> int:
    """Updates of a stage: `config.STAGE_updates` where the config has it, else `config.num_updates`."""
    return config.num_updates if stage == MAIN else getattr(config, f"{stage}_updates", config.num_updates)


def stage_key(stage: str) -> jax.Array:
    """The key of a stage; seeds are folded into it."""
    return jax.random.fold_in(jax.random.key(0), zlib.crc32(stage.encode()))


def _run_stage(
    run: Run, name: str, stage: Learner, order: list[str], given: dict[str, PyTree]
) -> tuple[fitting.FitResult, dict[str, float]]:
    """Trains one stage from its last checkpoint on; a finished one is only restored."""
    dataset = jax.tree.map(jax.device_put, run.data.dataset)
    shared = {"key": stage_key(name), "seeds": run.seeds, "statistics": run.data.statistics, "given": given}
    directory = run.folder / "checkpoints" / name
    start, saved = None, {}
    if checkpoint.latest(directory) is not None:
        template = fitting.template(stage, dataset, **shared)
        restored = checkpoint.restore(directory, template, expect=run.identity["config"])
        start, saved = restored.state, restored.metadata
        for message in restored.messages:
            run.console.print(f"note: {message}")
        run.console.print(f"Going on with {name} from update {restored.step}.")
    folder.rewind(run.folder, order, name, int(start.step) if start is not None else 0)
    devices = jax.devices()[: run.options.devices]
    total = num_updates(run.config, name)
    failures = {int(seed): what for seed, what in saved.get("failures", {}).items()}
    with recording.recorder(recording.Stage(run, name, stage, total, saved)) as record:
        result = fitting.fit(
            stage, dataset, num_updates=total, start=start, failures=failures,
            block_updates=run.options.block_updates or saved.get("block_updates"),
            mesh=sharding.mesh(devices) if len(devices) > 1 else None, hooks=[record.hook], **shared,
        )  # fmt: skip
        return result, record.close(result)
