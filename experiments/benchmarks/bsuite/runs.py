"""Runs settings of the studies on BSuite: one row a run, in the study's table."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.benchmarks import rows
from experiments.benchmarks.bsuite.grid import ARMS, LEARNING_RATE, Preset, Setting
from experiments.benchmarks.command import Origin
from offline_mbrl import registry
from offline_mbrl.data.catalog import load as catalog
from offline_mbrl.data.catalog.names import Variant, local_name
from offline_mbrl.evaluation import aggregate, episodes
from offline_mbrl.training import fit
from offline_mbrl.types import Context, Learner, Params, UsageError

WAYS = ("greedy", "sampled")  # of acting


class Row(NamedTuple):
    """One run. The fields up to `episodes` say which."""

    study: str
    arm: str
    environment: str
    fraction: int
    noise: float
    simulations: int
    depth: int
    unroll: int
    seed: int
    updates: int
    batch_size: int
    episodes: int
    greedy: float  # normalized scores; 0 is a random policy, 1 the online DQN
    sampled: float
    greedy_return: float
    sampled_return: float
    cpu_seconds: float  # of seeds that are trained together, each has its share
    wall_seconds: float
    failure: str  # which figure became non-finite; the scores are then those of a random policy
    revision: str
    command: str


class Size(NamedTuple):
    """How long every run is."""

    updates: int
    batch_size: int
    episodes: int  # of evaluation, a seed and a way of acting


class Scores(NamedTuple):
    """Of one run."""

    greedy: float
    sampled: float
    greedy_return: float
    sampled_return: float


class Prepared(NamedTuple):
    """A setting that is ready to run, for any seed."""

    setting: Setting
    learner: Learner
    data: catalog.Loaded


def size_of(preset: Preset) -> Size:
    """The length of a preset's runs."""
    return Size(updates=preset.updates, batch_size=preset.batch_size, episodes=preset.episodes)


def finished(table: Iterable[Row], size: Size) -> dict[Setting, dict[int, Row]]:
    """Setting -> seed -> run of this length; of two rows of one run, the last."""
    same = [row for row in table if (row.updates, row.batch_size, row.episodes) == size]
    return rows.by_setting(same, Setting)


# --- one setting ---


def configure(setting: Setting, size: Size) -> Any:
    """The algorithm's settings: its defaults, apart from what the study is about."""
    arm = ARMS[setting.arm]
    kind = registry.lookup(arm.algorithm).config
    config = kind(num_updates=size.updates, batch_size=size.batch_size)
    optimizer = dataclasses.replace(config.optimizer, learning_rate=LEARNING_RATE)
    config = dataclasses.replace(config, optimizer=optimizer)
    if arm.algorithm == "bc":
        return config
    config = dataclasses.replace(config, unroll_steps=setting.unroll)
    if not arm.operator:
        return config
    changes: dict[str, Any] = {"operator": arm.operator}
    if setting.simulations:
        changes["num_simulations"] = setting.simulations
    if setting.depth:
        changes["max_depth" if arm.tree else "depth"] = setting.depth
    search = dataclasses.replace(config.search, **changes)
    return dataclasses.replace(config, search=search, behavior_coef=arm.behavior_coef)


def prepare(setting: Setting, size: Size, load: Callable[[str], catalog.Loaded]) -> Prepared:
    """The data and the learner of a setting.

    Args:
      setting: what is run.
      size: of its runs.
      load: dataset by name.
    """
    default = catalog.lookup(f"local/{setting.environment}").variant
    variant = Variant(setting.noise, setting.fraction, default.episodes)
    data = load(local_name(setting.environment, variant))
    algorithm = registry.lookup(ARMS[setting.arm].algorithm)
    learner = algorithm.make(configure(setting, size), data.spec)
    return Prepared(setting=setting, learner=learner, data=data)


def run(
    prepared: Prepared, study: str, seeds: Sequence[int], size: Size, origin: Origin
) -> list[Row]:
    """Trains and evaluates seeds together; a row each.

    A seed's random numbers are the same whether it runs alone or with others.

    Args:
      prepared: the setting.
      study: that owns it.
      seeds: at least one.
      size: of the runs.
      origin: of the rows.
    """
    cpu = time.process_time()
    wall = time.perf_counter()
    params, failures = train(prepared, seeds, size)
    with episodes.opened(prepared.learner.policy, prepared.data.simulator or "") as evaluator:
        scores = [
            score(prepared.data, evaluator, own, seed, size.episodes, failures.get(seed, ""))
            for own, seed in zip(params, seeds, strict=True)
        ]
    cpu_seconds = round((time.process_time() - cpu) / len(seeds), 1)
    wall_seconds = round((time.perf_counter() - wall) / len(seeds), 1)
    return [
        Row(
            study=study,
            **prepared.setting._asdict(),
            seed=seed,
            **size._asdict(),
            **own._asdict(),
            cpu_seconds=cpu_seconds,
            wall_seconds=wall_seconds,
            failure=failures.get(seed, ""),
            **origin._asdict(),
        )
        for seed, own in zip(seeds, scores, strict=True)
    ]


def train(
    prepared: Prepared, seeds: Sequence[int], size: Size
) -> tuple[list[Params], dict[int, str]]:
    """Parameters of each seed's policy, and the reasons of those that failed.

    Args:
      prepared: the setting.
      seeds: a single seed runs without an axis of seeds.
      size: of the runs.
    """
    key = jax.random.key(0)
    alone = len(seeds) == 1
    context = Context(statistics=prepared.data.statistics)
    result = fit.fit(
        prepared.learner,
        prepared.data.dataset,
        key=jax.random.fold_in(key, seeds[0]) if alone else key,
        num_updates=size.updates,
        seeds=None if alone else seeds,
        context=context,
    )
    params = fit.policy_params(prepared.learner, result.state, context)
    if alone:
        reasons = list(result.failures.values())
        return [params], {seeds[0]: reasons[0]} if reasons else {}
    apart = [jax.tree.map(lambda leaf, row=row: leaf[row], params) for row in range(len(seeds))]
    return apart, result.failures


def score(
    data: catalog.Loaded,
    evaluator: episodes.Evaluator,
    params: Params,
    seed: int,
    num_episodes: int,
    failure: str,
) -> Scores:
    """Normalized scores and mean returns; a run that failed scores as a random policy.

    Args:
      data: with reference scores.
      evaluator: of the policy.
      params: of the policy.
      seed: of the evaluation.
      num_episodes: of each way of acting.
      failure: why training failed, if it did.

    Raises:
      UsageError: an evaluation did not finish, or the data have no reference scores.
    """
    if data.reference is None:
        raise UsageError(f"{data.name} has no reference scores")
    returns = dict.fromkeys(WAYS, data.reference.random)
    if not failure:
        for way in WAYS:
            evaluation = evaluator.evaluate(
                params, seed=seed, num_episodes=num_episodes, greedy=way == "greedy"
            )
            if not evaluation.complete:
                raise UsageError(f"{evaluation.message}; the same command tries this piece again")
            returns[way] = float(np.mean(evaluation.returns))
    normalized = {
        way: float(aggregate.normalized_score(value, *data.reference))
        for way, value in returns.items()
    }
    return Scores(
        greedy=round(normalized["greedy"], 4),
        sampled=round(normalized["sampled"], 4),
        greedy_return=round(returns["greedy"], 4),
        sampled_return=round(returns["sampled"], 4),
    )
