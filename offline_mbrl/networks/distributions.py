"""Action distributions. This file alone imports distrax, on first use, and keeps it from loading TensorFlow.

distrax reaches TensorFlow Probability, whose JAX backend imports TensorFlow when it is installed and then needs
nothing of it: eight seconds and half a gigabyte for a namespace.
"""

import importlib
import sys
from collections.abc import Callable
from typing import Any

from offline_mbrl.types import Array, Policy, PyTree


def _distrax() -> Any:
    if "distrax" in sys.modules or "tensorflow" in sys.modules:
        return importlib.import_module("distrax")
    sys.modules["tensorflow"] = None  # type: ignore[assignment]  # makes `import tensorflow` fail at once
    try:
        return importlib.import_module("distrax")
    finally:
        del sys.modules["tensorflow"]


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
