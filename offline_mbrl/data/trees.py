"""Nested dicts of arrays as flat mappings from paths, and observations as one vector."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from offline_mbrl.data import memory
from offline_mbrl.types import EnvironmentSpec, PyTree

Path = tuple[str, ...]


def flatten(tree: Any, prefix: Path = ()) -> dict[Path, Any]:
    """Flattens nested mappings to leaves by path, keys in alphabetical order.

    Unlike `flax.traverse_util.flatten_dict`, which it generalizes, it accepts any mapping and a
    tree that is a single leaf, whose path is `()`. Tuples and lists count as dicts with the keys
    "0", "1", ...

    Args:
      tree: nested mappings, tuples and lists.
      prefix: path of the tree itself.

    Returns:
      The leaves by their paths.
    """
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
    """Builds the nested dict with the given leaves; the inverse of `flatten` for nested dicts."""
    if tuple(leaves) == ((),):
        return leaves[()]
    return traverse_util.unflatten_dict(dict(leaves))


# --- observations as one vector ---


def observation_vector(tree: PyTree, *, batch_axes: int = 0) -> Any:
    """Flattens a state to one float32 vector: keys in alphabetical order, entries in C order.

    The order of the keys is that of TFDS, not the one in which dm_control lists them.

    Args:
      tree: an array, which is returned unchanged, or a nested dict of arrays `[*batch, ...]`.
      batch_axes: number of leading axes that are kept.

    Returns:
      `[*batch, D]`.
    """
    leaves = flatten(tree)
    if tuple(leaves) == ((),):
        return tree
    vectors = [
        np.asarray(leaf, np.float32).reshape(*np.shape(leaf)[:batch_axes], -1)
        for leaf in leaves.values()
    ]
    return np.concatenate(vectors, axis=-1)


def is_state(tree: PyTree) -> bool:
    """Whether an observation is a nested dict that one vector can hold: no `uint8` frames."""
    return isinstance(tree, Mapping) and all(
        np.dtype(leaf.dtype) != np.uint8 for leaf in flatten(tree).values()
    )


def flatten_dataset(dataset: memory.Dataset) -> memory.Dataset:
    """Returns the dataset with its observations as vectors, `[R, D]`."""
    return dataset._replace(observation=observation_vector(dataset.observation, batch_axes=1))


def flatten_spec(spec: EnvironmentSpec) -> EnvironmentSpec:
    """Returns the spec of datasets from `flatten_dataset`."""
    if not isinstance(spec.observation, Mapping):
        return spec
    size = sum(int(np.prod(leaf.shape)) for leaf in flatten(spec.observation).values())
    return EnvironmentSpec(
        observation=jax.ShapeDtypeStruct((size,), np.float32),
        action=spec.action,
        gamma=spec.gamma,
        horizon=spec.horizon,
    )
