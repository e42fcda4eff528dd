"""The one list of algorithms, read by the contract tests, the command line and the benchmarks."""

import difflib

from offline_mbrl.algorithms import rosmo, skeleton
from offline_mbrl.learners import bc
from offline_mbrl.types import Algorithm, UsageError

ALGORITHMS: dict[str, Algorithm] = {
    "bc": Algorithm(bc.Config, bc.make),
    "rosmo": Algorithm(rosmo.Config, rosmo.make, presets=rosmo.PRESETS),
    "skeleton": Algorithm(skeleton.Config, skeleton.make, skeleton.pretrain),
}


def lookup(name: str) -> Algorithm:
    """An algorithm by name.

    Raises:
      UsageError: unknown; the message has the closest known names.
    """
    if name in ALGORITHMS:
        return ALGORITHMS[name]
    close = difflib.get_close_matches(name, ALGORITHMS, n=2)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(ALGORITHMS)}"
    raise UsageError(f"unknown algorithm {name!r}: {hint}")
