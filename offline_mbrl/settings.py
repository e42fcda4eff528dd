"""Settings of a config: their bounds beside the field, and whether a problem reads them.

A config is a frozen dataclass. What its fields must satisfy stands in their annotations:

    num_critics: Annotated[int, at_least(1)] = 2
    gamma: Annotated[float, between(0, 1)] = 0.99
    num_components: Annotated[int, at_least(1), read_if(has_mixture, "a mixture")] = 5

`require_valid` checks all of it, in nested configs too. `make` of a learner calls it; the command
checks bounds earlier, by the names of its flags.
"""

import dataclasses
import functools
import itertools
import math
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np

from offline_mbrl.types import EnvironmentSpec, UsageError

Precision = Literal["float32", "bfloat16"]  # of a run's updates; see `networks.precision`
Path = tuple[str, ...]  # names of fields, from the outermost config inwards


class Bound(NamedTuple):
    """What a value must satisfy."""

    holds: Callable[[Any], bool]
    requirement: str  # completes "NAME must be"


class Scope(NamedTuple):
    """Where a setting stands, for predicates of `read_if`."""

    config: Any  # the config that has the field
    root: Any  # the outermost config
    spec: EnvironmentSpec


class ReadIf(NamedTuple):
    """The condition under which a setting is read."""

    holds: Callable[[Scope], bool]
    condition: str  # completes "it is read only with"


# --- annotations ---


def at_least(minimum: float) -> Bound:
    """A number of at least `minimum`."""
    return Bound(lambda value: value >= minimum, f"at least {minimum:g}")


def above(minimum: float) -> Bound:
    """A number greater than `minimum`."""
    return Bound(lambda value: value > minimum, f"above {minimum:g}")


def at_most(maximum: float) -> Bound:
    """A number of at most `maximum`."""
    return Bound(lambda value: value <= maximum, f"at most {maximum:g}")


def between(minimum: float, maximum: float) -> tuple[Bound, Bound]:
    """A number from `minimum` to `maximum`, both included."""
    return at_least(minimum), at_most(maximum)


def sizes(minimum: int = 1) -> Bound:
    """One number or more, all of them at least `minimum`: layer sizes."""

    def holds(values: tuple[int, ...]) -> bool:
        return bool(values) and min(values) >= minimum

    return Bound(holds, f"one or more sizes of at least {minimum}")


def one_of(names: Iterable[str]) -> Bound:
    """A name of a list or of a table."""
    names = tuple(names)
    return Bound(lambda value: value in names, f"one of {', '.join(names)}")


def increasing() -> Bound:
    """Numbers in strictly increasing order."""

    def holds(values: tuple[float, ...]) -> bool:
        return all(low < high for low, high in itertools.pairwise(values))

    return Bound(holds, "increasing")


def read_if(holds: Callable[[Scope], bool], condition: str) -> ReadIf:
    """A setting that is read under a condition; otherwise it must keep its default.

    Args:
      holds: whether it is read.
      condition: completes "it is read only with".
    """
    return ReadIf(holds, condition)


# --- checks ---


def dotted(path: Path) -> str:
    """The Python name of a setting, `optimizer.learning_rate`."""
    return ".".join(path)


def flag(path: Path) -> str:
    """The command line's name of an option, `--checkpoint-seconds`."""
    return "--" + ".".join(path).replace("_", "-")


def config_flag(path: Path) -> str:
    """The command line's name of a setting, `--config.optimizer.learning-rate`."""
    return flag(("config", *path))


def require_valid(config: Any, caller: str, spec: EnvironmentSpec | None = None) -> None:
    """Refuses settings out of bounds, and settings that this problem does not read.

    Args:
      config: a dataclass.
      caller: the algorithm or model, for messages.
      spec: the problem; None checks bounds alone.

    Raises:
      UsageError: the first setting that is wrong.
    """
    try:
        require_bounds(config)
        if spec is not None:
            require_read(config, spec)
    except UsageError as error:
        raise UsageError(f"{caller}: {error}") from None


def require_bounds(config: Any, label: Callable[[Path], str] = dotted) -> None:
    """Refuses settings out of their bounds, unknown choices, and numbers that are not finite.

    Args:
      config: a dataclass.
      label: how a message names a setting.

    Raises:
      UsageError: the first setting that is wrong.
    """
    for path, annotation, value in _leaves(config):
        requirement = _violated(annotation, value)
        if requirement:
            raise UsageError(f"{label(path)} must be {requirement}, got {_shown(value)}")


def require_read(config: Any, spec: EnvironmentSpec, label: Callable[[Path], str] = dotted) -> None:
    """Refuses settings that differ from their defaults although this problem does not read them.

    Args:
      config: a dataclass.
      spec: the problem.
      label: how a message names a setting.

    Raises:
      UsageError: the first such setting.
    """
    for setting in _unread(config, spec):
        if setting.value not in setting.defaults:
            raise UsageError(
                f"{label(setting.path)} is {setting.value}, but it is read only with "
                f"{setting.condition}: leave it at {setting.defaults[0]}"
            )


def in_use(config: Any, spec: EnvironmentSpec) -> dict[str, Any]:
    """The settings that this problem reads, by dotted name, in the order of their fields."""
    unread = {setting.path for setting in _unread(config, spec)}
    return {dotted(path): value for path, _, value in _leaves(config) if path not in unread}


# --- walking ---


class _Unread(NamedTuple):
    path: Path
    condition: str  # under which it would be read
    value: Any
    defaults: list[Any]  # that of the config around it, then that of its own class


def _leaves(config: Any, path: Path = ()) -> Iterator[tuple[Path, Any, Any]]:
    """(path, annotation, value) of every setting that is not a config itself."""
    hints = _hints(type(config))
    for name in hints:
        value = getattr(config, name)
        if _is_config(value):
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), hints[name], value


def _unread(config: Any, spec: EnvironmentSpec) -> Iterator[_Unread]:
    def walk(owner: Any, path: Path, default: Any, condition: str) -> Iterator[_Unread]:
        """`default`: what the config around `owner` has there by default."""
        scope = Scope(config=owner, root=config, spec=spec)
        class_defaults = _defaults(type(owner))
        outer_defaults = vars(default) if type(default) is type(owner) else class_defaults
        for name, annotation in _hints(type(owner)).items():
            value = getattr(owner, name)
            missing = condition or _missing_condition(annotation, scope)
            defaults = [table[name] for table in (outer_defaults, class_defaults) if name in table]
            if _is_config(value):
                yield from walk(value, (*path, name), defaults[0] if defaults else None, missing)
            elif missing and defaults:
                yield _Unread((*path, name), missing, value, defaults)

    yield from walk(config, (), None, "")


def _is_config(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _missing_condition(annotation: Any, scope: Scope) -> str:
    for marker in _markers(annotation):
        if isinstance(marker, ReadIf) and not marker.holds(scope):
            return marker.condition
    return ""


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """Annotations of the fields, in their order."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


@functools.cache
def _defaults(cls: type) -> dict[str, Any]:
    """Defaults of the fields that have one."""
    defaults = {}
    for field in dataclasses.fields(cls):
        if field.default is not dataclasses.MISSING:
            defaults[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            defaults[field.name] = field.default_factory()
    return defaults


def _markers(annotation: Any) -> list[Any]:
    """Bounds and conditions of an annotation."""
    markers: list[Any] = []
    for marker in getattr(annotation, "__metadata__", ()):
        markers += marker if type(marker) is tuple else [marker]  # `between` gives two
    return markers


def _violated(annotation: Any, value: Any) -> str:
    """What a value must be and is not; empty where nothing is wrong."""
    kinds = _kinds(annotation)
    if value is None and type(None) in kinds:
        return ""
    if set(kinds) <= {int, type(None)} and not _is_number(value, int):
        return "a whole number"
    if set(kinds) <= {int, float, type(None)} and not _is_number(value, float):
        return "a finite number"
    for marker in _markers(annotation):
        if isinstance(marker, Bound) and not marker.holds(value):
            return marker.requirement
    choices = [choice for kind in kinds for choice in _choices(kind)]
    if choices and value not in choices:
        return f"one of {', '.join(map(str, choices))}"
    return ""


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)


def _is_number(value: Any, kind: type) -> bool:
    """A whole number, or any finite one."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return False
    return isinstance(value, int | np.integer) if kind is int else math.isfinite(value)


def _kinds(annotation: Any) -> tuple[Any, ...]:
    """Members of a union, or the annotation alone; without markers."""
    if typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def _choices(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) is Literal else ()
