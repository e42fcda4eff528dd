"""Pictures of a diagnosis, one figure each."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from offline_mbrl.selection import figure_files
from offline_mbrl.selection.diagnose.maps import TrustMap
from offline_mbrl.selection.diagnose.ranks import CONFIDENCE
from offline_mbrl.selection.diagnose.report import ERROR, Diagnosis
from offline_mbrl.selection.diagnose.single_steps import best_penalty

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(diagnosis: Diagnosis, directory: Path) -> list[Path]:
    """Writes `FIGURES` as PNG files; those that the diagnosis has nothing for are left out."""
    return figure_files.write({name: make(diagnosis) for name, make in FIGURES.items()}, directory)


def horizons(diagnosis: Diagnosis) -> "Figure":
    """Errors of observations and biases of returns against the number of steps."""
    figure = _figure(8.4, 3.4)
    left, right = figure.subplots(1, 2)
    for color, (name, source) in enumerate(diagnosis.sources.items()):
        errors = source.errors
        steps = np.arange(1, len(errors.error) + 1)
        left.plot(steps, errors.error, color=f"C{color}", label=name)
        left.plot(steps, errors.mean_error, color=f"C{color}", linestyle=":", linewidth=1)
        right.plot(steps, errors.return_bias, color=f"C{color}")
        low, high = errors.return_bias - errors.return_error, errors.return_bias
        right.fill_between(steps, low, high + errors.return_error, color=f"C{color}", alpha=0.15)
    left.set(xscale="log", yscale="log", xlabel="steps", ylabel="error, standard deviations")
    left.set_title("dotted: predicting the mean", fontsize="medium")
    right.set(xscale="log", xlabel="steps", ylabel="model's minus true return")
    right.set_yscale("symlog", linthresh=_threshold(diagnosis))
    right.axhline(0.0, color="k", linewidth=0.8)
    right.set_title("shaded: root mean square difference", fontsize="medium")
    left.legend(fontsize="small")
    return figure


def calibration(diagnosis: Diagnosis) -> "Figure":
    """Shares of outcomes inside predictive intervals against their levels; thin lines: entries."""
    figure = _figure(4.2, 3.8)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="k", linewidth=0.8)
    for color, (name, source) in enumerate(diagnosis.sources.items()):
        shares = source.calibration
        axes.plot(shares.level, shares.entries, color=f"C{color}", alpha=0.2, linewidth=0.6)
        axes.plot(shares.level, shares.coverage, color=f"C{color}", marker=".", label=name)
    axes.set(xlabel="level of the interval", ylabel="share of outcomes inside")
    axes.legend(fontsize="small")
    return figure


def penalties(diagnosis: Diagnosis) -> "Figure | None":
    """Rank correlation of each penalty with the true one-step error; whiskers: its interval."""
    sources = diagnosis.sources
    names = list(next(iter(sources.values())).correlations)
    if not names:
        return None
    figure = _figure(6.4, 1.2 + 0.18 * len(names) * len(sources))
    axes = figure.add_subplot()
    height = 0.8 / len(sources)
    for color, (name, source) in enumerate(sources.items()):
        value, low, high = np.array([source.correlations[penalty] for penalty in names]).T
        places = np.arange(len(names)) + color * height
        axes.barh(places, np.nan_to_num(value), height, label=name)
        axes.hlines(places, low, high, color="k", linewidth=0.8)
    axes.set_yticks(np.arange(len(names)) + 0.4 - height / 2, names)
    axes.invert_yaxis()
    axes.axvline(0.0, color="k", linewidth=0.8)
    axes.set(xlabel="rank correlation with the true one-step error", xlim=(-1, 1))
    axes.set_title(f"lines: {CONFIDENCE:.0%} intervals over episodes", fontsize="medium")
    axes.legend(fontsize="small")
    return figure


def trust_maps(diagnosis: Diagnosis) -> "Figure | None":
    """The mean error, and the penalty that ranks it best, over a plane through the states."""
    shown = [
        (name, source, source.map)
        for name, source in diagnosis.sources.items()
        if source.map is not None
    ]
    if not shown:
        return None
    figure = _figure(7.6, 3.0 * len(shown))
    rows = figure.subplots(len(shown), 2, squeeze=False)
    for axes, (name, source, cells) in zip(rows, shown, strict=True):
        best = best_penalty(source.correlations)
        quantities = [ERROR, best[0]] if best else [ERROR]
        for axis, quantity in zip(axes, quantities, strict=False):
            _map(figure, axis, cells, quantity, f"{name}: {quantity}")
    return figure


def expected_horizon(diagnosis: Diagnosis) -> "Figure | None":
    """The steps that targets looked ahead, over training; a line a seed."""
    rows = diagnosis.expected_horizon
    if not rows:
        return None
    figure = _figure(5.4, 3.2)
    axes = figure.add_subplot()
    for seed in dict.fromkeys(row["seed"] for row in rows):
        own = [row for row in rows if row["seed"] == seed]
        axes.plot([row["step"] for row in own], [row["value"] for row in own], label=f"seed {seed}")
    axes.set(xlabel="updates", ylabel="expected horizon, steps")
    axes.legend(fontsize="small")
    return figure


FIGURES: Mapping[str, Callable[[Diagnosis], "Figure | None"]] = {
    "horizons": horizons,
    "calibration": calibration,
    "penalties": penalties,
    "trust_map": trust_maps,
    "expected_horizon": expected_horizon,
}


# --- parts ---


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _threshold(diagnosis: Diagnosis) -> float:
    """Returns' differences below this are drawn on a linear scale."""
    first = [source.errors.return_error[0] for source in diagnosis.sources.values()]
    return max(float(np.nanmax(first)), 1e-3)


def _map(figure: "Figure", axis: Any, cells: TrustMap, quantity: str, title: str) -> None:
    mesh = axis.pcolormesh(*cells.edges, cells.values[quantity].T, cmap="viridis")
    figure.colorbar(mesh, ax=axis)
    axis.set(xlabel=cells.names[0], ylabel=cells.names[1])
    axis.set_title(title, fontsize="medium")
