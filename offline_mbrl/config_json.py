"""Config dataclasses as JSON and back, those with unions of configs too."""

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from offline_mbrl.types import UsageError

CLASS = "class"  # beside the values of a config that stands in the place of a union


def to_json(config: Any) -> dict[str, Any]:
    """The values of a config dataclass, as JSON has them.

    Where the type of a field is a union of config classes, the class's name stands beside the
    values of the field.
    """
    hints = typing.get_type_hints(type(config))
    values = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            converted = to_json(value)
            if len(_config_classes(hints[field.name])) > 1:
                converted = {CLASS: type(value).__name__} | converted
            value = converted
        values[field.name] = value
    return values


def from_json(cls: type, json: Mapping[str, Any]) -> Any:
    """A config dataclass from what `to_json` and JSON made of it.

    Raises:
      UsageError: a setting, or the class of a nested config, is unknown here.
    """
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(json) - set(hints))
    if unknown:
        raise UsageError(f"this version of {cls.__module__} has no setting {unknown[0]!r}")
    return cls(**{name: _value(hints[name], value) for name, value in json.items()})


def _value(hint: Any, value: Any) -> Any:
    """A field's value from JSON: a nested config, a tuple, or what it is."""
    if isinstance(value, list):
        return tuple(_value(None, entry) for entry in value)
    classes = _config_classes(hint)
    if not isinstance(value, Mapping) or not classes:
        return value
    values = dict(value)
    name = values.pop(CLASS, None)
    return from_json(_config_class(classes, name, values), values)


def _config_class(classes: Sequence[type], name: str | None, values: Mapping[str, Any]) -> type:
    """The class of a nested config: by its name, or the only one that has all of the settings."""
    if len(classes) == 1:
        return classes[0]
    if name is None:
        fitting = [cls for cls in classes if set(values) <= set(typing.get_type_hints(cls))]
    else:
        fitting = [cls for cls in classes if cls.__name__ == name]
    if len(fitting) != 1:
        names = ", ".join(cls.__name__ for cls in classes)
        raise UsageError(f"a config of the class {name or '(not stated)'} is not one of {names}")
    return fitting[0]


def _config_classes(hint: Any) -> tuple[type, ...]:
    """The dataclasses that a type hint stands for: none, one, or the members of a union."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    members = typing.get_args(hint) if union else (hint,)
    return tuple(
        member
        for member in members
        if isinstance(member, type) and dataclasses.is_dataclass(member)
    )
