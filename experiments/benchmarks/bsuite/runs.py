"""Runs pieces of a study on BSuite: one row a run, in the table of `rows`."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.benchmarks.bsuite import grid
from offline_mbrl import registry
from offline_mbrl.data.catalog import load as catalog
from offline_mbrl.data.catalog.names import Variant, local_name
from offline_mbrl.evaluation import aggregate, episodes
from offline_mbrl.training import fit
from offline_mbrl.types import Learner, UsageError

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
    failure: str  # what became non-finite, if anything; the scores are then those of a random policy
    revision: str
    command: str


class Size(NamedTuple):
    """How long every run is."""

    updates: int
    batch_size: int
    episodes: int  # of evaluation, a seed and a way of acting


# --- what was run ---


def setting_of(row: Row) -> grid.Setting:
    """What was run."""
    return grid.Setting(*(getattr(row, name) for name in grid.Setting._fields))


def finished(rows: Iterable[Row], size: Size) -> dict[grid.Setting, dict[int, Row]]:
    """setting -> seed -> run of this length; of two rows of one run, the last."""
    found: dict[grid.Setting, dict[int, Row]] = {}
    for row in rows:
        if (row.updates, row.batch_size, row.episodes) == size:
            found.setdefault(setting_of(row), {})[row.seed] = row
    return found


# --- one setting ---


class Prepared(NamedTuple):
    """A setting that is ready to run, for any seed."""

    setting: grid.Setting
    learner: Learner
    data: catalog.Loaded
    evaluators: dict[str, Callable[..., episodes.Evaluation]]


def configure(setting: grid.Setting, size: Size) -> Any:
    """The algorithm's settings: its defaults, apart from what the study is about."""
    arm = grid.ARMS[setting.arm]
    cls = registry.lookup(arm.algorithm).config
    config = cls(num_updates=size.updates, batch_size=size.batch_size)
    optimizer = dataclasses.replace(config.optimizer, learning_rate=grid.LEARNING_RATE)
    config = dataclasses.replace(config, optimizer=optimizer)
    if arm.algorithm == "bc":
        return config
    config = dataclasses.replace(config, unroll_steps=setting.unroll)
    if not arm.operator:
        return config
    which = "depth" if arm.operator.startswith("lookahead") else "max_depth"
    given = {"operator": arm.operator, which: setting.depth}
    search = dataclasses.replace(config.search, **given, num_simulations=setting.simulations or 1)
    return dataclasses.replace(config, search=search, behavior_coef=arm.behavior_coef)


def prepare(setting: grid.Setting, size: Size, load: Callable[[str], catalog.Loaded]) -> Prepared:
    """Loads the data and builds learner and evaluators."""
    facts = catalog.lookup(f"local/{setting.environment}").variant
    variant = Variant(setting.noise, setting.fraction, facts.episodes)
    data = load(local_name(setting.environment, variant))
    learner = registry.lookup(grid.ARMS[setting.arm].algorithm).make(configure(setting, size), data.spec)
    evaluators = {
        how: episodes.make_evaluator(
            learner.policy, data.simulator or "", num_episodes=size.episodes, greedy=how == "greedy")
        for how in WAYS
    }  # fmt: skip
    return Prepared(setting, learner, data, evaluators)


def groups(setting: grid.Setting, seeds: Sequence[int]) -> list[list[int]]:
    """Seeds that are trained together: all, but for a tree search."""
    return [[seed] for seed in seeds] if grid.ARMS[setting.arm].tree else [list(seeds)] if seeds else []


def run(prepared: Prepared, study: str, seeds: Sequence[int], size: Size, *, revision: str, command: str) -> list[Row]:
    """Trains and evaluates seeds together; a row each.

    A seed's random numbers are the same whether it runs alone or with others.
    """
    learner, data, key = prepared.learner, prepared.data, jax.random.key(0)
    cpu, wall = time.process_time(), time.perf_counter()
    alone = len(seeds) == 1
    result = fit.fit(
        learner, data.dataset, key=jax.random.fold_in(key, seeds[0]) if alone else key, num_updates=size.updates,
        seeds=None if alone else seeds, statistics=data.statistics)  # fmt: skip
    failures = dict(zip(seeds, result.failures.values(), strict=False)) if alone else result.failures
    params = fit.policy_params(learner, result.state)
    each = [params] if alone else [jax.tree.map(lambda leaf, i=i: leaf[i], params) for i in range(len(seeds))]
    scores = [score(prepared, one, seed, failures.get(seed, "")) for one, seed in zip(each, seeds, strict=True)]
    seconds = (time.process_time() - cpu) / len(seeds), (time.perf_counter() - wall) / len(seeds)
    return [
        Row(study, *prepared.setting, seed, *size, *numbers, *(round(one, 1) for one in seconds),
            failures.get(seed, ""), revision, command)
        for seed, numbers in zip(seeds, scores, strict=True)
    ]  # fmt: skip


def score(prepared: Prepared, params: Any, seed: int, failure: str) -> list[float]:
    """[greedy, sampled, greedy return, sampled return]; a run that failed scores as a random policy.

    Raises:
      UsageError: an evaluation did not finish.
    """
    reference = prepared.data.reference
    if reference is None:
        raise UsageError(f"{prepared.data.name} has no reference scores")
    returns = [reference.random] * len(WAYS)
    if not failure:
        played = [prepared.evaluators[how](params, seed=seed) for how in WAYS]
        if unfinished := [one.message for one in played if not one.complete]:
            raise UsageError(f"{unfinished[0]}; the same command tries this piece again")
        returns = [float(np.mean(one.returns)) for one in played]
    normalized = [float(aggregate.normalized_score(value, *reference)) for value in returns]
    return [round(value, 4) for value in (*normalized, *returns)]
