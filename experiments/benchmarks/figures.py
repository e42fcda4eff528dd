"""Small multiples: one figure of panels, written whole."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from offline_mbrl import files

Panel = Callable[[Any], None]  # draws into matplotlib axes


class Layout(NamedTuple):
    """Sizes in inches, and which axes the panels share."""

    columns: int
    width: float  # of a panel
    height: float
    head: float  # for the title, and a legend below
    share_x: bool = False
    share_y: bool = False
    title_size: int = 9  # of a panel, in points
    dpi: int = 130


def legend_in_first(figure: Any, fontsize: int = 8) -> None:
    """A legend in the first panel, where the panels show the same series."""
    figure.axes[0].legend(fontsize=fontsize)


def legend_below(figure: Any, fontsize: int = 8) -> None:
    """One legend of all panels' series, below the figure."""
    series = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            series[label] = handle
    place = "outside lower center"
    figure.legend(series.values(), series.keys(), fontsize=fontsize, loc=place, ncols=2)


def draw(
    path: Path,
    title: str,
    panels: Mapping[str, Panel],
    layout: Layout,
    *,
    vertical: str,
    horizontal: str = "",
    legend: Callable[[Any], None] = legend_in_first,
) -> None:
    """Writes the figure.

    Args:
      path: of the PNG.
      title: of the whole.
      panels: title -> what draws the panel; at least one.
      layout: sizes and shared axes.
      vertical: label of the vertical axes, at the first of each row.
      horizontal: label of the horizontal axes; in the last row alone where they are shared.
      legend: adds the legend to the figure.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(layout.columns, len(panels))
    rows = -(-len(panels) // columns)
    size = (layout.width * columns + 0.4, layout.height * rows + layout.head)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    table = figure.subplots(
        rows, columns, sharex=layout.share_x, sharey=layout.share_y, squeeze=False
    )
    for axes, (name, panel) in zip(table.flat, panels.items(), strict=False):
        panel(axes)
        axes.set_title(name, fontsize=layout.title_size)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
    for axes in list(table.flat)[len(panels) :]:
        axes.set_visible(False)
    for axes in table[-1] if layout.share_x else table.flat:
        axes.set_xlabel(horizontal, fontsize=8)
    for axes in table[:, 0]:
        axes.set_ylabel(vertical, fontsize=8)
    legend(figure)
    figure.suptitle(title, fontsize=11)
    files.write_whole(path, lambda place: figure.savefig(place, dpi=layout.dpi, format="png"))
