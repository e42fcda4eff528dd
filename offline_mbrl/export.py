"""A policy as a small folder, and the three lines that act with it.

policy.json   algorithm, config, spec, seeds, the sha256 of the arrays, and whatever the run adds
params.npz    the arrays, named by their place in the tree; no pickle
"""

import dataclasses
import hashlib
import io
import json
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl import files, registry
from offline_mbrl.data import specs, trees
from offline_mbrl.types import Array, BoundedActions, EnvironmentSpec, Policy, PyTree, UsageError

POLICY, PARAMS = "policy.json", "params.npz"
SEPARATOR = "/"


class Exported(NamedTuple):
    """A policy read back."""

    policy: Policy
    params: PyTree  # leading axis [S]
    spec: EnvironmentSpec
    description: dict[str, Any]  # what `save` was given, and the algorithm's settings


def save(
    directory: Path, *, algorithm: str, config: Any, spec: EnvironmentSpec, params: PyTree, seeds: Sequence[int],
    description: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Writes the folder, each file whole or not at all.

    Args:
      directory: made where it is absent.
      algorithm: its name in the registry.
      config: its settings, a dataclass.
      spec: what the policy acts in.
      params: nested dicts of arrays with a leading axis `[S]`.
      seeds: S seed numbers.
      description: further JSON values.

    Raises:
      UsageError: the folder cannot be written.
    """
    buffer = io.BytesIO()
    flat = {SEPARATOR.join(path): np.asarray(leaf) for path, leaf in trees.flatten(params).items()}
    np.savez(buffer, allow_pickle=False, **flat)
    about = dict(description or {}) | {
        "algorithm": algorithm, "config": dataclasses.asdict(config), "spec": specs.to_json(spec),
        "seeds": [int(seed) for seed in seeds], "sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
    }  # fmt: skip
    try:
        directory.mkdir(parents=True, exist_ok=True)
        files.write_whole(directory / PARAMS, lambda place: place.write_bytes(buffer.getvalue()))
        files.write_whole(directory / POLICY, lambda place: place.write_text(json.dumps(about, indent=1)))
    except OSError as error:
        raise UsageError(f"cannot write {directory}: {error.strerror}; choose another folder") from error


def load(directory: str | Path) -> Exported:
    """Reads a folder that `save` wrote, all seeds of it.

    Raises:
      UsageError: a file is missing, damaged, or of an algorithm or settings that this version does not know.
    """
    directory = Path(directory)
    try:
        about = json.loads((directory / POLICY).read_text())
        content = (directory / PARAMS).read_bytes()
    except FileNotFoundError as error:
        raise UsageError(f"{directory} holds no policy ({Path(error.filename).name} is missing)") from None
    except OSError as error:
        raise UsageError(f"{directory} cannot be read as a policy: {error.strerror}") from error
    except ValueError:
        about, content = {}, b""
    if not isinstance(about, dict) or not about.keys() >= {"algorithm", "config", "spec", "seeds", "sha256"}:
        raise UsageError(f"{directory / POLICY} is damaged; export the policy again")
    if hashlib.sha256(content).hexdigest() != about["sha256"]:
        raise UsageError(f"{directory / PARAMS} is damaged or of another export; export the policy again")
    algorithm = registry.lookup(about["algorithm"])
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            params = trees.unflatten({tuple(name.split(SEPARATOR)): jnp.asarray(arrays[name]) for name in arrays.files})
        spec = specs.from_json(about["spec"])
        config = config_from_json(algorithm.config, about["config"])
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{directory / POLICY} does not describe a policy ({error}); export it again") from error
    policy = algorithm.make(config, spec).policy
    if policy is None:
        raise UsageError(f"{about['algorithm']} has no policy that could act")
    return Exported(policy, params, spec, about)


def load_policy(directory: str | Path, *, seed: int | None = None) -> Callable[..., Array]:
    """A policy to act with: `action = policy(observation)`, or `policy(observation, key)` to sample.

    Args:
      directory: written by `offline-mbrl export`.
      seed: which of the exported seeds; the first when absent.

    Returns:
      A compiled function of one observation (as the spec has it) and optionally a key. Discrete actions are
      integers; continuous ones are in the simulator's own units.

    Raises:
      UsageError: see `load`; or there is no such seed.
    """
    exported = load(directory)
    seeds = exported.description["seeds"]
    if seed is not None and seed not in seeds:
        raise UsageError(f"{directory} has no seed {seed}: it holds {', '.join(map(str, seeds))}")
    index = 0 if seed is None else seeds.index(seed)
    params = jax.tree.map(lambda leaf: leaf[index], exported.params)
    spec = exported.spec
    mode, sample = jax.jit(exported.policy.mode), jax.jit(exported.policy.sample)

    def act(observation: PyTree, key: Array | None = None) -> Array:
        observation = _checked(spec.observation, observation)
        return _native(spec, mode(params, observation) if key is None else sample(params, observation, key))

    return act


def _checked(wanted: PyTree, observation: PyTree) -> PyTree:
    """The observation as arrays of the spec's dtypes.

    Raises:
      UsageError: it has other fields, or a field another shape.
    """
    leaves, structure = jax.tree.flatten(wanted)
    if jax.tree.structure(observation) != structure and len(leaves) > 1:
        raise UsageError(f"the policy takes one observation with the fields {sorted(wanted)}")
    found = jax.tree.leaves(observation) if len(leaves) > 1 else [observation]
    for leaf, given in zip(leaves, found, strict=True):
        if np.shape(given) != leaf.shape:
            raise UsageError(f"the policy takes one observation of shape {leaf.shape}, got {np.shape(given)}")
    arrays = [jnp.asarray(given, leaf.dtype) for leaf, given in zip(leaves, found, strict=True)]
    return jax.tree.unflatten(structure, arrays)


def _native(spec: EnvironmentSpec, action: Array) -> Array:
    if not isinstance(spec.action, BoundedActions):
        return action
    low, high = jnp.asarray(spec.action.minimum), jnp.asarray(spec.action.maximum)
    return low + (action + 1.0) / 2.0 * (high - low)


def config_from_json(cls: type, json: Mapping[str, Any]) -> Any:
    """A config dataclass from what `dataclasses.asdict` and JSON made of it.

    Raises:
      UsageError: a setting is unknown here.
    """
    kinds = typing.get_type_hints(cls)
    unknown = sorted(set(json) - set(kinds))
    if unknown:
        raise UsageError(f"this version of {cls.__module__} has no setting {unknown[0]!r}")
    values = {
        name: config_from_json(kinds[name], value) if dataclasses.is_dataclass(kinds[name])
        else tuple(value) if isinstance(value, list) else value
        for name, value in json.items()
    }  # fmt: skip
    return cls(**values)
