"""Pictures of the likelihood study: a panel a task, held-out NLL with intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from offline_mbrl import files

COLUMNS = 3
THOUSANDS = {3e4: "30k", 1e5: "100k", 3e5: "300k", 1e6: "1M"}  # of a logarithmic axis


class Point(NamedTuple):
    """One mean; `low` and `high` are NaN where there is no interval."""

    x: float
    mean: float
    low: float
    high: float


class Line(NamedTuple):
    """Points of one model family."""

    label: str
    color: str
    points: Sequence[Point]
    joined: bool = True


def draw(path: Path, title: str, axis: str, panels: Mapping[str, Sequence[Line]], *, ticks: Sequence[str] = (),
         log: bool = False) -> None:  # fmt: skip
    """Writes the picture.

    Args:
      path: of the PNG.
      title: of the whole.
      axis: what is on the horizontal axis.
      panels: task -> lines.
      ticks: names of positions 0, 1, ...; none for numbers.
      log: whether the horizontal axis is logarithmic.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.6 * columns + 0.4, 3.0 * rows + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, (task, drawn) in zip(all_axes, panels.items(), strict=False):
        for line in drawn:
            x, mean, low, high = np.array(line.points).T
            errors = np.nan_to_num([mean - low, high - mean])
            axes.errorbar(x, mean, errors, color=line.color, marker="o", markersize=4, capsize=3, linewidth=1,
                          linestyle="-" if line.joined else "none", label=line.label)  # fmt: skip
        if ticks:
            axes.set_xticks(range(len(ticks)), ticks, fontsize=7)
            axes.set_xlim(-0.5, len(ticks) - 0.5)
        elif log:
            axes.set_xscale("log")
            axes.set_xticks(*zip(*THOUSANDS.items(), strict=True))
            axes.minorticks_off()
        axes.set_title(task, fontsize=9)
        axes.set_xlabel(axis, fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
    for axes in all_axes[len(panels) :]:
        axes.set_visible(False)
    for axes in all_axes[::columns]:
        axes.set_ylabel("held-out NLL, nats per entry", fontsize=8)
    found = {name: handle for axes in all_axes for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(found.values(), found.keys(), fontsize=8, loc="outside lower center", ncols=2)
    figure.suptitle(title, fontsize=11)
    files.write_whole(path, lambda place: figure.savefig(place, dpi=130, format="png"))
