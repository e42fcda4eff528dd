"""Figures as files."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from offline_mbrl import files

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write(figures: "Mapping[str, Figure | None]", directory: Path) -> list[Path]:
    """Writes each figure as `<name>.png`, whole or not at all; those that are None are left out.

    Returns:
      The files that were written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    written = []
    for name, figure in figures.items():
        if figure is None:
            continue
        FigureCanvasAgg(figure)
        path = directory / f"{name}.png"
        files.write_whole(path, lambda place, f=figure: f.savefig(place, dpi=150, format="png"))
        written.append(path)
    return written
