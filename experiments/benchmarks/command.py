"""What the studies' command lines share: choices, presets, one core, and the loop over the work."""

import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import filelock
from rich.console import Console

from experiments.benchmarks import rows
from offline_mbrl import provenance
from offline_mbrl.commands import arguments
from offline_mbrl.training import compilation
from offline_mbrl.types import UsageError

RESULTS = Path(__file__).resolve().parents[1] / "results"
ONE_CORE = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
OUT_OF_TIME = "the time is up; the same command goes on from here"


class Origin(NamedTuple):
    """What made a row."""

    revision: str
    command: str


class Study(NamedTuple):
    """What a study hands to `carry_out`."""

    pieces: Sequence[Any]  # of work, in order; their `repr` names their locks
    is_done: Callable[[Any], bool]  # by the table alone
    run: Callable[[Any], str]  # does a piece, adds its rows, and returns a line about it
    forget: Callable[[], None]  # takes out the rows of these pieces
    report: Callable[[], Path]  # writes the pages from the table alone, and returns the summary


class Options(Protocol):
    """What every study's options have."""

    fresh: bool
    report_only: bool
    max_minutes: float


def carry_out(study: Study, folder: Path, options: Options, console: Console) -> int:
    """Does what is missing, then reports; the exit code.

    Args:
      study: the work and its report.
      folder: of the results; it is made where it is absent.
      options: what to do with them.
      console: where progress is printed.

    Raises:
      UsageError: a table is damaged; what the study's functions raise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not options.report_only:
        if options.fresh:
            study.forget()
        compilation.enable()
        share_work(study, folder, console, max_minutes=options.max_minutes)
    console.print(f"written: {study.report()}")
    return 0


def share_work(study: Study, folder: Path, console: Console, *, max_minutes: float = 0.0) -> None:
    """Does every piece that is missing and that no other process is at.

    Args:
      study: the work.
      folder: of its table and locks.
      console: where progress is printed.
      max_minutes: nothing new is started after this long; 0 without limit.
    """
    began = time.perf_counter()
    missing = [piece for piece in study.pieces if not study.is_done(piece)]
    console.print(f"{len(missing)} pieces of {len(study.pieces)} to do")
    for number, piece in enumerate(missing, start=1):
        if max_minutes and time.perf_counter() - began > 60 * max_minutes:
            console.print(OUT_OF_TIME)
            return
        try:
            claim = rows.locked(folder, repr(piece))
        except filelock.Timeout:
            continue  # another process is at it
        with claim:
            if study.is_done(piece):
                continue
            start = time.process_time()
            line = study.run(piece)
            seconds = time.process_time() - start
        console.print(f"[{number} of {len(missing)}] {line}, {seconds:.0f} s of CPU")


# --- options ---


def chosen(what: str, names: str, available: Iterable[str]) -> list[str]:
    """Which of the available names a comma-separated list has; all where it is empty.

    Args:
      what: the noun of the message.
      names: the list.
      available: in their order.

    Raises:
      UsageError: the list has another name.
    """
    available = list(available)
    requested = [name for name in names.split(",") if name]
    for name in requested:
        if name not in available:
            raise UsageError(f"unknown {what} {name!r}: choose from {', '.join(available)}")
    return [name for name in available if name in (requested or available)]


def changes(options: Any, names: Sequence[str], *, folder: Path | None) -> dict[str, Any]:
    """What the options have in place of a preset's.

    Args:
      options: with an attribute for each name, None where the preset's counts.
      names: of fields of the preset.
      folder: of the results; None for the preset's own, which holds the preset's rows alone.

    Raises:
      UsageError: something differs and there is no folder.
    """
    values = {name: getattr(options, name) for name in names}
    different = {name: value for name, value in values.items() if value is not None}
    if different and folder is None:
        flag = next(iter(different)).replace("_", "-")
        raise UsageError(f"--{flag} differs from the preset: give a --folder as well")
    return different


# --- scripts ---


def screen() -> Console:
    """Where studies print."""
    return Console(highlight=False, soft_wrap=True)


def origin(script: str) -> Origin:
    """This code's revision and this process's command line.

    Args:
      script: its path in the repository.
    """
    revision = provenance.revision() or "not under version control"
    return Origin(revision=revision, command=shlex.join(["python", script, *sys.argv[1:]]))


def run_script(main: Callable[[Any], int], kind: type, description: str | None) -> None:
    """Parses the command line and runs `main` on one core; bad input ends in one line.

    Args:
      main: (options) -> exit code.
      kind: dataclass of the options.
      description: text of the help.
    """
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {ONE_CORE}"  # before JAX computes
    try:
        options = arguments.parse(kind, sys.argv[1:], prog=sys.argv[0], description=description)
        sys.exit(main(options))
    except UsageError as error:
        sys.exit(f"error: {error}")
