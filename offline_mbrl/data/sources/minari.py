"""Minari datasets as sources of RLDS records."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from offline_mbrl.data import trees
from offline_mbrl.data.sources import ingest
from offline_mbrl.types import BoundedActions, DiscreteActions, UsageError


def minari_source(location: str | Path) -> ingest.Source:
    """A Minari dataset as a source, by its id or by the directory that holds its `data`.

    Raises:
      UsageError: Minari is missing, the dataset is not on this machine, damaged, or of an
        unsuitable kind.
    """
    try:
        import minari
    except ImportError as error:
        raise UsageError(
            "reading Minari datasets needs minari: pip install 'offline_mbrl[minari]'"
        ) from error
    try:
        if isinstance(location, Path):
            dataset = minari.MinariDataset(
                location / "data" if (location / "data").is_dir() else location
            )
        else:
            dataset = minari.load_dataset(location)
    except Exception as error:  # damaged metadata raise errors of many types
        raise UsageError(
            f"the Minari dataset {str(location)!r} cannot be opened: {ingest.first_line(error)}; "
            "fetch it with `minari download`, or give its directory"
        ) from error
    env_spec = dataset.env_spec
    return ingest.Source(
        batches=ingest.grouped(_episodes(dataset, location)),
        provenance={"source": "minari", "id": dataset.id},
        action=_actions(dataset.action_space),
        episodes=int(dataset.total_episodes),
        steps=int(dataset.total_steps),
        horizon=(env_spec.max_episode_steps or 0) if env_spec else 0,
        simulator=_simulator(env_spec),
    )


def _simulator(env_spec: Any) -> str | None:
    """The environment's name with the time limit under which the data were collected."""
    if not env_spec:
        return None
    limit = env_spec.max_episode_steps
    return f"gym/{env_spec.id}" + (f"?max_steps={limit}" if limit else "")


def _actions(space: Any) -> DiscreteActions | BoundedActions:
    if hasattr(space, "n") and np.ndim(space.n) == 0:
        if getattr(space, "start", 0) != 0:
            raise UsageError(
                f"discrete actions must start at 0, this dataset's start at {space.start}"
            )
        return DiscreteActions(int(space.n))
    if hasattr(space, "low") and len(space.shape) == 1:
        return BoundedActions(
            minimum=tuple(map(float, space.low)), maximum=tuple(map(float, space.high))
        )
    raise UsageError(f"the action space {space} is not supported: discrete, or a box with one axis")


def _episodes(dataset: Any, location: str | Path) -> Iterator[ingest.Batch]:
    try:
        for episode in dataset.iterate_episodes():
            yield _batch(episode)
    except UsageError:
        raise
    except Exception as error:
        reason = ingest.first_line(error)
        raise UsageError(
            f"Minari dataset {str(location)!r} cannot be read to its end: {reason}"
        ) from error


def _batch(episode: Any) -> ingest.Batch:
    """Records of T steps and T + 1 observations; the last observation has a record of its own."""
    observation = trees.unflatten(trees.flatten(episode.observations))
    terminations = np.asarray(episode.terminations, bool)
    truncations = np.asarray(episode.truncations, bool)
    last = np.concatenate([[False], terminations | truncations])
    last[-1] = True
    records = {
        "observation": observation,
        "action": _with_final_record(episode.actions),
        "reward": _with_final_record(episode.rewards),
        "is_first": np.arange(len(last)) == 0,
        "is_last": last,
        "is_terminal": np.concatenate([[False], terminations]),
    }
    return ingest.Batch(records=records, lengths=np.array([len(last)]), added=1)


def _with_final_record(column: Any) -> np.ndarray:
    column = np.asarray(column)
    return np.concatenate([column, np.zeros_like(column[:1])])
