"""Held-out likelihood of the nine control tasks at 100,000 updates, seeds side by side, on a GPU.

    python experiments/gpu/likelihood.py --data ../gpu-data --folder ../gpu-rows/likelihood
    python experiments/gpu/likelihood.py --small --data ../try-data --folder ../try/likelihood

The models, the split of the data and the figures are those of `benchmarks/likelihood`, at its
sizes; only the length of a run is a number of updates here. A slice trains until its time is up,
keeps the run that it was at, and the same command goes on from there, bit for bit on the same kind
of device. A finished run adds a row for each seed.
"""

import dataclasses
import shutil
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import jax

from experiments.benchmarks import command, pages, rows
from experiments.benchmarks.likelihood import runs, settings
from experiments.benchmarks.likelihood.runs import Data
from experiments.benchmarks.likelihood.settings import Setting
from experiments.gpu import data
from experiments.gpu.rows import Origin, origin
from offline_mbrl.commands import arguments
from offline_mbrl.data import normalize
from offline_mbrl.data.catalog.load import Loaded
from offline_mbrl.models import fitting
from offline_mbrl.networks import precision
from offline_mbrl.settings import Precision
from offline_mbrl.training import checkpoint, compilation, fit
from offline_mbrl.types import UsageError

SCRIPT = "experiments/gpu/likelihood.py"
PAGE = "likelihood.md"


@dataclasses.dataclass(frozen=True)
class Options:
    """Trains what is missing for so long, and writes a page."""

    data: Path  # written by data.py
    folder: Path  # of rows and of the unfinished run
    tasks: str = ""  # comma-separated; default: those of the data
    families: str = ",".join(settings.FAMILIES)  # comma-separated
    seeds: int = 8  # side by side
    updates: int = 100_000
    precision: Precision = "float32"
    max_minutes: float = 7.0  # of a slice, which ends with the block that it is at then
    small: bool = False  # few updates of small models, to see that it runs


class Piece(NamedTuple):
    """A model of a task, all seeds."""

    setting: Setting
    updates: int
    precision: Precision
    seeds: tuple[int, ...]


class Row(NamedTuple):
    """One seed; likelihoods are in nats an entry, see `benchmarks/likelihood`."""

    task: str
    family: str
    hidden: int
    depth: int
    learning_rate: float
    weight_decay: float
    updates: int
    precision: str
    seed: int
    selection_z: float
    nll_unit: float
    nll_z: float
    nll_raw: float
    median_z: float
    p99_z: float
    reward_z: float
    floor_z: float
    coverage_50: float
    coverage_90: float
    held_out: int
    constant: int
    train_seconds: float  # of all seeds together, by the clock on the wall
    failure: str
    device: str
    small: int
    versions: str
    revision: str
    command: str


def main(options: Options) -> int:
    """Runs the script; the exit code."""
    about = data.about(options.data)
    if about["small"] and not options.small:
        raise UsageError(f"{options.data} holds no data of tasks: give --small as well")
    made = origin(SCRIPT, small=options.small)
    deadline = time.perf_counter() + 60 * options.max_minutes
    folder = options.folder
    tasks = command.chosen("task", options.tasks, about["tasks"])

    def is_done(piece: Piece) -> bool:
        keys = {(row.task, row.family, row.updates, row.precision, row.seed) for row in table()}
        setting = piece.setting
        key = (setting.task, setting.family, piece.updates, piece.precision)
        return all((*key, seed) in keys for seed in piece.seeds)

    def table() -> list[Row]:
        return [row for row in rows.read(folder, Row) if row.small == made.small]

    def run(piece: Piece) -> str:
        new = train(piece, prepared(options.data, piece.setting.task), folder, deadline, made)
        rows.append(folder, Row, new)
        figures = " ".join(f"{row.nll_z:.3f}" for row in new) or command.OUT_OF_TIME
        return f"{piece.setting.task}, {piece.setting.family}: {figures}"

    def report() -> Path:
        pages.write(folder / PAGE, markdown(table()))
        return folder / PAGE

    study = command.Study(
        pieces=pieces(options, tasks),
        is_done=is_done,
        run=run,
        forget=lambda: rows.clear(folder),
        report=report,
    )
    folder.mkdir(parents=True, exist_ok=True)
    compilation.enable()
    command.share_work(study, folder, command.screen(), max_minutes=options.max_minutes)
    report()
    return 0


def pieces(options: Options, tasks: list[str]) -> list[Piece]:
    """All runs of the named tasks and families."""
    families = command.chosen("family", options.families, settings.FAMILIES)
    widths = dict.fromkeys(settings.FAMILIES, 128) if options.small else settings.WIDTHS
    return [
        Piece(
            setting=Setting(task, family, widths[family], depth=2 if options.small else 3),
            updates=60 if options.small else options.updates,
            precision=options.precision,
            seeds=tuple(range(2 if options.small else options.seeds)),
        )
        for task in tasks
        for family in families
    ]


def prepared(folder: Path, task: str) -> Data:
    """A task's data in the three parts of the study."""
    dataset = data.read(folder, task)
    loaded = Loaded(
        name=task,
        dataset=dataset,
        validation=None,
        spec=settings.spec_of(settings.TASKS[task]),
        statistics=normalize.statistics(dataset),
        fingerprint="",
        simulator=None,
        reference=None,
    )
    return runs.split(loaded, task, settings.PRESETS["full"])


def train(piece: Piece, parts: Data, folder: Path, deadline: float, made: Origin) -> list[Row]:
    """Trains until the end or the deadline; the rows of a run that is finished, else none.

    Args:
      piece: what.
      parts: its data.
      folder: where an unfinished run is kept, under a name of its own.
      deadline: of `time.perf_counter`.
      made: of the rows.
    """
    preset = settings.PRESETS["full"]
    between = max(piece.updates // preset.num_scores, 1)
    num_updates = between * preset.num_scores + 1  # the last score is before the last update
    config = fitting.Config(
        num_updates=num_updates,
        batch_size=preset.batch_size,
        bootstrap=False,
        learning_rate=piece.setting.learning_rate,
        weight_decay=piece.setting.weight_decay,
        refresh_every=between,
        max_held_out=runs.SELECTED,
        patience=0,
    )
    model = runs.build(piece.setting, parts, config)
    learner = precision.learner_in(model.learner, piece.precision)
    shared = {"key": jax.random.key(0), "seeds": piece.seeds, "context": parts.context}
    kept = folder / "unfinished" / f"{piece.setting.task}-{piece.setting.family}-{piece.precision}"
    start, before = restored(kept, fit.template(learner, parts.dataset, **shared), piece)
    began = time.perf_counter()

    def stop(progress: fit.Progress) -> str | None:
        if time.perf_counter() < deadline or progress.step >= num_updates:
            return None
        seconds = before["seconds"] + time.perf_counter() - began
        metadata = {"config": identity(piece), "seconds": seconds, "failures": progress.failures}
        checkpoint.save(kept, progress.step, progress.state, metadata)
        return command.OUT_OF_TIME

    result = fit.fit(
        learner,
        parts.dataset,
        num_updates=num_updates,
        start=start,
        failures={int(seed): reason for seed, reason in before["failures"].items()},
        hooks=[stop],
        **shared,
    )
    if result.stopped == command.OUT_OF_TIME:
        return []
    seconds = before["seconds"] + time.perf_counter() - began
    finished = judged(piece, model, parts, result, round(seconds, 1), made)
    shutil.rmtree(kept, ignore_errors=True)
    return finished


def identity(piece: Piece) -> dict[str, Any]:
    """What an unfinished run is of."""
    return {"setting": list(piece.setting), "updates": piece.updates, "seeds": list(piece.seeds)}


def restored(
    kept: Path, template: fit.FitState, piece: Piece
) -> tuple[fit.FitState | None, dict[str, Any]]:
    """The state of an unfinished run and what is known of it; None and nothing without one.

    Args:
      kept: its folder.
      template: shapes.
      piece: what it must be of.

    Raises:
      UsageError: it is of other settings.
    """
    if checkpoint.latest(kept) is None:
        return None, {"seconds": 0.0, "failures": {}}
    found = checkpoint.restore(kept, template, expect=identity(piece))
    return found.state, found.metadata


def judged(
    piece: Piece,
    model: runs.Model,
    parts: Data,
    result: fit.FitResult,
    seconds: float,
    made: Origin,
) -> list[Row]:
    """A row for each seed.

    Args:
      piece: what was trained.
      model: the model, in float32.
      parts: its data.
      result: of the last slice.
      seconds: of all slices.
      made: of the rows.
    """
    stacked = fit.policy_params(model.learner, result.state, parts.context)
    table = []
    for index, seed in enumerate(piece.seeds):
        params = jax.tree.map(lambda leaf, index=index: leaf[index], stacked)
        failure = result.failures.get(seed, "")
        figures = runs.judge(model, params, parts, failed=bool(failure))
        setting = piece.setting._asdict()
        del setting["seconds"]  # the number of updates decides here
        table.append(
            Row(
                **setting,
                updates=piece.updates,
                precision=piece.precision,
                seed=seed,
                **figures._asdict(),
                train_seconds=seconds,
                failure=failure,
                **made._asdict(),
            )
        )
    return table


def markdown(table: list[Row]) -> str:
    """The page: means over seeds and their ranges, beside the source's figures."""
    groups: dict[tuple, list[Row]] = {}
    for row in table:
        groups.setdefault((row.task, row.family, row.precision, row.updates), []).append(row)
    lines = []
    for (task, family, level, updates), own in groups.items():
        values = [row.nll_z for row in own]
        published = settings.TASKS[task].top_1[family != "feedforward"]
        lines.append(
            (
                *(task, family, level, f"{updates:,}", str(len(own))),
                f"{sum(values) / len(values):.3f}",
                f"{min(values):.3f} to {max(values):.3f}",
                f"{published:.2f}",
                f"{own[0].train_seconds:.0f}",
            )
        )
    names = ("task", "family", "precision", "updates", "seeds", "NLL", "range", "source", "s")
    devices = ", ".join(sorted({row.device for row in table}))
    origins = "\n".join(pages.origins(table))
    return f"Device: {devices}\n\n{pages.markdown(names, lines)}\n\n{origins}"


if __name__ == "__main__":
    try:
        sys.exit(
            main(arguments.parse(Options, sys.argv[1:], prog=sys.argv[0], description=__doc__))
        )
    except UsageError as error:
        sys.exit(f"error: {error}")
