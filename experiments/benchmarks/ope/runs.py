"""Pieces of the benchmark of estimators: true values of policies, and estimates of them."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.benchmarks import rows
from experiments.benchmarks.command import Origin
from offline_mbrl.collect import control
from offline_mbrl.data.catalog.load import Loaded
from offline_mbrl.evaluation import episodes
from offline_mbrl.ope import support
from offline_mbrl.selection import estimators
from offline_mbrl.types import Estimate, UsageError

TRUTH = "truth"  # the folder of the true values' table, and their group
WIDTH = 10  # simulators of each policy
# Groups that run where they are named; the others are what the committed study compares.
BY_NAME = ("model_coupled",)
GROUPS = tuple(name for name in estimators.GROUPS if name not in BY_NAME)


@dataclasses.dataclass(frozen=True)
class Preset:
    """How much is run."""

    tasks: tuple[str, ...]
    settings: estimators.Settings
    seeds: int = 3
    policies: int = 16  # of a task, at most
    # Of a task whose estimates cost more.
    fewer: Mapping[str, int] = dataclasses.field(default_factory=dict)
    episodes: int = 200  # of each policy, for its true value


# Tasks with costs: the rewards of another task less this, so that all are at most 0. What a policy
# is worth less is the same for all where no episode ends early, and their order stays.
COSTS: Mapping[str, tuple[str, float]] = {"cartpole_swingup_cost": ("cartpole_swingup", 1.0)}

PRESETS = {
    "quick": Preset(
        tasks=("cartpole_swingup", "cheetah_run"),
        settings=estimators.Settings(distributional_updates=30_000, ratio_updates=15_000),
        fewer={"cheetah_run": 10},
    ),
    # Every learned fit takes about as much time as the others, and sees a resample of the episodes.
    "equal_time": Preset(
        tasks=("cartpole_swingup", "cheetah_run", "cartpole_swingup_cost"),
        settings=estimators.Settings(
            fqe_updates=50_000,
            distributional_updates=25_000,
            ratio_updates=15_000,
            bootstrap=True,
        ),
        fewer={"cheetah_run": 10},
    ),
    "full": Preset(
        tasks=("cartpole_swingup", "cheetah_run"),
        settings=estimators.Settings(
            model_updates=100_001,
            model_members=7,
            masked_units=512,
            fqe_updates=1_000_000,
            distributional_updates=1_000_000,
            fqe_layers=(256, 256),
            ratio_updates=100_000,
            ratio_layers=(256, 256),
            ratio_batch=2048,
            clone_updates=100_000,
        ),
        seeds=5,
        policies=100,
        episodes=1000,
    ),
}

# Fields of the settings in the key of rows, in its order; the rows that are there have these.
KEY_FIELDS = (
    "model_updates",
    "model_members",
    "model_layers",
    "masked_units",
    "model_beta",
    "fqe_updates",
    "distributional_updates",
    "fqe_layers",
    "ratio_updates",
    "ratio_layers",
    "ratio_batch",
    "clone_updates",
    "clone_layers",
    "side_by_side",
    "bootstrap",
)


def settings_key(settings: estimators.Settings) -> str:
    """The settings as they stand in rows: values by name.

    A field that is newer than `KEY_FIELDS` is named where it differs from its default, so that
    older rows stay valid.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(settings)}
    newer = [
        name
        for name, default in defaults.items()
        if name not in KEY_FIELDS and getattr(settings, name) != default
    ]
    parts = [f"{name}={getattr(settings, name)!r}" for name in (*KEY_FIELDS, *newer)]
    return f"Settings({', '.join(parts)})"


class Truth(NamedTuple):
    """The value of a policy, played in the simulator with sampled actions."""

    task: str
    policy: int  # number, by its mean return in training
    name: str
    episodes: int
    value: float  # mean discounted return
    stderr: float
    gamma: float
    revision: str
    command: str


class Row(NamedTuple):
    """One estimate. The fields up to `settings` say which."""

    task: str
    group: str
    estimator: str
    seed: int
    policy: int
    settings: str  # `settings_key`
    value: float
    stderr: float
    low_support: float  # 1 where the data do not support the policy, NaN where no sign tells
    cpu_seconds: float  # of the group's fit and estimates, shared out over policies
    revision: str
    command: str
    unsettled: float = math.nan  # 1 where the fit had too few updates, NaN where no sign tells


class Piece(NamedTuple):
    """What is done, and claimed, at once."""

    task: str
    group: str
    seed: int


class Prepared(NamedTuple):
    """A task that is ready."""

    task: str
    targets: control.Targets
    data: estimators.Data
    simulator: str
    cost: float = 0.0  # subtracted from the simulator's rewards


def pieces(preset: Preset, groups: Sequence[str]) -> list[Piece]:
    """All pieces: of each task the true values first, then the groups of each seed."""
    work = []
    for task in preset.tasks:
        work.append(Piece(task=task, group=TRUTH, seed=0))
        for seed in range(preset.seeds):
            work += [Piece(task=task, group=group, seed=seed) for group in groups]
    return work


def prepare(task: str, preset: Preset, load: Callable[[str], Loaded]) -> Prepared:
    """The task's data and policies.

    Args:
      task: its name.
      preset: how many policies.
      load: dataset by name.

    Raises:
      UsageError: the data have no simulator.
    """
    base, cost = COSTS.get(task, (task, 0.0))
    data = load(f"local/control/{base}")
    if data.simulator is None:
        raise UsageError(f"{data.name} has no simulator: there is no way to a true value")
    targets = control.target_policies(base)
    most = min(preset.policies, preset.fewer.get(task, preset.policies))
    if len(targets.names) > most:
        targets = control.target_policies(base, most)
    dataset = data.dataset._replace(reward=np.asarray(data.dataset.reward) - np.float32(cost))
    return Prepared(
        task=task,
        targets=targets,
        data=estimators.prepare(dataset, data.spec),
        simulator=data.simulator,
        cost=cost,
    )


def is_done(folder: Path, piece: Piece, preset: Preset) -> bool:
    """Whether the tables have all of a piece."""
    if piece.group == TRUTH:
        return any(
            row.task == piece.task and row.episodes == preset.episodes for row in truths(folder)
        )
    key = settings_key(preset.settings)
    return any(
        rows.setting_of(row, Piece) == piece and row.settings == key
        for row in rows.read(folder, Row)
    )


def truths(folder: Path) -> list[Truth]:
    """The true values that are there."""
    return rows.read(folder / TRUTH, Truth)


def run(folder: Path, piece: Piece, ready: Prepared, preset: Preset, origin: Origin) -> None:
    """Does a piece and adds its rows.

    Args:
      folder: of the results.
      piece: what is done.
      ready: its task.
      preset: how much is run.
      origin: of the rows.

    Raises:
      UsageError: the true values in the folder are of other policies; what `true_values` or an
        estimator raises.
    """
    if piece.group == TRUTH:
        rows.append(folder / TRUTH, Truth, true_values(ready, preset.episodes, origin))
        return
    check_policies(folder, ready)
    began = time.process_time()
    estimates = estimated(piece, ready, preset)
    seconds = time.process_time() - began
    rows.append(folder, Row, rows_of(piece, estimates, preset, seconds, origin))


def check_policies(folder: Path, ready: Prepared) -> None:
    """Refuses to add estimates beside true values of other policies.

    Raises:
      UsageError: see above.
    """
    own = [row for row in truths(folder) if row.task == ready.task]
    names = [row.name for row in sorted(own, key=lambda row: row.policy)]
    if names and names != list(ready.targets.names):
        raise UsageError(
            f"the true values of {ready.task} in {folder / TRUTH / rows.TABLE} are of other "
            "policies: choose another --folder, or start over with --fresh"
        )


def estimated(piece: Piece, ready: Prepared, preset: Preset) -> estimators.Estimates:
    """Estimates of a group for all policies, by estimator, every field `[P, ...]`."""
    policies = estimators.Policies(ready.targets.policy, ready.targets.params)
    learned = estimators.learn(piece.group, ready.data, preset.settings, seed=piece.seed)
    return estimators.estimate(
        piece.group, learned, ready.data, policies, preset.settings, seed=piece.seed
    )


def rows_of(
    piece: Piece,
    estimates: Mapping[str, Estimate],
    preset: Preset,
    seconds: float,
    origin: Origin,
) -> list[Row]:
    """A row for each estimator and policy.

    Args:
      piece: what was done.
      estimates: by estimator, every field `[P, ...]`.
      preset: for the settings' key.
      seconds: of CPU, of all estimates together.
      origin: of the rows.
    """
    key = settings_key(preset.settings)
    new = []
    for name, estimate in estimates.items():
        low_support, unsettled = flags(estimate)
        size = len(low_support)
        for policy in range(size):
            new.append(
                Row(
                    task=piece.task,
                    group=piece.group,
                    estimator=name,
                    seed=piece.seed,
                    policy=policy,
                    settings=key,
                    value=float(estimate.value[policy]),
                    stderr=float(estimate.stderr[policy]),
                    low_support=float(low_support[policy]),
                    cpu_seconds=round(seconds / size, 2),
                    revision=origin.revision,
                    command=origin.command,
                    unsettled=float(unsettled[policy]),
                )
            )
    return new


def flags(estimate: Estimate) -> tuple[np.ndarray, np.ndarray]:
    """Whether support is low by any of an estimate's signs, and whether its fit is unsettled.

    Args:
      estimate: every field `[P, ...]`.

    Returns:
      `[P]` each, 0 or 1; NaN where there is no sign of it.
    """
    diagnostics = estimate.diagnostics
    shape = np.shape(estimate.value)
    signs = {"low_support", *(field.name for field in dataclasses.fields(support.Limits))}
    low = np.nan
    if signs & diagnostics.keys():
        low = support.with_signs(estimate, diagnostics).diagnostics["low_support"]
    unsettled = diagnostics.get("updates_too_few", np.nan)
    return (
        np.broadcast_to(np.asarray(low, np.float64), shape),
        np.broadcast_to(np.asarray(unsettled, np.float64), shape),
    )


def true_values(ready: Prepared, num_episodes: int, origin: Origin) -> list[Truth]:
    """Mean discounted returns, a policy each.

    Args:
      ready: the task.
      num_episodes: of each policy.
      origin: of the rows.

    Raises:
      UsageError: an episode was not finished.
    """
    names = ready.targets.names
    gamma = ready.data.gamma
    evaluation = episodes.evaluate(
        ready.targets.policy,
        ready.targets.params,
        ready.simulator,
        seed=1,
        num_episodes=num_episodes,
        greedy=False,
        num_seeds=len(names),
        batch_size=min(WIDTH, num_episodes),
        gamma=gamma,
    )
    if not evaluation.complete:
        raise UsageError(f"{evaluation.message}; the same command tries this piece again")
    errors = evaluation.returns.std(axis=1, ddof=1) / np.sqrt(num_episodes)
    charged = ready.cost * (1 - gamma**ready.data.horizon) / (1 - gamma)
    return [
        Truth(
            task=ready.task,
            policy=policy,
            name=name,
            episodes=num_episodes,
            value=float(evaluation.returns[policy].mean()) - charged,
            stderr=float(errors[policy]),
            gamma=gamma,
            **origin._asdict(),
        )
        for policy, name in enumerate(names)
    ]
