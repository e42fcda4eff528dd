"""What the runs say of the source's claims on likelihood: gaps, their intervals, and sentences made from them.

A gap is the feedforward model's mean held-out NLL less the autoregressive one's, nats per entry: positive is better. A
claim holds if the whole 95 % interval of the gap lies above its threshold, does not hold if the whole interval lies
below it, and cannot be told otherwise. Intervals are Student's, with the spread between seeds pooled over the runs
that are compared; single runs of a sweep borrow that of the models of study `time` on the same task.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from experiments.benchmarks.bsuite.findings import FAILS, HOLDS, MISSING, OPEN
from experiments.benchmarks.likelihood import settings
from experiments.benchmarks.likelihood.runs import Row
from experiments.benchmarks.likelihood.settings import FAMILIES, Preset, Setting

CLAIMS = {
    "better": "autoregressive models predict held-out transitions better than feedforward ones, on every task",
    "top_5": "the best five autoregressive configurations are on average better than the best feedforward one",
    "parameters": "the number of parameters does not explain the gap",
    "size": "at equal training time the gap is at least 0.3 on cheetah run, 0.15 on walker walk (asked here)",
}
AT_LEAST = {"cheetah_run": 0.3, "walker_walk": 0.15}
BEST = 5

Runs = Mapping[Setting, Mapping[int, Row]]


class Gap(NamedTuple):
    """A difference with its 95 % interval; NaN where there is none."""

    value: float = np.nan
    low: float = np.nan
    high: float = np.nan


class Verdict(NamedTuple):
    """What the runs say of one case of a claim."""

    claim: str  # see CLAIMS
    study: str
    text: str
    verdict: str
    gap: Gap


# --- statistics ---


def values(runs: Runs, one: Setting, figure: str = "nll_z") -> np.ndarray:
    """`[S]` of the seeds that ended well."""
    found = [getattr(row, figure) for row in runs.get(one, {}).values() if not row.failure]
    return np.array([value for value in found if np.isfinite(value)])


def interval(sample: np.ndarray) -> Gap:
    """Mean over seeds, and Student's interval where there are two."""
    if len(sample) < 2:
        return Gap(*sample)
    low, high = stats.t.interval(0.95, len(sample) - 1, sample.mean(), max(stats.sem(sample), 1e-12))
    return Gap(float(sample.mean()), float(low), float(high))


def gap(worse: np.ndarray, better: np.ndarray, spread: Sequence[np.ndarray] | None = None) -> Gap:
    """Of the means of two samples.

    Args:
      worse: `[S]` NLL of the feedforward model.
      better: `[S']` of the other.
      spread: samples whose pooled variance is that of one run; None for these two.
    """
    if not len(worse) or not len(better):
        return Gap()
    pooled = [worse, better] if spread is None else spread
    freedom = sum(max(len(one) - 1, 0) for one in pooled)
    value = float(worse.mean() - better.mean())
    if not freedom:
        return Gap(value)
    variance = sum(float(np.square(one - one.mean()).sum()) for one in pooled if len(one)) / freedom
    half = stats.t.ppf(0.975, freedom) * np.sqrt(variance * (1 / len(worse) + 1 / len(better)))
    return Gap(value, value - float(half), value + float(half))


def judge(found: Gap, threshold: float) -> str:
    """On which side of the threshold the whole interval lies."""
    if np.isnan(found.value):
        return MISSING
    return HOLDS if found.low > threshold else FAILS if found.high < threshold else OPEN


# --- the best of a sweep ---


def ranked(runs: Runs, preset: Preset, task: str, family: str) -> list[Row]:
    """Finished configurations, the best first by the transitions that select; empty while there are fewer than five."""
    found = [row for one in settings.sweep(preset, task, family) for row in runs.get(one, {}).values()
             if not row.failure]  # fmt: skip
    whole = min(BEST, len(settings.sweep(preset, task, family)))
    return sorted(found, key=lambda row: row.selection_z) if len(found) >= whole else []


def top(rows: Sequence[Row], count: int) -> np.ndarray:
    """NLL of the best, on the transitions that are reported on."""
    return np.array([row.nll_z for row in rows[:count]])


# --- claims ---


def verdicts(runs: Runs, preset: Preset) -> list[Verdict]:
    """All cases of all claims."""
    kinds = (of_time, of_grid, of_sizes)
    return [one for task in preset.tasks for kind in kinds for one in kind(runs, preset, task)]


def of_time(runs: Runs, preset: Preset, task: str) -> list[Verdict]:
    """Equal training time."""
    models = settings.equal_time(preset, task)
    base, told = values(runs, models["feedforward"]), []
    for family in (family for family in settings.AUTOREGRESSIVE if family in models):
        found = gap(base, values(runs, models[family]))
        text = f"{task}: {label(models[family])} is better than {label(models['feedforward'])}"
        told.append(Verdict("better", "time", text, judge(found, 0.0), found))
        if family == "masked" and task in AT_LEAST:
            least = AT_LEAST[task]
            told.append(Verdict("size", "time", f"{text} by at least {least:g}", judge(found, least), found))
    return told


def of_grid(runs: Runs, preset: Preset, task: str) -> list[Verdict]:
    """Top-1 against top-1, and top-5 against feedforward's top-1."""
    models, told = settings.equal_time(preset, task), []
    best = top(ranked(runs, preset, task, "feedforward"), 1)
    for family in (family for family in settings.AUTOREGRESSIVE if family in preset.grid_families):
        rows, name = ranked(runs, preset, task, family), FAMILIES[family].label
        spread = [values(runs, models[one]) for one in ("feedforward", family)]
        one, five = gap(best, top(rows, 1), spread), gap(best, top(rows, BEST), spread)
        told += [
            Verdict("better", "grid", f"{task}: the best of {name} is better than the best of feedforward",
                    judge(one, 0.0), one),
            Verdict("top_5", "grid", f"{task}: the best five of {name} are on average better than the best of "
                    "feedforward", judge(five, 0.0), five)]  # fmt: skip
    return told


def of_sizes(runs: Runs, preset: Preset, task: str) -> list[Verdict]:
    """As many parameters, and feedforward with more against autoregressive with fewer."""
    curves, told = settings.curves(preset, task), []
    base, middle = curves["feedforward"], preset.widths["feedforward"]
    equal = {family: of[middle] for family, of in curves.items() if family != "feedforward"}
    if "shared" in preset.widths:  # of the same width, which makes about as many parameters
        equal["shared"] = settings.equal_time(preset, task)["shared"]
    for one in equal.values():
        found = gap(values(runs, base[middle]), values(runs, one))
        text = f"{task}: {label(one)} is better than {label(base[middle])}"
        told.append(Verdict("parameters", "parameters", text, judge(found, 0.0), found))
        for like, wide in base.items():
            if like > middle:
                found = gap(values(runs, wide), values(runs, one))
                text = f"{task}: {label(one)} is better than {label(wide)}"
                told.append(Verdict("parameters", "parameters", text, judge(found, 0.0), found))
    return told


def label(one: Setting) -> str:
    """A model in words."""
    count = settings.num_parameters(settings.Architecture(one.task, one.family, one.hidden, one.depth))
    return f"{FAMILIES[one.family].label}, {one.depth} x {one.hidden} ({count / 1e3:.0f}k)"


# --- sentences ---


def lines(told: Sequence[Verdict]) -> list[str]:
    """What holds, what does not, and what these runs do not tell: a line of Markdown each."""
    beginnings = {
        HOLDS: "Holds here", FAILS: "Does not hold here", OPEN: "Cannot be told from these runs",
        MISSING: "Not measured yet",
    }  # fmt: skip
    return [
        f"- {beginning}: {'; '.join(sentence(one) for one in told if one.verdict == outcome)}."
        for outcome, beginning in beginnings.items() if any(one.verdict == outcome for one in told)
    ]  # fmt: skip


def sentence(one: Verdict) -> str:
    """The case with its figure."""
    return one.text if one.verdict == MISSING else f"{one.text} ({in_words(one.gap)})"


def in_words(found: Gap) -> str:
    """A gap with its interval."""
    if np.isnan(found.value):
        return "-"
    return f"{found.value:+.2f}" + (f", {found.low:+.2f} to {found.high:+.2f}" if np.isfinite(found.low) else "")


def summary(told: Sequence[Verdict]) -> str:
    """One line on a claim: what became of its cases."""
    counts = Counter(one.verdict for one in told)
    each = ", ".join(f"{counts[outcome]} {outcome}" for outcome in (HOLDS, FAILS, OPEN, MISSING) if counts[outcome])
    if len(counts) == 1:
        return f"{told[0].verdict} ({len(told)} of {len(told)} cases)"
    return f"of {len(told)} cases: {each}" if told else MISSING
