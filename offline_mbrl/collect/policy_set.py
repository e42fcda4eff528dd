"""Sets of policies of one kind as one small file: stacked parameters, where each comes from, and
what it returns.

The files are npz without pickled objects, so that one from anywhere is safe to open.
"""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from offline_mbrl import files
from offline_mbrl.data import trees
from offline_mbrl.types import PyTree, UsageError

BEHAVIOR, TARGET = "behavior", "target"  # makes data; is evaluated on data of others
PREFIX = "params"
FIELDS = ("run", "step", "mean_return", "stderr", "role", "random_return")


class PolicySet(NamedTuple):
    """P policies that one function acts with."""

    params: PyTree  # [P, ...] float32, nested dicts
    run: np.ndarray  # [P] int32, which training run
    step: np.ndarray  # [P] int32, environment steps of that run so far
    mean_return: np.ndarray  # [P] float32, undiscounted, of a few episodes with sampled actions
    stderr: np.ndarray  # [P] float32, of the mean return
    role: np.ndarray  # [P] str, BEHAVIOR or TARGET
    random_return: np.ndarray  # [] float32, of uniform actions


def take(policies: PolicySet, chosen: Sequence[int] | np.ndarray) -> PolicySet:
    """The policies with these numbers, in this order."""
    rows = np.asarray(chosen, np.int64)
    some = {name: getattr(policies, name)[rows] for name in FIELDS[:-1]}
    return policies._replace(params=jax.tree.map(lambda leaf: leaf[rows], policies.params), **some)


def with_role(policies: PolicySet, role: str) -> PolicySet:
    """The policies of one role."""
    return take(policies, np.flatnonzero(policies.role == role))


def join(sets: Sequence[PolicySet]) -> PolicySet:
    """One set of several, in order; the random return is their mean."""
    joined = jax.tree.map(
        lambda *leaves: np.concatenate(leaves), *[one._replace(random_return=()) for one in sets]
    )
    return joined._replace(random_return=np.float32(np.mean([one.random_return for one in sets])))


def spread(policies: PolicySet, count: int) -> PolicySet:
    """`count` of the policies whose mean returns lie as evenly as possible from the lowest to the
    highest.

    Raises:
      UsageError: there are fewer.
    """
    if not 0 < count <= len(policies.run):
        raise UsageError(f"{count} policies were asked for, but there are {len(policies.run)}")
    left = list(np.argsort(policies.mean_return, kind="stable"))
    wanted = np.linspace(policies.mean_return[left[0]], policies.mean_return[left[-1]], count)
    chosen = []
    for value in wanted:
        nearest = min(left, key=lambda row: abs(policies.mean_return[row] - value))
        left.remove(nearest)
        chosen.append(nearest)
    return take(policies, sorted(chosen, key=lambda row: policies.mean_return[row]))


def save(path: Path, policies: PolicySet) -> None:
    """Writes a set, whole or not at all."""
    leaves = {
        "/".join((PREFIX, *at)): np.asarray(leaf, np.float32)
        for at, leaf in trees.flatten(policies.params).items()
    }
    columns: dict[str, Any] = {name: np.asarray(getattr(policies, name)) for name in FIELDS}

    def write(place: Path) -> None:
        with place.open("wb") as file:
            np.savez_compressed(file, **leaves, **columns)

    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_whole(path, write)


def load(path: Path) -> PolicySet:
    """Reads a set.

    Raises:
      UsageError: there is no such file, or it is no set of policies.
    """
    try:
        # a damaged one is closed as well
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise UsageError(f"there is no file of policies {path}") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} is damaged or no file of policies: {error}") from error
    missing = [name for name in FIELDS if name not in found]
    leaves = {
        tuple(name.split("/")[1:]): leaf
        for name, leaf in found.items()
        if name.startswith(f"{PREFIX}/")
    }
    if missing or not leaves:
        raise UsageError(
            f"{path} is no file of policies: it lacks {missing[0] if missing else 'params'}"
        )
    count = len(found["run"])
    columns = [found[name] for name in FIELDS[:-1]] + list(leaves.values())
    if any(column.shape[:1] != (count,) for column in columns):
        raise UsageError(f"{path} is no file of policies: its columns differ in length")
    if any(leaf.dtype != np.float32 or not np.isfinite(leaf).all() for leaf in leaves.values()):
        raise UsageError(f"{path}: the parameters must be finite float32")
    return PolicySet(trees.unflatten(leaves), **{name: found[name] for name in FIELDS})
