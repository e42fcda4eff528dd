"""Action distributions. This file alone imports distrax, on first use, and keeps it from loading TensorFlow.

distrax reaches TensorFlow Probability, whose JAX backend imports TensorFlow where it is installed (eight seconds, half
a gigabyte), fails beside one without tf_keras, and needs nothing of it. So TensorFlow is hidden while it loads.
"""

import importlib
import sys
from collections.abc import Callable
from typing import Any

from offline_mbrl.types import Array, Policy, PyTree


def _distrax() -> Any:
    if "distrax" in sys.modules:
        return sys.modules["distrax"]
    hidden = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "tensorflow"}
    for name in hidden:
        del sys.modules[name]
    sys.modules["tensorflow"] = None  # type: ignore[assignment]  # makes `import tensorflow` fail at once
    try:
        return importlib.import_module("distrax")
    finally:
        del sys.modules["tensorflow"]
        sys.modules.update(hidden)


def categorical(logits: Array) -> Any:
    """A `distrax.Categorical` over `[A]` logits."""
    return _distrax().Categorical(logits=logits)


def as_policy(distribution: Callable[[PyTree, PyTree], Any]) -> Policy:
    """A policy from `(params, observation) -> distrax distribution`."""

    def sample(params: PyTree, observation: PyTree, key: Array) -> Array:
        return distribution(params, observation).sample(seed=key)

    def mode(params: PyTree, observation: PyTree) -> Array:
        return distribution(params, observation).mode()

    def log_prob(params: PyTree, observation: PyTree, action: Array) -> Array:
        return distribution(params, observation).log_prob(action)

    return Policy(sample, mode, log_prob)
