"""What a checkpoint folder says about itself: a sha256 for every leaf and every file, and one for
the manifest."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl import provenance
from offline_mbrl.types import PyTree

NAME = "manifest.json"


class Damaged(Exception):
    """A checkpoint that does not hold what was written; the message names the file."""


def sha256(state: PyTree) -> str:
    """One digest over names, shapes, dtypes and bits of all leaves: equal exactly when two states
    are the same."""
    digest = hashlib.sha256()
    for name, leaf in host_leaves(state).items():
        digest.update(json.dumps([name, *describe(leaf)]).encode())
    return digest.hexdigest()


def host_leaves(state: PyTree) -> dict[str, np.ndarray]:
    """Path -> array on the host, in the tree's order; typed keys as their bits."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    host = jax.device_get(
        [jax.random.key_data(leaf) if is_key(leaf) else leaf for _, leaf in leaves]
    )
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for (path, _), leaf in zip(leaves, host, strict=True)
    }


def is_key(leaf: Any) -> bool:
    """Whether this is an array of typed random keys, or the shape of one."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def as_key(bits: np.ndarray, like: Any) -> jax.Array:
    """Typed keys from their bits, of the same kind as `like` (an array, or the shape of one)."""
    kinds = []
    jax.eval_shape(
        lambda key: kinds.append(jax.random.key_impl(key)), like
    )  # a shape alone does not tell its kind
    return jax.random.wrap_key_data(jnp.asarray(bits), impl=kinds[0])


def describe(array: np.ndarray) -> list[Any]:
    """[dtype, shape, sha256] of an array's bits."""
    digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    return [str(array.dtype), list(array.shape), digest]


def write(
    folder: Path, *, step: int, leaves: Mapping[str, np.ndarray], metadata: Mapping[str, Any]
) -> None:
    """Writes the manifest of a folder whose other files are complete."""
    manifest = {
        "step": step,
        "leaves": [[name, *describe(leaf)] for name, leaf in leaves.items()],
        "files": {str(path.relative_to(folder)): _file_sha256(path) for path in _files(folder)},
        "metadata": metadata,
        "environment": environment(),
    }
    (folder / NAME).write_bytes(_render(manifest))


def verified(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, after comparing every file with it.

    Raises:
      Damaged: a file is missing, foreign, unreadable, or not what was written.
    """
    path = folder / NAME
    try:
        raw = path.read_bytes()
        manifest = json.loads(raw)
        # Rendering it again covers every byte, blanks included.
        if not isinstance(manifest, dict) or _render(manifest) != raw:
            raise Damaged(f"{path} does not match its checksum")
        present = {str(file.relative_to(folder)) for file in _files(folder)}
        for name in sorted(present | set(manifest["files"])):
            if name not in present:
                raise Damaged(f"{folder / name} is missing")
            if name not in manifest["files"]:
                raise Damaged(f"{folder / name} does not belong there")
            path = folder / name
            if _file_sha256(path) != manifest["files"][name]:
                raise Damaged(f"{path} does not match its sha256")
    except (OSError, ValueError) as error:
        raise Damaged(
            f"{path}: {getattr(error, 'strerror', None) or 'not readable as JSON'}"
        ) from error
    return manifest


def _render(manifest: Mapping[str, Any]) -> bytes:
    body = {name: value for name, value in manifest.items() if name != "checksum"}
    checksum = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**body, "checksum": checksum}, sort_keys=True, indent=1) + "\n").encode()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if not path.is_dir() and path != folder / NAME)


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- what a checkpoint was made with ---


def environment() -> dict[str, Any]:
    """What bit-identical results depend on besides the config: library versions, devices,
    threads."""
    return {
        **provenance.versions(),
        "device kind": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "processor cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
    }


def environment_differences(recorded: Mapping[str, Any]) -> list[str]:
    """One line for each figure of `environment` that is another now."""
    now = environment()
    return [
        f"the checkpoint was made with {name} {recorded.get(name)!r}, this is {now.get(name)!r}: "
        "the result will not be bit-identical to an uninterrupted run"
        for name in {**recorded, **now}
        if recorded.get(name) != now.get(name)
    ]


def config_difference(
    actual: Mapping[str, Any], expected: Mapping[str, Any]
) -> tuple[str, str, str] | None:
    """(dotted name, value there, value here) of the first setting that differs, or None."""
    saved = _flatten(actual)
    current = _flatten(expected)
    for name in {**current, **saved}:
        if saved.get(name) != current.get(name):
            return name, saved.get(name, "absent"), current.get(name, "absent")
    return None


def _flatten(config: Any, prefix: str = "") -> dict[str, str]:
    """Dotted name -> JSON text, so that tuples equal lists and NaN equals itself."""
    if not isinstance(config, Mapping):
        return {prefix: json.dumps(config)}
    flat: dict[str, str] = {}
    for key, value in config.items():
        flat |= _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
