"""Offline model-based reinforcement learning in JAX, as compositions of pure functions.

Importing the package computes nothing: every public name is loaded on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers; at run time `__getattr__` does the same
    from offline_mbrl.data.catalog.load import load as load_dataset
    from offline_mbrl.data.memory import Dataset
    from offline_mbrl.data.specs import spec_of
    from offline_mbrl.export import load_policy
    from offline_mbrl.registry import lookup
    from offline_mbrl.runs.in_memory import Run, train
    from offline_mbrl.training.fit import fit
    from offline_mbrl.types import (
        Actor,
        Algorithm,
        BoundedActions,
        Case,
        Context,
        DiscreteActions,
        DynamicsModel,
        EnvironmentSpec,
        Estimate,
        LatentModel,
        Learner,
        ModelParams,
        Plan,
        Policy,
        Prediction,
        Stage,
        Trajectory,
        TrajectoryModel,
        Transition,
        UsageError,
    )

__version__ = "0.1.0"

__all__ = [
    "Actor",
    "Algorithm",
    "BoundedActions",
    "Case",
    "Context",
    "Dataset",
    "DiscreteActions",
    "DynamicsModel",
    "EnvironmentSpec",
    "Estimate",
    "LatentModel",
    "Learner",
    "ModelParams",
    "Plan",
    "Policy",
    "Prediction",
    "Run",
    "Stage",
    "Trajectory",
    "TrajectoryModel",
    "Transition",
    "UsageError",
    "fit",
    "load_dataset",
    "load_policy",
    "lookup",
    "spec_of",
    "train",
]

_HOMES = {  # names that are not in `types`, and their names there
    "Dataset": ("data.memory", "Dataset"),
    "Run": ("runs.in_memory", "Run"),
    "fit": ("training.fit", "fit"),
    "load_dataset": ("data.catalog.load", "load"),
    "load_policy": ("export", "load_policy"),
    "lookup": ("registry", "lookup"),
    "spec_of": ("data.specs", "spec_of"),
    "train": ("runs.in_memory", "train"),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'offline_mbrl' has no attribute {name!r}")
    home, original = _HOMES.get(name, ("types", name))
    return getattr(importlib.import_module(f"offline_mbrl.{home}"), original)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
