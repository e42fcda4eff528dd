"""A run's folder: what is in it, and how rows are written so that a run that was killed can go on.

run.json            what was asked for: algorithm, dataset and fingerprint, config, seeds, revision, versions
metrics.jsonl       one row per stage, block and seed
tensorboard/        the same figures
checkpoints/STAGE/  the last two checkpoints of each stage
evaluation.json     the result of the last checkpoint; its presence says that the run is complete
report.md, learning_curve.png
"""

import contextlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock

from offline_mbrl import manifest
from offline_mbrl.types import UsageError

RUN, METRICS, EVALUATION = "run.json", "metrics.jsonl", "evaluation.json"
IDENTITY = ("algorithm", "dataset", "fingerprint", "seeds", "config")  # what may not change when a run goes on


@contextlib.contextmanager
def opened(folder: Path, run: Mapping[str, Any]) -> Iterator[None]:
    """Makes the folder or takes it up again, and keeps other processes out of it.

    Args:
      folder: of the run.
      run: what goes into `run.json`.

    Raises:
      UsageError: the folder holds another run, another process is training in it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except filelock.Timeout:
        raise UsageError(f"another process is training in {folder}; wait for it, or choose another --run-dir") from None
    except OSError as error:
        raise UsageError(f"cannot write {folder}: {error.strerror}; choose another --run-dir") from error
    try:
        if (folder / RUN).exists():
            _check_same(folder, run)
        else:
            write_json(folder / RUN, run)
        yield
    finally:
        lock.release()


def _check_same(folder: Path, run: Mapping[str, Any]) -> None:
    before = read_json(folder / RUN)
    difference = manifest.config_difference({k: before.get(k) for k in IDENTITY}, {k: run[k] for k in IDENTITY})
    if difference:
        name, there, here = difference
        raise UsageError(
            f"{folder} holds a run with {name} = {there}, and this one has {here}; repeat its settings to go on, "
            "or choose another --run-dir"
        )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file.

    Raises:
      UsageError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UsageError(f"{path} is missing: is {path.parent} the folder of a run?") from None
    except ValueError:  # not JSON, or not text
        raise UsageError(f"{path} is damaged; train again in a new run folder") from None


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON file whole or not at all; figures that are not finite become null."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    with unfinished.open("w") as file:
        json.dump(_finite(value), file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(path)


def append_rows(folder: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Adds rows to `metrics.jsonl`; they are with the system when this returns."""
    text = "".join(json.dumps(_finite(row)) + "\n" for row in rows)
    with (folder / METRICS).open("a") as file:
        file.write(text)


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl`; a last line that a killed process left half-written is passed over."""
    try:
        lines = (folder / METRICS).read_text().split("\n")
    except FileNotFoundError:
        return []
    rows = []
    for number, line in enumerate(lines[:-1], 1):  # a whole line ends in a newline
        try:
            rows.append(json.loads(line))
        except ValueError:
            raise UsageError(f"{folder / METRICS} is damaged in line {number}; remove that line to go on") from None
    return rows


def rewind(folder: Path, stages: Sequence[str], stage: str, step: int) -> None:
    """Drops the rows after update `step` of `stage`: they are written again as the run goes on from there."""
    if not (folder / METRICS).exists():
        return
    earlier = stages[: stages.index(stage)]
    kept = [
        row for row in read_rows(folder) if row["stage"] in earlier or (row["stage"] == stage and row["step"] <= step)
    ]
    unfinished = folder / f".{METRICS}.unfinished"
    unfinished.write_text("".join(json.dumps(row) + "\n" for row in kept))
    unfinished.rename(folder / METRICS)


def _finite(value: Any) -> Any:
    """JSON has no NaN: null stands for a figure that is not there."""
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
