"""Tables, figures and paragraphs of the studies, from the table of runs alone."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks import claims, figures, pages
from experiments.benchmarks.bsuite import claims as bsuite_claims
from experiments.benchmarks.bsuite import grid, observations
from experiments.benchmarks.bsuite.grid import Preset, Setting, Study
from experiments.benchmarks.bsuite.runs import WAYS, Row, finished, size_of
from experiments.benchmarks.claims import Claim, Interval
from offline_mbrl import environments
from offline_mbrl.data.catalog import official
from offline_mbrl.data.store.write import VALIDATION_EVERY
from offline_mbrl.evaluation import aggregate

LAYOUT = figures.Layout(columns=4, width=3.1, height=2.5, head=0.7, share_y=True)

Runs = Mapping[Setting, Mapping[int, Row]]
Scores = Mapping[str, bsuite_claims.Scores]  # way of acting -> scores
Claims = Mapping[str, Sequence[Claim]]  # way of acting -> claims


def write(
    folder: Path, preset: Preset, names: Iterable[str], table: Sequence[Row], *, preset_name: str
) -> Path:
    """Writes `<study>.md`, `<study>.png` and the summary, whose path is returned.

    Args:
      folder: of the results.
      preset: how much was to run.
      names: of the studies.
      table: all rows.
      preset_name: for the summary.
    """
    runs = finished(table, size_of(preset))
    scores = {way: complete_scores(runs, preset, way) for way in WAYS}
    comparisons = observations.comparisons(preset)
    judged = {
        way: [bsuite_claims.judge(comparison, scores[way]) for comparison in comparisons]
        for way in WAYS
    }
    studies = grid.studies(preset)
    for name in names:
        study = studies[name]
        parts = [f"# {study.title}", scores_table(study, scores, runs, preset)]
        if draw(folder / f"{name}.png", study, scores):
            parts.append(f"![{study.title}]({name}.png)")
        pages.write(folder / f"{name}.md", "\n\n".join([*parts, *paragraphs(name, judged)]))
    pages.write(folder / pages.SUMMARY, summary(preset, preset_name, runs, judged))
    return folder / pages.SUMMARY


def complete_scores(runs: Runs, preset: Preset, way: str) -> dict[Setting, np.ndarray]:
    """Setting (in the first environment) -> `[S, environments]`.

    Args:
      runs: all.
      preset: its environments, and how many seeds.
      way: of acting; only seeds that have run in all environments count.
    """
    scores = {}
    for setting in runs:
        if setting.environment != preset.environments[0]:
            continue
        tables = [runs.get(there, {}) for there in everywhere(setting, preset)]
        common = set.intersection(*map(set, tables))
        seeds = sorted(seed for seed in common if seed < preset.seeds)
        if seeds:
            first = setting._replace(environment=Setting._field_defaults["environment"])
            values = [[getattr(table[seed], way) for table in tables] for seed in seeds]
            scores[first] = np.array(values)
    return scores


def everywhere(setting: Setting, preset: Preset) -> list[Setting]:
    """A setting in each environment."""
    return [setting._replace(environment=environment) for environment in preset.environments]


# --- tables and figures ---


def interval(values: np.ndarray) -> Interval:
    """Interquartile mean over runs `[S, environments]`, with ends where there are two seeds."""
    mean = float(aggregate.interquartile_mean(values))
    if len(values) < 2:
        return Interval(mean)
    return Interval(mean, *aggregate.stratified_bootstrap(values))


def scores_table(study: Study, scores: Scores, runs: Runs, preset: Preset) -> str:
    """Markdown: a line per setting; normalized scores, 95 % intervals, the value of every seed.

    Args:
      study: which settings.
      scores: by way of acting.
      runs: for their CPU seconds.
      preset: its environments.
    """
    columns = [f"{way}: {column}" for way in WAYS for column in ("IQM", "95 %", "seeds")]
    lines = []
    for series, settings in study.series.items():
        for setting in settings:
            if setting in scores[WAYS[0]]:
                cells = [cell for way in WAYS for cell in shown(scores[way][setting], preset)]
                seconds = f"{mean_seconds(runs, setting, preset):.0f}"
                lines.append([series, grid.position(study, setting), *cells, seconds])
    return pages.markdown(["series", study.axis, *columns, "CPU s"], lines)


def shown(values: np.ndarray, preset: Preset) -> list[str]:
    """Cells of a setting: mean, interval, seeds of each environment."""
    mean, low, high = interval(values)
    several = len(preset.environments) > 1
    seeds = []
    for environment, column in zip(preset.environments, values.T, strict=True):
        numbers = ", ".join(f"{value:.2f}" for value in column)
        seeds.append(f"{environment}: {numbers}" if several else numbers)
    ends = f"{low:.2f} to {high:.2f}" if np.isfinite(low) else "-"
    return [f"{mean:.2f}", ends, "<br>".join(seeds)]


def mean_seconds(runs: Runs, setting: Setting, preset: Preset) -> float:
    """CPU seconds of a run, on average over environments and seeds."""
    seconds = [
        row.cpu_seconds for there in everywhere(setting, preset) for row in runs[there].values()
    ]
    return float(np.mean(seconds))


class Curve(NamedTuple):
    """Scores of a series under one way of acting."""

    label: str
    color: str
    marker: str
    shift: float  # beside the other curve
    points: list[Interval]


def draw(path: Path, study: Study, scores: Scores) -> bool:
    """Draws a panel for each series; false, and no figure, where no series has scores."""
    marks = {"greedy": ("C0", "o", -0.08), "sampled": ("C1", "s", 0.08)}
    panels = {}
    for series, settings in study.series.items():
        present = [setting for setting in settings if setting in scores[WAYS[0]]]
        if present:
            positions = [grid.position(study, setting) for setting in present]
            curves = [
                Curve(way, *marks[way], [interval(scores[way][setting]) for setting in present])
                for way in WAYS
            ]
            panels[series] = functools.partial(draw_curves, positions, curves)
    if panels:
        figures.draw(
            path,
            study.title,
            panels,
            LAYOUT,
            vertical="normalized score",
            horizontal=study.axis,
        )
    return bool(panels)


def draw_curves(positions: Sequence[str], curves: Sequence[Curve], axes: Any) -> None:
    """The panel of one series."""
    for curve in curves:
        mean, low, high = np.array(curve.points).T
        errors = np.nan_to_num([np.maximum(mean - low, 0.0), np.maximum(high - mean, 0.0)])
        axes.errorbar(
            np.arange(len(mean)) + curve.shift,
            mean,
            errors,
            color=curve.color,
            marker=curve.marker,
            capsize=3,
            linewidth=1,
            label=curve.label,
        )
    axes.set_xticks(range(len(positions)), positions)


# --- words ---


def paragraphs(name: str, judged: Claims) -> list[str]:
    """Per observation that the study is about and per way of acting, what the numbers say."""
    texts = []
    for number, observation in observations.OBSERVATIONS.items():
        for way in WAYS:
            own = [c for c in judged[way] if c.source == number and c.study == name]
            if own:
                heading = f"**Observation {number}: {observation}. Acting {way}:**"
                texts.append("\n".join([heading, "", *claims.sentences(own)]))
    return texts


def shares() -> dict[str, Any]:
    """What the store leaves of the data for training, in catch."""
    episodes = official.LOCAL["catch"].num_episodes
    left = 1 - 1 / VALIDATION_EVERY
    return {
        "every": VALIDATION_EVERY,
        "trained": 100 * left,
        "episodes": episodes,
        "trained_on": ", ".join(f"{left * episodes / part:,.0f}" for part in (1, 10, 100)),
    }


def starts() -> dict[str, Any]:
    """Which scores greedy acting can have in catch, from no ball that is caught to all."""
    count = len(environments.starts("bsuite/catch"))
    reference = official.LOCAL["catch"].reference
    assert reference is not None
    returns = np.arange(-count, count + 1, 2) / count
    values = [f"{value:.2f}" for value in aggregate.normalized_score(returns, *reference)]
    return {"starts": count, "values": f"{', '.join(values[:-1])} or {values[-1]}"}


def summary(preset: Preset, preset_name: str, runs: Runs, judged: Claims) -> str:
    """The page that says what was run, how, and what became of each observation.

    Args:
      preset: how much was to run.
      preset_name: its name.
      runs: all.
      judged: claims by way of acting.
    """
    table = [row for seeds in runs.values() for row in seeds.values()]
    verdicts = []
    for number, observation in observations.OBSERVATIONS.items():
        ways = [[claim for claim in judged[way] if claim.source == number] for way in WAYS]
        cells = [bsuite_claims.summary(own) for own in ways]
        verdicts.append([f"{number}. {observation}", *cells])
    studies = grid.studies(preset).items()
    links = ", ".join(f"[{study.title}]({name}.md)" for name, study in studies)
    method = pages.method(
        __file__,
        margin=observations.MARGIN,
        learned=bsuite_claims.LEARNED,
        **shares(),
        **starts(),
    )
    minutes = sum(row.cpu_seconds for row in table) / 60
    lines = [
        *(
            f"- failed: {row.arm}, {row.environment}, seed {row.seed}: {row.failure}"
            for row in table
            if row.failure
        ),
        f"- preset: {preset_name}; {', '.join(preset.environments)}; {preset.seeds} seeds, "
        f"{preset.updates} updates at batch {preset.batch_size}, learning rate "
        f"{grid.LEARNING_RATE:g}, {preset.episodes} episodes of evaluation a seed and way of "
        "acting",
        f"- runs: {len(table)}, {minutes:.0f} CPU minutes",
        *pages.origins(table),
    ]
    return "\n\n".join(
        [
            "# BSuite studies",
            pages.markdown(["observation", *WAYS], verdicts, rule="---"),
            f"Studies: {links}",
            method,
            "\n".join(lines),
        ]
    )
