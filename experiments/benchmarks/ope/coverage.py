"""How often 95 % intervals of off-policy estimators hold the truth, where the truth is known.

    python experiments/benchmarks/ope/coverage.py
    python experiments/benchmarks/ope/coverage.py --estimators fqe,vpm --repeats 10 --folder out

The linear-Gaussian system is logged again and again, 200 episodes each time; every consistent
estimator judges two policies, and is compared with the exact values: over the horizon for
importance weights and models, without end for what bootstraps past the time limit. An estimator
passes where its intervals hold the truth in at least 90 % of the repeats, or it raised
`low_support`. All repeats of an estimator are one program; what `runs.csv` has is not redone, and a
table is of one number of repeats and fits.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[3])

import jax
import numpy as np

from experiments.benchmarks import command, rows
from experiments.benchmarks.ope import coverage_report
from experiments.benchmarks.ope.coverage_report import Row
from experiments.benchmarks.ope.coverage_work import (
    ESTIMATORS,
    MODEL_MEMBERS,
    Logs,
    logged,
    stacked,
)
from offline_mbrl.problems import known
from offline_mbrl.types import UsageError

SCRIPT = "experiments/benchmarks/ope/coverage.py"
POLICIES = (1, 5)  # of `known.STRENGTHS`: one near the behavior, one as far as there is
REPEATS = 200
FITS = 4


@dataclasses.dataclass(frozen=True)
class Options:
    """Measures how often intervals of off-policy estimators hold the truth."""

    repeats: int = REPEATS  # logs of the same system; if another number, give another folder too
    fits: int = FITS  # of a learned estimator, each on its own resample of the episodes; the same
    estimators: str = ""  # comma-separated; default: all
    max_minutes: float = 0.0  # start nothing new after this long; 0 without limit
    fresh: bool = False  # forget the rows that are there of these estimators
    report_only: bool = False  # from the table alone
    folder: Path | None = None  # of the results; default: under experiments/results/ope


def main(options: Options) -> int:
    """Does what is missing, then reports; the exit code.

    Raises:
      UsageError: an estimator is unknown, repeats or fits are fewer than 2, or they are not the
        folder's.
    """
    folder = options.folder or command.RESULTS / "ope" / "coverage"
    study = make(options, folder, functools.cache(logged))
    return command.carry_out(study, folder, options, command.screen())


def make(options: Options, folder: Path, logs_of: Callable[[int], Logs]) -> command.Study:
    """The work and the report.

    Args:
      options: which estimators, and how many repeats and fits.
      folder: of the results.
      logs_of: (repeats) -> that many logs.

    Raises:
      UsageError: see `main`.
    """
    pieces = command.chosen("estimator", options.estimators, ESTIMATORS)
    check(options)
    forgotten = pieces if options.fresh else []
    if not options.report_only and not (options.fresh and not options.estimators):
        coverage_report.check_counts(folder, options.repeats, options.fits, forgotten)
    origin = command.origin(SCRIPT)

    def run_piece(piece: str) -> str:
        new = run(piece, options, logs_of(options.repeats), origin)
        rows.append(folder, Row, new)
        return "; ".join(describe(row) for row in new)

    return command.Study(
        pieces=pieces,
        is_done=lambda piece: any(row.piece == piece for row in rows.read(folder, Row)),
        run=run_piece,
        forget=lambda: forget(folder, pieces if options.estimators else []),
        report=lambda: coverage_report.write(folder, members=MODEL_MEMBERS),
    )


def check(options: Options) -> None:
    """Refuses counts that are too small, or not those of the committed results.

    Raises:
      UsageError: see above.
    """
    if min(options.repeats, options.fits) < 2:
        raise UsageError(
            f"repeats and fits must be at least 2, got {options.repeats} and {options.fits}"
        )
    for name, default in (("repeats", REPEATS), ("fits", FITS)):
        if getattr(options, name) != default and options.folder is None:
            raise UsageError(
                f"--{name} differs from the committed results' {default}: give a --folder as well"
            )


def forget(folder: Path, pieces: Collection[str]) -> None:
    """Takes out the rows of these pieces; of all, even of a damaged table, where none is named."""
    if pieces:
        rows.discard(folder, Row, lambda row: row.piece in pieces)
    else:
        rows.clear(folder)


def run(piece: str, options: Options, logs: Logs, origin: command.Origin) -> list[Row]:
    """Does a piece: a row for each of its estimators and policies.

    Args:
      piece: a key of ESTIMATORS.
      options: how many repeats and fits.
      logs: as many as there are repeats.
      origin: of the rows.
    """
    estimator = ESTIMATORS[piece]
    params = [logs.problem.target_params[policy] for policy in POLICIES]
    steps = estimator.steps or logs.problem.spec.horizon
    truth = np.array([logs.problem.value(own, steps) for own in params])
    start = time.process_time()
    estimates = jax.block_until_ready(estimator.work(logs, stacked(params), options.fits))
    seconds = round(time.process_time() - start, 1)
    return [
        Row(
            piece=piece,
            estimator=name,
            strength=known.STRENGTHS[policy],
            repeats=options.repeats,
            fits=options.fits,
            **{field: float(values[number]) for field, values in measured._asdict().items()},
            cpu_seconds=seconds,
            **origin._asdict(),
        )
        for name, measured in (
            (name, coverage_report.measure(estimate, truth)) for name, estimate in estimates.items()
        )
        for number, policy in enumerate(POLICIES)
    ]


def describe(row: Row) -> str:
    """What was measured, in a few words."""
    return (
        f"{row.estimator} {row.strength:+g}: covered {row.covered:.2f}, either {row.either:.2f}, "
        f"width / error {row.width_over_error:.1f}"
    )


if __name__ == "__main__":
    command.run_script(main, Options, __doc__)
