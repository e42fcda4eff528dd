"""The result of a run in words: a table on the terminal, the same on a page."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

# Further columns where a summary has them: their title, and the fields per seed and aggregated.
FURTHER = {
    "human": ("human-normalized", "human_scores", "human_interquartile_mean"),
    "success": ("success", "success", "success_interquartile_mean"),
}


def table(run: Mapping[str, Any], outcome: Mapping[str, Any]) -> Table:
    """Scores per seed and aggregated; the held-out figures where no episode was played."""
    shown = Table(title=f"{run['algorithm']} on {run['dataset']}, update {outcome['step']}")
    evaluation = outcome.get("evaluation")
    if evaluation is None:
        return _figures_table(shown, outcome["figures"])
    kind = "normalized score" if evaluation["greedy"]["normalized"] else "return"
    beside = "; human: human-normalized" if "human_scores" in evaluation["greedy"] else ""
    shown.caption = (
        f"{kind}{beside}; IQM: interquartile mean, in brackets the 95 % bootstrap interval over "
        "seeds"
    )
    shown.add_column("seed")
    for manner, summary in evaluation.items():
        for column in (manner, *_further(summary), "episodes"):
            shown.add_column(column, justify="right", no_wrap=column == manner)
    for i, seed in enumerate(outcome["seeds"]):
        frozen = " (frozen)" if str(seed) in outcome["failures"] else ""
        cells = [
            cell
            for summary in evaluation.values()
            for cell in (
                number(summary["scores"][i]),
                *(number(summary[FURTHER[column][1]][i]) for column in _further(summary)),
                str(summary["episodes"][i]),
            )
        ]
        shown.add_row(f"{seed}{frozen}", *cells, end_section=i + 1 == len(outcome["seeds"]))
    cells = [
        cell
        for summary in evaluation.values()
        for cell in (aggregate_in_words(summary), *_further_aggregates(summary), "")
    ]
    shown.add_row("IQM", *cells)
    return shown


def _figures_table(shown: Table, figures: Mapping[str, Mapping[str, float | None]]) -> Table:
    shown.add_column("figure")
    for seed in figures:
        shown.add_column(f"seed {seed}", justify="right")
    for name in next(iter(figures.values()), {}):
        shown.add_row(name, *(number(row.get(name)) for row in figures.values()))
    return shown


def _further(summary: Mapping[str, Any]) -> list[str]:
    """The further columns that a summary has."""
    return [column for column, (_, per_seed, _) in FURTHER.items() if per_seed in summary]


def _further_aggregates(summary: Mapping[str, Any]) -> list[str]:
    return [number(summary[FURTHER[column][2]]) for column in _further(summary)]


def aggregate_in_words(summary: Mapping[str, Any]) -> str:
    """Interquartile mean and interval of one way of acting."""
    if not summary["complete"]:
        return "incomplete"
    if summary["interval"] is None:
        return f"{summary['interquartile_mean']:.3f}"
    low, high = summary["interval"]
    return f"{summary['interquartile_mean']:.3f} [{low:.3f}, {high:.3f}]"


def notes(outcome: Mapping[str, Any]) -> list[str]:
    """Speed, scores that are exact, and whatever went wrong, one line each."""
    timings = outcome["timings"]
    seeds = len(outcome["seeds"])
    rate = outcome["updates_per_second"]
    lines = [
        f"{rate:.0f} updates per "
        f"second{f' of {seeds} seeds together ({rate * seeds:.0f} in all)' * (seeds > 1)}, "
        f"{timings['update_seconds']:.1f} s; compilation apart: {timings['compile_seconds']:.1f} s"
    ]
    lines += [f"seed {seed} was frozen: {reason}" for seed, reason in outcome["failures"].items()]
    lines += [
        f"{manner}: exact, the mean over all {summary['starts']} starts; nothing else is random"
        for manner, summary in outcome.get("evaluation", {}).items()
        if "starts" in summary and summary["complete"]
    ]
    lines += [
        f"{manner}: {summary['message']}"
        for manner, summary in outcome.get("evaluation", {}).items()
        if summary["message"]
    ]
    return lines


def number(value: float | None) -> str:
    """Three digits, or a dash for what is not there."""
    return "-" if value is None or not np.isfinite(value) else f"{value:.3f}"


# --- on a page ---


def markdown(outcome: Mapping[str, Any]) -> list[str]:
    """The table of a result as lines of a page."""
    evaluation = outcome.get("evaluation")
    if evaluation is None:
        rows = outcome["figures"]
        names = list(next(iter(rows.values()), {}))
        lines = [["figure", *(f"seed {seed}" for seed in rows)]]
        return _markdown(
            lines + [[name, *(number(row.get(name)) for row in rows.values())] for name in names]
        )
    kind = "normalized score" if evaluation["greedy"]["normalized"] else "return"
    further = [
        (manner, summary, FURTHER[column])
        for column in FURTHER
        for manner, summary in evaluation.items()
        if column in _further(summary)
    ]
    lines = [
        [
            "seed",
            *(f"{manner}: {kind}" for manner in evaluation),
            *(f"{manner}: {title}" for manner, _, (title, _, _) in further),
            "episodes",
        ]
    ]
    for i, seed in enumerate(outcome["seeds"]):
        scores = [number(summary["scores"][i]) for summary in evaluation.values()]
        scores += [number(summary[per_seed][i]) for _, summary, (_, per_seed, _) in further]
        lines.append([str(seed), *scores, str(evaluation["greedy"]["episodes"][i])])
    aggregated = [
        *map(aggregate_in_words, evaluation.values()),
        *(number(summary[middle]) for _, summary, (_, _, middle) in further),
    ]
    lines.append(["interquartile mean [95 %]", *aggregated, ""])
    return _markdown(lines)


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [lines[0], f"|{'---|' * len(rows[0])}", *lines[1:]]
