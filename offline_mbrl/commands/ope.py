"""`offline-mbrl ope RUN ...`: which of these policies to deploy, by logged data alone."""

import csv
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from offline_mbrl import export, files, policies
from offline_mbrl.commands import arguments, datasets, evaluate
from offline_mbrl.data.catalog import load as catalog
from offline_mbrl.ope import intervals, support
from offline_mbrl.runs import display
from offline_mbrl.selection import estimators as estimating
from offline_mbrl.training import compilation
from offline_mbrl.types import BoundedActions, EnvironmentSpec, Estimate, Policy, UsageError

NORMAL_95 = 1.96
SIGNS = {"low_support": "low", "updates_too_few": "short"}  # diagnostics that are shown beside an estimate


@dataclass(frozen=True)
class Options:
    """Estimates what policies are worth from logged data alone, and says which to deploy."""

    # run folders, or folders written by `offline-mbrl export`: all seeds of each
    runs: tyro.conf.Positional[tuple[Path, ...]]
    dataset: str = ""  # the data to judge by; default: the first run's
    estimators: str = "model_ff,fqe,importance"  # groups: model_ff, model_ar, fqe, fqe_distributional, importance, ...
    seeds: int = 4  # fits of each estimator; what they differ by joins the interval, the wider the fewer they are
    gamma: float | None = None  # discount factor; default: the dataset's
    horizon: int | None = None  # steps of an episode; default: the dataset's
    out: Path | None = None  # also write all estimates to this CSV file
    settings: estimating.Settings = field(default_factory=lambda: estimating.Settings(bootstrap=True))
    limits: Annotated[support.Limits, tyro.conf.arg(name="limits")] = field(default_factory=support.Limits)


class Judged(NamedTuple):
    """One policy."""

    name: str
    estimates: dict[str, Estimate]  # of one estimator each, over its seeds
    verdict: support.Verdict
    rank: float  # mean over estimators; 1 is best


def main(argv: list[str]) -> int:
    """Runs the command; see `cli`."""
    options = arguments.parse(Options, argv, prog="offline-mbrl ope")
    groups = _groups(options.estimators)
    if not options.runs:
        raise UsageError("name at least one run folder: offline-mbrl ope RUN ...")
    if options.seeds < 1:
        raise UsageError(f"--seeds must be at least 1, got {options.seeds}")
    kinds = _kinds([(path, export.load(evaluate.policy_folder(path))) for path in options.runs])
    compilation.enable()
    console = display.console()
    name = options.dataset or str(next(iter(kinds.values()))[0].description.get("dataset", ""))
    if not name:
        raise UsageError(f"{options.runs[0]} does not say what it was trained on: name the data by --dataset")
    loaded = datasets.load(name, console)
    for exported, _ in kinds.values():
        _check_fit(exported.spec, loaded)
    _check_densities(kinds, groups)
    data = estimating.prepare(
        loaded.dataset, loaded.spec, gamma=options.gamma, horizon=options.horizon, limits=options.limits)  # fmt: skip
    judged = judge(kinds, data, groups, options, console)
    console.print(table(judged, loaded.name, data))
    for line in advice(judged):
        console.print(line)
    if options.out:
        write(options.out, judged)
        console.print(f"written: {options.out}")
    return 0


def _groups(given: str) -> list[str]:
    names = [name for name in given.split(",") if name]
    if unknown := [name for name in names if name not in estimating.GROUPS]:
        raise UsageError(f"unknown estimator {unknown[0]!r}: choose from {', '.join(estimating.GROUPS)}")
    if not names:
        raise UsageError(f"--estimators names none: choose from {', '.join(estimating.GROUPS)}")
    return names


def _kinds(loaded: Sequence[tuple[Path, export.Exported]]) -> dict[str, tuple[export.Exported, list[str]]]:
    """Policies that one function acts with, stacked: (what the first says, names)."""
    found: dict[str, tuple[export.Exported, list[str]]] = {}
    for path, one in loaded:
        names = [f"{path.name} seed {seed}" for seed in one.description["seeds"]]
        shapes = jax.tree.map(lambda leaf: (leaf.shape[1:], str(leaf.dtype)), one.params)
        kind = repr((one.description["algorithm"], one.description["config"], shapes))
        if kind not in found:
            found[kind] = one, names
            continue
        first, known = found[kind]
        stacked = jax.tree.map(lambda *leaves: np.concatenate(leaves), first.params, one.params)
        found[kind] = first._replace(params=stacked), known + names
    return found


def _check_fit(spec: EnvironmentSpec, loaded: catalog.Loaded) -> None:
    if (spec.observation, spec.action) != (loaded.spec.observation, loaded.spec.action):
        raise UsageError(f"the policies act on {spec.observation} with {spec.action}, but {loaded.name} has "
                         f"{loaded.spec.observation} and {loaded.spec.action}")  # fmt: skip


def _check_densities(kinds: Mapping[str, tuple[export.Exported, list[str]]], groups: Sequence[str]) -> None:
    """Refuses policies without a density before anything is fitted, where importance weights are asked for."""
    lacking = [names[0] for exported, names in kinds.values() if exported.policy.log_prob is None]
    if lacking and "importance" in groups:
        raise UsageError(f"{lacking[0]} has no log_prob, which importance weights need: leave them out, for example "
                         "--estimators model_ff,fqe")  # fmt: skip


# --- estimates ---


def judge(
    kinds: Mapping[str, tuple[export.Exported, list[str]]], data: estimating.Data, groups: Sequence[str],
    options: Options, console: Console,
) -> list[Judged]:  # fmt: skip
    """All policies, best mean rank first."""
    pieces = list(itertools.product(groups, range(options.seeds)))
    seen: dict[str, dict[str, list[Estimate]]] = {}
    with display.bar(console, "estimates", len(pieces)) as show:
        for done, (group, seed) in enumerate(pieces, 1):
            learned = estimating.learn(group, data, options.settings, seed=seed)
            for exported, names in kinds.values():
                stacked_params = jax.tree.map(jnp.asarray, exported.params)
                targets = estimating.Policies(acting(exported), stacked_params)
                found = estimating.estimate(group, learned, data, targets, options.settings, seed=seed)
                for estimator, stacked in found.items():
                    for row, name in enumerate(names):
                        one = jax.tree.map(lambda leaf, row=row: np.asarray(leaf)[row], stacked)
                        seen.setdefault(name, {}).setdefault(estimator, []).append(one)
            show(done, "fits")
    resampled = {estimator for group in groups if options.settings.bootstrap and estimating.GROUPS[group].resamples
                 for estimator in estimating.GROUPS[group].names}  # fmt: skip
    estimates = {name: {estimator: over_seeds(each, resampled=estimator in resampled) for estimator, each in of.items()}
                 for name, of in seen.items()}  # fmt: skip
    ranks = _mean_ranks(estimates)
    judged = [Judged(name, of, _verdict(of, options.limits), ranks[name]) for name, of in estimates.items()]
    return sorted(judged, key=lambda one: one.rank)


def acting(exported: export.Exported) -> Policy:
    """The policy with the actions that a simulator would take from it."""
    continuous = isinstance(exported.spec.action, BoundedActions)
    return policies.clipped(exported.policy) if continuous else exported.policy


def over_seeds(each: Sequence[Estimate], *, resampled: bool) -> Estimate:
    """One estimate of several fits; see `combine`."""
    if len(each) == 1:
        return each[0]
    stacked = jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *each)
    return intervals.combine(stacked, resampled=resampled)


def _mean_ranks(estimates: Mapping[str, Mapping[str, Estimate]]) -> dict[str, float]:
    """Mean rank, 1 the best, over the estimators that judge every policy; an estimate that is not finite ranks last."""
    from scipy import stats

    names = list(estimates)
    columns = _shared(estimates.values())
    values = np.array([[float(estimates[name][one].value) for one in sorted(columns)] for name in names])
    ranks = stats.rankdata(np.where(np.isfinite(values), -values, np.inf), axis=0)
    return dict(zip(names, ranks.mean(axis=1).tolist(), strict=True))


def _shared(each: Iterable[Mapping[str, Estimate]]) -> set[str]:
    """The estimators that judge every policy."""
    return set.intersection(*map(set, each))


def _verdict(estimates: Mapping[str, Estimate], limits: support.Limits) -> support.Verdict:
    """What all estimators' diagnostics together say, each reason once, with the estimators that give it."""
    given: dict[str, list[str]] = {}
    for name, one in estimates.items():
        for reason in support.verdict(one.diagnostics, limits).reasons:
            given.setdefault(reason, []).append(name)
    return support.Verdict(bool(given), tuple(f"{', '.join(names)}: {reason}" for reason, names in given.items()))


# --- what is shown ---


def table(judged: Sequence[Judged], dataset: str, data: estimating.Data) -> Table:
    """A line a policy, best first; where estimators are more than policies, a line an estimator."""
    shown = Table(title=f"estimated discounted returns from {dataset}, gamma {data.gamma:g}")
    shown.caption = ("with 95 % intervals, normal; low: the data do not support the policy by that estimator; "
                     f"short: its fit has not settled. Models and importance weights end after {data.horizon} steps, "
                     "fitted values and ratios only at true terminals.")  # fmt: skip
    estimators = list(dict.fromkeys(estimator for one in judged for estimator in one.estimates))
    cells = [[_cell(one.estimates[name]) if name in one.estimates else "-" for name in estimators] for one in judged]
    rows = [["policy", "mean rank", *estimators]]
    rows += [[one.name, f"{one.rank:.1f}", *of] for one, of in zip(judged, cells, strict=True)]
    if len(estimators) > len(judged):
        rows = [list(column) for column in zip(*rows, strict=True)]
    for index, name in enumerate(rows[0]):
        shown.add_column(name, justify="right" if index else "left")
    for row in rows[1:]:
        shown.add_row(*row)
    return shown


def _cell(found: Estimate) -> str:
    words = [word for sign, word in SIGNS.items() if float(found.diagnostics.get(sign, 0)) > 0]
    return " ".join([f"{float(found.value):.2f} ± {NORMAL_95 * float(found.stderr):.2f}", *words])


def advice(judged: Sequence[Judged]) -> list[str]:
    """What to deploy, how sure that is, and what speaks against it."""
    best = judged[0]
    shared = _shared(one.estimates for one in judged)
    lines = [f"Highest mean rank over {len(shared)} estimators: {best.name}."]
    close = [one.name for one in judged[1:] if not _apart(best, one)]
    if close:
        lines.append(f"No estimator's intervals tell it from: {', '.join(close)}.")
    if best.verdict.low_support:
        lines.append("Warning: the data support this policy poorly, so its estimates may be far off:")
        lines += [f"  {reason}" for reason in best.verdict.reasons]
        safe = next((one.name for one in judged if not one.verdict.low_support), None)
        lines.append(f"The best without such a warning: {safe}." if safe else "No policy is without such a warning.")
    return lines


def _apart(one: Judged, other: Judged) -> bool:
    """Whether an estimator's intervals of the two do not meet."""
    return any(
        abs(float(one.estimates[name].value - other.estimates[name].value))
        > NORMAL_95 * float(one.estimates[name].stderr + other.estimates[name].stderr)
        for name in one.estimates
        if name in other.estimates
    )


def write(path: Path, judged: Sequence[Judged]) -> None:
    """All estimates, a line for each policy and estimator, whole or not at all."""
    rows: list[list[Any]] = [["policy", "estimator", "value", "stderr", "low_support", "mean_rank"]]
    rows += [[one.name, name, float(found.value), float(found.stderr),
              float(found.diagnostics.get("low_support", np.nan)), one.rank]
             for one in judged for name, found in one.estimates.items()]  # fmt: skip

    def save(place: Path) -> None:
        with place.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)

    files.write_whole(path, save)
