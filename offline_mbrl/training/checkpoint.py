"""Checkpoints that are either whole or refused: orbax for the arrays, a sha256 for every leaf and
for every file.

    <directory>/<step>/state/          the leaves, as orbax writes them
    <directory>/<step>/manifest.json   what belongs here: step, leaves, files, metadata,
    environment, its own checksum

A checkpoint is written beside its place, flushed, and renamed into it, so that a process killed at
any moment leaves
the one before or the new one. No pickle: what cannot be written as arrays and JSON is not saved.
"""

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl import files
from offline_mbrl.training import manifest as manifests
from offline_mbrl.training.manifest import Damaged, sha256
from offline_mbrl.types import PyTree, UsageError

__all__ = ["Restored", "latest", "read_metadata", "restore", "save", "sha256", "steps"]

STATE = "state"
UNFINISHED = ".unfinished-"  # prefix of folders that a save or a removal is working on
REPLACED = ".replaced-"  # prefix of a checkpoint that is making way for another of the same step


class Restored(NamedTuple):
    """A checkpoint that was read back."""

    state: PyTree  # the template's structure; numpy arrays, typed keys as such
    metadata: dict[str, Any]  # as given to `save`, through JSON
    step: int
    messages: list[
        str
    ]  # one line each: a damaged checkpoint that was passed over, another library version, ...


# --- save ---


def save(
    directory: str | Path, step: int, state: PyTree, metadata: Mapping[str, Any], *, keep: int = 2
) -> Path:
    """Writes one checkpoint, atomically, then removes what it replaces.

    In a run of many processes one of them calls this (for replicated states); it does not wait for
    the others.

    Args:
      directory: the folder that holds a run's checkpoints; made where it is absent. One process
        writes to it.
      step: number of updates done; names the checkpoint. Checkpoints of later steps are removed:
        they are of a run that was taken up again from before them.
      state: any pytree of arrays, typed keys included.
      metadata: JSON values. `metadata["config"]` is what `restore` compares with what it expects.
      keep: how many checkpoints remain, this one included; with 2 or more a damaged one has a
        predecessor.

    Returns:
      The checkpoint's folder.

    Raises:
      UsageError: it could not be written (disk full, read-only, ...). Earlier checkpoints are as
        they were.
    """
    directory = Path(directory).absolute()
    target = directory / f"{step:09d}"
    unfinished = directory / f"{UNFINISHED}{target.name}"
    leaves = manifests.host_leaves(state)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _clean(directory)
        _write(unfinished, leaves)
        manifests.write(unfinished, step=step, leaves=leaves, metadata=metadata)
        for path in (*unfinished.rglob("*"), unfinished):
            files.flush(path)
        if target.exists():
            os.rename(target, directory / f"{REPLACED}{target.name}")
        os.rename(unfinished, target)
        files.flush(directory)
    except (OSError, ValueError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            _clean(directory)
        raise UsageError(
            f"cannot write the checkpoint {target}: {_reason(error)}; free some space or choose a "
            "writable folder (earlier checkpoints are intact)"
        ) from error
    with contextlib.suppress(OSError):
        _remove_stale(directory, step, keep)
    return target


def _write(folder: Path, leaves: Mapping[str, np.ndarray]) -> None:
    folder.mkdir()
    stored = {
        _label(index): leaf for index, leaf in enumerate(leaves.values()) if leaf.size
    }  # orbax refuses size 0
    if stored:
        import orbax.checkpoint as ocp

        with _quiet(), _orbax() as checkpointer:
            checkpointer.save(folder / STATE, args=ocp.args.StandardSave(stored))


def _orbax() -> Any:
    """orbax for this process alone, so that it waits for no other."""
    import orbax.checkpoint as ocp

    this = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=this, active_processes={this}, barrier_sync_key_prefix=f"process{this}"
    )
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=options)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps orbax from printing the tracebacks of its threads: what went wrong is raised as
    well."""
    logger = logging.getLogger("absl")
    disabled_before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = disabled_before


def _reason(error: Exception) -> str:
    """What the system said, out of an error that may hold a whole chain of paths."""
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return text.splitlines()[0].split(" [os_error_code")[0].rsplit(": ", 1)[-1]


def _label(index: int) -> str:
    """A leaf's name on disk; its path would not do as a file's name."""
    return f"{index:05d}"


def _clean(directory: Path) -> None:
    """Undoes what a killed save left: puts a half-replaced checkpoint back, removes unfinished
    folders."""
    for step, folder in _folders(directory).items():
        if folder.name.startswith(REPLACED):
            os.rename(folder, directory / f"{step:09d}")
    for folder in (*directory.glob(f"{UNFINISHED}*"), *directory.glob(f"{REPLACED}*")):
        shutil.rmtree(folder, ignore_errors=True)


def _remove_stale(directory: Path, step: int, keep: int) -> None:
    older = [other for other in steps(directory) if other < step]
    later = [other for other in steps(directory) if other > step]
    for other in later + older[: max(len(older) - keep + 1, 0)]:
        # Renamed first: a removal that is killed must not leave half a checkpoint under a valid
        # name.
        os.rename(directory / f"{other:09d}", directory / f"{UNFINISHED}removed-{other:09d}")
    _clean(directory)


# --- restore: never changes the folder, so that a running `save` is not disturbed ---


def steps(directory: str | Path) -> list[int]:
    """Steps of the checkpoints in a folder, ascending; whether they are whole is seen on
    `restore`."""
    return list(_folders(Path(directory)))


def latest(directory: str | Path) -> int | None:
    """Step of the newest checkpoint in a folder, whole or not, or None."""
    return max(steps(directory), default=None)


def _folders(directory: Path) -> dict[int, Path]:
    """Step -> folder, ascending. A checkpoint whose replacement was killed between two renames
    counts too."""
    if not directory.is_dir():
        return {}
    names = sorted(
        path.name for path in directory.iterdir() if path.name.removeprefix(REPLACED).isdecimal()
    )
    # "." sorts first: the replacement wins.
    folders = {int(name.removeprefix(REPLACED)): directory / name for name in names}
    return dict(sorted(folders.items()))


def restore(
    directory: str | Path,
    template: PyTree,
    *,
    step: int | None = None,
    expect: Mapping[str, Any] | None = None,
) -> Restored:
    """Reads the newest checkpoint that is whole, or the one of `step`.

    Args:
      directory: as for `save`.
      template: pytree of arrays or `jax.ShapeDtypeStruct`: structure, shapes and dtypes of the
        state.
      step: which one; None for the newest that is whole: a damaged one is passed over with a
        message.
      expect: the config that the checkpoint must have been made with (compared with
        `metadata["config"]`).

    Raises:
      UsageError: there is none, none is whole, it was made with another config, or it does not fit
        the template.
    """
    folder, manifest, messages = _newest_whole(Path(directory).absolute(), step)
    metadata = manifest["metadata"]
    difference = (
        None if expect is None else manifests.config_difference(metadata.get("config", {}), expect)
    )
    if difference:
        name, saved, expected = difference
        raise UsageError(
            f"checkpoint {folder} was made with {name} = {saved}, and this run has {expected}; "
            "use the same settings, or another run folder"
        )
    state = _fill(folder, template, _read(folder, manifest))
    messages += manifests.environment_differences(manifest["environment"])
    return Restored(state, metadata, manifest["step"], messages)


def read_metadata(directory: str | Path, *, step: int | None = None) -> dict[str, Any]:
    """The metadata of the newest checkpoint that is whole (or of `step`), without reading its
    arrays.

    Raises:
      UsageError: there is none.
    """
    return _newest_whole(Path(directory).absolute(), step)[1]["metadata"]


def _newest_whole(directory: Path, step: int | None) -> tuple[Path, dict[str, Any], list[str]]:
    """(folder, manifest, messages on those passed over)."""
    folders = _folders(directory)
    if not folders:
        raise UsageError(f"no checkpoint in {directory}; check the path of the run folder")
    if step is not None and step not in folders:
        raise UsageError(
            f"no checkpoint of step {step} in {directory}; there are steps "
            f"{', '.join(map(str, folders))}"
        )
    messages = []
    for candidate in reversed(folders) if step is None else [step]:
        folder = folders[candidate]
        try:
            return folder, manifests.verified(folder), messages
        except Damaged as error:
            messages.append(f"checkpoint {folder} is damaged and was passed over: {error}")
    raise UsageError(
        f"{'; '.join(messages)}; no good checkpoint is left: train again in a new run folder"
    )


def _read(folder: Path, manifest: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Leaf path -> array, each compared with its own sha256."""
    leaves = {
        name: np.zeros(shape, jnp.dtype(dtype)) for name, dtype, shape, _ in manifest["leaves"]
    }
    names = {_label(index): name for index, name in enumerate(leaves) if leaves[name].size}
    if names:
        import orbax.checkpoint as ocp

        args = ocp.args.StandardRestore({label: leaves[name] for label, name in names.items()})
        with _orbax() as checkpointer:
            stored = checkpointer.restore(folder / STATE, args=args)
        leaves |= {names[label]: np.asarray(array) for label, array in stored.items()}
    for name, *written in manifest["leaves"]:
        if manifests.describe(leaves[name]) != written:
            raise UsageError(
                f"leaf {name} of checkpoint {folder} was not read back as it was written"
            )
    return leaves


def _fill(folder: Path, template: PyTree, leaves: Mapping[str, np.ndarray]) -> PyTree:
    """The template's tree with the checkpoint's leaves; refuses another structure, shape or
    dtype."""
    expected = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(template)
    }
    for name in sorted(set(leaves) ^ set(expected)):
        side = "is only in the checkpoint" if name in leaves else "is missing from the checkpoint"
        raise UsageError(
            f"checkpoint {folder} has another structure: leaf {name} {side}; "
            "restore it with the algorithm and settings that it was made with"
        )
    filled = [_fit_leaf(folder, name, leaf, leaves[name]) for name, leaf in expected.items()]
    return jax.tree.unflatten(jax.tree.structure(template), filled)


def _fit_leaf(folder: Path, name: str, expected: Any, leaf: np.ndarray) -> Any:
    target = (
        jax.eval_shape(jax.random.key_data, expected) if manifests.is_key(expected) else expected
    )
    if leaf.shape != tuple(target.shape) or leaf.dtype != jnp.dtype(target.dtype):
        raise UsageError(
            f"checkpoint {folder} does not fit: leaf {name} is {leaf.dtype}{list(leaf.shape)} "
            f"there and {target.dtype}{list(target.shape)} here; was it made with other settings "
            "or another number of seeds?"
        )
    return manifests.as_key(leaf, expected) if manifests.is_key(expected) else leaf
