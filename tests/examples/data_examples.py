"""Small datasets that the tests of the data room share."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from offline_mbrl.data.sources import ingest
from offline_mbrl.data.store import read as store


def episode(*, length: int, terminal: bool, start: float = 0.0, seed: int = 0) -> dict[str, Any]:
    """RLDS records of `length` transitions, all distinct: observation 0 counts on from `start`."""
    rng = np.random.default_rng(seed)
    t = np.arange(length + 1)
    return {
        "observation": np.stack([start + t, rng.normal(size=length + 1)], axis=1).astype(
            np.float32
        ),
        "action": rng.integers(0, 3, length + 1).astype(np.int32),
        "reward": np.where(t < length, rng.normal(size=length + 1), 0).astype(np.float32),
        "discount": np.where(terminal & (t >= length - 1), 0.0, 1.0).astype(np.float32),
        "is_first": t == 0,
        "is_last": t == length,
        "is_terminal": (t == length) & terminal,
    }


def episodes(number: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Episodes of 2 to 8 transitions, every third one truncated."""
    rng = np.random.default_rng(seed)
    return [
        episode(
            length=int(rng.integers(2, 9)),
            terminal=index % 3 > 0,
            start=100.0 * index,
            seed=seed * 1000 + index,
        )
        for index in range(number)
    ]


def source(listed: list[dict[str, Any]], **facts: Any) -> ingest.Source:
    """A source that yields these episodes in one batch."""
    batches = [ingest.Batch(records, np.array([len(records["reward"])])) for records in listed]
    return ingest.Source(ingest.grouped(batches), {"source": "test"}, **facts)


def written(listed: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The same episodes in the writer's form."""
    return iter([{"steps": records, "metadata": {}} for records in listed])


def collect(
    environment: str, *, num_episodes: int, noise: float, fraction: int, seed: int
) -> Iterator[dict]:
    """Stands in for the collector of `local/` datasets."""
    del environment, noise, fraction
    return written(episodes(num_episodes, seed=seed))


def read_everything(directory: Path) -> None:
    """Every column of both splits, hashes checked."""
    opened = store.open_store(directory)
    for split in store.SPLITS:
        store.aligned(opened, split)
