"""`offline-mbrl train ALGORITHM --dataset NAME`: data, stages, evaluation, report.

Run again to resume.
"""

import dataclasses
import difflib
import sys
from typing import Annotated, Any

import tyro

from offline_mbrl import registry, settings
from offline_mbrl.commands import arguments
from offline_mbrl.runs.options import Options
from offline_mbrl.types import Algorithm, UsageError

DYNAMICS = "--config.dynamics"  # the setting that chooses a kind of model by its name


def main(argv: list[str]) -> int:
    """Runs the command; see `cli`."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0
    name, *rest = argv
    if name.startswith("-"):
        raise UsageError("name the algorithm first: offline-mbrl train ALGORITHM --dataset NAME")
    algorithm = registry.lookup(name)
    options, config, preset = parse(name, algorithm, rest)
    from offline_mbrl.commands import datasets  # loads what trains; the help does without
    from offline_mbrl.data.catalog import bounded
    from offline_mbrl.runs import stages

    named = bounded.joined(options.dataset, options.action_bounds)
    options = dataclasses.replace(options, dataset=named, action_bounds=())
    return stages.train(name, algorithm, options, config, preset, load=datasets.load)


def parse(name: str, algorithm: Algorithm, argv: list[str]) -> tuple[Options, Any, str]:
    """Reads a command line.

    Args:
      name: of the algorithm.
      algorithm: its entry.
      argv: what follows the name. A preset is the default that flags then change.

    Returns:
      Options of the run, the algorithm's config, and the preset's name or "".

    Raises:
      UsageError: unknown flags, or values out of their bounds.
    """
    preset, argv = _take_preset(name, algorithm, argv)
    kind, argv = _take(argv, DYNAMICS)
    default = _with_dynamics(name, _default(algorithm, preset), kind)
    fields = [
        ("options", Annotated[Options, tyro.conf.arg(name="")]),
        ("config", algorithm.config, dataclasses.field(default=default)),
    ]
    command = dataclasses.make_dataclass("Train", fields, frozen=True)
    parsed = arguments.parse(
        tyro.conf.AvoidSubcommands[command],  # settings are those of the kind of model chosen
        argv,
        prog=f"offline-mbrl train {name}",
        description=_description(algorithm, default),
    )
    _require_valid(parsed.options, parsed.config)
    return parsed.options, parsed.config, preset


def _default(algorithm: Algorithm, preset: str) -> Any:
    """The config that flags change."""
    try:
        return algorithm.config(**algorithm.presets.get(preset, {}))
    except TypeError as error:
        raise UsageError(
            f"{algorithm.config.__module__}.{algorithm.config.__qualname__} needs a default for "
            f"every setting, and a preset may set no other: {error}"
        ) from error


def _documentation(algorithm: Algorithm) -> str:
    """The docstring of the module that makes the algorithm."""
    return sys.modules[algorithm.make.__module__].__doc__ or ""


def _usage() -> str:
    width = max(map(len, registry.ENTRIES))
    summaries = [
        f"  {name:<{width}}  {(entry.__doc__ or '').splitlines()[0]}"
        for name, entry in registry.ENTRIES.items()
    ]
    lines = [
        "usage: offline-mbrl train ALGORITHM --dataset NAME ...",
        "",
        "algorithms:",
        *summaries,
        f"  {'FILE.py:NAME':<{width}}  Your own: an Algorithm, or make(config, spec) and Config.",
        "",
        "offline-mbrl train ALGORITHM --help lists all settings; offline-mbrl data list lists "
        "datasets.",
    ]
    return "\n".join(lines)


def _take(argv: list[str], flag: str) -> tuple[str | None, list[str]]:
    """The value of a flag, "" where none follows it and None without it; the other arguments."""
    separate = []
    for argument in argv:
        separate += argument.split("=", 1) if argument.startswith(f"{flag}=") else [argument]
    if flag not in separate:
        return None, argv
    index = separate.index(flag)
    value = separate[index + 1] if index + 1 < len(separate) else ""
    return value, separate[:index] + separate[index + 2 :]


def _take_preset(name: str, algorithm: Algorithm, argv: list[str]) -> tuple[str, list[str]]:
    """The preset's name, or "" without one, and the other arguments."""
    preset, argv = _take(argv, "--preset")
    if preset is not None and preset not in algorithm.presets:
        close = difflib.get_close_matches(preset, algorithm.presets, n=1)
        names = ", ".join(algorithm.presets) or "none"
        hint = f"did you mean {close[0]!r}?" if close else f"known: {names}"
        raise UsageError(f"{name} has no preset {preset!r}; {hint}")
    return preset or "", argv


def _with_dynamics(name: str, config: Any, kind: str | None) -> Any:
    """The config with the default settings of another kind of model, where one is asked for."""
    if kind is None:
        return config
    if not hasattr(config, "dynamics"):
        raise UsageError(f"{name} has no model that {DYNAMICS} could choose")
    from offline_mbrl.models import kinds  # what algorithms without a model do without

    if kind not in kinds.KINDS:
        close = difflib.get_close_matches(kind, kinds.KINDS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"kinds: {', '.join(kinds.KINDS)}"
        raise UsageError(f"there is no kind of model {kind!r} for {DYNAMICS}; {hint}")
    chosen = kinds.KINDS[kind].config
    is_there = type(config.dynamics) is chosen
    return config if is_there else dataclasses.replace(config, dynamics=chosen())


def _description(algorithm: Algorithm, config: Any) -> str:
    """What the help says first: the algorithm, its presets, and the models it can have."""
    sentences = [_documentation(algorithm).split("\n\n")[0]]
    if algorithm.presets:
        sentences.append(f"Presets (--preset NAME): {', '.join(algorithm.presets)}.")
    if hasattr(config, "dynamics"):
        from offline_mbrl.models import kinds

        sentences.append(f"Models ({DYNAMICS} KIND): {', '.join(kinds.KINDS)}.")
    return " ".join(sentences)


def _require_valid(options: Options, config: Any) -> None:
    """Refuses values out of their bounds, by the names of their flags."""
    settings.require_bounds(options, settings.flag)
    if options.first_seed + options.seeds > 2**32:
        raise UsageError(f"--first-seed must leave all seeds below 2^32, got {options.first_seed}")
    if not options.dataset:
        raise UsageError("--dataset is empty: give a name from `offline-mbrl data list`, or a path")
    settings.require_bounds(config, settings.config_flag)
