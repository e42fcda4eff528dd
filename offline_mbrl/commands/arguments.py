"""Command lines from dataclasses, by tyro; what it refuses becomes one line."""

import contextlib
import difflib
import io
import re
from typing import Any, TypeVar

import tyro

from offline_mbrl.types import UsageError

T = TypeVar("T")


def parse(
    cls: type[T], argv: list[str], *, prog: str, default: Any = None, description: str | None = None
) -> T:
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
    options = {"prog": prog, "description": description} | (
        {} if default is None else {"default": default}
    )
    try:
        with contextlib.redirect_stderr(refused):
            return tyro.cli(cls, args=argv, **options)
    except SystemExit as end:
        if end.code in (0, None):
            raise
    flags = _known_flags(cls, options)
    raise UsageError(
        f"{_unknown_flag(argv, flags) or _in_one_line(refused.getvalue())} (see {prog} --help)"
    )


def _known_flags(cls: type, options: dict[str, Any]) -> list[str]:
    """What the help lists."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        tyro.cli(cls, args=["--help"], **options)
    return re.findall(r"--[a-z][\w.-]*", text.getvalue())


def _unknown_flag(argv: list[str], flags: list[str]) -> str | None:
    for argument in argv:
        typed = argument.split("=", 1)[0].replace("_", "-")
        if typed.startswith("--") and typed not in flags:
            close = difflib.get_close_matches(typed, flags, n=1) or _same_ending(typed, flags)
            return f"unknown option {argument.split('=', 1)[0]}" + (
                f"; did you mean {close[0]}?" if close else ""
            )
    return None


def _same_ending(typed: str, flags: list[str]) -> list[str]:
    """`--batch-size` is meant for `--config.batch-size`."""
    ends = {flag.rpartition(".")[2]: flag for flag in flags if "." in flag}
    return [ends[end] for end in difflib.get_close_matches(typed.removeprefix("--"), ends, n=1)]


def _in_one_line(text: str) -> str:
    """The text of tyro's error box, without its title, its rules and the help of the argument."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    title, *lines = [line.strip(" │╭╮╰╯") for line in text.splitlines() if line.strip()] or [""]
    parts: list[list[str]] = [[]]
    for line in lines:
        if not re.fullmatch(r"[-─]{5,}", line):  # a rule, drawn as the terminal's encoding allows
            parts[-1].append(line)
        elif parts[-1]:
            parts.append([])
    if "Required" in title:
        argument = re.compile(r"--[a-z]|[A-Z{\[][A-Z|,{}\[\] .]*(?: |$)")
        missing = [
            line.split()[0] for line in parts[0] if argument.match(line) and "Missing" not in line
        ]
        return f"{' and '.join(missing)} must be given"
    message = " ".join(parts[0])
    if message.startswith("Error parsing") and len(parts) > 1 and len(parts[1]) > 1:
        # The flag with the kind of value it takes.
        return f"cannot read {parts[1][1]}: {message.partition(': ')[2]}"
    return message.replace("Unrecognized options:", "unexpected argument")
