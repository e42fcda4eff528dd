"""Minari datasets as sources of RLDS records."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from offline_mbrl.data import trees
from offline_mbrl.data.sources import ingest
from offline_mbrl.types import BoundedActions, DiscreteActions, UsageError


def minari_source(location: str | Path) -> ingest.Source:
    """A Minari dataset by id, or the directory that holds its `data`.

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
    except Exception as error:  # whatever damaged metadata make it raise
        raise UsageError(
            f"the Minari dataset {str(location)!r} cannot be opened: {ingest.first_line(error)}; "
            "fetch it with `minari download`, or give its directory"
        ) from error
    env_spec = dataset.env_spec
    return ingest.Source(
        ingest.grouped(_episodes(dataset, location)),
        {"source": "minari", "id": dataset.id},
        _actions(dataset.action_space),
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
        return BoundedActions(tuple(map(float, space.low)), tuple(map(float, space.high)))
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
    """T steps and T + 1 observations: the last observation gets a record of its own."""
    observation = trees.unflatten(trees.flatten(episode.observations))
    pad = lambda column: np.concatenate([column, np.zeros_like(column[:1])])  # noqa: E731
    reward = np.asarray(episode.rewards)
    terminal = np.concatenate([[False], np.asarray(episode.terminations, bool)])
    last = np.concatenate(
        [[False], np.asarray(episode.terminations, bool) | np.asarray(episode.truncations, bool)]
    )
    last[-1] = True
    records = {
        "observation": observation,
        "action": pad(np.asarray(episode.actions)),
        "reward": pad(reward),
        "is_first": np.arange(len(last)) == 0,
        "is_last": last,
        "is_terminal": terminal,
    }
    return ingest.Batch(records, np.array([len(last)]), added=1)
