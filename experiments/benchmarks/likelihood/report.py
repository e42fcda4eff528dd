"""Tables, pictures and paragraphs of the likelihood study, from the table of runs alone."""

import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from experiments.benchmarks.bsuite.report import write_text
from experiments.benchmarks.likelihood import figures, findings, settings
from experiments.benchmarks.likelihood import runs as nll_runs
from experiments.benchmarks.likelihood.findings import Gap, Runs, Verdict
from experiments.benchmarks.likelihood.settings import FAMILIES, TASKS, Preset, Setting
from offline_mbrl import provenance

SUMMARY = "summary.md"


def write(folder: Path, preset: Preset, studies: Iterable[str], rows: Sequence[nll_runs.Row], *,
          preset_name: str) -> None:  # fmt: skip
    """Writes `<study>.md`, `<study>.png` and the summary."""
    runs = nll_runs.finished(rows)
    told = findings.verdicts(runs, preset)
    make = {"time": time_page, "parameters": parameters_page, "grid": grid_page}
    for study in studies:
        picture = folder / f"{study}.png"
        picture.unlink(missing_ok=True)
        text = [f"# {settings.TITLES[study]}", *make[study](picture, runs, preset)]
        if picture.exists():
            text.append(f"![{settings.TITLES[study]}]({picture.name})")
        for claim, words in findings.CLAIMS.items():
            mine = [one for one in told if one.claim == claim and one.study == study]
            if mine:
                text.append(f"**{words[0].upper()}{words[1:]}:**\n\n" + "\n".join(findings.lines(mine)))
        write_text(folder / f"{study}.md", "\n\n".join(text))
    write_text(folder / SUMMARY, summary(preset, preset_name, runs, told))


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *lines])


def shown(found: Gap, *, digits: int = 2) -> list[str]:
    """Cells: the mean and its interval."""
    if np.isnan(found.value):
        return ["-", "-"]
    interval = f"{found.low:.{digits}f} to {found.high:.{digits}f}" if np.isfinite(found.low) else "one run"
    return [f"{found.value:.{digits}f}", interval]


def figures_of(runs: Runs, one: Setting) -> list[str]:
    """Cells of a setting: NLL in z with its interval and seeds, then means over seeds of everything else."""
    nll = findings.values(runs, one)
    mean = lambda figure: findings.values(runs, one, figure).mean()  # noqa: E731
    return [
        f"{mean('parameters') / 1e3:.0f}k", f"{mean('updates'):.0f}", f"{mean('train_seconds'):.0f}",
        *shown(findings.interval(nll)), ", ".join(f"{value:.2f}" for value in nll),
        *(f"{mean(name):.2f}" for name in ("median_z", "p99_z", "reward_z", "nll_unit", "nll_raw", "floor_z")),
        f"{mean('coverage_50'):.0%} / {mean('coverage_90'):.0%}"]  # fmt: skip


HEADER = ["parameters", "updates", "CPU s", "NLL", "95 %", "seeds", "median", "p99", "reward", "NLL unit", "NLL raw",
          "floor", "inside 50 / 90 %"]  # fmt: skip


def name(one: Setting) -> str:
    """Family and size."""
    return f"{FAMILIES[one.family].label}, {one.depth} x {one.hidden}"


# --- study: equal training time ---


def time_page(picture: Path, runs: Runs, preset: Preset) -> list[str]:
    """Every model's figures, then the gaps."""
    lines, gaps, panels = [], [], {}
    for task in preset.tasks:
        models = settings.equal_time(preset, task)
        there = {family: one for family, one in models.items() if len(findings.values(runs, one))}
        lines += [[task, name(one), *figures_of(runs, one)] for one in there.values()]
        for family in (family for family in there if family != "feedforward" and "feedforward" in there):
            of = lambda one, figure, there=there: findings.values(runs, there[one], figure)  # noqa: E731
            both = [findings.gap(of("feedforward", one), of(family, one)) for one in ("nll_z", "median_z")]
            source = TASKS[task].top_1[0] - TASKS[task].top_1[1]
            gaps.append([task, name(there[family]), *(cell for one in both for cell in shown(one)), f"{source:.2f}"])
        if there:
            panels[task] = [
                figures.Line(FAMILIES[family].label, FAMILIES[family].color, [point(runs, one, position)], joined=False)
                for position, (family, one) in enumerate(there.items())
            ]  # fmt: skip
    if panels:
        figures.draw(picture, settings.TITLES["time"], "", panels, ticks=list(preset.widths))
    gap_header = ["task", "against feedforward", "gap of means", "95 %", "gap of medians", "95 %", "source, top-1"]
    return [markdown(["task", "model", *HEADER], lines), "Gaps, nats per entry, positive where feedforward is worse:",
            markdown(gap_header, gaps)]  # fmt: skip


def point(runs: Runs, one: Setting, x: float) -> figures.Point:
    """A setting in a picture."""
    return figures.Point(x, *findings.interval(findings.values(runs, one)))


# --- study: parameters ---


def parameters_page(picture: Path, runs: Runs, preset: Preset) -> list[str]:
    """All sizes; those of study `time` belong to the curves too."""
    lines, panels = [], {}
    for task in preset.tasks:
        found: dict[str, list[Setting]] = {}
        for family, like in settings.equal_time(preset, task).items():
            found.setdefault(family, []).append(like)
        for family, of in settings.curves(preset, task).items():
            found.setdefault(family, []).extend(of.values())
        for family, all_of in found.items():
            there = sorted({one for one in all_of if len(findings.values(runs, one))}, key=lambda one: one.hidden)
            lines += [[task, name(one), *figures_of(runs, one)] for one in there]
            if there:
                points = [point(runs, one, float(findings.values(runs, one, "parameters")[0])) for one in there]
                panels.setdefault(task, []).append(figures.Line(FAMILIES[family].label, FAMILIES[family].color, points))
    if panels:
        figures.draw(picture, settings.TITLES["parameters"], "parameters", panels, log=True)
    return [markdown(["task", "model", *HEADER], lines)]


# --- study: the best of a sweep ---


def grid_page(picture: Path, runs: Runs, preset: Preset) -> list[str]:
    """Top-1 and top-5 beside the source's, then every configuration."""
    lines, every, panels = [], [], {}
    for task in preset.tasks:
        for family in preset.grid_families:
            rows = findings.ranked(runs, preset, task, family)
            every += [
                [task, f"{FAMILIES[family].label}, {row.depth} x {row.hidden}", f"{row.learning_rate:g}",
                 f"{row.weight_decay:g}", f"{row.parameters / 1e3:.0f}k", f"{row.updates}", f"{row.train_seconds:.0f}",
                 f"{row.selection_z:.2f}", f"{row.nll_z:.2f}", f"{row.median_z:.2f}"] for row in rows]  # fmt: skip
            if not rows:
                continue
            source = [pair[family != "feedforward"] for pair in (TASKS[task].top_1, TASKS[task].top_5)]
            ours = [float(findings.top(rows, count).mean()) for count in (1, findings.BEST)]
            best = f"{rows[0].depth} x {rows[0].hidden}, {rows[0].learning_rate:g}"
            lines.append([task, FAMILIES[family].label, *(f"{one:.2f}" for one in (*ours, *source)), best])
            points = [figures.Point(x, value, np.nan, np.nan) for x, value in enumerate((*ours, *source))]
            panels.setdefault(task, []).append(
                figures.Line(FAMILIES[family].label, FAMILIES[family].color, points, joined=False))  # fmt: skip
    if panels:
        ticks = ["top-1", "top-5", "source\ntop-1", "source\ntop-5"]
        figures.draw(picture, settings.TITLES["grid"], "", panels, ticks=ticks)
    header = ["task", "model", "top-1", "top-5", "source: top-1", "source: top-5", "best: layers, learning rate"]
    all_header = ["task", "model", "learning rate", "decay", "parameters", "updates", "CPU s", "median, selecting",
                  "NLL", "median"]  # fmt: skip
    return [markdown(header, lines), "Every configuration, the best of each model first:", markdown(all_header, every)]


# --- the summary ---


def summary(preset: Preset, preset_name: str, runs: Runs, told: Sequence[Verdict]) -> str:
    """The page that says what was run, how, and what became of each claim."""
    rows = [row for of in runs.values() for row in of.values()]
    lines = ["# Likelihood of dynamics models", "", "| claim | here |", "|---|---|"]
    lines += [f"| {words} | {findings.summary([one for one in told if one.claim == claim])} |"
              for claim, words in findings.CLAIMS.items()]  # fmt: skip
    lines += ["", "Studies: " + ", ".join(f"[{title}]({study}.md)" for study, title in settings.TITLES.items()), ""]
    lines += [METHOD, "", *(f"- failed: {name(nll_runs.setting_of(row))}, {row.task}, seed {row.seed}: {row.failure}"
                            for row in rows if row.failure)]  # fmt: skip
    spent = sum(row.cpu_seconds for row in rows) / 60
    lines += [
        f"- preset: {preset_name}; {', '.join(preset.tasks)}; {preset.seeds} seeds; {preset.seconds:g} s of updates a "
        f"run, {preset.grid_seconds:g} s in the sweep"
        + "".join(f", {share:g} of that on {task}" for task, share in preset.short_tasks.items()),
        f"- runs: {len(rows)}, {spent:.0f} CPU minutes",
        *(f"- command: `{command}`" for command in sorted({row.command for row in rows})),
        *(f"- code: {revision}" for revision in sorted({row.revision for row in rows})),
        f"- report made on: {os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}, "
        + ", ".join(f"{library} {version}" for library, version in provenance.versions().items()),
    ]  # fmt: skip
    return "\n".join(lines)


METHOD = f"""Negative log-likelihoods are means over the entries of (next state, reward) that vary, in nats, lower is
better. Without another word they are in units in which each entry of the state, and the reward, has standard deviation
1 over the training data: those of the source's table. `unit`: units in which the change of each entry has; `raw`: the
data's. The log standard deviation of every conditional is bounded below, softly, at {nll_runs.LOWEST_LOG_STD:g} in
`unit`, for all models alike; `floor` is the lowest mean that allows. Control tasks are nearly deterministic, so that
this bound is part of every figure, and the source's is not known; nor are its data, which other agents collected.

Data: `local/control/<task>`. A tenth of the transitions, uniform over transitions, is held out. A quarter of that (at
most {nll_runs.SELECTED}) chooses each run's best parameters and ranks the configurations of a sweep, by its median,
since one transition of a thousand can decide a mean; all figures are of the rest. The split is the same for all; seeds
differ in first parameters and minibatches, so that intervals do not tell how other data would do. With a split by
transition, neighbours of a held-out transition are trained on.

Training time is CPU seconds of updates on one core, batch {settings.PRESETS["quick"].batch_size}, AdamW, the learning
rate falling linearly to 2 %. How many updates that is was measured for all models of a task in turn, before any run.
Each run then does that number, and its `CPU s` say what it took, held-out scores included; they differ where the
machine was busier. Parameters count as they are stored, those that a mask holds at zero included. A sweep's
configurations are single runs. `inside`: share of the held-out entries that lie in the central 50 % and 90 % intervals
of their conditionals, given the true entries before."""
