"""Nested dicts of arrays as flat mappings from paths, and back; and observations as one vector."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from offline_mbrl.data import memory
from offline_mbrl.types import EnvironmentSpec, PyTree

Path = tuple[str, ...]


def flatten(tree: Any, prefix: Path = ()) -> dict[Path, Any]:
    """Leaves by path, keys in alphabetical order; tuples and lists count as dicts with keys "0",
    "1", ..."""
    if isinstance(tree, tuple | list) and not hasattr(tree, "_fields"):
        tree = {str(index): inner for index, inner in enumerate(tree)}
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    return {
        path: leaf
        for key in sorted(tree)
        for path, leaf in flatten(tree[key], (*prefix, str(key))).items()
    }


def unflatten(leaves: Mapping[Path, Any]) -> Any:
    """The nested dict whose leaves these are."""
    if tuple(leaves) == ((),):
        return leaves[()]
    names = dict.fromkeys(path[0] for path in leaves)
    return {
        name: unflatten({p[1:]: leaf for p, leaf in leaves.items() if p[0] == name})
        for name in names
    }


# --- observations as one vector ---


def observation_vector(tree: PyTree, *, batch_axes: int = 0) -> Any:
    """The canonical flattening of a state: keys in alphabetical order, each entry in C order,
    float32.

    Args:
      tree: an array, which is returned as it is, or a nested dict of arrays `[*batch, ...]`.
      batch_axes: number of leading axes that are kept.

    Returns:
      `[*batch, D]`. The keys' order is that of TFDS and not the order in which dm_control lists
      them.
    """
    leaves = flatten(tree)
    if tuple(leaves) == ((),):
        return tree
    wide = [
        np.asarray(leaf, np.float32).reshape(*np.shape(leaf)[:batch_axes], -1)
        for leaf in leaves.values()
    ]
    return np.concatenate(wide, axis=-1)


def is_state(tree: PyTree) -> bool:
    """Whether an observation is a nested dict of numbers that one vector can hold (no `uint8`
    frames)."""
    return isinstance(tree, Mapping) and all(
        np.dtype(leaf.dtype) != np.uint8 for leaf in flatten(tree).values()
    )


def flatten_dataset(dataset: memory.Dataset) -> memory.Dataset:
    """The same dataset with observations `[R, D]`."""
    return dataset._replace(observation=observation_vector(dataset.observation, batch_axes=1))


def flatten_spec(spec: EnvironmentSpec) -> EnvironmentSpec:
    """The spec of `flatten_dataset`'s observations."""
    if not isinstance(spec.observation, Mapping):
        return spec
    size = sum(int(np.prod(leaf.shape)) for leaf in flatten(spec.observation).values())
    return EnvironmentSpec(
        jax.ShapeDtypeStruct((size,), np.float32), spec.action, spec.gamma, spec.horizon
    )
