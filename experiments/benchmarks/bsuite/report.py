"""Tables, pictures and paragraphs of the studies, from the table of runs alone."""

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.benchmarks import figures
from experiments.benchmarks.bsuite import findings, grid
from experiments.benchmarks.bsuite import runs as study
from offline_mbrl import files, provenance
from offline_mbrl.evaluation import aggregate

SUMMARY = "summary.md"
Runs = Mapping[grid.Setting, Mapping[int, study.Row]]


class Cell(NamedTuple):
    """What is shown of a setting under one way of acting."""

    mean: float  # interquartile
    low: float
    high: float
    values: np.ndarray  # [S, environments]


def write(
    folder: Path, preset: grid.Preset, names: Iterable[str], rows: Sequence[study.Row], size: study.Size,
    *, preset_name: str,
) -> None:  # fmt: skip
    """Writes `<study>.md`, `<study>.png` and the summary."""
    runs = study.finished(rows, size)
    scores = {how: complete_scores(runs, preset, how) for how in study.WAYS}
    verdicts = {
        how: [findings.judge(claim, scores[how]) for claim in findings.claims(preset)] for how in study.WAYS
    }  # fmt: skip
    for name in names:
        one = grid.studies(preset)[name]
        picture = draw(folder, name, one, scores)
        text = "\n\n".join([
            f"# {one.title}", "\n".join(table(one, scores, runs, preset)),
            *([f"![{one.title}]({picture})"] if picture else []), *paragraphs(name, verdicts)])  # fmt: skip
        write_text(folder / f"{name}.md", text)
    write_text(folder / SUMMARY, summary(preset, preset_name, runs, verdicts, size))


def complete_scores(runs: Runs, preset: grid.Preset, how: str) -> dict[grid.Setting, np.ndarray]:
    """Setting (in the first environment) -> `[S, environments]` of the seeds that have run in all environments."""
    found = {}
    for setting in runs:
        if setting.environment != preset.environments[0]:
            continue
        each = [runs.get(setting._replace(environment=one), {}) for one in preset.environments]
        seeds = sorted(seed for seed in set.intersection(*map(set, each)) if seed < preset.seeds)
        if seeds:
            first = setting._replace(environment=grid.Setting._field_defaults["environment"])
            found[first] = np.array([[getattr(of[seed], how) for of in each] for seed in seeds])
    return found


# --- tables and pictures ---


def cell(values: np.ndarray) -> Cell:
    """Interquartile mean over runs, with its interval where there are two seeds."""
    mean = float(aggregate.interquartile_mean(values))
    low, high = aggregate.stratified_bootstrap(values) if len(values) > 1 else (np.nan, np.nan)
    return Cell(mean, low, high, values)


def table(
    one: grid.Study, scores: Mapping[str, findings.Scores], runs: Runs, preset: grid.Preset
) -> list[str]:  # fmt: skip
    """Markdown: a line per setting; normalized scores, intervals of 95 %, the value of every seed."""
    header = [
        "series",
        one.axis,
        *(f"{how}: {what}" for how in study.WAYS for what in ("IQM", "95 %", "seeds")),
        "CPU s",
    ]
    lines = [header, ["---"] * len(header)]
    for series, settings in one.series.items():
        for setting in settings:
            if setting not in scores[study.WAYS[0]]:
                continue
            cells = [cell(scores[how][setting]) for how in study.WAYS]
            told = [text for shown in cells for text in _shown(shown, preset)]
            lines.append([series, grid.position(one, setting), *told, f"{_seconds(runs, setting, preset):.0f}"])
    return [f"| {' | '.join(line)} |" for line in lines]


def _shown(shown: Cell, preset: grid.Preset) -> list[str]:
    interval = f"{shown.low:.2f} to {shown.high:.2f}" if np.isfinite(shown.low) else "-"
    several = len(preset.environments) > 1
    seeds = "<br>".join(
        (f"{environment}: " if several else "") + ", ".join(f"{value:.2f}" for value in values)
        for environment, values in zip(preset.environments, shown.values.T, strict=True))  # fmt: skip
    return [f"{shown.mean:.2f}", interval, seeds]


def _seconds(runs: Runs, setting: grid.Setting, preset: grid.Preset) -> float:
    """CPU seconds of one run, on average."""
    return float(np.mean([
        row.cpu_seconds for environment in preset.environments
        for row in runs[setting._replace(environment=environment)].values()]))  # fmt: skip


def draw(folder: Path, name: str, one: grid.Study, scores: Mapping[str, findings.Scores]) -> str:
    """The picture's name; empty where there is nothing to show."""
    panels = {}
    for series, settings in one.series.items():
        there = [setting for setting in settings if setting in scores[study.WAYS[0]]]
        if there:
            panels[series] = {
                how: [_point(one, setting, scores[how][setting]) for setting in there] for how in study.WAYS
            }
    if not panels:
        return ""
    figures.draw(folder / f"{name}.png", one.title, one.axis, panels)
    return f"{name}.png"


def _point(one: grid.Study, setting: grid.Setting, values: np.ndarray) -> figures.Point:
    shown = cell(values)
    low, high = (shown.low, shown.high) if np.isfinite(shown.low) else (shown.mean, shown.mean)
    return grid.position(one, setting), shown.mean, min(low, shown.mean), max(high, shown.mean)


# --- words ---


def paragraphs(name: str, verdicts: Mapping[str, Sequence[findings.Verdict]]) -> list[str]:
    """Per observation that the study is about and per way of acting, what the numbers say."""
    told = []
    for number, observation in findings.OBSERVATIONS.items():
        for how in study.WAYS:
            mine = [one for one in verdicts[how] if one.claim.observation == number and one.claim.study == name]
            if mine:
                lines = findings.lines(mine)
                told.append(f"**Observation {number}: {observation}. Acting {how}:**\n\n" + "\n".join(lines))
    return told


def summary(
    preset: grid.Preset, preset_name: str, runs: Runs, verdicts: Mapping[str, Sequence[findings.Verdict]],
    size: study.Size,
) -> str:  # fmt: skip
    """The page that says what was run, how, and what became of each observation."""
    rows = [row for of in runs.values() for row in of.values()]
    lines = ["# BSuite studies", "", "| observation | greedy | sampled |", "|---|---|---|"]
    for number, observation in findings.OBSERVATIONS.items():
        told = [
            findings.summary([one for one in verdicts[how] if one.claim.observation == number]) for how in study.WAYS
        ]
        lines.append(f"| {number}. {observation} | {' | '.join(told)} |")
    named = grid.studies(preset)
    lines += ["", "Studies: " + ", ".join(f"[{one.title}]({name}.md)" for name, one in named.items()), "", METHOD, ""]
    lines += [f"- failed: {row.arm}, {row.environment}, seed {row.seed}: {row.failure}" for row in rows if row.failure]
    environments = ", ".join(preset.environments)
    lines += [
        f"- preset: {preset_name}; {environments}; {preset.seeds} seeds, {size.updates} updates at batch "
        f"{size.batch_size}, learning rate {grid.LEARNING_RATE:g}, "
        f"{size.episodes} episodes of evaluation a seed and way of acting",
        f"- runs: {len(rows)}, {sum(row.cpu_seconds for row in rows) / 60:.0f} CPU minutes",
        *(f"- command: `{command}`" for command in sorted({row.command for row in rows})),
        *(f"- code: {revision}" for revision in sorted({row.revision for row in rows})),
        f"- report made on: {os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}, "
        + ", ".join(f"{name} {version}" for name, version in provenance.versions().items()),
    ]
    return "\n".join(lines)


METHOD = f"""Scores are normalized: 0 is a random policy, 1 the online DQN. Every arm but behavior cloning and CRR is
one algorithm with one operator: network, optimizer, schedule, target period, n-step value targets, batch and number of
updates are the same, and each acts by its own operator (one-step sampled: by its policy head). Behavior cloning sees
single transitions, the others windows of several. The learning rate is not the published 7e-4, which took ROSMO three
times as many updates to get as far. All seeds learn from one dataset a condition, so that intervals do not tell how
another dataset of that size would do. The final parameters are evaluated, in an environment as noisy as the data's. A
run that became non-finite counts as a random policy.

IQM: interquartile mean over seeds and environments; with three seeds and one environment that is the mean. Intervals
in tables and pictures: stratified bootstrap, 95 %; with three seeds they are too narrow. A claim says on which side of
a threshold a difference lies: it holds if the whole interval is there, does not hold if the whole interval is on the
other side, and otherwise cannot be told. The figures behind a claim are that difference and its interval, widened for
few seeds (variance of a sample, Student's t), and reflected where the difference between the best and the worst is
meant, which chance widens. Where losses and such spreads are judged, less than {findings.MARGIN:g} is taken for none.
An arm that stays below {findings.LEARNED:g} everywhere in a claim about losses or spreads has nothing to lose, so that
the claim cannot be told. Many claims are judged, each by itself, so that some of the verdicts are chance."""


def write_text(path: Path, text: str) -> None:
    """The whole file or nothing."""
    files.write_whole(path, lambda place: place.write_text(text + "\n"))
