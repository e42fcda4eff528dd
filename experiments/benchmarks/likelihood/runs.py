"""Runs of the likelihood study: updates per second first, then fits of a fixed training time."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import rows
from experiments.benchmarks.command import Origin
from experiments.benchmarks.likelihood import settings
from experiments.benchmarks.likelihood.settings import Architecture, Piece, Preset, Setting
from experiments.speed import stopwatch
from offline_mbrl.data import memory, normalize, splits
from offline_mbrl.data.catalog import load as catalog
from offline_mbrl.data.memory import Dataset
from offline_mbrl.models import explicit, fitting, kinds, likelihood
from offline_mbrl.training import fit
from offline_mbrl.types import Context, DynamicsModel, EnvironmentSpec, Learner, Params, UsageError

# Of all families, where the change of an entry has deviation 1; it is part of every figure.
LOWEST_LOG_STD = -7.0
FEWEST = 10  # updates of a run
SELECTED = 1_000  # held-out transitions that choose parameters and configurations, at most


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
    seconds: float  # of updates, that it was to take
    seed: int
    updates: int
    parameters: int
    train_seconds: float  # CPU seconds of those updates and of the held-out scores between them
    cpu_seconds: float  # of all of it: compiling and evaluation too
    selection_z: float  # median on the part that chose the parameters, units of deviation 1
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
    failure: str  # which figure became non-finite, if any
    revision: str
    command: str


def finished(table: Iterable[Row]) -> dict[Setting, dict[int, Row]]:
    """Setting -> seed -> run; of two rows of one run, the last."""
    return rows.by_setting(table, Setting)


# --- data and models ---


class Data(NamedTuple):
    """A task's transitions in three parts, and the statistics of the first."""

    dataset: Dataset  # trained on; `held_out` are those that select
    judged: np.ndarray  # [M] rows that are reported on
    context: Context  # statistics
    spec: EnvironmentSpec


class Model(NamedTuple):
    """An ensemble of one member."""

    dynamics: DynamicsModel
    learner: Learner
    conditionals: Callable


def split(loaded: catalog.Loaded, task: str, preset: Preset) -> Data:
    """Holds out a tenth of the transitions: a quarter of them selects, the rest is reported on.

    Args:
      loaded: the task's data.
      task: its name.
      preset: how many are reported on.

    Raises:
      UsageError: the data are not of the task's sizes.
    """
    sizes = explicit.sizes(loaded.spec)
    expected = settings.TASKS[task][:2]
    if sizes != expected:
        raise UsageError(
            f"{loaded.name} has observations and actions of sizes {sizes}, but {task} has "
            f"{expected}"
        )
    dataset = splits.hold_out(loaded.dataset, fraction=0.1, by="transition", seed=0)
    held_out = np.random.default_rng([0, 6]).permutation(np.asarray(dataset.held_out))
    count = min(SELECTED, len(held_out) // 4)
    selecting = np.sort(held_out[:count])
    judged = np.sort(held_out[count:][: preset.most_judged])
    return Data(
        dataset=dataset._replace(held_out=selecting),
        judged=judged,
        context=Context(statistics=normalize.full_statistics(dataset)),
        spec=loaded.spec,
    )


def build(model: Setting | Architecture, data: Data, fit_config: fitting.Config) -> Model:
    """The model of one member, its learner, and the moments of its conditionals."""
    config = settings.model_config(model, fit_config)
    dynamics = kinds.make(config, data.spec)
    return Model(
        dynamics=dynamics,
        learner=kinds.learner(config, dynamics),
        conditionals=explicit.conditionals(kinds.density(config, data.spec)),
    )


# --- how fast each architecture trains ---


def measure_rates(architectures: Sequence[Architecture], data: Data, preset: Preset) -> list[Rate]:
    """Updates per CPU second of each.

    They are measured in turn, so that a machine whose speed drifts slows all of them.
    """
    programs = [updates_of(model, data, preset) for model in architectures]
    counts = [stopwatch.calibrate(program, preset.rate_seconds) for program in programs]
    rounds = [
        [
            stopwatch.cpu_seconds(program, count) / count
            for program, count in zip(programs, counts, strict=True)
        ]
        for _ in range(preset.rate_rounds)
    ]
    return [
        Rate(
            **model._asdict(),
            batch_size=preset.batch_size,
            updates_per_second=float(f"{1 / seconds:.4g}"),
        )
        for model, seconds in zip(architectures, np.median(rounds, axis=0), strict=True)
    ]


def updates_of(model: Architecture, data: Data, preset: Preset) -> Callable[[int], None]:
    """Runs a number of updates."""
    config = fitting.Config(bootstrap=False, batch_size=preset.batch_size, patience=0)
    learner = build(model, data, config).learner
    return stopwatch.scanned(learner, jax.tree.map(jnp.asarray, data.dataset), data.context)[0]


# --- one run ---


def run(piece: Piece, data: Data, preset: Preset, rate: float, origin: Origin) -> Row:
    """Fits and judges; the learning rate falls over exactly the updates that the time allows.

    Args:
      piece: which run.
      data: of its task.
      preset: batch size, and how often held-out scores are computed.
      rate: updates per second.
      origin: of the row.
    """
    began = time.process_time()
    setting = piece.setting
    between = max(int(setting.seconds * rate) // preset.num_scores, 1)
    # The last score is taken before the last update.
    num_updates = max(between * preset.num_scores, FEWEST) + 1
    config = fitting.Config(
        num_updates=num_updates,
        batch_size=preset.batch_size,
        bootstrap=False,
        learning_rate=setting.learning_rate,
        weight_decay=setting.weight_decay,
        refresh_every=between,
        max_held_out=SELECTED,
        patience=0,  # all of the training time is used
    )
    model = build(setting, data, config)
    watch, seconds_spent = stopped_time()
    result = fit.fit(
        model.learner,
        data.dataset,
        key=jax.random.fold_in(jax.random.key(0), piece.seed),
        num_updates=num_updates,
        context=data.context,
        block_updates=between,
        hooks=(watch,),
    )
    failure = next(iter(result.failures.values()), "")
    params = fit.policy_params(model.learner, result.state, data.context)
    figures = judge(model, params, data, failed=bool(failure))
    return Row(
        study=piece.study,
        **setting._asdict(),
        seed=piece.seed,
        updates=num_updates,
        parameters=settings.num_parameters(settings.architecture(setting)),
        train_seconds=round(seconds_spent(), 3),
        cpu_seconds=round(time.process_time() - began, 3),
        **figures._asdict(),
        failure=failure,
        **origin._asdict(),
    )


def stopped_time() -> tuple[Callable[[fit.Progress], None], Callable[[], float]]:
    """A hook of `fit`, and what tells the CPU seconds of all updates.

    Those of the first block, which compiles, count as the others'.
    """
    times: list[tuple[int, float]] = []

    def watch(progress: fit.Progress) -> None:
        times.append((progress.step, time.process_time()))

    def spent() -> float:
        first, began = times[0]
        last, ended = times[-1]
        return (ended - began) * last / max(last - first, 1)

    return watch, spent


class Figures(NamedTuple):
    """The row's figures from `selection_z` to `constant`."""

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


def judge(model: Model, params: Params, data: Data, *, failed: bool) -> Figures:
    """Likelihood and coverage on held-out transitions.

    Args:
      model: the model.
      params: its parameters.
      data: both held-out parts.
      failed: the figures are NaN.
    """

    @jax.jit
    def report(params: Params, part: memory.Dataset) -> likelihood.Likelihood:
        return likelihood.report(
            model.dynamics,
            params,
            part,
            conditionals=model.conditionals,
            lowest_log_std=LOWEST_LOG_STD,
        )

    gather = memory.Transitions(1).gather
    selecting = jax.device_get(report(params, gather(data.dataset, data.dataset.held_out)))
    judged = jax.device_get(report(params, gather(data.dataset, data.judged)))
    unit_to_z = float(judged.nll_z.mean[0] - judged.nll_unit.mean[0])

    def rounded(value: float) -> float:
        return float("nan") if failed else round(float(value), 4)

    return Figures(
        selection_z=rounded(selecting.nll_z.median[0]),
        nll_unit=rounded(judged.nll_unit.mean[0]),
        nll_z=rounded(judged.nll_z.mean[0]),
        nll_raw=rounded(judged.nll_raw.mean[0]),
        median_z=rounded(judged.nll_z.median[0]),
        p99_z=rounded(judged.nll_z.p99[0]),
        reward_z=rounded(judged.reward_unit[0]),  # a reward has one unit only
        floor_z=rounded(judged.floor_unit + unit_to_z),
        coverage_50=rounded(np.nanmean(judged.coverage["0.5"])),
        coverage_90=rounded(np.nanmean(judged.coverage["0.9"])),
        held_out=len(data.judged),
        constant=int(judged.num_constant),
    )
