"""The table of algorithms, and the decorator that adds one to it."""

from collections.abc import Callable

from offline_mbrl.types import Algorithm

ENTRIES: dict[str, Callable[[], Algorithm]] = {}


def entry(make: Callable[[], Algorithm]) -> Callable[[], Algorithm]:
    """Registers an algorithm by the name of the function that returns it.

    The function's docstring is the command's summary.
    """
    ENTRIES[make.__name__] = make
    return make
