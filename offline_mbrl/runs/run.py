"""What one run of `offline-mbrl train` is made of."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from rich.console import Console

from offline_mbrl.data import memory, stream
from offline_mbrl.data.catalog.load import Loaded
from offline_mbrl.runs import stopping
from offline_mbrl.runs.options import Options
from offline_mbrl.streams import Stream
from offline_mbrl.training import sharding
from offline_mbrl.types import Learner, Stage


class FolderRun(NamedTuple):
    """A run that lives in a folder; nothing here changes."""

    folder: Path
    options: Options
    seeds: tuple[int, ...]
    stages: dict[str, Stage]  # in order; the last is `training.stages.MAIN`
    config: Any
    data: Loaded
    identity: Mapping[str, Any]  # what `folder.opened` compares
    console: Console
    stopping: stopping.Stopping


def num_devices(options: Options) -> int:
    """Devices that batches of a run are split over."""
    return len(jax.devices()[: options.devices])


def mesh(options: Options) -> Mesh | None:
    """The mesh of those devices; None for a single one."""
    devices = jax.devices()[: options.devices]
    return sharding.mesh(devices) if len(devices) > 1 else None


def source(run: FolderRun, learner: Learner, dataset: memory.Dataset) -> memory.Dataset | Stream:
    """What `fit` is given for a dataset: itself, or the stream of what stays on the disk.

    Raises:
      UsageError: the learner's batches cannot be streamed.
    """
    if not stream.on_disk(dataset):
        return dataset
    return stream.bind(dataset, learner.sample, block_bytes=run.options.stream_mib * 2**20)
