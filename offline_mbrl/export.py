"""A policy as a small folder, and the three lines that act with it.

policy.json   algorithm, config, spec, seeds, the sha256 of the arrays, and whatever the run adds
params.npz    the arrays, named by their place in the tree; no pickle

Reading it loads the module of its algorithm, and none of training. The parameters are float32 and
the policy acts in float32, also after updates in bfloat16.
"""

import dataclasses
import hashlib
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl import config_json, files, policies, registry
from offline_mbrl.data import specs, trees
from offline_mbrl.types import (
    Action,
    Actor,
    BoundedActions,
    EnvironmentSpec,
    Key,
    Observation,
    Params,
    Policy,
    PyTree,
    UsageError,
)

POLICY = "policy.json"
PARAMS = "params.npz"
SEPARATOR = "/"
REQUIRED = {"algorithm", "config", "spec", "seeds", "sha256"}


class Exported(NamedTuple):
    """A policy read back."""

    policy: Policy | Actor
    params: Params  # leading axis [S]
    spec: EnvironmentSpec
    description: dict[str, Any]  # what `save` was given, and the algorithm's settings


class LoadedActor(NamedTuple):
    """A policy with memory, to act with; all functions are compiled.

    Actions are in the simulator's own units. A new episode begins with `init`.
    """

    init: Callable[[Observation, Key], PyTree]  # (first observation, key) -> carry
    # (carry, observation, key) -> (action, carry)
    act: Callable[[PyTree, Observation, Key], tuple[Action, PyTree]]
    act_greedily: Callable[[PyTree, Observation, Key], tuple[Action, PyTree]]


def save(
    directory: Path,
    *,
    algorithm: str,
    config: Any,
    spec: EnvironmentSpec,
    params: Params,
    seeds: Sequence[int],
    description: Mapping[str, Any] | None = None,
) -> None:
    """Writes the folder, each file whole or not at all.

    Args:
      directory: made where it is absent.
      algorithm: its name in the registry.
      config: its settings, a dataclass.
      spec: what the policy acts in.
      params: nested dicts or records of arrays with a leading axis `[S]`.
      seeds: S seed numbers.
      description: further JSON values.

    Raises:
      UsageError: the folder cannot be written.
    """
    arrays: dict[str, np.ndarray] = {}
    structure = _flatten(params, (), arrays)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    content = buffer.getvalue()
    about = dict(description or {}) | {
        "algorithm": algorithm,
        "config": config_json.to_json(config),
        "spec": specs.to_json(spec),
        "seeds": [int(seed) for seed in seeds],
        "sha256": hashlib.sha256(content).hexdigest(),
        "structure": structure,
    }
    text = json.dumps(about, indent=1)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        files.write_whole(directory / PARAMS, lambda place: place.write_bytes(content))
        files.write_whole(directory / POLICY, lambda place: place.write_text(text))
    except OSError as error:
        raise UsageError(
            f"cannot write {directory}: {error.strerror}; choose another folder"
        ) from error


def load(directory: str | Path, *, overrides: Mapping[str, Any] | None = None) -> Exported:
    """Reads a folder that `save` wrote, all seeds of it.

    Args:
      directory: the folder.
      overrides: settings that take the place of those it was trained with; how a planner acts, for
        example. The parameters stay as they are.

    Raises:
      UsageError: a file is missing, damaged, or of an algorithm or settings that this version does
        not know; the algorithm has no such setting, or refuses its value.
    """
    directory = Path(directory)
    about, content = _read(directory)
    algorithm = registry.lookup(about["algorithm"])
    try:
        spec = specs.from_json(about["spec"])
        config = config_json.from_json(algorithm.config, about["config"])
        config = _overridden(config, overrides or {}, about["algorithm"])
        policy = algorithm.make(config, spec).policy
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            params = _unflatten(about.get("structure"), arrays)
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{directory / POLICY} does not describe a policy ({error}); export it again"
        ) from error
    if policy is None:
        raise UsageError(f"{about['algorithm']} has no policy that could act")
    return Exported(policy=policy, params=params, spec=spec, description=about)


def _overridden(config: Any, overrides: Mapping[str, Any], algorithm: str) -> Any:
    """The settings with others in their places.

    Raises:
      UsageError: there is no such setting.
    """
    names = {field.name for field in dataclasses.fields(config)}
    for name in overrides:
        if name not in names:
            raise UsageError(f"{algorithm} has no setting {name!r}")
    return dataclasses.replace(config, **overrides)


def _read(directory: Path) -> tuple[dict[str, Any], bytes]:
    """The description, and the bytes of the arrays.

    Raises:
      UsageError: a file is missing or damaged.
    """
    try:
        text = (directory / POLICY).read_bytes()
        content = (directory / PARAMS).read_bytes()
    except FileNotFoundError as error:
        name = Path(error.filename).name
        raise UsageError(f"{directory} holds no policy ({name} is missing)") from None
    except OSError as error:
        raise UsageError(f"{directory} cannot be read as a policy: {error.strerror}") from error
    try:
        about = json.loads(text)
    except ValueError:
        about = None
    if not isinstance(about, dict) or not about.keys() >= REQUIRED:
        raise UsageError(f"{directory / POLICY} is damaged; export the policy again")
    if hashlib.sha256(content).hexdigest() != about["sha256"]:
        raise UsageError(
            f"{directory / PARAMS} is damaged or of another export; export the policy again"
        )
    return about, content


# --- acting ---


def load_policy(
    directory: str | Path, *, seed: int | None = None
) -> Callable[..., Action] | LoadedActor:
    """A policy to act with: `action = policy(observation)`, or `policy(observation, key)` samples.

    Args:
      directory: written by `offline-mbrl export`.
      seed: which of the exported seeds; the first when absent.

    Returns:
      A compiled function of one observation (as the spec has it) and optionally a key. Discrete
      actions are integers; continuous ones are in the simulator's own units. Of an algorithm whose
      policy has a memory, a `LoadedActor`.

    Raises:
      UsageError: see `load`; or there is no such seed.
    """
    exported = load(directory)
    seeds = exported.description["seeds"]
    if seed is not None and seed not in seeds:
        raise UsageError(f"{directory} has no seed {seed}: it holds {', '.join(map(str, seeds))}")
    index = 0 if seed is None else seeds.index(seed)
    params = jax.tree.map(lambda leaf: leaf[index], exported.params)
    if isinstance(exported.policy, Actor):
        return _loaded_actor(exported.policy, params, exported.spec)
    return _loaded_policy(exported.policy, params, exported.spec)


def _loaded_policy(policy: Policy, params: Params, spec: EnvironmentSpec) -> Callable[..., Action]:
    mode = jax.jit(policy.mode)
    sample = jax.jit(policy.sample)

    def act(observation: Observation, key: Key | None = None) -> Action:
        observation = _checked(spec.observation, observation)
        if key is None:
            return _native(spec, mode(params, observation))
        return _native(spec, sample(params, observation, key))

    return act


def _loaded_actor(actor: Actor, params: Params, spec: EnvironmentSpec) -> LoadedActor:
    actor = policies.as_actor(actor)
    compiled_init = jax.jit(actor.init)

    def init(observation: Observation, key: Key) -> PyTree:
        return compiled_init(params, _checked(spec.observation, observation), key)

    def acting(choose: Callable[..., tuple[Action, PyTree]]) -> Callable[..., Any]:
        compiled = jax.jit(choose)

        def act(carry: PyTree, observation: Observation, key: Key) -> tuple[Action, PyTree]:
            observation = _checked(spec.observation, observation)
            action, carry = compiled(params, carry, observation, key)
            return _native(spec, action), carry

        return act

    return LoadedActor(
        init=init, act=acting(actor.act), act_greedily=acting(actor.act_greedily or actor.act)
    )


def _checked(spec: PyTree, observation: Observation) -> Observation:
    """The observation as arrays of the spec's dtypes.

    Raises:
      UsageError: it has other fields, or a field another shape.
    """
    shapes, structure = jax.tree.flatten(spec)
    several = len(shapes) > 1
    if several and jax.tree.structure(observation) != structure:
        raise UsageError(f"the policy takes one observation with the fields {sorted(spec)}")
    values = jax.tree.leaves(observation) if several else [observation]
    for shape, value in zip(shapes, values, strict=True):
        if np.shape(value) != shape.shape:
            raise UsageError(
                f"the policy takes one observation of shape {shape.shape}, got {np.shape(value)}"
            )
    arrays = [jnp.asarray(value, shape.dtype) for shape, value in zip(shapes, values, strict=True)]
    return jax.tree.unflatten(structure, arrays)


def _native(spec: EnvironmentSpec, action: Action) -> Action:
    """The action in the simulator's own units."""
    if not isinstance(spec.action, BoundedActions):
        return action
    low = jnp.asarray(spec.action.minimum)
    high = jnp.asarray(spec.action.maximum)
    return low + (action + 1.0) / 2.0 * (high - low)


# --- parameters as named arrays ---


def _flatten(tree: PyTree, path: tuple[str, ...], arrays: dict[str, np.ndarray]) -> Any:
    """Puts the leaves into `arrays` by their places, and returns the tree's structure as JSON.

    Args:
      tree: nested mappings, records, tuples and lists of arrays.
      path: its place.
      arrays: changed in place.
    """
    if isinstance(tree, Mapping):
        branches = {str(name): tree[name] for name in sorted(tree)}
    elif isinstance(tree, tuple) and hasattr(tree, "_fields"):
        record: Any = tree
        branches = record._asdict()
    elif isinstance(tree, tuple | list):
        branches = {str(index): branch for index, branch in enumerate(tree)}
    elif tree is None:
        return {"kind": "none"}
    else:
        arrays[SEPARATOR.join(path)] = np.asarray(tree)
        return {"kind": "array"}
    structure = {
        "branches": {
            name: _flatten(branch, (*path, name), arrays) for name, branch in branches.items()
        }
    }
    if isinstance(tree, Mapping):
        return {"kind": "mapping"} | structure
    if hasattr(tree, "_fields"):
        return {"kind": "record", "class": _name(type(tree))} | structure
    return {"kind": "sequence"} | structure


def _unflatten(structure: Any, arrays: Mapping[str, np.ndarray]) -> PyTree:
    """The tree of a structure and its arrays; without a structure they are nested dicts."""
    if structure is None:
        return trees.unflatten(
            {tuple(name.split(SEPARATOR)): jnp.asarray(arrays[name]) for name in arrays}
        )

    def build(part: Any, path: tuple[str, ...]) -> PyTree:
        if part["kind"] == "none":
            return None
        if part["kind"] == "array":
            return jnp.asarray(arrays[SEPARATOR.join(path)])
        branches = {name: build(branch, (*path, name)) for name, branch in part["branches"].items()}
        if part["kind"] == "mapping":
            return branches
        if part["kind"] == "record":
            return _record(part["class"])(**branches)
        return tuple(branches.values())

    return build(structure, ())


def _name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _record(name: str) -> Callable[..., tuple]:
    """A record's class by its name; only modules that the algorithm loaded are looked at.

    Raises:
      TypeError: there is no such record.
    """
    module, _, attribute = name.partition(":")
    cls = getattr(sys.modules.get(module), attribute, None)
    if not (isinstance(cls, type) and issubclass(cls, tuple) and hasattr(cls, "_fields")):
        raise TypeError(f"no record {name}")
    return cls
