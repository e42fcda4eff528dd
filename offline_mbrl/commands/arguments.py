"""Command lines from dataclasses, by tyro; what it refuses becomes one line."""

import contextlib
import io
import re
from typing import Any, TypeVar

import tyro

from offline_mbrl.types import UsageError

T = TypeVar("T")


def parse(cls: type[T], argv: list[str], *, prog: str, default: Any = None, description: str | None = None) -> T:
    """Parses `argv` into a dataclass.

    Args:
      cls: a dataclass whose field docstrings or comments are the help.
      argv: arguments.
      prog: what the usage line calls the program.
      default: an instance to start from.
      description: text of the help; the class's docstring when absent.

    Raises:
      UsageError: unknown or missing flags, values of another type; names the closest known flag.
      SystemExit: with code 0, after printing the help.
    """
    refused = io.StringIO()
    options = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(refused):
            return tyro.cli(cls, args=argv, prog=prog, description=description, **options)
    except SystemExit as end:
        if end.code in (0, None):
            raise
        raise UsageError(_one_line(refused.getvalue(), prog)) from None


def _one_line(text: str, prog: str) -> str:
    """The words of tyro's error box."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    lines = [line.strip(" │|╭╮╰╯─━") for line in text.splitlines()]
    words = " ".join(line for line in lines if line and not line.startswith(("For full helptext", "Parsing error")))
    return f"{words} (see {prog} --help)"
