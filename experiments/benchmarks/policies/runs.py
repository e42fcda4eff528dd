"""Runs the benchmark of policy learners: one row a run, in the benchmark's table."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.benchmarks import rows
from experiments.benchmarks.command import OUT_OF_TIME, Origin
from experiments.benchmarks.policies import measures, presets
from experiments.benchmarks.policies.arms import ARMS
from experiments.benchmarks.policies.presets import Data, Preset
from offline_mbrl import registry
from offline_mbrl.data.catalog import load as catalog
from offline_mbrl.evaluation import aggregate, episodes
from offline_mbrl.training import checkpoint, fit
from offline_mbrl.training.stages import (
    MAIN,
    RunStage,
    StageEnd,
    of_algorithm,
    plain,
    train_stages,
)
from offline_mbrl.types import Context, Key, Learner, PyTree, Stage, UsageError

UNFINISHED = ".unfinished"  # the folder of runs that the time was up for
MODEL = "model"  # the stage that fits it
LAST = 10  # evaluations at the end of a run, whose mean is its score


class Setting(NamedTuple):
    """What is run with every seed."""

    arm: str
    dataset: str


class Row(NamedTuple):
    """One run. The fields up to `evaluations` say which."""

    arm: str
    dataset: str
    seed: int
    updates: int
    batch_size: int
    episodes: int
    evaluations: int
    settings: str  # the algorithm's preset, or "default"
    curve: str  # normalized scores of the evaluations, evenly spaced over the updates
    last_ten: float  # mean of the last ten of them
    best: float
    cpu_seconds: float  # of seeds that are trained together, each has its share
    train_seconds: float  # of these, without evaluation
    failure: str  # which figure became non-finite; evaluations after it count as a random policy
    revision: str
    command: str
    device: str = "cpu"
    figures: str = "{}"  # JSON: of models and critics, means of the last third of the run


class Piece(NamedTuple):
    """Seeds of a setting, trained side by side."""

    setting: Setting
    seeds: tuple[int, ...]


def curve_of(row: Row) -> np.ndarray:
    """`[evaluations]` normalized scores."""
    return np.array([float(value) for value in row.curve.split()])


def measures_of(row: Row) -> dict[str, float]:
    """What the run reports beside its scores, by name."""
    return json.loads(row.figures)


def length(preset: Preset, arm: str, data: Data) -> tuple[int, int, int, int]:
    """Updates, batch size, episodes and evaluations of a run."""
    config = presets.configure(ARMS[arm], data, preset)
    size = presets.batch_size(config)
    return config.num_updates, size, preset.episodes, preset.evaluations


def finished(table: Iterable[Row], preset: Preset) -> dict[Setting, dict[int, Row]]:
    """Setting -> seed -> run of the preset's length; of two rows of one run, the last."""
    lengths = {
        Setting(arm, data.name): length(preset, arm, data)
        for arm in preset.arms
        for data in preset.datasets
    }
    same = [
        row
        for row in table
        if lengths.get(rows.setting_of(row, Setting))
        == (row.updates, row.batch_size, row.episodes, row.evaluations)
    ]
    return rows.by_setting(same, Setting)


# --- one setting ---


class Place(NamedTuple):
    """Where unfinished runs are kept, and until when they may take."""

    folder: Path
    deadline: float = np.inf  # of `time.perf_counter`
    models: "dict[str, Fitted] | None" = None  # of earlier settings in this process; added to


class Fitted(NamedTuple):
    """A model, for all settings that have the same settings of it."""

    end: StageEnd
    seconds: float  # of CPU; each of these settings counts them


class _Curve(NamedTuple):
    """What the evaluations along the runs of a setting have measured so far."""

    scores: list[list[float]]  # [S] each
    seconds: list[float]  # of CPU: of the process, and of these in evaluations
    figures: list[dict[str, list[float]]]  # of each block, [S]


class _Course(NamedTuple):
    """A setting on its way."""

    learner: Learner
    config: Any
    loaded: catalog.Loaded
    evaluator: episodes.Evaluator
    reference: tuple[float, float]
    seeds: tuple[int, ...]
    preset: Preset
    place: Place
    identity: dict[str, Any]  # of the unfinished run


def run(
    piece: Piece,
    data: Data,
    preset: Preset,
    load: Callable[[str], catalog.Loaded],
    origin: Origin,
    place: Place,
) -> list[Row]:
    """Trains seeds side by side and evaluates them along the way; a row for each seed.

    A run that was stopped goes on from its last evaluation, bit for bit.

    Args:
      piece: setting and seeds.
      data: of the setting.
      preset: how much is run.
      load: dataset by name.
      origin: of the rows.
      place: of unfinished runs.

    Returns:
      The rows; none where the time was up first.

    Raises:
      UsageError: the data have no simulator or no reference scores.
    """
    arm = ARMS[piece.setting.arm]
    entry = registry.lookup(arm.algorithm)
    loaded = load(data.name)
    if loaded.reference is None or loaded.simulator is None:
        raise UsageError(f"{data.name} has no simulator, or no scores to normalize by")
    config = presets.configure(arm, data, preset)
    stages = of_algorithm(entry, config, loaded.spec)
    learner = stages[MAIN].learner
    assert learner.policy is not None
    began = time.process_time()
    identity = {"piece": repr(piece), "config": repr(config), "data": loaded.fingerprint}
    name = hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
    unfinished = place._replace(folder=place.folder / UNFINISHED / name)
    curve = _curve_so_far(unfinished.folder)
    count = len(piece.seeds)
    with episodes.opened(learner.policy, loaded.simulator, num_seeds=count) as evaluator:
        course = _Course(
            learner=learner,
            config=config,
            loaded=loaded,
            evaluator=evaluator,
            reference=loaded.reference,
            seeds=piece.seeds,
            preset=preset,
            place=unfinished,
            identity=identity,
        )
        trained = train_stages(
            stages,
            loaded.dataset,
            key=jax.random.key(0),
            run_stage=_run_stage(course, curve, began),
            statistics=loaded.statistics,
        )
    if trained.end.stopped == OUT_OF_TIME:
        return []
    seconds = np.array([time.process_time() - began, 0.0]) + curve.seconds
    shutil.rmtree(unfinished.folder, ignore_errors=True)
    shared = {
        **piece.setting._asdict(),
        "updates": config.num_updates,
        "batch_size": presets.batch_size(config),
        "episodes": preset.episodes,
        "evaluations": preset.evaluations,
        "settings": presets.preset_name(arm, entry, data) or "default",
        "cpu_seconds": round(float(seconds[0]) / count, 1),
        "train_seconds": round(float(seconds[0] - seconds[1]) / count, 1),
        **origin._asdict(),
        "device": jax.devices()[0].device_kind,
    }
    return _rows(piece.seeds, curve, preset.evaluations, trained.failures, shared)


def _rows(
    seeds: Sequence[int],
    curve: _Curve,
    num_evaluations: int,
    failures: Mapping[int, str],
    shared: Mapping[str, Any],
) -> list[Row]:
    """A row for each seed. What failures have left unmeasured counts as a random policy."""
    scores = np.zeros((num_evaluations, len(seeds)))
    scores[: len(curve.scores)] = np.reshape(curve.scores, (-1, len(seeds)))
    return [
        Row(
            seed=seed,
            curve=" ".join(f"{value:.4f}" for value in own),
            last_ten=round(float(own[-LAST:].mean()), 4),
            best=round(float(own.max()), 4),
            failure=failures.get(seed, ""),
            figures=json.dumps(measures.of_seed(curve.figures, index)),
            **shared,
        )
        for index, (seed, own) in enumerate(zip(seeds, scores.T, strict=True))
    ]


def _run_stage(course: _Course, curve: _Curve, began: float) -> RunStage:
    """Plain training; the last stage stops for evaluations, which `curve` collects.

    Args:
      course: the setting.
      curve: evaluations before this process; it is added to.
      began: the process time when this process took the setting up.
    """

    def run_stage(name: str, stage: Stage, dataset: PyTree, context: Context, key: Key) -> StageEnd:
        def evaluate(progress: fit.Progress) -> str | None:
            start = time.process_time()
            curve.scores.append(_scores(course, progress, context))
            curve.figures.append(measures.of_block(progress))
            if len(curve.scores) == course.preset.evaluations:
                curve.figures.append(_gaps(course, progress))
            now = time.process_time()
            curve.seconds[1] += now - start
            if time.perf_counter() < course.place.deadline:
                return None
            if len(curve.scores) == course.preset.evaluations:
                return None
            spent = [curve.seconds[0] + now - began, curve.seconds[1]]
            kept = {"scores": curve.scores, "seconds": spent, "figures": curve.figures}
            metadata = {**course.identity, **kept, "failures": progress.failures}
            checkpoint.save(course.place.folder, progress.step, progress.state, metadata)
            return OUT_OF_TIME

        def fit_before() -> StageEnd:
            return plain(seeds=course.seeds)(name, stage, dataset, context, key)

        if name == MODEL:
            return _fitted(course, curve, fit_before)
        if name != MAIN:
            return fit_before()
        options = {"block_updates": -(-stage.num_updates // course.preset.evaluations)}
        if curve.scores:
            options |= _taken_up(course, stage, dataset, context, key)
        run = plain(seeds=course.seeds, hooks=lambda _: [evaluate], **options)
        return run(name, stage, dataset, context, key)

    return run_stage


def _fitted(course: _Course, curve: _Curve, fit_model: Callable[[], StageEnd]) -> StageEnd:
    """The model: of an earlier setting with the same one, whose seconds then count here too.

    Args:
      course: the setting.
      curve: its seconds are added to.
      fit_model: fits it.
    """
    config = course.config
    name = repr((course.loaded.name, course.seeds, config.dynamics, config.termination))
    models = {} if course.place.models is None else course.place.models
    if name in models:
        if not curve.scores:  # else they are counted already
            curve.seconds[0] += models[name].seconds
        return models[name].end
    began = time.process_time()
    end = fit_model()
    models[name] = Fitted(end=end, seconds=time.process_time() - began)
    return end


def _scores(course: _Course, progress: fit.Progress, context: Context) -> list[float]:
    """Normalized scores of each seed's greedy policy, `[S]`; 0 of a seed that has failed."""
    params = fit.policy_params(course.learner, progress.state, context)
    played = course.evaluator.evaluate(
        params, seed=progress.step, num_episodes=course.preset.episodes, greedy=True
    )
    if not played.complete:
        raise UsageError(f"{played.message}; the same command tries this piece again")
    scores = aggregate.normalized_score(played.returns.mean(-1), *course.reference)
    return np.where(progress.state.alive, scores, 0.0).tolist()


def _gaps(course: _Course, progress: fit.Progress) -> dict[str, list[float]]:
    """The value gap of each seed, `[S]`, of learners that have one; NaN of a seed that failed."""
    config = measures.with_soft_values(course.config)
    state = measures.critics_of(progress.state.learner)
    if config is None or state is None:
        return {}
    gaps = []
    for index, seed in enumerate(course.seeds):
        own = jax.tree.map(lambda leaf, index=index: leaf[index], state)
        gaps.append(
            measures.value_gap(
                config, course.loaded.spec, own, str(course.loaded.simulator), seed=seed
            )
            if progress.state.alive[index]
            else float("nan")
        )
    return {measures.GAP: gaps}


def _curve_so_far(folder: Path) -> _Curve:
    """The evaluations of an unfinished run; none where there is no such run."""
    if checkpoint.latest(folder) is None:
        return _Curve(scores=[], seconds=[0.0, 0.0], figures=[])
    kept = checkpoint.read_metadata(folder)
    return _Curve(scores=kept["scores"], seconds=kept["seconds"], figures=kept["figures"])


def _taken_up(
    course: _Course, stage: Stage, dataset: PyTree, context: Context, key: Key
) -> dict[str, Any]:
    """Arguments of `fit` with which an unfinished run goes on."""
    template = fit.template(stage.learner, dataset, key=key, seeds=course.seeds, context=context)
    restored = checkpoint.restore(course.place.folder, template)
    failures = {int(seed): reason for seed, reason in restored.metadata["failures"].items()}
    return {"start": restored.state, "failures": failures}
