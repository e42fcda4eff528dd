"""`offline-mbrl COMMAND ...`: imports the command alone, and reports bad input in one line.

Exit codes: 0 done, 1 the run itself failed, 2 bad input, 130 interrupted, 143 terminated.
"""

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

COMMANDS = {
    "train": "train an algorithm on a dataset, evaluate it and write a report; run again to resume",
    "evaluate": "play the policies of a run in their simulator",
    "ope": "estimate from logged data alone which policies of runs are worth most",
    "diagnose": "say when and where an explicit model can be trusted, with pictures",
    "report": "table, learning curve and settings of one or more runs",
    "export": "write a run's policy as a small folder that `offline_mbrl.load_policy` reads",
    "data": "list, describe, build and audit datasets",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code.

    Args:
      argv: arguments without the program's name; None: those of this process, which then exits at
        once on a failure.
    """
    code = _dispatch(list(sys.argv[1:] if argv is None else argv))
    # After a failure, threads of libraries may print or crash in an orderly shutdown.
    if argv is None and code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if argv[0] == "--version":
        print(importlib.import_module("offline_mbrl").__version__)
        return 0
    name, *rest = argv
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(COMMANDS)}"
        return _fail(f"unknown command {name!r}: {hint}")
    return _run(name, rest)


def _run(name: str, argv: list[str]) -> int:
    try:
        return importlib.import_module(f"offline_mbrl.commands.{name}").main(argv)
    except KeyboardInterrupt:
        print("interrupted; the same command resumes from the last checkpoint", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full or read-only disk, or an absent path
        path = f": {error.filename}" if error.filename else ""
        return _fail(
            f"{error.strerror or error}{path}; check the path, its permissions and the free space"
        )
    except ValueError as error:
        from offline_mbrl.types import UsageError

        if not isinstance(error, UsageError):
            raise
        return _fail(str(error))


def _fail(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _usage() -> str:
    lines = [
        "usage: offline-mbrl COMMAND ...",
        "",
        "Offline model-based reinforcement learning in JAX.",
        "",
        "commands:",
    ]
    lines += [f"  {name:<9} {summary}" for name, summary in COMMANDS.items()]
    lines += [
        "",
        "`offline-mbrl COMMAND --help` shows details, `offline-mbrl --version` the version.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
