"""Writes episodes as an RLDS dataset in the TFDS array_record layout, without TensorFlow.

The result opens with `tfds.builder_from_directory`. Besides TFDS's own files there is
`offline_mbrl.json`: the spec, the origin of the data, and the size and sha256 of every file, since
readers of array_record do not notice that a file was cut short.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import numpy as np

from offline_mbrl import provenance
from offline_mbrl.data import specs
from offline_mbrl.data.store import atomic
from offline_mbrl.types import BoundedActions, DiscreteActions, UsageError

SIDECAR = "offline_mbrl.json"
DATASET_INFO = "dataset_info.json"
DTYPES = {
    "reward": np.float32,
    "discount": np.float32,
    "is_first": np.bool_,
    "is_last": np.bool_,
    "is_terminal": np.bool_,
}
VERSION = "1.0.0"
SHARD_BYTES = 256 * 2**20

Episode = Mapping[str, Any]  # {"steps": {field: [T + 1, ...]}, "metadata": {field: []}}


def write_rlds(
    directory: Path,
    episodes: Iterator[Episode],
    *,
    action: DiscreteActions | BoundedActions,
    metadata: Mapping[str, Any],
    gamma: float | None = None,
    horizon: int = 0,
    frame_stack: int = 1,
    force: bool = False,
) -> bool:
    """Writes episodes as an RLDS dataset, locked and atomically, unless it exists.

    Args:
      directory: the directory of `dataset_info.json`; its name becomes the dataset's.
      episodes: in order, all with the same fields. `steps` holds at least observation, action,
        reward, discount, is_first, is_last and is_terminal, each `[T + 1, ...]`; `metadata` holds
        scalars or strings. `episode_id` and `episode_return` are added where they are missing.
      action: the environment's actions, in its own units like the data.
      metadata: JSON about the origin, such as seed and behavior.
      gamma: the problem's discount factor, if it has one.
      horizon: longest episode in steps; 0 when unknown.
      frame_stack: number of records that make one observation.
      force: replace an existing dataset.

    Returns:
      Whether this call wrote it.

    Raises:
      UsageError: there is no episode, the steps lack a field or disagree in length, or the disk is
        full or read-only.
    """
    spec = {
        "action": specs.action_to_json(action),
        "gamma": gamma,
        "horizon": horizon,
        "frame_stack": frame_stack,
    }
    return atomic.build_once(
        directory,
        lambda target: _write(target, directory.name, episodes, {**metadata, "spec": spec}),
        is_complete=is_rlds,
        force=force,
    )


def is_rlds(directory: Path) -> bool:
    """Whether the directory holds a TFDS dataset."""
    return (directory / DATASET_INFO).is_file()


def read_sidecar(directory: Path) -> dict[str, Any] | None:
    """Reads the file that `write_rlds` adds; None for datasets of other writers.

    Raises:
      UsageError: the file is damaged.
    """
    try:
        return json.loads((directory / SIDECAR).read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UsageError(f"{directory / SIDECAR} is damaged; {_remedy(directory)}") from error


def verify(directory: Path) -> None:
    """Checks the size and sha256 of every file of a dataset by `write_rlds`.

    Raises:
      UsageError: a file is missing, cut short, or changed.
    """
    sidecar = read_sidecar(directory)
    for name, expected in (sidecar or {}).get("files", {}).items():
        file = directory / name
        actual = _describe_file(file) if file.is_file() else {"bytes": 0, "sha256": None}
        if actual["bytes"] != expected["bytes"]:
            raise UsageError(
                f"{file} is damaged: it has {actual['bytes']} bytes instead of "
                f"{expected['bytes']}; {_remedy(directory)}"
            )
        if actual != expected:
            raise UsageError(f"{file} is damaged: its sha256 does not match; {_remedy(directory)}")


def _remedy(directory: Path) -> str:
    """The advice on a damaged dataset: only `local/` ones can be generated again."""
    try:
        name = directory.resolve().relative_to((atomic.root() / "rlds").resolve()).as_posix()
    except ValueError:
        return "restore the files from a copy, or write the dataset again"
    return f"rebuild it: `offline-mbrl data build {name} --force`"


def _write(
    target: Path, name: str, episodes: Iterator[Episode], metadata: Mapping[str, Any]
) -> None:
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    checked = _checked(episodes)
    first = next(checked, None)
    if first is None:
        raise UsageError(f"no episodes to write to {name}")
    features = _features(first)
    # These features are stored without encoding, so the stacked arrays are serialized directly.
    serialize = ExampleSerializer(features.get_serialized_info()).serialize_example
    records = map(serialize, itertools.chain([first], checked))
    lengths, num_bytes = _write_shards(target, "data_" + re.sub(r"\W", "_", name), records)
    _describe(target, features, lengths, num_bytes)
    files = {path.name: _describe_file(path) for path in sorted(target.iterdir())}
    sidecar = {**metadata, **provenance.describe(), "files": files}
    (target / SIDECAR).write_text(json.dumps(sidecar, indent=1))


def _write_shards(target: Path, name: str, records: Iterator[bytes]) -> tuple[list[int], int]:
    """Writes shards of about `SHARD_BYTES`: the numbers of records in them, and the total bytes."""
    from array_record.python.array_record_module import ArrayRecordWriter

    lengths: list[int] = []
    shard_bytes = total = 0
    with ExitStack() as stack:
        for record in records:
            if not lengths or shard_bytes >= SHARD_BYTES:
                stack.close()
                shard = ArrayRecordWriter(str(target / f"shard-{len(lengths)}"), "group_size:1")
                stack.callback(_try, shard.close)
                lengths.append(0)
                shard_bytes = 0
            _try(shard.write, record)
            lengths[-1] += 1
            shard_bytes += len(record)
            total += len(record)
    for index in range(len(lengths)):
        final = f"{name}-train.array_record-{index:05d}-of-{len(lengths):05d}"
        (target / f"shard-{index}").rename(target / final)
    return lengths, total


def _try(write: Callable[..., None], *arguments: Any) -> None:
    try:
        write(*arguments)
    except RuntimeError as error:  # array_record's error when the disk is full
        raise OSError(str(error).split(";")[0]) from error


def _describe(target: Path, features: Any, lengths: list[int], num_bytes: int) -> None:
    """Writes TFDS's own description of the shards."""
    import tensorflow_datasets as tfds

    split = tfds.core.SplitInfo(name="train", shard_lengths=lengths, num_bytes=num_bytes)
    tfds.folder_dataset.write_metadata(
        data_dir=str(target),
        features=features,
        split_infos=[split],
        version=VERSION,
        check_data=False,
        filename_template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        disable_shuffling=True,
    )


def _features(episode: Episode) -> Any:
    import tensorflow_datasets as tfds

    def feature(value: np.ndarray, shape: tuple[int, ...]) -> Any:
        return (
            tfds.features.Tensor(shape=shape, dtype=value.dtype)
            if shape
            else tfds.features.Scalar(value.dtype)
        )

    steps = jax.tree.map(lambda column: feature(column, column.shape[1:]), episode["steps"])
    metadata = {
        name: tfds.features.Text()
        if isinstance(value, str)
        else feature(np.asarray(value), np.shape(value))
        for name, value in episode.items()
        if name != "steps"
    }
    return tfds.features.FeaturesDict({**metadata, "steps": tfds.features.Dataset(steps)})


def _checked(episodes: Iterator[Episode]) -> Iterator[dict[str, Any]]:
    """Episodes as TFDS examples with standard dtypes and metadata.

    Raises:
      UsageError: an episode lacks a field, or differs from the first in fields, shapes or dtypes.
    """
    first_form = None
    for index, episode in enumerate(episodes):
        steps = jax.tree.map(np.asarray, dict(episode["steps"]))
        missing = [name for name in ("observation", "action", *DTYPES) if name not in steps]
        if missing:
            raise UsageError(f"episode {index} lacks the field {missing[0]!r}")
        steps |= {name: steps[name].astype(dtype) for name, dtype in DTYPES.items()}
        lengths = {len(leaf) for leaf in jax.tree.leaves(steps)}
        if len(lengths) != 1:
            raise UsageError(f"episode {index} has fields of different lengths: {sorted(lengths)}")
        metadata = {
            "episode_id": np.int64(index),
            "episode_return": np.float32(steps["reward"][:-1].sum()),
        }
        metadata |= episode.get("metadata", {})
        shapes = jax.tree.map(lambda leaf: (leaf.shape[1:], leaf.dtype.name), steps)
        form = (shapes, sorted(metadata))
        first_form = first_form or form
        if form != first_form:
            raise UsageError(
                f"episode {index} has other fields, shapes or dtypes than the first: {form} is "
                f"not {first_form}"
            )
        yield {**metadata, "steps": steps}


def _describe_file(path: Path) -> dict[str, Any]:
    with path.open("rb") as opened:
        return {
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(opened, "sha256").hexdigest(),
        }
