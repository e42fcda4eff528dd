"""`offline-mbrl ope RUN ...`: which of these policies to deploy, by logged data alone."""

import collections
import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from rich.table import Table

from offline_mbrl import export, files
from offline_mbrl.commands import arguments, datasets, evaluate
from offline_mbrl.data.catalog import bounded
from offline_mbrl.data.catalog import load as catalog
from offline_mbrl.ope import intervals, support
from offline_mbrl.runs import display
from offline_mbrl.selection import estimators, judging
from offline_mbrl.selection.judging import Candidates, Judged
from offline_mbrl.selection.records import Data, Settings
from offline_mbrl.training import compilation
from offline_mbrl.types import Actor, EnvironmentSpec, Estimate, Policy, UsageError

# Diagnostics that are shown beside an estimate.
SIGNS = {"low_support": "low", "updates_too_few": "short"}


@dataclass(frozen=True)
class Options:
    """Estimates what policies are worth from logged data alone, and says which to deploy."""

    # run folders, or folders written by `offline-mbrl export`: all seeds of each
    runs: tyro.conf.Positional[tuple[Path, ...]]
    dataset: str = ""  # the data to judge by; default: the first run's
    # Least and largest action in the simulator's units, or "measured"; default: what the data state
    action_bounds: tuple[str, ...] = ()
    # groups: model_ff, model_ar, model_coupled, fqe, fqe_distributional, importance, ...
    estimators: str = ",".join(judging.DEFAULT_ESTIMATORS)
    # fits of each estimator; what they differ by joins the interval, the wider the fewer they are
    seeds: int = 4
    gamma: float | None = None  # discount factor; default: the dataset's
    horizon: int | None = None  # steps of an episode; default: the dataset's
    out: Path | None = None  # also write all estimates to this CSV file
    settings: Settings = field(default_factory=lambda: Settings(bootstrap=True))
    limits: Annotated[support.Limits, tyro.conf.arg(name="limits")] = field(
        default_factory=support.Limits
    )


def main(argv: list[str]) -> int:
    """Runs the command; see `cli`."""
    options = arguments.parse(Options, argv, prog="offline-mbrl ope")
    names = _estimators(options.estimators)
    if not options.runs:
        raise UsageError("name at least one run folder: offline-mbrl ope RUN ...")
    if options.seeds < 1:
        raise UsageError(f"--seeds must be at least 1, got {options.seeds}")
    exports = [(path, export.load(evaluate.policy_folder(path))) for path in options.runs]
    policies = candidates(exports)
    groups = {name: estimators.lookup(name) for name in names}
    for name, (policy, _) in policies.items():
        judging.require_kind(name, policy, groups)
    compilation.enable()
    console = display.console()
    dataset = options.dataset or str(exports[0][1].description.get("dataset", ""))
    if not dataset:
        raise UsageError(
            f"{options.runs[0]} does not say what it was trained on: name the data by --dataset"
        )
    loaded = datasets.load(bounded.joined(dataset, options.action_bounds), console)
    for _, exported in exports:
        _check_spec(exported.spec, loaded)
    if options.gamma is None and loaded.spec.gamma is None:
        raise UsageError(
            f"{loaded.name} names no discount factor: give one, for example --gamma 0.99"
        )
    data = estimators.prepare(
        loaded.dataset,
        loaded.spec,
        gamma=options.gamma,
        horizon=options.horizon,
        limits=options.limits,
    )
    with display.bar(console, "estimates", len(names) * options.seeds) as show:
        judged = judging.judge(
            policies,
            data,
            key=jax.random.key(0),
            estimators=names,
            seeds=options.seeds,
            settings=options.settings,
            progress=lambda done, total: show(done, "fits"),
        )
    console.print(table(judged, loaded.name, data))
    console.print(judging.advice(judged))
    if options.out:
        write(options.out, judged)
        console.print(f"written: {options.out}")
    return 0


def _estimators(names: str) -> list[str]:
    listed = [name for name in names.split(",") if name]
    if not listed:
        raise UsageError(f"--estimators names none: choose from {', '.join(estimators.GROUPS)}")
    for name in listed:
        estimators.lookup(name)
    return listed


def candidates(exports: Sequence[tuple[Path, export.Exported]]) -> Candidates:
    """All seeds of all folders by name: the folder's, or its path where folders share a name.

    Policies of one algorithm and configuration share their functions, and so are evaluated in one
    compiled call.
    """
    shared_names = collections.Counter(path.name for path, _ in exports)
    functions: dict[str, Policy | Actor] = {}
    policies = {}
    for path, exported in exports:
        description = exported.description
        kind = repr((description["algorithm"], description["config"]))
        policy = functions.setdefault(kind, exported.policy)
        folder = path.name if shared_names[path.name] == 1 else str(path)
        for row, seed in enumerate(description["seeds"]):
            params = jax.tree.map(lambda leaf, row=row: leaf[row], exported.params)
            policies[f"{folder} seed {seed}"] = (policy, params)
    return policies


def _check_spec(spec: EnvironmentSpec, loaded: catalog.Loaded) -> None:
    if (spec.observation, spec.action) != (loaded.spec.observation, loaded.spec.action):
        raise UsageError(
            f"the policies act on {spec.observation} with {spec.action}, but {loaded.name} has "
            f"{loaded.spec.observation} and {loaded.spec.action}"
        )


# --- what is shown ---


def table(judged: Sequence[Judged], dataset: str, data: Data) -> Table:
    """A line a policy, best first; where estimators are more than policies, a line an estimator.

    Args:
      judged: policies, best first.
      dataset: its name.
      data: discount factor and horizon of the estimates.
    """
    shown = Table(
        title=f"estimated discounted returns from {dataset}, gamma {data.gamma:g}",
        caption="with 95 % intervals, normal; low: the data do not support the policy by that "
        "estimator; short: its fit has not settled. Models and importance weights end after "
        f"{data.horizon} steps, fitted values and ratios only at true terminals.",
    )
    names = list(dict.fromkeys(name for policy in judged for name in policy.estimates))
    rows = [["policy", "mean rank", *names]]
    for policy in judged:
        cells = [
            _cell(policy.estimates[name]) if name in policy.estimates else "-" for name in names
        ]
        rows.append([policy.name, f"{policy.rank:.1f}", *cells])
    if len(names) > len(judged):
        rows = [list(column) for column in zip(*rows, strict=True)]
    for index, name in enumerate(rows[0]):
        shown.add_column(name, justify="right" if index else "left")
    for row in rows[1:]:
        shown.add_row(*row)
    return shown


def _cell(estimate: Estimate) -> str:
    marks = [mark for sign, mark in SIGNS.items() if float(estimate.diagnostics.get(sign, 0)) > 0]
    half_width = intervals.NORMAL_95 * float(estimate.stderr)
    return " ".join([f"{float(estimate.value):.2f} ± {half_width:.2f}", *marks])


def write(path: Path, judged: Sequence[Judged]) -> None:
    """All estimates, a line for each policy and estimator, whole or not at all."""
    rows: list[list[Any]] = [["policy", "estimator", "value", "stderr", "low_support", "mean_rank"]]
    for policy in judged:
        for name, estimate in policy.estimates.items():
            low_support = float(estimate.diagnostics.get("low_support", np.nan))
            value = float(estimate.value)
            stderr = float(estimate.stderr)
            rows.append([policy.name, name, value, stderr, low_support, policy.rank])

    def save(temporary: Path) -> None:
        with temporary.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)

    files.write_whole(path, save)
