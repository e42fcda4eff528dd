"""`offline-mbrl train ALGORITHM --dataset NAME`: data, stages, evaluation, report. Run again to resume."""

import dataclasses
import difflib
import math
import sys
from typing import Annotated, Any

import tyro

from offline_mbrl import registry
from offline_mbrl.commands import arguments
from offline_mbrl.runs.options import Options
from offline_mbrl.types import Algorithm, UsageError

LEAST = {  # of settings in configs
    "num_updates": 1, "batch_size": 1, "num_bins": 2, "gamma": 0, "learning_rate": 0, "warmup_updates": 0,
    "decay_updates": 1, "weight_decay": 0, "max_grad_norm": 0, "actor_learning_rate": 0, "critic_learning_rate": 0,
    "temperature_learning_rate": 0, "tau": 0, "num_critics": 1, "initial_temperature": 0, "fixed_temperature": 0,
}  # fmt: skip
MOST = {"gamma": 1, "tau": 1}


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
    from offline_mbrl.commands import datasets  # loads what trains; the help does without
    from offline_mbrl.runs import stages

    return stages.run(name, algorithm, options, config, preset, load=datasets.load)


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
    presets = f" Presets (--preset NAME): {', '.join(algorithm.presets)}." if algorithm.presets else ""
    summary = (sys.modules[algorithm.make.__module__].__doc__ or "").split("\n\n")[0]
    parsed = arguments.parse(command, argv, prog=f"offline-mbrl train {name}", description=summary + presets)
    _check_numbers(parsed.options, parsed.config)
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
        close = difflib.get_close_matches(preset, algorithm.presets, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(algorithm.presets) or 'none'}"
        raise UsageError(f"{name} has no preset {preset!r}; {hint}")
    return preset, joined[:at] + joined[at + 2 :]


def _check_numbers(options: Options, config: Any) -> None:
    least = {
        "seeds": 1, "first_seed": 0, "evaluations": 0, "episodes": 0, "episodes_during": 1, "checkpoint_seconds": 0,
        "block_updates": 1, "devices": 1, "stream_mib": 1,
    }  # fmt: skip
    for name, low in least.items():
        value = getattr(options, name)
        if value is not None and not value >= low:  # NaN is not
            raise UsageError(f"--{name.replace('_', '-')} must be at least {low}, got {value}")
    if options.first_seed + options.seeds > 2**32:
        raise UsageError(f"--first-seed must leave all seeds below 2^32, got {options.first_seed}")
    if not options.dataset:
        raise UsageError("--dataset is empty: give a name from `offline-mbrl data list`, or a path")
    _check_sizes(config, "--config")


def _check_sizes(config: Any, prefix: str) -> None:
    """Refuses values that no algorithm can do with, wherever they stand in a config."""
    for field in dataclasses.fields(config):
        value, flag = getattr(config, field.name), f"{prefix}.{field.name.replace('_', '-')}"
        if dataclasses.is_dataclass(value):
            _check_sizes(value, flag)
        elif isinstance(value, tuple):
            if field.name.endswith("_layers") and (not value or min(value) < 1):
                given = " ".join(map(str, value)) or "none"
                raise UsageError(f"{flag} needs one or more sizes of at least 1, got {given}")
        elif isinstance(value, int | float):
            _check_number(field.name, value, flag)


def _check_number(name: str, value: float, flag: str) -> None:
    if not math.isfinite(value):
        raise UsageError(f"{flag} must be a finite number, got {value}")
    if value < LEAST.get(name, value):
        raise UsageError(f"{flag} must be at least {LEAST[name]}, got {value}")
    if value > MOST.get(name, value):
        raise UsageError(f"{flag} must be at most {MOST[name]}, got {value}")
