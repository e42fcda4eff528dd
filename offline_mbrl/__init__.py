"""Offline model-based reinforcement learning in JAX, as compositions of pure functions.

Importing the package computes nothing: every public name is loaded on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers; at run time `__getattr__` does the same on first use
    from offline_mbrl.data.catalog.load import load as load_dataset
    from offline_mbrl.data.memory import Dataset
    from offline_mbrl.data.specs import spec_of
    from offline_mbrl.export import load_policy
    from offline_mbrl.registry import lookup
    from offline_mbrl.types import EnvironmentSpec, Learner, Plan, Policy, Trajectory, Transition, UsageError

__version__ = "0.1.0"

__all__ = [
    "Dataset",
    "EnvironmentSpec",
    "Learner",
    "Plan",
    "Policy",
    "Trajectory",
    "Transition",
    "UsageError",
    "load_dataset",
    "load_policy",
    "lookup",
    "spec_of",
]

_HOMES = {  # names that are not in `types`, and their names there
    "Dataset": ("data.memory", "Dataset"),
    "load_dataset": ("data.catalog.load", "load"),
    "load_policy": ("export", "load_policy"),
    "lookup": ("registry", "lookup"),
    "spec_of": ("data.specs", "spec_of"),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'offline_mbrl' has no attribute {name!r}")
    home, original = _HOMES.get(name, ("types", name))
    return getattr(importlib.import_module(f"offline_mbrl.{home}"), original)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
