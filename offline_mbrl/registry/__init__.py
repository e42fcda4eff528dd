"""The algorithms by name, read by the contract's tests, the command line and the benchmarks.

An algorithm is one function of the modules below, under `@entry`: it imports what it needs when it
is first looked up, so that loading an exported policy loads no other algorithm. Its `cases` are the
problems that the contract's tests solve with it.

Algorithms from outside have the same standing: a file, `path/to/file.py:make`, or an installed
package's entry point in the group `offline_mbrl.algorithms`.
"""

import difflib
from typing import Any

from offline_mbrl import outside
from offline_mbrl.outside import absolute, label
from offline_mbrl.registry import (  # they fill the table
    discrete,
    explicit,
    latent,
    planned,
    policy_learners,
    value_expansion,
)
from offline_mbrl.registry.table import ENTRIES, entry
from offline_mbrl.types import Algorithm, UsageError

__all__ = ["ENTRIES", "absolute", "entry", "label", "lookup"]

del discrete, explicit, latent, planned, policy_learners, value_expansion

_LOADED: dict[str, Algorithm] = {}


def lookup(name: str) -> Algorithm:
    """An algorithm by name.

    Args:
      name: of the table above; of an entry point in the group `offline_mbrl.algorithms`; or
        `path/to/file.py:NAME`, NAME being `make` when absent.

    Raises:
      UsageError: unknown, with the closest known names; or something that is not an algorithm.
    """
    if name in ENTRIES:
        if name not in _LOADED:
            _LOADED[name] = ENTRIES[name]()
        return _LOADED[name]
    if outside.is_file(name):
        return outside.of_file(name)
    points = outside.entry_points()
    if name in points:
        return outside.of_entry_point(points[name])
    names = sorted([*ENTRIES, *points])
    close = difflib.get_close_matches(name, names, n=2)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(names)}"
    raise UsageError(f"unknown algorithm {name!r}: {hint}")


def __getattr__(name: str) -> Any:
    """`ALGORITHMS`: every algorithm of the table by name, loaded now."""
    if name != "ALGORITHMS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for key in ENTRIES:
        lookup(key)
    return _LOADED
