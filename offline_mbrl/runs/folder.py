"""A run's folder: what is in it, and how rows are written so that a killed run can resume.

run.json            what was asked for: algorithm, dataset and fingerprint, config, seeds, revision,
versions metrics.jsonl       one row per stage, block and seed
blocks.json         updates in a block of each stage, as measured by the first process: a later one
cuts the same rows tensorboard/        the same figures checkpoints/STAGE/  the last two checkpoints
of each stage policy/             the policies of the last checkpoint, as `offline_mbrl.load_policy`
reads them evaluation.json     the result of the last checkpoint; its presence says that the run is
complete report.md, learning_curve.png
"""

import contextlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock

from offline_mbrl import files
from offline_mbrl.training import manifest
from offline_mbrl.types import UsageError

RUN = "run.json"
METRICS = "metrics.jsonl"
EVALUATION = "evaluation.json"
BLOCKS = "blocks.json"
# What may not change when a run is resumed.
IDENTITY = ("algorithm", "dataset", "fingerprint", "seeds", "config", "precision")
ONCE = {"precision": "float32"}  # of folders that were made before there was such an entry


def check_writable(folder: Path) -> None:
    """Refuses a folder that certainly cannot be made or written; touches nothing.

    Raises:
      UsageError: something on the way to it is not a directory, or not ours to write.
    """
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    why = (
        "is not a directory"
        if not existing.is_dir()
        else None
        if os.access(existing, os.W_OK)
        else "is read-only"
    )
    if why:
        raise UsageError(
            f"cannot write the run folder {folder}: {existing} {why}; choose another --run-dir"
        )


@contextlib.contextmanager
def opened(folder: Path, run: Mapping[str, Any]) -> Iterator[None]:
    """Makes the folder or takes it up again, and keeps other processes out of it.

    Args:
      folder: of the run.
      run: what goes into `run.json`.

    Raises:
      UsageError: the folder holds another run, another process is training in it, or it cannot be
        written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except filelock.Timeout:
        raise UsageError(
            f"another process is training in {folder}; wait for it, or choose another --run-dir"
        ) from None
    except OSError as error:
        raise UsageError(
            f"cannot write the run folder {folder}: {error.strerror}; choose another --run-dir"
        ) from error
    try:
        if (folder / RUN).exists():
            _check_same(folder, run)
        else:
            write_json(folder / RUN, run)
        yield
    finally:
        lock.release()


def _check_same(folder: Path, run: Mapping[str, Any]) -> None:
    saved = ONCE | read_json(folder / RUN)
    difference = manifest.config_difference(
        {name: saved.get(name) for name in IDENTITY}, {name: run[name] for name in IDENTITY}
    )
    if difference:
        name, earlier, requested = difference
        raise UsageError(
            f"{folder} holds a run with {name} = {earlier}, and this one has {requested}; "
            "repeat its settings to resume it, or choose another --run-dir"
        )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file.

    Raises:
      UsageError: it is missing or damaged.
    """
    try:
        value = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{path} is missing: is {path.parent} the folder of a run?") from None
    except ValueError:  # not JSON, or not text
        value = None
    if not isinstance(value, dict):
        raise UsageError(f"{path} is damaged; train again in a new run folder")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON file whole or not at all; figures that are not finite become null."""
    text = json.dumps(_finite(value), indent=1, allow_nan=False)
    files.write_whole(path, lambda path: path.write_text(text))


def append_rows(folder: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Adds rows to `metrics.jsonl`.

    They are on the disk when this returns, so that no checkpoint is ahead of them.
    """
    text = "".join(json.dumps(_finite(row), allow_nan=False) + "\n" for row in rows)
    with (folder / METRICS).open("a") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl`, without a last line that a killed process left half-written."""
    try:
        lines = (folder / METRICS).read_text(errors="replace").split("\n")
    except FileNotFoundError:
        return []
    rows = []
    for number, line in enumerate(lines[:-1], 1):  # a whole line ends in a newline
        try:
            row = json.loads(line)
            is_row = {"stage", "step", "seed"} <= row.keys()
        except (ValueError, AttributeError):
            is_row = False
        if not is_row:
            raise UsageError(
                f"{folder / METRICS} is damaged in line {number}; remove that line to resume"
            )
        rows.append(row)
    return rows


def rewind(folder: Path, stage: str, step: int) -> None:
    """Drops a stage's rows after update `step`: resuming from there writes them again."""
    if not (folder / METRICS).exists():
        return
    kept = [row for row in read_rows(folder) if row["stage"] != stage or row["step"] <= step]
    text = "".join(json.dumps(row) + "\n" for row in kept)
    files.write_whole(folder / METRICS, lambda path: path.write_text(text))


def read_block(folder: Path, stage: str) -> int | None:
    """Updates in a block of a stage, where an earlier process has measured it."""
    return read_json(folder / BLOCKS).get(stage) if (folder / BLOCKS).exists() else None


def write_block(folder: Path, stage: str, num_updates: int) -> None:
    """Keeps the block length of a stage for later processes; called before its first row is
    written."""
    if read_block(folder, stage) != num_updates:
        lengths = read_json(folder / BLOCKS) if (folder / BLOCKS).exists() else {}
        write_json(folder / BLOCKS, lengths | {stage: num_updates})


def _finite(value: Any) -> Any:
    """JSON has no NaN: null stands for a figure that is not there."""
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
