"""How often intervals held the truth: a row for each estimator and policy, and their table."""

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.benchmarks import pages, rows
from offline_mbrl.types import Array, Estimate, UsageError

NORMAL_95 = 1.959964
HEADER = (
    "estimator",
    "policy",
    "truth",
    "covered",
    "low support",
    "either",
    "passed",
    "unsettled",
    "bias",
    "rms error",
    "width / error",
)


class Row(NamedTuple):
    """One estimator of one policy over all repeats."""

    piece: str  # of work, in which it was made
    estimator: str
    strength: float  # of the policy
    repeats: int
    fits: int
    truth: float
    covered: float  # share of the repeats
    low_support: float
    either: float
    too_few_updates: float
    bias: float
    rmse: float
    # Mean half width of the interval over mean absolute error; 2.5 for a known deviation.
    width_over_error: float
    cpu_seconds: float  # of all policies
    revision: str
    command: str


class Measured(NamedTuple):
    """What `measure` returns; every field `[P]`."""

    truth: np.ndarray
    covered: np.ndarray
    low_support: np.ndarray
    either: np.ndarray
    too_few_updates: np.ndarray
    bias: np.ndarray
    rmse: np.ndarray
    width_over_error: np.ndarray


def check_counts(folder: Path, repeats: int, fits: int, forgotten: Collection[str] = ()) -> None:
    """Refuses to add rows to those of other numbers of repeats and fits.

    Args:
      folder: of the results.
      repeats: of the rows to come.
      fits: the same.
      forgotten: pieces whose rows will not stay.

    Raises:
      UsageError: see above.
    """
    for row in rows.read(folder, Row):
        if row.piece not in forgotten and (row.repeats, row.fits) != (repeats, fits):
            raise UsageError(
                f"{folder / rows.TABLE} has {row.estimator} from {row.repeats} repeats and "
                f"{row.fits} fits, not from {repeats} and {fits}: choose another --folder, or "
                "start over with --fresh"
            )


def measure(estimate: Estimate, truth: np.ndarray) -> Measured:
    """Estimates `[R, P]` beside the exact values `[P]`."""
    value = np.asarray(estimate.value, np.float64)
    half = NORMAL_95 * np.asarray(estimate.stderr)
    error = np.abs(value - truth)
    covered = error < half

    def raised(name: str) -> np.ndarray:
        flags: Array | np.ndarray = estimate.diagnostics.get(name, np.zeros(value.shape))
        return np.asarray(flags) > 0

    low_support = raised("low_support")
    return Measured(
        truth=truth,
        covered=covered.mean(0),
        low_support=low_support.mean(0),
        either=(covered | low_support).mean(0),
        too_few_updates=raised("updates_too_few").mean(0),
        bias=value.mean(0) - truth,
        rmse=np.sqrt((error**2).mean(0)),
        width_over_error=half.mean(0) / error.mean(0),
    )


def write(folder: Path, *, members: int) -> Path:
    """Writes `summary.md` from the table alone, and returns its path.

    Args:
      folder: of the results.
      members: of the models' ensembles.
    """
    table = rows.read(folder, Row)
    text = ["# How often 95 % intervals hold the truth"]
    if table:
        minutes = sum({row.piece: row.cpu_seconds for row in table}.values()) / 60
        text += [
            method(table[0], members),
            pages.markdown(HEADER, [cells(row) for row in table], rule="---"),
            f"Made by `{table[-1].command}` at revision {table[-1].revision}; "
            f"{minutes:.0f} CPU minutes.",
        ]
    pages.write(folder / pages.SUMMARY, "\n\n".join(text))
    return folder / pages.SUMMARY


def method(row: Row, members: int) -> str:
    """What was done, and what the columns mean."""
    return (
        f"The linear-Gaussian system, 200 episodes of 20 steps, logged {row.repeats} times; "
        f"learned estimators combine {row.fits} fits, each on its own resample of the episodes; "
        f"models are ensembles of {members}. Passed: the interval holds the truth in at least 90 % "
        "of the repeats, or support is flagged as low. Unsettled: the estimator says that its fit "
        "had too few updates. The last column is 2.5 where the error is normal and its deviation "
        "known; above that, intervals are wider than needed."
    )


def cells(row: Row) -> list[str]:
    """Of a row of the table."""
    return [
        row.estimator,
        f"{row.strength:+g}",
        f"{row.truth:.3f}",
        f"{row.covered:.2f}",
        f"{row.low_support:.2f}",
        f"{row.either:.2f}",
        "yes" if row.either >= 0.9 else "NO",
        f"{row.too_few_updates:.2f}",
        f"{row.bias:+.3f}",
        f"{row.rmse:.3f}",
        f"{row.width_over_error:.1f}",
    ]
