"""The two returns of a normalized score."""

from typing import NamedTuple


class Reference(NamedTuple):
    """Undiscounted returns whose normalized scores are 0 and 1."""

    random: float
    expert: float
