"""Small multiples: a panel for each series of a study, scores with their intervals against what was varied."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from offline_mbrl import files

Point = tuple[str, float, float, float]  # position, interquartile mean, lower and upper end of its interval
COLUMNS = 4
MARKS = {"greedy": ("C0", "o", -0.08), "sampled": ("C1", "s", 0.08)}  # color, marker, shift beside each other


def draw(path: Path, title: str, axis: str, panels: Mapping[str, Mapping[str, Sequence[Point]]]) -> None:
    """Writes the picture.

    Args:
      path: of the PNG.
      title: of the whole.
      axis: what was varied.
      panels: series -> way of acting -> points in order.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.1 * columns + 0.4, 2.5 * rows + 0.7), layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes, (series, curves) in zip(all_axes.flat, panels.items(), strict=False):
        for how, points in curves.items():
            color, marker, shift = MARKS[how]
            middle = [point[1] for point in points]
            errors = [[point[1] - point[2] for point in points], [point[3] - point[1] for point in points]]
            where = [index + shift for index in range(len(points))]
            axes.errorbar(where, middle, errors, color=color, marker=marker, capsize=3, linewidth=1, label=how)
        positions = [point[0] for point in next(iter(curves.values()))]
        axes.set_xticks(range(len(positions)), positions)
        axes.set_title(series, fontsize=9)
        axes.set_xlabel(axis, fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
    for axes in list(all_axes.flat)[len(panels) :]:
        axes.set_visible(False)
    for row in all_axes:
        row[0].set_ylabel("normalized score", fontsize=8)
    all_axes[0][0].legend(fontsize=8)
    figure.suptitle(title, fontsize=11)
    files.write_whole(path, lambda place: figure.savefig(place, dpi=130, format="png"))
