"""Runs pieces of the likelihood study: updates per second first, then fits of a given training time; one row a run."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import rows as table
from experiments.benchmarks.likelihood import settings
from experiments.benchmarks.likelihood.settings import Architecture, Preset, Setting
from experiments.speed import stopwatch
from offline_mbrl.data import memory, normalize, splits
from offline_mbrl.data.catalog import load as catalog
from offline_mbrl.data.memory import Dataset
from offline_mbrl.models import explicit, fitting, likelihood
from offline_mbrl.training import fit
from offline_mbrl.types import DynamicsModel, EnvironmentSpec, Learner, PyTree, UsageError

LOWEST_LOG_STD = -7.0  # of all families, where the change of an entry has deviation 1; it is part of every figure
FEWEST = 10  # updates of a run
SELECTED = 1_000  # held-out transitions that choose a run's best parameters and the best configurations, at most


class Rate(NamedTuple):
    """How fast an architecture trains here."""

    task: str
    family: str
    hidden: int
    depth: int
    batch_size: int
    updates_per_second: float  # of CPU time, median


class Row(NamedTuple):
    """One run. The fields up to `seed` say which; likelihoods are in nats per entry."""

    study: str
    task: str
    family: str
    hidden: int
    depth: int
    learning_rate: float
    weight_decay: float
    seconds: float  # of updates that it was given
    seed: int
    updates: int
    parameters: int
    train_seconds: float  # CPU seconds of those updates and of the held-out scores between them
    cpu_seconds: float  # of all of it: compiling and evaluation too
    selection_z: float  # median on the part that chose the parameters, units where an entry has deviation 1
    nll_unit: float  # means on the other part, in three units
    nll_z: float
    nll_raw: float
    median_z: float
    p99_z: float
    reward_z: float  # of the reward alone
    floor_z: float  # lowest mean that the densities' floor allows
    coverage_50: float  # share inside the central 50 % interval
    coverage_90: float
    held_out: int  # transitions reported on
    constant: int  # entries that never vary and are left out
    failure: str  # what became non-finite, if anything
    revision: str
    command: str


def setting_of(row: Row) -> Setting:
    """What was run."""
    return Setting(*(getattr(row, name) for name in Setting._fields))


def finished(rows: Iterable[Row]) -> dict[Setting, dict[int, Row]]:
    """setting -> seed -> run; of two rows of one run, the last."""
    found: dict[Setting, dict[int, Row]] = {}
    for row in rows:
        found.setdefault(setting_of(row), {})[row.seed] = row
    return found


# --- data ---


class Data(NamedTuple):
    """A task's transitions in three parts, and the statistics of the first."""

    dataset: Dataset  # trained on; `held_out` are those that select
    judged: np.ndarray  # [M] rows that are reported on
    statistics: normalize.Statistics
    spec: EnvironmentSpec


def split(loaded: catalog.Loaded, task: str, preset: Preset) -> Data:
    """Holds out a tenth of the transitions, and parts those: a quarter selects, the rest is reported on.

    Raises:
      UsageError: the data are not of the task's sizes.
    """
    sizes = explicit.sizes(loaded.spec)
    if sizes != (known := settings.TASKS[task][:2]):
        raise UsageError(f"{loaded.name} has observations and actions of sizes {sizes}, but {task} has {known}")
    dataset = splits.hold_out(loaded.dataset, fraction=0.1, by="transition", seed=0)
    rows = np.random.default_rng([0, 6]).permutation(np.asarray(dataset.held_out))
    count = min(SELECTED, len(rows) // 4)
    chosen, judged = np.sort(rows[:count]), np.sort(rows[count:][: preset.most_judged])
    known = normalize.transition_statistics(dataset)
    return Data(dataset._replace(held_out=chosen), judged, loaded.statistics._replace(transitions=known), loaded.spec)


def build(one: Setting | Architecture, data: Data, config: fitting.Config) -> tuple[DynamicsModel, Learner, Callable]:
    """The model of one member, its learner, and what tells its conditionals."""
    density = settings.density(one, *explicit.sizes(data.spec))
    model = explicit.make(density, data.spec)
    return model, fitting.make(model, config), explicit.conditionals(density)


# --- how fast each architecture trains ---


def rates(folder: Path) -> dict[tuple[Architecture, int], float]:
    """(architecture, batch size) -> updates per second."""
    return {(Architecture(*row[:4]), row.batch_size): row.updates_per_second for row in table.read(folder, Rate)}


def measure_rates(architectures: list[Architecture], data: Data, preset: Preset) -> list[Rate]:
    """Updates per CPU second of each, measured in turn, so that a machine whose speed drifts slows all of them."""
    runs = [updates_of(one, data, preset) for one in architectures]
    counts = [stopwatch.calibrate(run, preset.rate_seconds) for run in runs]
    rounds = [[stopwatch.cpu_seconds(run, count) / count for run, count in zip(runs, counts, strict=True)]
              for _ in range(preset.rate_rounds)]  # fmt: skip
    medians = np.median(rounds, axis=0)
    return [Rate(*one, preset.batch_size, float(f"{1 / spent:.4g}"))
            for one, spent in zip(architectures, medians, strict=True)]  # fmt: skip


def updates_of(one: Architecture, data: Data, preset: Preset) -> Callable[[int], None]:
    """Runs so many updates."""
    learner = build(one, data, fitting.Config(bootstrap=False, batch_size=preset.batch_size))[1]
    with_statistics = learner._replace(init=lambda key, batch, *_: learner.init(key, batch, data.statistics, ()))
    return stopwatch.scanned(with_statistics, jax.tree.map(jnp.asarray, data.dataset))[0]


# --- one run ---


def run(study: str, one: Setting, seed: int, data: Data, preset: Preset, *, updates_per_second: float,
        revision: str, command: str) -> Row:  # fmt: skip
    """Fits and judges; the learning rate falls over exactly the updates that the time allows."""
    began = time.process_time()
    between = max(int(one.seconds * updates_per_second) // preset.num_scores, 1)
    num_updates = max(between * preset.num_scores, FEWEST) + 1  # the last score is taken before the last update
    config = fitting.Config(
        num_updates=num_updates, batch_size=preset.batch_size, bootstrap=False, learning_rate=one.learning_rate,
        weight_decay=one.weight_decay, refresh_every=between, max_held_out=SELECTED)  # fmt: skip
    model, learner, conditionals = build(one, data, config)
    watch, spent = stopped_time()
    result = fit.fit(
        learner, data.dataset, key=jax.random.fold_in(jax.random.key(0), seed), num_updates=num_updates,
        statistics=data.statistics, block_updates=between, hooks=(watch,))  # fmt: skip
    failure = next(iter(result.failures.values()), "")
    figures = judge(model, fit.policy_params(learner, result.state), data, conditionals, failed=bool(failure))
    architecture = Architecture(one.task, one.family, one.hidden, one.depth)
    seconds = (round(spent(), 3), round(time.process_time() - began, 3))
    return Row(*(study, *one, seed, num_updates, settings.num_parameters(architecture), *seconds, *figures, failure,
                 revision, command))  # fmt: skip


def stopped_time() -> tuple[Callable[[fit.Progress], None], Callable[[], float]]:
    """A hook of `fit`, and what tells the CPU seconds of all updates: those of the first block are as the others'."""
    seen: list[tuple[int, float]] = []

    def watch(progress: fit.Progress) -> None:
        seen.append((progress.step, time.process_time()))

    def spent() -> float:
        (first, began), (last, ended) = seen[0], seen[-1]
        return (ended - began) * last / max(last - first, 1)

    return watch, spent


def judge(model: DynamicsModel, params: PyTree, data: Data, conditionals: Callable, *, failed: bool) -> list[Any]:
    """The row's figures from `selection_z` to `constant`."""
    gather = lambda rows: memory.transitions(1).gather(data.dataset, rows)  # noqa: E731
    report = jax.jit(lambda params, held_out: likelihood.report(
        model, params, held_out, conditionals=conditionals, lowest_log_std=LOWEST_LOG_STD))  # fmt: skip
    selecting, found = (jax.device_get(report(params, gather(rows))) for rows in (data.dataset.held_out, data.judged))
    unit_to_z = float(found.nll_z.mean[0] - found.nll_unit.mean[0])
    reward_z = float(found.reward_unit[0])  # a reward has one unit only
    figures = [
        selecting.nll_z.median[0], found.nll_unit.mean[0], found.nll_z.mean[0], found.nll_raw.mean[0],
        found.nll_z.median[0], found.nll_z.p99[0], reward_z, found.floor_unit + unit_to_z,
        *(np.nanmean(found.coverage[share]) for share in ("0.5", "0.9"))]  # fmt: skip
    rounded = [float("nan") if failed else round(float(figure), 4) for figure in figures]
    return [*rounded, len(data.judged), int(found.num_constant)]
