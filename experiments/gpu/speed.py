"""Speed of learners, models and searches on a GPU, in both precisions.

    python experiments/gpu/speed.py --folder ../gpu-rows
    python experiments/gpu/speed.py --small --folder ../try

Each case is compiled, warmed up and timed by the clock on the wall, and adds a row to `runs.csv` in
the folder: what is there is not measured again, so that the same command goes on where the time was
up. FLOPs are those of products and convolutions; shares are of the matrix products of the same
precision, measured first.
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from experiments.benchmarks import command, pages, rows
from experiments.gpu import measured
from experiments.gpu.measured import Case
from experiments.gpu.rows import Origin, origin
from offline_mbrl.commands import arguments
from offline_mbrl.types import UsageError

SCRIPT = "experiments/gpu/speed.py"
PRODUCT = "matrix product"
PAGE = "speed.md"


@dataclasses.dataclass(frozen=True)
class Options:
    """Measures what is missing, and writes a page."""

    folder: Path  # of the rows
    max_minutes: float = 7.0  # no case is begun after this long
    small: bool = False  # little of everything, to see that it runs
    seconds: float = 2.0  # of a measurement, about; three are made, the fastest counts


class Row(NamedTuple):
    """A measured case."""

    name: str
    precision: str
    seeds: int
    unit: str
    rate: float  # units a second; an update of S seeds counts S
    gflop: float  # of a unit
    tflops: float  # TFLOP/s
    ready_seconds: float  # building and compiling
    device: str
    small: int
    versions: str
    revision: str
    command: str


def main(options: Options) -> int:
    """Runs the script; the exit code."""
    cases = measured.speed_cases(measured.SMALL if options.small else measured.LARGE)
    return carry_out(cases, options, SCRIPT, PAGE)


def carry_out(cases: Sequence[Case], options: Options, script: str, page: str) -> int:
    """Measures what is missing and writes the page; the exit code.

    Args:
      cases: in order.
      options: of the script.
      script: its path in the repository.
      page: name of the page.
    """
    made = origin(script, small=options.small)
    folder = options.folder

    def table() -> list[Row]:
        return [row for row in rows.read(folder, Row) if row.device == made.device]

    def is_done(case: Case) -> bool:
        keys = {(row.name, row.precision, row.seeds, row.small) for row in table()}
        return (case.name, case.precision, case.seeds, made.small) in keys

    def run(case: Case) -> str:
        row = measure(case, options.seconds, made)
        rows.append(folder, Row, [row])
        return f"{row.name}, {row.precision}, {row.seeds} seeds: {row.rate:,.1f} {row.unit}/s"

    def report() -> Path:
        pages.write(folder / page, markdown(table()))
        return folder / page

    study = command.Study(
        pieces=cases, is_done=is_done, run=run, forget=lambda: rows.clear(folder), report=report
    )
    folder.mkdir(parents=True, exist_ok=True)
    command.share_work(study, folder, command.screen(), max_minutes=options.max_minutes)
    report()
    return 0


def measure(case: Case, seconds: float, made: Origin) -> Row:
    """The fastest of three measurements.

    Args:
      case: what.
      seconds: of one, about.
      made: of the row.
    """
    began = time.perf_counter()
    program = case.make()
    program.run(1)
    ready = time.perf_counter() - began
    count = enough(program.run, seconds)
    spent = min(elapsed(program.run, count) for _ in range(3)) / count
    return Row(
        name=case.name,
        precision=case.precision,
        seeds=case.seeds,
        unit=case.unit,
        rate=float(f"{program.work / spent:.6g}"),
        gflop=float(f"{program.flops / program.work / 1e9:.6g}"),
        tflops=float(f"{program.flops / spent / 1e12:.4g}"),
        ready_seconds=round(ready, 1),
        **made._asdict(),
    )


def elapsed(run: Callable[[int], None], count: int) -> float:
    """Seconds of so many turns, by the clock on the wall."""
    began = time.perf_counter()
    run(count)
    return time.perf_counter() - began


def enough(run: Callable[[int], None], seconds: float) -> int:
    """How many turns take about this long."""
    count = 1
    while (spent := elapsed(run, count)) < seconds / 4:
        count *= 2
    return max(int(count * seconds / spent), 1)


def markdown(table: Sequence[Row]) -> str:
    """The page: rates, and shares of the products of the same precision and size."""
    peaks = {(row.precision, row.small): row.tflops for row in table if row.name == PRODUCT}
    lines = [
        (
            row.name + (" (small)" if row.small else ""),
            row.precision,
            str(row.seeds),
            f"{row.rate:,.1f} {row.unit}/s",
            f"{row.gflop:.4g}",
            f"{row.tflops:.3g}",
            f"{row.tflops / peaks[row.precision, row.small]:.1%}"
            if (row.precision, row.small) in peaks
            else "",
        )
        for row in table
    ]
    header = ("what", "precision", "seeds", "rate", "GFLOP", "TFLOP/s", "share of product")
    devices = sorted({row.device for row in table})
    origins = "\n".join(pages.origins(table))
    return f"Device: {', '.join(devices)}\n\n{pages.markdown(header, lines)}\n\n{origins}"


def run_script(main: Callable[[Options], int], description: str | None) -> None:
    """Parses the command line and runs; bad input ends in one line."""
    try:
        options = arguments.parse(Options, sys.argv[1:], prog=sys.argv[0], description=description)
        sys.exit(main(options))
    except UsageError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    run_script(main, __doc__)
