"""TensorBoard files, written in step with the run.

A thread of tensorboardX would hang on a full disk: none is started.
"""

import contextlib
import importlib
import importlib.util
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


@contextlib.contextmanager
def opened(
    folder: Path, seeds: Sequence[int], *, after: int
) -> Iterator[Callable[[int, Mapping[str, np.ndarray]], None]]:
    """One event file per seed, so that TensorBoard draws seeds as runs.

    Args:
      folder: of a stage.
      seeds: S seed numbers.
      after: the update that the stage resumes from; TensorBoard hides what an earlier process wrote
        after it.

    Yields:
      `log(step, figures [S] by name)`; what is not finite is left out.
    """
    # Without the extra `loggers` there are no files; metrics.jsonl has the same figures.
    if importlib.util.find_spec("tensorboardX") is None:
        yield lambda step, figures: None
        return
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.summary import scalar

    event_pb2: Any = importlib.import_module("tensorboardX.proto.event_pb2")

    with contextlib.ExitStack() as stack:
        writers = []
        for seed in seeds:
            seed_folder = folder / f"seed_{seed}"
            seed_folder.mkdir(parents=True, exist_ok=True)
            # The process number makes the file's name unique.
            writer = EventsWriter(str(seed_folder / "events"), f".{os.getpid()}.{after}")
            stack.callback(_close, writer)
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            writer.write_event(
                event_pb2.Event(wall_time=time.time(), step=after + 1, session_log=start)
            )
            writers.append(writer)

        def log(step: int, figures: Mapping[str, np.ndarray]) -> None:
            for index, writer in enumerate(writers):
                for name, values in figures.items():
                    if np.isfinite(values[index]):
                        summary = scalar(name, values[index])
                        writer.write_event(
                            event_pb2.Event(wall_time=time.time(), step=step, summary=summary)
                        )
                writer.flush()

        yield log


def _close(writer: object) -> None:
    """Closes a file; a full disk was reported by the write that met it."""
    with contextlib.suppress(OSError):
        writer.close()  # type: ignore[attr-defined]
