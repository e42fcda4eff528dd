"""TensorBoard files, written in step with the run: no thread of tensorboardX, which would hang on a
full disk."""

import contextlib
import importlib.util
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np


@contextlib.contextmanager
def opened(
    folder: Path, seeds: Sequence[int], *, after: int
) -> Iterator[Callable[[int, Mapping[str, np.ndarray]], None]]:
    """One event file per seed, so that TensorBoard draws seeds as runs.

    Args:
      folder: of a stage.
      seeds: S seed numbers.
      after: the update that the stage goes on from; TensorBoard hides what an earlier process wrote
        after it.

    Yields:
      `log(step, figures [S] by name)`; what is not finite is left out.
    """
    # The extra `loggers`; metrics.jsonl has the same figures
    if importlib.util.find_spec("tensorboardX") is None:
        yield lambda step, figures: None
        return
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboardX.summary import scalar

    with contextlib.ExitStack() as stack:
        writers = []
        for seed in seeds:
            place = folder / f"seed_{seed}"
            place.mkdir(parents=True, exist_ok=True)
            # a name of its own
            writer = EventsWriter(str(place / "events"), f".{os.getpid()}.{after}")
            stack.callback(_close, writer)
            start = SessionLog(status=SessionLog.START)
            writer.write_event(Event(wall_time=time.time(), step=after + 1, session_log=start))
            writers.append(writer)

        def log(step: int, figures: Mapping[str, np.ndarray]) -> None:
            for index, writer in enumerate(writers):
                for name, values in figures.items():
                    if np.isfinite(values[index]):
                        summary = scalar(name, values[index])
                        writer.write_event(Event(wall_time=time.time(), step=step, summary=summary))
                writer.flush()

        yield log


def _close(writer: object) -> None:
    """Closes a file; a full disk has been told by the write that met it."""
    with contextlib.suppress(OSError):
        writer.close()  # type: ignore[attr-defined]
