"""How often intervals held the truth: a row for each estimator and policy, and the table made of the rows."""

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.benchmarks import rows as table
from experiments.benchmarks import pages
from offline_mbrl.types import Estimate, UsageError

NORMAL_95 = 1.959964


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
    width_over_error: float  # mean half width of the interval over mean absolute error; 2.5 for a known deviation
    cpu_seconds: float  # of all policies
    revision: str
    command: str


def begun(folder: Path, forgotten: Collection[str], *, repeats: int, fits: int) -> set[str]:
    """Takes out the rows of some pieces; the pieces that are done.

    Args:
      folder: of the results.
      forgotten: names of pieces.
      repeats: what the rows that stay must have, and those that will be added.
      fits: the same.

    Raises:
      UsageError: they have others, and none was taken out; the table is damaged.
    """
    left = [row for row in table.read(folder, Row) if row.piece not in forgotten]
    for row in left:
        if (row.repeats, row.fits) != (repeats, fits):
            raise UsageError(f"{folder / table.TABLE} has {row.estimator} from {row.repeats} repeats and {row.fits} "
                             f"fits, not from {repeats} and {fits}: choose another --folder, or start over with "
                             "--fresh")  # fmt: skip
    table.discard(folder, Row, lambda row: row.piece in forgotten)
    return {row.piece for row in left}


def measured(estimate: Estimate, truth: np.ndarray) -> list[dict[str, float]]:
    """Of estimates `[R, P]` beside the exact values `[P]`: a record for each policy."""
    value, half = np.asarray(estimate.value, np.float64), NORMAL_95 * np.asarray(estimate.stderr)
    error = np.abs(value - truth)
    covered = error < half
    flag = lambda name: np.asarray(estimate.diagnostics.get(name, np.zeros(value.shape))) > 0  # noqa: E731
    columns = {
        "truth": truth, "covered": covered.mean(0), "low_support": flag("low_support").mean(0),
        "either": (covered | flag("low_support")).mean(0), "too_few_updates": flag("updates_too_few").mean(0),
        "bias": value.mean(0) - truth, "rmse": np.sqrt((error**2).mean(0)),
        "width_over_error": half.mean(0) / error.mean(0)}  # fmt: skip
    return [{name: float(column[row]) for name, column in columns.items()} for row in range(len(truth))]


def report(folder: Path, *, members: int) -> None:
    """Writes `summary.md` from the table alone."""
    done = table.read(folder, Row)
    lines = [
        "# How often 95 % intervals hold the truth", "",
        f"The linear-Gaussian system, 200 episodes of 20 steps, logged {done[0].repeats} times; learned estimators "
        f"combine {done[0].fits} fits, each on its own resample of the episodes; models are ensembles of "
        f"{members}. Passed: the interval holds the truth in at least 90 % of the repeats, or support is flagged "
        "as low. Unsettled: the estimator says that its fit had too few updates. The last column is 2.5 where the "
        "error is normal and its deviation known; above that, intervals are wider than needed.", "",
        "| estimator | policy | truth | covered | low support | either | passed | unsettled | bias | rms error | "
        "width / error |",
        "|---|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    lines += [
        f"| {row.estimator} | {row.strength:+g} | {row.truth:.3f} | {row.covered:.2f} | {row.low_support:.2f} | "
        f"{row.either:.2f} | {'yes' if row.either >= 0.9 else 'NO'} | {row.too_few_updates:.2f} | {row.bias:+.3f} | "
        f"{row.rmse:.3f} | {row.width_over_error:.1f} |" for row in done]  # fmt: skip
    lines += ["", f"Made by `{done[-1].command}` at revision {done[-1].revision}; "
              f"{sum({row.piece: row.cpu_seconds for row in done}.values()) / 60:.0f} CPU minutes."]  # fmt: skip
    pages.write(folder / "summary.md", "\n".join(lines))
