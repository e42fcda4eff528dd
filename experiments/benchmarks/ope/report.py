"""Tables, scatter plots and sentences of the benchmark of estimators, from its two tables alone."""

import functools
import os
import platform
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks import figures, pages, rows
from experiments.benchmarks.ope import choices, claims
from experiments.benchmarks.ope.choices import Columns as Estimates
from experiments.benchmarks.ope.runs import GROUPS, Preset, Row, Truth, settings_key, truths
from offline_mbrl.selection import estimators, metrics

METRICS = ("rank_correlation", "absolute_error", "regret_at_1", "regret_at_5")
HEADER = ("estimator", "rank correlation", "normalized error", "regret@1", "regret@5")
LAYOUT = figures.Layout(
    columns=4, width=3.0, height=2.7, head=0.6, share_x=True, share_y=True, title_size=8
)


class Scored(NamedTuple):
    """One estimator on one task."""

    over_seeds: metrics.Scores  # means over seeds, intervals over policies
    seeds: list[metrics.Scores]


TrueValues = Mapping[str, Sequence[Truth]]  # task -> policies
Table = Mapping[str, Mapping[str, Estimates]]  # task -> estimator
Scores = Mapping[str, Mapping[str, Scored]]  # task -> estimator


# --- from rows ---


def read(folder: Path, preset: Preset) -> tuple[TrueValues, Table]:
    """True values by task, and estimates of all seeds; rows of other settings are left out."""
    truth: dict[str, list[Truth]] = {}
    for row in truths(folder):
        if row.task in preset.tasks and row.episodes == preset.episodes:
            truth.setdefault(row.task, []).append(row)
    key = settings_key(preset.settings)
    cells: dict[str, dict[str, dict[int, dict[int, Row]]]] = {}
    for row in rows.read(folder, Row):
        if row.settings == key and row.seed < preset.seeds and row.task in truth:
            seeds = cells.setdefault(row.task, {}).setdefault(row.estimator, {})
            seeds.setdefault(row.seed, {})[row.policy] = row
    order = names_of(estimators.GROUPS)
    table = {
        task: {name: stacked(names[name]) for name in sorted(names, key=order.index)}
        for task, names in cells.items()
    }
    by_policy = {
        task: sorted(policies, key=lambda row: row.policy) for task, policies in truth.items()
    }
    return by_policy, table


def all_estimators() -> list[str]:
    """Names of those that run by default, in the order of tables."""
    return names_of(GROUPS)


def names_of(groups: Iterable[str]) -> list[str]:
    """Names of these groups' estimators, in the order of tables."""
    return [name for group in groups for name in estimators.GROUPS[group].names]


def stacked(seeds: Mapping[int, Mapping[int, Row]]) -> Estimates:
    """Rows by seed and policy, as arrays."""

    def column(name: str) -> np.ndarray:
        return np.array(
            [
                [getattr(row, name) for _, row in sorted(policies.items())]
                for _, policies in sorted(seeds.items())
            ]
        )

    return Estimates(
        values=column("value"),
        stderr=column("stderr"),
        low_support=column("low_support"),
        unsettled=column("unsettled"),
        seconds=column("cpu_seconds"),
    )


def score(truth: Sequence[Truth], estimates: Estimates) -> Scored:
    """Metrics of one estimator on one task.

    The task decides which policies are drawn: all its estimators are compared on the same draws,
    and two tasks with equally many policies have draws of their own, without which the interval
    over tasks would be too wide or too narrow.
    """
    seed = zlib.crc32(truth[0].task.encode())
    values = [row.value for row in truth]
    seeds = [metrics.score(values, own, seed=seed) for own in estimates.values]
    over_seeds = metrics.aggregate({str(number): own for number, own in enumerate(seeds)})
    return Scored(over_seeds=over_seeds, seeds=seeds)


def share(flags: np.ndarray) -> float:
    """Of the flags that are 0 or 1, those that are raised; NaN where there is none."""
    present = flags[~np.isnan(flags)]
    return float(present.mean()) if len(present) else np.nan


# --- the pages ---


def write(folder: Path, preset: Preset, *, preset_name: str) -> Path:
    """Writes `<task>.md`, `<task>.png` and the summary, whose path is returned.

    Args:
      folder: of the tables.
      preset: whose rows count.
      preset_name: for the summary.
    """
    truth, table = read(folder, preset)
    scores = {
        task: {name: score(policies, own) for name, own in table.get(task, {}).items()}
        for task, policies in truth.items()
    }
    for task, policies in truth.items():
        text = [f"# Estimators on {task}", about(policies)]
        if task in table:
            text += [
                task_table(scores[task], table[task], coverages(preset, policies, table[task])),
                resampled({name: own.over_seeds for name, own in scores[task].items()}),
                f"![estimates against true values]({task}.png)",
            ]
            draw(folder / f"{task}.png", task, policies, table[task])
        pages.write(folder / f"{task}.md", "\n\n".join(text))
    chosen = choices.section(preset, truth, table)
    text = summary(preset, preset_name, table, scores, rows.read(folder, Row), chosen)
    pages.write(folder / pages.SUMMARY, text)
    return folder / pages.SUMMARY


def about(policies: Sequence[Truth]) -> str:
    """A paragraph on the policies."""
    values = np.array([row.value for row in policies])
    error = np.median([row.stderr for row in policies])
    return (
        f"{len(policies)} policies, true discounted returns (gamma {policies[0].gamma:g}) from "
        f"{values.min():.1f} to {values.max():.1f}, each the mean of {policies[0].episodes} "
        f"episodes (median standard error {error:.2f}, {error / np.ptp(values):.1%} of the range)."
    )


def interval_cells(scores: metrics.Scores) -> list[str]:
    """Values with their intervals, a metric each."""
    measured = [scores.metrics[name] for name in METRICS]
    return [f"{own.value:.2f} [{own.low:.2f}, {own.high:.2f}]" for own in measured]


def coverages(
    preset: Preset, truth: Sequence[Truth], table: Mapping[str, Estimates]
) -> dict[str, float]:
    """Share of a task's policies whose interval over seeds holds the true value, by estimator."""
    bootstrap = preset.settings.bootstrap
    return {
        name: choices.coverage(truth, choices.combined(name, own, bootstrap=bootstrap))
        for name, own in table.items()
    }


def task_table(
    scores: Mapping[str, Scored], table: Mapping[str, Estimates], coverage: Mapping[str, float]
) -> str:
    """Metrics by estimator, with intervals, seeds, and how often support is low.

    Those whose fits mostly say themselves that they have not settled stand in a table of their own.

    Args:
      scores: by estimator.
      table: the rows, by estimator.
      coverage: of `coverages`.
    """
    header = [
        *HEADER,
        "bias",
        "raw error",
        "coverage",
        "rank correlation of each seed",
        "low support",
        "unsettled",
        "missing",
        "CPU seconds",
    ]
    lines = {
        name: _task_line(name, own, table[name], coverage[name]) for name, own in scores.items()
    }
    unsettled = [name for name in scores if share(table[name].unsettled) > claims.MOST_UNSETTLED]
    settled = [line for name, line in lines.items() if name not in unsettled]
    note = (
        "In brackets: 95 % of 1000 resamples of the policies. Normalized by the smallest and "
        "largest true value, estimates capped at 2. Coverage: share of the policies whose 95 % "
        "interval over all seeds holds the true value. Low support, unsettled: share of the "
        "estimates for which the estimator itself warns that the data do not support the policy, "
        "or that its fit had too few updates; -: no row says. CPU seconds: of a seed's fit and "
        "estimates of all policies, shared by the estimators of one fit."
    )
    parts = [pages.markdown(header, settled), note]
    if unsettled:
        parts += [
            "Not settled, so that nothing follows from these figures but that more updates are "
            "needed:",
            pages.markdown(header, [lines[name] for name in unsettled]),
        ]
    return "\n\n".join(parts)


def _task_line(name: str, scored: Scored, own: Estimates, coverage: float) -> list[str]:
    shares = [share(flags) for flags in (own.low_support, own.unsettled)]
    ranks = ", ".join(f"{seed.metrics['rank_correlation'].value:.2f}" for seed in scored.seeds)
    over_seeds = scored.over_seeds
    plain = [over_seeds.metrics[metric].value for metric in ("bias", "raw_absolute_error")]
    return [
        f"`{name}`",
        *interval_cells(over_seeds),
        # Products of ratios know no bounds.
        *(f"{value:.2f}" if abs(value) < 1e5 else f"{value:.1e}" for value in plain),
        f"{coverage:.0%}",
        ranks,
        *("-" if np.isnan(value) else f"{value:.0%}" for value in shares),
        str(over_seeds.num_missing),
        f"{own.seconds.sum(axis=1).mean():.0f}",
    ]


def resampled(scores: Mapping[str, metrics.Scores]) -> str:
    """Mean and standard deviation over resamples, by estimator, at two digits."""
    lines = []
    for name, own in scores.items():
        measured = [own.metrics[metric] for metric in METRICS]
        lines.append([f"`{name}`", *(f"{value.mean:.2f} ± {value.std:.2f}" for value in measured)])
    head = "Mean ± standard deviation over the same resamples, as DOPE's notebook reports metrics:"
    return f"{head}\n\n{pages.markdown(HEADER, lines)}"


# --- the summary ---


def summary(
    preset: Preset,
    preset_name: str,
    table: Table,
    scores: Scores,
    estimates: Sequence[Row],
    chosen: str,
) -> str:
    """The page that names everything: over tasks, claims, settings, how it was made.

    Args:
      preset: whose rows count.
      preset_name: its name.
      table: estimates.
      scores: of the same; every task with true values has an entry.
      estimates: all rows.
      chosen: of `choices.section`.
    """
    over = {
        name: metrics.aggregate({task: own[name].over_seeds for task, own in scores.items()})
        for name in names_of(estimators.GROUPS)
        if scores and all(name in own for own in scores.values())
    }

    def rank(name: str) -> float:
        return -np.nan_to_num(over[name].metrics["rank_correlation"].value, nan=-2.0)

    ranked = {name: over[name] for name in sorted(over, key=rank)}
    tasks = []
    for task in scores:
        counts = [len(own.values) for own in table.get(task, {}).values()]
        tasks.append(f"[{task}]({task}.md) ({counts[0] if counts else 0} seeds)")
    lines = [[f"`{name}`", *interval_cells(own)] for name, own in ranked.items()]
    return "\n\n".join(
        [
            f"# Off-policy estimators against true returns, preset {preset_name}",
            f"Tasks: {', '.join(tasks) or 'none finished'}. Means over tasks and seeds, best rank "
            "correlation first, in brackets 95 % of 1000 resamples of the policies:",
            pages.markdown(HEADER, lines),
            resampled(ranked),
            "## What `offline-mbrl ope` would choose",
            chosen,
            "## What the sources claim",
            *claims_section(over, unsettled_shares(table)),
            "## Made with",
            "\n".join(made_with(preset, estimates)),
        ]
    )


def unsettled_shares(table: Table) -> dict[str, float]:
    """Of each estimator, the share of its rows of all tasks that are flagged; NaN without flags."""
    flags: dict[str, list[np.ndarray]] = {}
    for names in table.values():
        for name, own in names.items():
            flags.setdefault(name, []).append(own.unsettled.ravel())
    return {name: share(np.concatenate(parts)) for name, parts in flags.items()}


def claims_section(over: Mapping[str, metrics.Scores], unsettled: Mapping[str, float]) -> list[str]:
    """How claims are judged, and a line for each."""
    silent = [f"`{name}`" for name in claims.compared(over) if np.isnan(unsettled[name])]
    missing = f"; the rows do not say whether these have: {', '.join(silent)}." if silent else "."
    method = (
        "Judged by the difference over the same resampled policies, positive where the first is "
        "better; 95 %. The intervals know the policies' variation, and that of seeds only through "
        "their mean. An estimator that says of most of its estimates that its fit has not settled "
        f"is named{missing}"
    )
    return [method, "\n".join(claims.lines(claims.judge(over, unsettled)))]


def made_with(preset: Preset, estimates: Sequence[Row]) -> list[str]:
    """Lines on commands, revisions, settings, time and libraries."""
    commands = [f"`{command}`" for command in sorted({row.command for row in estimates})]
    revisions = sorted({row.revision[:12] for row in estimates})
    # Each estimator of a group has the group's seconds.
    seconds = {(row.task, row.group, row.seed, row.policy): row.cpu_seconds for row in estimates}
    return [
        f"- commands: {', '.join(commands) or 'none'}",
        f"- code: {', '.join(revisions) or 'none'}",
        f"- settings: `{settings_key(preset.settings)}`",
        f"- {sum(seconds.values()) / 60:.0f} CPU minutes of fits and estimates in all rows",
        f"- reported on {platform.machine()}, {os.cpu_count()} cores; {pages.versions()}",
    ]


# --- figures ---


def draw(path: Path, task: str, policies: Sequence[Truth], table: Mapping[str, Estimates]) -> None:
    """A scatter plot for each estimator: estimates with standard errors against true values."""
    values = np.array([row.value for row in policies])
    panels = {name: functools.partial(draw_estimates, values, own) for name, own in table.items()}
    legend = functools.partial(figures.legend_in_first, fontsize=7)
    figures.draw(
        path,
        task,
        panels,
        LAYOUT,
        vertical="estimate",
        horizontal="true value",
        legend=legend,
    )


def draw_estimates(values: np.ndarray, estimates: Estimates, axes: Any) -> None:
    """The panel of one estimator; estimates far outside are drawn at the edge."""
    ends = np.array([values.min(), values.max()])
    margin = 0.25 * np.ptp(values)
    for seed, (mean, error) in enumerate(zip(estimates.values, estimates.stderr, strict=True)):
        shown = np.clip(mean, ends[0] - margin, ends[1] + margin)
        axes.errorbar(
            values,
            shown,
            np.where(shown == mean, error, 0.0),
            fmt="o",
            markersize=3,
            linewidth=0.8,
            color=f"C{seed}",
            label=f"seed {seed}",
        )
    axes.plot(ends, ends, color="0.6", linewidth=1)
    axes.set_ylim(ends[0] - 1.2 * margin, ends[1] + 1.2 * margin)
