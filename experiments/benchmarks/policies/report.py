"""Tables, figures and verdicts of the benchmark of policy learners, from its table alone."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks import claims, figures, pages
from experiments.benchmarks.claims import Claim
from experiments.benchmarks.policies import claims as policy_claims
from experiments.benchmarks.policies import model_claims, published
from experiments.benchmarks.policies.arms import CLONING
from experiments.benchmarks.policies.presets import Data, Preset
from experiments.benchmarks.policies.runs import LAST, Row, Setting, curve_of, finished, measures_of
from offline_mbrl.evaluation import aggregate

CURVES = figures.Layout(
    columns=5, width=2.6, height=2.1, head=0.8, share_x=True, share_y=True, dpi=80
)
PROFILES = figures.Layout(columns=4, width=3.0, height=2.3, head=0.8, share_x=True, share_y=True)
MEASURES = (
    "Means of the last third of each run, over seeds, and their range. `value_gap`: the critics' "
    "values at initial states less the discounted soft returns from there, at the end."
)
THRESHOLDS = np.linspace(0.0, 1.2, 61)

Runs = Mapping[Setting, Mapping[int, Row]]


def write(folder: Path, preset: Preset, table: Sequence[Row], preset_name: str) -> Path:
    """Writes the figures and the summary, whose path is returned.

    Args:
      folder: of the results.
      preset: how much was to run.
      table: all rows.
      preset_name: for the summary.
    """
    runs = finished(table, preset)
    judged = [*policy_claims.judge(preset, runs), *model_claims.judge(preset, runs)]
    parts = ["# Policy learners", pages.method(__file__, last=LAST, margin=policy_claims.MARGIN)]
    for data in preset.datasets:
        parts += section(folder, preset, data, runs, judged)
    if draw_profiles(folder / "profiles.png", preset, runs):
        parts += ["## All datasets", across(preset, runs), "![performance profiles](profiles.png)"]
    parts.append(origin(preset, runs, preset_name))
    pages.write(folder / pages.SUMMARY, "\n\n".join(parts))
    return folder / pages.SUMMARY


# --- one dataset ---


def section(
    folder: Path, preset: Preset, data: Data, runs: Runs, judged: Sequence[Claim]
) -> list[str]:
    """The parts of the page about a dataset; none where nothing has run.

    Args:
      folder: of the results.
      preset: its arms.
      data: the dataset.
      runs: all.
      judged: the claims.
    """
    present = [arm for arm in preset.arms if Setting(arm, data.name) in runs]
    if not present:
        return []
    own = {arm: [*runs[Setting(arm, data.name)].values()] for arm in present}
    picture = f"{data.name.replace('/', '_')}.png"
    draw_curves(folder / picture, data.name, own)
    verdicts = [claim for claim in judged if claim.source == data.name]
    figures_table = measures_table(own)
    lengths = sorted({row.updates for rows in own.values() for row in rows})
    return [
        f"## {data.name}",
        f"Updates: {', '.join(f'{length:,}' for length in lengths)}.",
        scores_table(data, own),
        f"![learning curves]({picture})",
        *([MEASURES, figures_table] if figures_table else []),
        "\n".join(claims.sentences(verdicts)),
    ]


def scores_table(data: Data, runs: Mapping[str, Sequence[Row]]) -> str:
    """Markdown: a line an arm, the best mean first.

    Args:
      data: the dataset.
      runs: arm -> runs.
    """
    header = [
        "learner",
        "settings",
        f"last {LAST}: IQM",
        "95 %",
        "best",
        "seeds, last / best",
        "beats cloning",
        "gain of the last third",
        "published, %",
        "CPU s a seed",
    ]
    cloned = runs.get(CLONING, ())
    ranked = sorted(runs, key=lambda arm: -policy_claims.scores_of(runs[arm]).mean())
    return pages.markdown(header, [cells(arm, data, runs[arm], cloned) for arm in ranked])


def measures_table(runs: Mapping[str, Sequence[Row]]) -> str:
    """Markdown: what runs report beside their scores, mean and range over seeds; empty for none.

    Args:
      runs: arm -> runs.
    """
    reported = {arm: [measures_of(row) for row in rows] for arm, rows in runs.items()}
    names = sorted({name for own in reported.values() for figures in own for name in figures})
    lines = []
    for arm, own in reported.items():
        columns = [[figures[name] for figures in own if name in figures] for name in names]
        if any(columns):
            lines.append([arm, *map(spread_in_words, columns)])
    return pages.markdown(["learner", *names], lines) if lines else ""


def spread_in_words(values: Sequence[float]) -> str:
    """Mean and range."""
    if not values:
        return "-"
    return f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def cells(arm: str, data: Data, runs: Sequence[Row], cloned: Sequence[Row]) -> list[str]:
    """The line of an arm.

    Args:
      arm: its name.
      data: the dataset.
      runs: of the arm.
      cloned: runs of behavior cloning.
    """
    scores = policy_claims.scores_of(runs)[:, None]
    best = np.array([row.best for row in runs])
    ends = "-"
    if len(runs) > 1:
        low, high = aggregate.stratified_bootstrap(scores)
        ends = f"{low:.2f} to {high:.2f}"
    chance = "-"
    if cloned and arm != CLONING:
        others = policy_claims.scores_of(cloned)[:, None]
        chance = f"{aggregate.probability_of_improvement(scores, others):.2f}"
    failed = sum(bool(row.failure) for row in runs)
    return [
        arm,
        runs[0].settings,
        f"{float(aggregate.interquartile_mean(scores)):.2f}",
        ends,
        f"{best.mean():.2f}",
        ", ".join(f"{row.last_ten:.2f} / {row.best:.2f}" for row in runs)
        + (f"; {failed} failed" if failed else ""),
        chance,
        f"{policy_claims.gain(runs):+.2f}",
        published.shown(arm, data.published),
        f"{np.mean([row.cpu_seconds for row in runs]):.0f}",
    ]


def draw_curves(path: Path, title: str, runs: Mapping[str, Sequence[Row]]) -> None:
    """Learning curves: a panel an arm, behavior cloning in each of them.

    Args:
      path: of the PNG.
      title: of the figure.
      runs: arm -> runs.
    """
    cloned = runs.get(CLONING, ())
    panels = {arm: functools.partial(draw_arm, own, cloned) for arm, own in runs.items()}
    figures.draw(
        path,
        title,
        panels,
        CURVES,
        vertical="normalized score",
        horizontal="share of the updates",
        legend=figures.legend_below,
    )


def draw_arm(runs: Sequence[Row], cloned: Sequence[Row], axes: Any) -> None:
    """The panel of an arm."""
    for label, color, own in ((CLONING, "0.6", cloned), ("learner", "C0", runs)):
        if own:
            curves = np.array([curve_of(row) for row in own])
            shares = np.arange(1, curves.shape[1] + 1) / curves.shape[1]
            axes.plot(shares, curves.mean(0), color=color, label=f"{label}, mean")
            axes.fill_between(shares, curves.min(0), curves.max(0), color=color, alpha=0.2)


# --- all datasets ---


def tables(preset: Preset, runs: Runs) -> dict[str, np.ndarray]:
    """Arm -> scores `[S, datasets]`, for arms and seeds that have run on all datasets."""
    scores = {}
    for arm in preset.arms:
        columns = [runs.get(Setting(arm, data.name), {}) for data in preset.datasets]
        seeds = sorted(set.intersection(*map(set, columns)))
        if seeds:
            scores[arm] = np.array([[own[seed].last_ten for own in columns] for seed in seeds])
    return scores


def across(preset: Preset, runs: Runs) -> str:
    """Markdown: IQM over all datasets and seeds, with stratified intervals, the best first.

    Args:
      preset: arms and datasets.
      runs: all.
    """
    scores = tables(preset, runs)
    cloned = scores.get(CLONING)
    lines = []
    for arm in sorted(scores, key=lambda arm: -float(aggregate.interquartile_mean(scores[arm]))):
        own = scores[arm]
        low, high = aggregate.stratified_bootstrap(own)
        chance = "-"
        if cloned is not None and arm != CLONING:
            chance = f"{aggregate.probability_of_improvement(own, cloned):.2f}"
        mean = float(aggregate.interquartile_mean(own))
        lines.append([arm, f"{mean:.2f}", f"{low:.2f} to {high:.2f}", chance])
    return pages.markdown(["learner", "IQM", "95 %", "beats cloning"], lines)


def draw_profiles(path: Path, preset: Preset, runs: Runs) -> bool:
    """Performance profiles: the share of runs above each score; false where no arm is complete.

    Args:
      path: of the PNG.
      preset: arms and datasets.
      runs: all.
    """
    scores = tables(preset, runs)
    if not scores:
        return False
    cloned = scores.get(CLONING)
    panels = {arm: functools.partial(draw_profile, own, cloned) for arm, own in scores.items()}
    figures.draw(
        path,
        "Performance profiles over all datasets",
        panels,
        PROFILES,
        vertical="share of runs above",
        horizontal="normalized score",
        legend=figures.legend_below,
    )
    return True


def draw_profile(scores: np.ndarray, cloned: np.ndarray | None, axes: Any) -> None:
    """The panel of an arm, and cloning's profile."""
    if cloned is not None:
        profile = aggregate.performance_profile(cloned, THRESHOLDS)
        axes.plot(THRESHOLDS, profile, color="0.6", label=CLONING)
    axes.plot(THRESHOLDS, aggregate.performance_profile(scores, THRESHOLDS), label="learner")


def origin(preset: Preset, runs: Runs, preset_name: str) -> str:
    """What was run, and where the rows came from.

    Args:
      preset: how much was to run.
      runs: all.
      preset_name: its name.
    """
    table = [row for seeds in runs.values() for row in seeds.values()]
    minutes = sum(row.cpu_seconds for row in table) / 60
    return "\n".join(
        [
            *(
                f"- failed: {row.arm}, {row.dataset}, seed {row.seed}: {row.failure}"
                for row in table
                if row.failure
            ),
            f"- preset: {preset_name}; {preset.seeds} seeds, {preset.evaluations} evaluations of "
            f"{preset.episodes} episodes along each run",
            f"- settings that differ from the published: {changes_in_words(preset)}",
            f"- runs: {len(table)}, {minutes:.0f} CPU minutes; device: "
            f"{', '.join(sorted({row.device for row in table}))}",
            *pages.origins(table),
        ]
    )


def changes_in_words(preset: Preset) -> str:
    """The sizes of the preset."""
    sizes = {"batch_size": preset.batch_size, **preset.changes}
    return (
        ", ".join(f"{name} {value}" for name, value in sizes.items() if value is not None) or "none"
    )
