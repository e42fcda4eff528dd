"""A process whose runs another one asks for, so that both take turns on one core.

It answers every request with the CPU seconds that what was asked for took (`d3rlpy_peer.py`,
`offlinerl_kit_peer.py`).
"""

import contextlib
import functools
import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from offline_mbrl.types import UsageError

D3RLPY = Path(__file__).with_name("d3rlpy_peer.py")
OFFLINERL_KIT = Path(__file__).with_name("offlinerl_kit_peer.py")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

Ask = Callable[[Mapping[str, Any]], float]  # (request) -> CPU seconds


@contextlib.contextmanager
def start(python: Path, script: Path, core: int, *arguments: str) -> Iterator[Ask]:
    """The peer, which ends with the context.

    Args:
      python: an interpreter that has what the script imports.
      script: answers requests.
      core: that the peer stays on.
      *arguments: further ones of the script.

    Raises:
      UsageError: the interpreter does not run the peer.
    """
    command: Sequence[str] = (str(python), str(script), str(core), *arguments)
    if not python.exists():
        raise UsageError(f"no interpreter {python}: give --peer-python one that runs {script.name}")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env={**os.environ, **ONE_THREAD}, **pipes) as process:
        try:
            yield functools.partial(ask, process)
        finally:
            process.terminate()


def ask(process: subprocess.Popen, request: Mapping[str, Any]) -> float:
    """CPU seconds of a request.

    Args:
      process: the peer.
      request: as JSON has it.

    Raises:
      UsageError: the peer ended without an answer.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        last = process.stderr.read().strip().splitlines()[-1:]
        raise UsageError(
            f"{process.args[0]} does not run {Path(process.args[1]).name} ({' '.join(last)}): "  # type: ignore[index]
            "install what it imports there, or give --peer-python another interpreter"
        )
    return json.loads(line)["seconds"]
