"""Algorithms from outside the package: a file, or an installed package's entry point.

Either names an `Algorithm`, or a function `make(config, spec)` whose module has the dataclass
`Config`, and perhaps `pretrain` and `PRESETS`.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from offline_mbrl.types import Algorithm, UsageError

GROUP = "offline_mbrl.algorithms"


# --- names ---


def is_file(name: str) -> bool:
    """Whether this is the name of an algorithm in a file, `path/to/file.py:make`."""
    return name.endswith(".py") or ".py:" in name


def label(name: str) -> str:
    """A short form of an algorithm's name, fit for a folder: `file` of `path/to/file.py:make`."""
    if not is_file(name):
        return name
    path, attribute = _split(name)
    return path.stem if attribute == "make" else f"{path.stem}-{attribute}"


def absolute(name: str) -> str:
    """The name of an algorithm that holds from any working directory."""
    if not is_file(name):
        return name
    path, attribute = _split(name)
    return f"{path.resolve()}:{attribute}"


def _split(name: str) -> tuple[Path, str]:
    """The file, and the attribute of its module."""
    stem, suffix, attribute = name.rpartition(".py")
    return Path(stem + suffix), attribute.removeprefix(":") or "make"


# --- loading ---


def of_file(name: str) -> Algorithm:
    """The algorithm `path/to/file.py:NAME`; NAME is `make` when absent.

    Raises:
      UsageError: there is no such file or name, or it is not an algorithm.
    """
    path, attribute = _split(name)
    if not path.is_file():
        raise UsageError(f"algorithm {name!r}: there is no file {path}")
    module = _module(path.resolve())
    if not hasattr(module, attribute):
        raise UsageError(
            f"algorithm {name!r}: {path} has no {attribute!r}; write FILE.py:NAME with the name of "
            "an Algorithm, or of a function make(config, spec)"
        )
    return algorithm_of(getattr(module, attribute), module, name)


@functools.cache
def _module(path: Path) -> ModuleType:
    """A file as a module; it stays in `sys.modules`, where dataclasses look their types up."""
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    spec = importlib.util.spec_from_file_location(f"{path.stem}_{digest}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module.__name__]
        raise UsageError(
            f"algorithm file {path} does not load: {type(error).__name__}: {error}"
        ) from error
    return module


def entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    """The entry points of installed packages, by name."""
    return {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}


def of_entry_point(point: importlib.metadata.EntryPoint) -> Algorithm:
    """The algorithm of an entry point.

    Raises:
      UsageError: it does not load, or is not an algorithm.
    """
    where = f"{point.name} (entry point {point.value})"
    try:
        value = point.load()
    except Exception as error:
        raise UsageError(
            f"algorithm {where} does not load: {type(error).__name__}: {error}"
        ) from error
    return algorithm_of(value, sys.modules[point.module], where)


def algorithm_of(value: Any, module: ModuleType, name: str) -> Algorithm:
    """An algorithm from what a module calls one.

    Args:
      value: an `Algorithm`; or `make(config, spec)`, whose module has the dataclass `Config`, and
        perhaps `pretrain` and `PRESETS`.
      module: where it stands.
      name: for messages.

    Raises:
      UsageError: it is neither, or its config is not a dataclass with `num_updates`.
    """
    if not isinstance(value, Algorithm):
        if not callable(value):
            raise UsageError(
                f"algorithm {name!r} is {type(value).__name__}: give an Algorithm, or a function "
                "make(config, spec) that returns a Learner"
            )
        if not hasattr(module, "Config"):
            raise UsageError(
                f"algorithm {name!r}: its module has no 'Config', the dataclass of settings that "
                "its function make(config, spec) takes"
            )
        optional = {"pretrain": "pretrain", "presets": "PRESETS"}
        more = {
            field: getattr(module, attribute)
            for field, attribute in optional.items()
            if hasattr(module, attribute)
        }
        make: Any = value
        value = Algorithm(config=module.Config, make=make, **more)
    if not dataclasses.is_dataclass(value.config):
        raise UsageError(f"algorithm {name!r}: its Config is not a dataclass")
    if "num_updates" not in {field.name for field in dataclasses.fields(value.config)}:
        raise UsageError(f"algorithm {name!r}: its Config has no field num_updates")
    return value
