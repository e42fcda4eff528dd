"""Figures of the likelihood study: a panel a task, held-out NLL with intervals."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks import figures
from experiments.benchmarks.claims import Interval
from experiments.benchmarks.likelihood.settings import FAMILIES

LAYOUT = figures.Layout(columns=3, width=3.6, height=3.0, head=0.9)
THOUSANDS = {3e4: "30k", 1e5: "100k", 3e5: "300k", 1e6: "1M"}  # of a logarithmic axis


class Line(NamedTuple):
    """Points of one model family."""

    family: str
    x: Sequence[float]
    points: Sequence[Interval]


def draw(
    path: Path,
    title: str,
    panels: Mapping[str, Sequence[Line]],
    *,
    horizontal: str = "",
    ticks: Sequence[str] = (),
) -> None:
    """Writes the figure; none where there is no panel.

    Args:
      path: of the PNG.
      title: of the whole.
      panels: task -> lines.
      horizontal: label of a logarithmic axis, along which points are joined.
      ticks: names of positions 0, 1, ... in its place.
    """
    path.unlink(missing_ok=True)
    if panels:
        figures.draw(
            path,
            title,
            {task: functools.partial(draw_lines, lines, ticks) for task, lines in panels.items()},
            LAYOUT,
            vertical="held-out NLL, nats per entry",
            horizontal=horizontal,
            legend=figures.legend_below,
        )


def draw_lines(lines: Sequence[Line], ticks: Sequence[str], axes: Any) -> None:
    """The panel of one task."""
    for line in lines:
        mean, low, high = np.array(line.points).T
        axes.errorbar(
            line.x,
            mean,
            np.nan_to_num([mean - low, high - mean]),
            color=FAMILIES[line.family].color,
            marker="o",
            markersize=4,
            capsize=3,
            linewidth=1,
            linestyle="none" if ticks else "-",
            label=FAMILIES[line.family].label,
        )
    if ticks:
        axes.set_xticks(range(len(ticks)), ticks, fontsize=7)
        axes.set_xlim(-0.5, len(ticks) - 0.5)
    else:
        axes.set_xscale("log")
        axes.set_xticks(list(THOUSANDS), list(THOUSANDS.values()))
        axes.minorticks_off()
