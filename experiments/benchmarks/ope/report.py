"""Tables, scatter plots and sentences of the benchmark of estimators, from its two tables alone."""

import os
import platform
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.benchmarks import rows as table
from experiments.benchmarks.bsuite.report import write_text
from experiments.benchmarks.likelihood.report import markdown
from experiments.benchmarks.ope import runs as ope_runs
from offline_mbrl import files, provenance
from offline_mbrl.selection import estimators, metrics

SUMMARY = "summary.md"
METRICS = ("rank_correlation", "absolute_error", "regret_at_1", "regret_at_5")
HEADER = ("estimator", "rank correlation", "normalized error", "regret@1", "regret@5")
COLUMNS = 4


class Estimates(NamedTuple):
    """What one estimator said of one task's policies."""

    values: np.ndarray  # [S, P]
    stderr: np.ndarray  # [S, P]
    low_support: np.ndarray  # [S, P]   NaN where it cannot tell
    unsettled: np.ndarray  # [S, P]     the same


Table = Mapping[str, Mapping[str, Estimates]]  # task -> estimator


class Claim(NamedTuple):
    """One sentence of the sources: `better` has the better `metric` than `worse`."""

    text: str
    better: str
    worse: str
    metric: str


CLAIMS = tuple(
    Claim(text, better, worse, metric)
    for metric in ("rank_correlation", "absolute_error")
    for text, better, worse in (
        ("autoregressive models evaluate better than feedforward ones (arXiv:2104.13877)", "model_ar", "model_ff"),
        ("autoregressive models evaluate better than FQE-L2 (same)", "model_ar", "fqe"),
        ("autoregressive models evaluate better than FQE-D (same)", "model_ar", "fqe_distributional"),
        ("FQE is ahead of doubly robust estimates (order of DOPE's figures, arXiv:2103.16596)", "fqe", "doubly_robust"),
        ("FQE is ahead of importance sampling (same)", "fqe", "clipped_per_decision_is_cloned"),
        ("FQE is ahead of DICE (same)", "fqe", "best_dice"),
    )
)  # fmt: skip
LARGER_IS_BETTER = ("rank_correlation",)


# --- from rows ---


def read(folder: Path, preset: ope_runs.Preset) -> tuple[dict[str, list[ope_runs.Truth]], Table]:
    """True values by task, and the estimates of all seeds that finished; rows of other settings are left out."""
    truth: dict[str, list[ope_runs.Truth]] = {}
    for row in ope_runs.truths(folder):
        if row.task in preset.tasks and row.episodes == preset.episodes:
            truth.setdefault(row.task, []).append(row)
    cells: dict[str, dict[str, dict[int, dict[int, ope_runs.Row]]]] = {}
    for row in table.read(folder, ope_runs.Row):
        if row.settings == repr(preset.settings) and row.seed < preset.seeds and row.task in truth:
            cells.setdefault(row.task, {}).setdefault(row.estimator, {}).setdefault(row.seed, {})[row.policy] = row
    found = {
        task: {name: _stacked(seeds) for name, seeds in sorted(names.items(), key=lambda item: _order(item[0]))}
        for task, names in cells.items()
    }
    return {task: sorted(rows, key=lambda row: row.policy) for task, rows in truth.items()}, found


def _order(name: str) -> int:
    return next(number for number, one in enumerate(known_estimators()) if one == name)


def known_estimators() -> list[str]:
    """All, in the order of tables."""
    return [name for group in estimators.GROUPS for name in estimators.GROUPS[group].names]


def _stacked(seeds: Mapping[int, Mapping[int, ope_runs.Row]]) -> Estimates:
    columns = ("value", "stderr", "low_support", "unsettled")
    return Estimates(*(np.array([[getattr(row, column) for _, row in sorted(rows.items())]
                                 for _, rows in sorted(seeds.items())]) for column in columns))  # fmt: skip


class Scored(NamedTuple):
    """One estimator on one task."""

    over_seeds: metrics.Scores  # means over seeds, intervals over policies
    seeds: list[metrics.Scores]


def score(truth: Sequence[ope_runs.Truth], found: Estimates) -> Scored:
    """Metrics of one estimator on one task.

    The task decides which policies are drawn: all its estimators are compared on the same draws, and two tasks with
    equally many policies have draws of their own, without which the interval over tasks would be too wide or narrow.
    """
    seed = zlib.crc32(truth[0].task.encode())
    each = [metrics.score([row.value for row in truth], one, seed=seed) for one in found.values]
    return Scored(metrics.aggregate({str(seed): one for seed, one in enumerate(each)}), each)


# --- what is written ---


def write(folder: Path, preset: ope_runs.Preset, *, preset_name: str) -> None:
    """Writes `<task>.md`, `<task>.png` and the summary of all that is in the tables."""
    truth, estimates = read(folder, preset)
    scores = {task: {name: score(truth[task], found) for name, found in estimates.get(task, {}).items()}
              for task in truth}  # fmt: skip
    for task, rows in truth.items():
        text = [f"# Estimators on {task}", about(rows)]
        if estimates.get(task):
            text += [_table(scores[task], estimates[task]),
                     _resampled({name: one.over_seeds for name, one in scores[task].items()}),
                     f"![estimates against true values]({task}.png)"]  # fmt: skip
            draw(folder / f"{task}.png", task, rows, estimates[task])
        write_text(folder / f"{task}.md", "\n\n".join(text))
    write_text(folder / SUMMARY, summary(preset, preset_name, truth, estimates, scores, folder))


def about(rows: Sequence[ope_runs.Truth]) -> str:
    """A paragraph on the policies."""
    values, errors = np.array([row.value for row in rows]), np.array([row.stderr for row in rows])
    return (f"{len(rows)} policies, true discounted returns (gamma {rows[0].gamma:g}) from {values.min():.1f} to "
            f"{values.max():.1f}, each the mean of {rows[0].episodes} episodes (median standard error "
            f"{np.median(errors):.2f}, {np.median(errors) / np.ptp(values):.1%} of the range).")  # fmt: skip


def _cells(found: metrics.Scores) -> list[str]:
    return [f"{one.value:.2f} [{one.low:.2f}, {one.high:.2f}]" for one in (found.metrics[name] for name in METRICS)]


def _table(scores: Mapping[str, Scored], estimates: Mapping[str, Estimates]) -> str:
    """Metrics by estimator, with the interval over resampled policies, seeds, and how often support is low."""
    header = [*HEADER, "bias", "raw error", "rank correlation of each seed", "low support", "unsettled", "missing"]
    lines = []
    for name, (found, seeds) in scores.items():
        raised = [share(flag) for flag in (estimates[name].low_support, estimates[name].unsettled)]
        told = ["-" if np.isnan(one) else f"{one:.0%}" for one in raised]
        ranks = ", ".join(f"{one.metrics['rank_correlation'].value:.2f}" for one in seeds)
        plain = [f"{value:.2f}" if abs(value) < 1e5 else f"{value:.1e}"  # products of ratios know no bounds
                 for value in (found.metrics[metric].value for metric in ("bias", "raw_absolute_error"))]  # fmt: skip
        lines.append([f"`{name}`", *_cells(found), *plain, ranks, *told, str(found.num_missing)])
    return markdown(header, lines) + (
        "\n\nIn brackets: 95 % of 1000 resamples of the policies. Normalized by the smallest and largest true value, "
        "estimates capped at 2. Low support, unsettled: share of the estimates for which the estimator itself warns "
        "that the data do not support the policy, or that its fit had too few updates; -: no row says.")  # fmt: skip


def _resampled(found: Mapping[str, metrics.Scores]) -> str:
    """Mean and standard deviation over resamples, by estimator, at two digits."""
    lines = [[f"`{name}`", *(f"{one.mean:.2f} ± {one.std:.2f}" for one in (of.metrics[metric] for metric in METRICS))]
             for name, of in found.items()]  # fmt: skip
    head = "Mean ± standard deviation over the same resamples, as DOPE's notebook reports metrics:\n\n"
    return head + markdown(HEADER, lines)


def share(flags: np.ndarray) -> float:
    """Of the flags that are 0 or 1, those that are raised; NaN where there is none."""
    told = flags[~np.isnan(flags)]
    return float(told.mean()) if len(told) else np.nan


def summary(
    preset: ope_runs.Preset, preset_name: str, truth: Mapping[str, Sequence[ope_runs.Truth]], estimates: Table,
    scores: Mapping[str, Mapping[str, Scored]], folder: Path,
) -> str:  # fmt: skip
    """The page that names everything: over tasks, claims, settings, how it was made."""
    complete = {name: {task: scores[task][name].over_seeds for task in truth} for name in known_estimators()
                if truth and all(name in scores[task] for task in truth)}  # fmt: skip
    over = {name: metrics.aggregate(tasks) for name, tasks in complete.items()}
    ranked = sorted(over, key=lambda name: -np.nan_to_num(over[name].metrics["rank_correlation"].value, nan=-2.0))
    rows = table.read(folder, ope_runs.Row)
    seconds = {(*row[:2], row.seed, row.policy): row.cpu_seconds for row in rows}  # one of each estimator of a group
    tasks = [f"[{task}]({task}.md) ({next((len(of.values) for of in estimates.get(task, {}).values()), 0)} seeds)"
             for task in truth]  # fmt: skip
    return "\n\n".join([
        f"# Off-policy estimators against true returns, preset {preset_name}",
        f"Tasks: {', '.join(tasks) or 'none finished'}. Means over tasks and seeds, best rank correlation first, in "
        "brackets 95 % of 1000 resamples of the policies:",
        markdown(HEADER, [[f"`{name}`", *_cells(over[name])] for name in ranked]),
        _resampled({name: over[name] for name in ranked}),
        "## What the sources claim", *claims(over, unsettled(estimates)), "## Made with",
        "\n".join([
            f"- commands: {', '.join(f'`{one}`' for one in sorted({row.command for row in rows})) or 'none'}",
            f"- code: {', '.join(sorted({row.revision[:12] for row in rows})) or 'none'}",
            f"- settings: `{preset.settings}`",
            f"- {sum(seconds.values()) / 60:.0f} CPU minutes of fits and estimates in all rows",
            f"- reported on {platform.machine()}, {os.cpu_count()} cores; "
            + ", ".join(f"{name} {version}" for name, version in provenance.versions().items()),
        ]),
    ])  # fmt: skip


def unsettled(estimates: Table) -> dict[str, float]:
    """Of each estimator, the share of its rows of all tasks that are flagged; NaN where no row says."""
    names = dict.fromkeys(name for of in estimates.values() for name in of)
    return {name: share(np.concatenate([of[name].unsettled.ravel() for of in estimates.values() if name in of]))
            for name in names}  # fmt: skip


def claims(over: Mapping[str, metrics.Scores], flagged: Mapping[str, float]) -> list[str]:
    """A line for each claim that can be judged, by the interval of the difference over the same resamples.

    Args:
      over: scores over tasks, by estimator.
      flagged: share of the estimates that are unsettled, by estimator; NaN where no row says.
    """
    lines = []
    for one in CLAIMS:
        if one.better not in over or one.worse not in over:
            lines.append(f"- {one.text}, {one.metric.replace('_', ' ')}: not run.")
            continue
        difference, low, high = gap(over[one.better], over[one.worse], one.metric)
        held = "holds" if low > 0 else "does not hold" if high < 0 else "cannot be told"
        notes = [f"; `{name}` says of {flagged[name]:.0%} of its estimates that it has not settled"
                 for name in (one.better, one.worse) if flagged[name] > 0.5]  # fmt: skip
        lines.append(f"- {one.text}, {one.metric.replace('_', ' ')}: **{held}**; ahead by {difference:.2f} "
                     f"[{low:.2f}, {high:.2f}]{''.join(notes)}.")  # fmt: skip
    compared = dict.fromkeys(name for one in CLAIMS for name in (one.better, one.worse) if name in over)
    silent = [f"`{name}`" for name in compared if np.isnan(flagged[name])]
    return [
        "Judged by the difference over the same resampled policies, positive where the first is better; 95 %. "
        "The intervals know the policies' variation, and that of seeds only through their mean. An estimator that says "
        "of most of its estimates that its fit has not settled is named"
        + (f"; the rows do not say whether these have: {', '.join(silent)}." if silent else "."),
        "\n".join(lines),
    ]


def gap(better: metrics.Scores, worse: metrics.Scores, metric: str) -> tuple[float, float, float]:
    """How far the first is ahead, and the 95 % interval over resamples."""
    sign = 1.0 if metric in LARGER_IS_BETTER else -1.0
    first, second = better.metrics[metric], worse.metrics[metric]
    replicates = sign * (first.replicates - second.replicates)
    defined = replicates[~np.isnan(replicates)]
    low, high = np.quantile(defined, [0.025, 0.975]) if len(defined) else (np.nan, np.nan)
    return sign * (first.value - second.value), float(low), float(high)


def draw(path: Path, task: str, truth: Sequence[ope_runs.Truth], estimates: Mapping[str, Estimates]) -> None:
    """A scatter plot for each estimator: estimates with their standard errors against true values."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(estimates))
    rows = -(-len(estimates) // columns)
    figure = Figure(figsize=(3.0 * columns + 0.4, 2.7 * rows + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    values = np.array([row.value for row in truth])
    ends = np.array([values.min(), values.max()])
    margin = 0.25 * np.ptp(values)
    all_axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, (name, found) in zip(all_axes.flat, estimates.items(), strict=False):
        for seed, (mean, error) in enumerate(zip(found.values, found.stderr, strict=True)):
            shown = np.clip(mean, ends[0] - margin, ends[1] + margin)  # what lies outside is drawn at the edge
            axes.errorbar(values, shown, np.where(shown == mean, error, 0.0), fmt="o", markersize=3, linewidth=0.8,
                          color=f"C{seed}", label=f"seed {seed}")  # fmt: skip
        axes.plot(ends, ends, color="0.6", linewidth=1)
        axes.set_ylim(ends[0] - 1.2 * margin, ends[1] + 1.2 * margin)
        axes.set_title(name, fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
    for axes in list(all_axes.flat)[len(estimates) :]:
        axes.set_visible(False)
    for axes in all_axes[-1]:
        axes.set_xlabel("true value", fontsize=8)
    for row in all_axes:
        row[0].set_ylabel("estimate", fontsize=8)
    all_axes[0][0].legend(fontsize=7)
    figure.suptitle(task, fontsize=11)
    files.write_whole(path, lambda place: figure.savefig(place, dpi=130, format="png"))
