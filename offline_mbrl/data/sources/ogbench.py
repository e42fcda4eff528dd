"""OGBench's data: its `.npz` files, and labels of a task for any of its steps.

`terminals` mark where episodes end, by time. `masks` are 0 on every step from a state where the
task is solved; the episode goes on there. Rewards and masks are ogbench's own, computed from the
simulator's state that is stored beside each step.
"""

import contextlib
import importlib.metadata
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from offline_mbrl.data.catalog import ogbench
from offline_mbrl.data.sources import ingest
from offline_mbrl.data.store import atomic
from offline_mbrl.types import UsageError

Label = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]  # state -> reward, bootstrap


def files_source(dataset: str, task: int) -> ingest.Source:
    """An official dataset from its two files; the second holds the validation split.

    Args:
      dataset: its short name, for example `cube-single-play`.
      task: whose labels the steps get; 0: none.

    Raises:
      UsageError: the files are not there, one of them cannot be read, or ogbench is missing.
    """
    paths = _find(dataset, [atomic.root() / ogbench.FOLDER, Path(ogbench.OWN_FOLDER)])
    parts = [_read(path) for path in paths]
    counts = [int(part["is_last"].sum()) for part in parts]
    source = ingest.Source(
        batches=ingest.grouped(batch for part in parts for batch in _episodes(part)),
        unit_actions=True,
        provenance={"source": "ogbench", "files": [str(path) for path in paths]},
        episodes=sum(counts),
        train_episodes=counts[0],
    )
    return labelled(source, dataset, task)


def labelled(source: ingest.Source, dataset: str, task: int) -> ingest.Source:
    """A source whose steps have the rewards and discounts of a task.

    Args:
      source: steps that hold the simulator's state (`catalog.ogbench.STATE`) before the action.
      dataset: its short name.
      task: from 1 on; 0: no task, all rewards are 0 and all discounts 1.

    Raises:
      UsageError: ogbench is missing.
    """
    label = _task_label(dataset, task) if task else _no_task
    return source._replace(
        batches=_labelled(source.batches, label),
        simulator=ogbench.simulator(dataset, task),
        provenance={
            **source.provenance,
            "task": task or None,
            "labels": f"ogbench {importlib.metadata.version('ogbench')}" if task else None,
            "semantics": list(ogbench.SEMANTICS if task else ogbench.WITHOUT_TASK),
        },
    )


def _labelled(batches: Any, label: Label) -> Iterator[ingest.Batch]:
    for batch in batches:
        records = dict(batch.records)
        state = {name: records.pop(name) for name in ogbench.STATE if name in records}
        yield batch._replace(records={**records, **label(state)})


def _no_task(state: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    return {"reward": np.zeros(len(state["qpos"]), np.float32)}


def _task_label(dataset: str, task: int) -> Label:
    """ogbench's labels of a task, which its environment knows."""
    package = _package()
    name = f"{ogbench.joined(dataset, task)}{ogbench.VERSION}"
    with _without_warnings():
        simulator = package.make_env_and_datasets(name, env_only=True)

    def label(state: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        columns: dict[str, Any] = dict(state)
        with _without_warnings():
            package.relabel_utils.relabel_dataset(name, simulator, columns)
        return {"reward": columns["rewards"], "bootstrap": columns["masks"]}

    return label


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Hides gymnasium's warnings of the float64 bounds of ogbench's spaces."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# --- files ---


def _find(dataset: str, folders: Sequence[Path]) -> list[Path]:
    stem = f"{dataset}{ogbench.VERSION}"
    names = [f"{stem}.npz", f"{stem}{ogbench.HELD_OUT}.npz"]
    for folder in folders:
        paths = [folder.expanduser() / name for name in names]
        if all(path.is_file() for path in paths):
            return paths
    local = f", or build local/ogbench/{dataset}" if dataset in ogbench.COLLECTED else ""
    raise UsageError(
        f"ogbench/{dataset} needs the files {' and '.join(names)} in "
        f'{" or ".join(map(str, folders))}: `python -c "import ogbench; '
        f"ogbench.download_datasets(['{stem}'])\"` fetches them into the last{local}"
    )


def _read(path: Path) -> dict[str, np.ndarray]:
    """A file's records in RLDS's order: the last one of an episode holds an observation only."""
    package = _package()
    try:
        with path.open("rb") as opened:
            file = package.load_dataset(opened, compact_dataset=True, add_info=True)
    except Exception as error:  # numpy and zlib raise what they like
        raise UsageError(
            f"{path} cannot be read as a file of OGBench: {ingest.first_line(error)}; fetch it "
            "again"
        ) from error
    if "qpos" not in file:
        raise UsageError(f"{path} has no field 'qpos', from which the labels of a task follow")
    return {
        "observation": file["observations"],
        "action": file["actions"],
        "is_last": file["valids"] == 0,
        **{name: file[name] for name in ogbench.STATE if name in file},
    }


def _episodes(columns: Mapping[str, np.ndarray]) -> Iterator[ingest.Batch]:
    ends = np.flatnonzero(columns["is_last"]) + 1
    for start, stop in zip([0, *ends[:-1]], ends, strict=True):
        records = {name: column[start:stop] for name, column in columns.items()}
        records["reward"] = np.zeros(stop - start, np.float32)
        yield ingest.Batch(records=records, lengths=np.array([stop - start]))


def _package() -> Any:
    try:
        import ogbench as package
    except ImportError as error:
        raise UsageError(
            f"OGBench's data need a package that is not installed ({error.name or error}): pip "
            "install 'offline_mbrl[ogbench]', on Python 3.12 or older"
        ) from error
    return package
