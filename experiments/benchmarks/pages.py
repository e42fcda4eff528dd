"""Markdown of the studies' pages, and where their rows came from."""

import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from offline_mbrl import files, provenance

SUMMARY = "summary.md"


def write(path: Path, text: str) -> None:
    """Writes the whole page or nothing."""
    files.write_whole(path, lambda place: place.write_text(text + "\n"))


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]], *, rule: str = " --- ") -> str:
    """A table.

    Args:
      header: of its columns.
      lines: cells.
      rule: what stands below each heading.
    """
    rows = [f"| {' | '.join(line)} |" for line in lines]
    below = f"|{'|'.join([rule] * len(header))}|"
    return "\n".join([f"| {' | '.join(header)} |", below, *rows])


def method(study_file: str, **values: float | str) -> str:
    """The text of `method.md` beside a study's file, with values in its braces."""
    return (Path(study_file).parent / "method.md").read_text().rstrip("\n").format(**values)


def origins(rows: Iterable[Any]) -> list[str]:
    """Which commands and revisions made the rows, and what made the report."""
    rows = list(rows)
    commands = sorted({row.command for row in rows})
    revisions = sorted({row.revision for row in rows})
    return [
        *(f"- command: `{command}`" for command in commands),
        *(f"- code: {revision}" for revision in revisions),
        f"- report made on: {os.cpu_count()} CPUs, {platform.machine()}, "
        f"Python {platform.python_version()}, {versions()}",
    ]


def versions() -> str:
    """Libraries that results depend on."""
    return ", ".join(f"{name} {version}" for name, version in provenance.versions().items())
