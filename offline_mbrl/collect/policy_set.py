"""Sets of policies of one kind as a small file: stacked parameters, origins and mean returns.

The files are npz without pickled objects, so that files of any origin are safe to open.
"""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from offline_mbrl import files
from offline_mbrl.data import trees
from offline_mbrl.types import Params, UsageError

BEHAVIOR = "behavior"  # generates data
TARGET = "target"  # is evaluated on data of others
PREFIX = "params"
FIELDS = ("run", "step", "mean_return", "stderr", "role", "random_return")


class PolicySet(NamedTuple):
    """P sets of parameters of one policy."""

    params: Params  # [P, ...] float32, nested dicts
    run: np.ndarray  # [P] int32, number of the training run
    step: np.ndarray  # [P] int32, environment steps of that run so far
    mean_return: np.ndarray  # [P] float32, undiscounted, of a few episodes with sampled actions
    stderr: np.ndarray  # [P] float32, of the mean return
    role: np.ndarray  # [P] str, BEHAVIOR or TARGET
    random_return: np.ndarray  # [] float32, of uniform actions


def take(policies: PolicySet, chosen: Sequence[int] | np.ndarray) -> PolicySet:
    """The policies at the `chosen` rows, in this order."""
    rows = np.asarray(chosen, np.int64)
    columns = {name: getattr(policies, name)[rows] for name in FIELDS[:-1]}
    params = jax.tree.map(lambda leaf: leaf[rows], policies.params)
    return policies._replace(params=params, **columns)


def with_role(policies: PolicySet, role: str) -> PolicySet:
    """The policies of one role."""
    return take(policies, np.flatnonzero(policies.role == role))


def join(sets: Sequence[PolicySet]) -> PolicySet:
    """Joins sets in order; the random return is the mean of theirs."""
    columns = [policies._replace(random_return=()) for policies in sets]
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *columns)
    random_return = np.mean([policies.random_return for policies in sets])
    return joined._replace(random_return=np.float32(random_return))


def spread(policies: PolicySet, count: int) -> PolicySet:
    """Selects `count` policies with mean returns as evenly spread as possible, in their order.

    Raises:
      UsageError: there are fewer.
    """
    if not 0 < count <= len(policies.run):
        raise UsageError(f"{count} policies were asked for, but there are {len(policies.run)}")
    returns = policies.mean_return
    candidates = list(np.argsort(returns, kind="stable"))
    grid = np.linspace(returns[candidates[0]], returns[candidates[-1]], count)
    chosen = []
    for value in grid:
        nearest = min(candidates, key=lambda row, value=value: abs(returns[row] - value))
        candidates.remove(nearest)
        chosen.append(nearest)
    return take(policies, sorted(chosen, key=lambda row: returns[row]))


def origin(policies: PolicySet, row: int) -> dict[str, Any]:
    """What an episode's metadata say of the policy that played it."""
    return {
        "policy_run": int(policies.run[row]),
        "policy_step": int(policies.step[row]),
        "policy_return": float(policies.mean_return[row]),
    }


def save(path: Path, policies: PolicySet) -> None:
    """Writes a set atomically."""
    leaves = {
        "/".join((PREFIX, *key)): np.asarray(leaf, np.float32)
        for key, leaf in trees.flatten(policies.params).items()
    }
    columns: dict[str, Any] = {name: np.asarray(getattr(policies, name)) for name in FIELDS}

    def write(target: Path) -> None:
        with target.open("wb") as file:
            np.savez_compressed(file, **leaves, **columns)

    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_whole(path, write)


def load(path: Path) -> PolicySet:
    """Reads a set.

    Raises:
      UsageError: there is no such file, or it is not a set of policies.
    """
    try:
        # `open` closes the file even if `np.load` raises.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise UsageError(f"there is no file of policies {path}") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} is damaged or no file of policies: {error}") from error
    missing = [name for name in FIELDS if name not in arrays]
    leaves = {
        tuple(name.split("/")[1:]): leaf
        for name, leaf in arrays.items()
        if name.startswith(f"{PREFIX}/")
    }
    if missing or not leaves:
        raise UsageError(
            f"{path} is no file of policies: it lacks {missing[0] if missing else 'params'}"
        )
    count = len(arrays["run"])
    columns = [arrays[name] for name in FIELDS[:-1]] + list(leaves.values())
    if any(column.shape[:1] != (count,) for column in columns):
        raise UsageError(f"{path} is no file of policies: its columns differ in length")
    if any(leaf.dtype != np.float32 or not np.isfinite(leaf).all() for leaf in leaves.values()):
        raise UsageError(f"{path}: the parameters must be finite float32")
    return PolicySet(params=trees.unflatten(leaves), **{name: arrays[name] for name in FIELDS})
