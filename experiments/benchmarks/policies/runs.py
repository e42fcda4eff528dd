"""Runs the benchmark of policy learners: one row a run, in the benchmark's table."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.benchmarks import rows
from experiments.benchmarks.command import Origin
from experiments.benchmarks.policies import presets
from experiments.benchmarks.policies.presets import ARMS, Data, Preset
from offline_mbrl import registry
from offline_mbrl.data.catalog import load as catalog
from offline_mbrl.evaluation import aggregate, episodes
from offline_mbrl.training import fit
from offline_mbrl.training.stages import MAIN, of_algorithm, plain, train_stages
from offline_mbrl.types import Context, Learner, UsageError

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


class Piece(NamedTuple):
    """Seeds of a setting, trained side by side."""

    setting: Setting
    seeds: tuple[int, ...]


def curve_of(row: Row) -> np.ndarray:
    """`[evaluations]` normalized scores."""
    return np.array([float(value) for value in row.curve.split()])


def length(preset: Preset, arm: str, data: Data) -> tuple[int, int, int, int]:
    """Updates, batch size, episodes and evaluations of a run."""
    config = presets.configure(ARMS[arm], data, preset)
    return config.num_updates, config.batch_size, preset.episodes, preset.evaluations


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


class _Curve(NamedTuple):
    """What the evaluations along the runs of a setting have measured."""

    scores: list[np.ndarray]  # [S] each
    seconds: list[float]  # of CPU


def run(
    piece: Piece, data: Data, preset: Preset, load: Callable[[str], catalog.Loaded], origin: Origin
) -> list[Row]:
    """Trains seeds side by side and evaluates them along the way; a row for each seed.

    Args:
      piece: setting and seeds.
      data: of the setting.
      preset: how much is run.
      load: dataset by name.
      origin: of the rows.

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
    curve = _Curve(scores=[], seconds=[])
    count = len(piece.seeds)
    with episodes.opened(learner.policy, loaded.simulator, num_seeds=count) as evaluator:
        trained = train_stages(
            stages,
            loaded.dataset,
            key=jax.random.key(0),
            run_stage=_run_stage(learner, evaluator, loaded, piece.seeds, preset, config, curve),
            statistics=loaded.statistics,
        )
    cpu_seconds = time.process_time() - began
    shared = {
        **piece.setting._asdict(),
        "updates": config.num_updates,
        "batch_size": config.batch_size,
        "episodes": preset.episodes,
        "evaluations": preset.evaluations,
        "settings": presets.preset_name(arm, entry, data) or "default",
        "cpu_seconds": round(cpu_seconds / count, 1),
        "train_seconds": round((cpu_seconds - sum(curve.seconds)) / count, 1),
        **origin._asdict(),
    }
    # A stage in which every seed fails ends the run: what is missing counts as a random policy.
    scores = np.zeros((preset.evaluations, count))
    scores[: len(curve.scores)] = np.reshape(curve.scores, (-1, count))
    return [
        Row(
            seed=seed,
            curve=" ".join(f"{value:.4f}" for value in own),
            last_ten=round(float(own[-LAST:].mean()), 4),
            best=round(float(own.max()), 4),
            failure=trained.failures.get(seed, ""),
            **shared,
        )
        for seed, own in zip(piece.seeds, scores.T, strict=True)
    ]


def _run_stage(
    learner: Learner,
    evaluator: episodes.Evaluator,
    loaded: catalog.Loaded,
    seeds: Sequence[int],
    preset: Preset,
    config: Any,
    curve: _Curve,
) -> Any:
    """Plain training; the last stage stops for evaluations, which `curve` collects."""
    interval = -(-config.num_updates // preset.evaluations)
    reference = loaded.reference
    assert reference is not None

    def run_stage(name: str, stage: Any, dataset: Any, context: Context, key: Any) -> Any:
        def evaluate(progress: fit.Progress) -> None:
            began = time.process_time()
            params = fit.policy_params(learner, progress.state, context)
            played = evaluator.evaluate(
                params, seed=progress.step, num_episodes=preset.episodes, greedy=True
            )
            if not played.complete:
                raise UsageError(f"{played.message}; the same command tries this piece again")
            scores = aggregate.normalized_score(played.returns.mean(-1), *reference)
            curve.scores.append(np.where(progress.state.alive, scores, 0.0))
            curve.seconds.append(time.process_time() - began)

        if name != MAIN:
            return plain(seeds=seeds)(name, stage, dataset, context, key)
        run = plain(seeds=seeds, hooks=lambda _: [evaluate], block_updates=interval)
        return run(name, stage, dataset, context, key)

    return run_stage
