"""Pieces of the benchmark of estimators: the true values of a task's policies, and the estimates of one group."""

import dataclasses
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console

from experiments.benchmarks import rows as table
from offline_mbrl.collect import control
from offline_mbrl.commands import datasets
from offline_mbrl.evaluation import episodes
from offline_mbrl.ope import support
from offline_mbrl.selection import estimators
from offline_mbrl.types import Estimate, UsageError

TRUTH = "truth"  # the folder of the true values' table, and their group
WIDTH = 10  # simulators of each policy


@dataclasses.dataclass(frozen=True)
class Preset:
    """How much is run."""

    tasks: tuple[str, ...]
    settings: estimators.Settings
    seeds: int = 3
    policies: int = 16  # of a task, at most
    fewer: Mapping[str, int] = dataclasses.field(default_factory=dict)  # of a task whose estimates cost more
    episodes: int = 200  # of each policy, for its true value


PRESETS = {
    "quick": Preset(
        ("cartpole_swingup", "cheetah_run"),
        estimators.Settings(distributional_updates=30_000, ratio_updates=15_000), fewer={"cheetah_run": 10}),
    "full": Preset(
        ("cartpole_swingup", "cheetah_run"),
        estimators.Settings(
            model_updates=100_001, model_members=7, masked_units=512, fqe_updates=1_000_000,
            distributional_updates=1_000_000, fqe_layers=(256, 256),
            ratio_updates=100_000, ratio_layers=(256, 256), ratio_batch=2048, clone_updates=100_000),
        seeds=5, policies=100, episodes=1000),
}  # fmt: skip


class Truth(NamedTuple):
    """What a policy is worth, played in the simulator with sampled actions."""

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
    """One estimate. The fields up to `policy` say which."""

    task: str
    group: str
    estimator: str
    seed: int
    policy: int
    settings: str
    value: float
    stderr: float
    low_support: float  # 1 where the estimator says that the data do not support the policy, NaN where it cannot tell
    cpu_seconds: float  # of the group's fit and estimates, shared out over policies
    revision: str
    command: str
    unsettled: float = math.nan  # 1 where the fit says it had too few updates, NaN where none says, as in old tables


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


def pieces(preset: Preset, groups: list[str]) -> list[Piece]:
    """All pieces, in order; importance weights come from the logged density whatever the seed, and are cloned anew."""
    found = [Piece(task, TRUTH, 0) for task in preset.tasks]
    for seed in range(preset.seeds):
        found += [Piece(task, group, seed) for task in preset.tasks for group in groups]
    return sorted(found, key=lambda piece: (preset.tasks.index(piece.task), piece.group != TRUTH, piece.seed))


def prepare(task: str, preset: Preset, console: Console) -> Prepared:
    """Loads the task's data, builds them first where they are absent, and its policies.

    Raises:
      UsageError: what `datasets.load` raises; the data have no simulator.
    """
    data = datasets.load(f"local/control/{task}", console)
    if data.simulator is None:
        raise UsageError(f"{data.name} has no simulator: no true value can be had")
    targets = control.target_policies(task)
    most = min(preset.policies, preset.fewer.get(task, preset.policies))
    if len(targets.names) > most:
        targets = control.target_policies(task, most)
    return Prepared(task, targets, estimators.prepare(data.dataset, data.spec), data.simulator)


def is_done(folder: Path, piece: Piece, preset: Preset) -> bool:
    """Whether the tables have all of a piece."""
    if piece.group == TRUTH:
        return any(row.task == piece.task and row.episodes == preset.episodes for row in truths(folder))
    return any((row.task, row.group, row.seed, row.settings) == (*piece, repr(preset.settings))
               for row in table.read(folder, Row))  # fmt: skip


def truths(folder: Path) -> list[Truth]:
    """The true values that are known."""
    return table.read(folder / TRUTH, Truth)


def run(folder: Path, piece: Piece, ready: Prepared, preset: Preset, *, revision: str, command: str) -> None:
    """Does a piece and adds its rows.

    Raises:
      UsageError: the true values in the folder are of other policies; what `true_values` or an estimator raises.
    """
    if piece.group == TRUTH:
        (folder / TRUTH).mkdir(parents=True, exist_ok=True)
        table.append(folder / TRUTH, Truth, [
            Truth(*row, revision, command) for row in true_values(ready, preset.episodes)])  # fmt: skip
        return
    known = [row.name for row in sorted(truths(folder), key=lambda row: row.policy) if row.task == piece.task]
    if known and known != list(ready.targets.names):
        raise UsageError(f"the true values of {piece.task} in {folder / TRUTH / table.TABLE} are of other policies: "
                         "choose another --folder, or start over with --fresh")  # fmt: skip
    began = time.process_time()
    policies = estimators.Policies(ready.targets.policy, ready.targets.params)
    learned = estimators.learn(piece.group, ready.data, preset.settings, seed=piece.seed)
    estimates = estimators.estimate(
        piece.group, learned, ready.data, policies, preset.settings, seed=piece.seed)  # fmt: skip
    size = policies.count
    seconds = round((time.process_time() - began) / size, 2)
    rows = []
    for name, found in estimates.items():
        low, unsettled = flags(found)
        rows += [Row(*piece[:2], name, piece.seed, policy, repr(preset.settings), float(found.value[policy]),
                     float(found.stderr[policy]), float(low[policy]), seconds, revision, command,
                     float(unsettled[policy])) for policy in range(size)]  # fmt: skip
    table.append(folder, Row, rows)


def flags(found: Estimate) -> tuple[np.ndarray, np.ndarray]:
    """Whether support is low by any of an estimate's signs, and whether its fit is unsettled.

    Args:
      found: every field `[P, ...]`.

    Returns:
      `[P]` each, 0 or 1; NaN where there is no sign of it.
    """
    told, shape = found.diagnostics, np.shape(found.value)
    signs = {"low_support", *(field.name for field in dataclasses.fields(support.Limits))}
    merged = support.with_signs(found, told).diagnostics["low_support"] if signs & told.keys() else np.nan
    both = merged, told.get("updates_too_few", np.nan)
    low, unsettled = (np.broadcast_to(np.asarray(flag, np.float64), shape) for flag in both)
    return low, unsettled


def true_values(ready: Prepared, num_episodes: int) -> list[tuple[str, int, str, int, float, float, float]]:
    """The fields of `Truth` up to gamma, a policy each.

    Raises:
      UsageError: an episode was not finished.
    """
    size, gamma = len(ready.targets.names), ready.data.gamma
    play = episodes.make_evaluator(
        ready.targets.policy, ready.simulator, num_episodes=num_episodes, greedy=False, num_seeds=size,
        batch_size=min(WIDTH, num_episodes), gamma=gamma)  # fmt: skip
    found = play(ready.targets.params, seed=1)
    if not found.complete:
        raise UsageError(f"{found.message}; the same command tries this piece again")
    error = found.returns.std(axis=1, ddof=1) / np.sqrt(num_episodes)
    return [(ready.task, policy, name, num_episodes, float(found.returns[policy].mean()), float(error[policy]), gamma)
            for policy, name in enumerate(ready.targets.names)]  # fmt: skip
