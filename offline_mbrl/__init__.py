"""Offline model-based reinforcement learning in JAX, as compositions of pure functions.

Importing the package computes nothing: every public name is loaded on first use.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Dataset": "data.memory",
    "EnvironmentSpec": "types",
    "Learner": "types",
    "Plan": "types",
    "Policy": "types",
    "Trajectory": "types",
    "Transition": "types",
    "UsageError": "types",
    "load_dataset": "data.catalog:load",
    "load_policy": "export",
    "lookup": "registry",
    "spec_of": "data.specs",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'offline_mbrl' has no attribute {name!r}")
    return getattr(importlib.import_module(f"offline_mbrl.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
