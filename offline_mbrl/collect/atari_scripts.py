"""Scripted play of two Atari games from frames: the paddle goes to where the ball will arrive.

Both games are the same problem with exchanged axes: find the ball in the field and the paddle on
its line, extrapolate the ball's last motion to that line with reflections at the walls, and steer.
Positions are in pixels of 84 x 84 frames.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class Field(NamedTuple):
    """The layout of a game's screen, and its actions (of the minimal set) for moving the paddle."""

    along: tuple[int, int]  # pixels on the paddle's axis, between the walls
    across: tuple[int, int]  # pixels on the other axis, up to the paddle
    line: int  # the paddle's position on the other axis
    vertical: bool  # whether the paddle moves vertically
    background: int  # gray level of the empty field
    contrast: int  # difference from the background that marks the paddle
    forward: int  # action: up the paddle's axis
    back: int  # action: down the paddle's axis
    lost: int  # action while there is no ball
    slack: float  # distance in pixels from the target that needs no move


FIELDS: Mapping[str, Field] = {
    "Pong": Field(
        along=(15, 76),
        across=(12, 72),
        line=73,
        vertical=True,
        background=87,
        contrast=1,
        forward=3,
        back=2,
        lost=0,
        slack=2.0,
    ),
    "Breakout": Field(
        along=(5, 79),
        across=(38, 75),
        line=76,
        vertical=False,
        background=0,
        contrast=60,
        forward=2,
        back=3,
        lost=1,  # a new ball
        slack=4.0,
    ),
}


def act(game: str, frames: np.ndarray) -> int:
    """The scripted action in `Pong` or `Breakout`.

    Args:
      game: a key of `FIELDS`.
      frames: `[84, 84, F]` uint8, F at least 2, the newest last.
    """
    field = FIELDS[game]
    previous = _locate(field, frames[..., -2])
    current = _locate(field, frames[..., -1])
    if current is None:
        return field.lost
    ball, paddle = current
    last_ball, last_paddle = previous or current
    motion = ball - last_ball
    target = ball[0]
    if motion[1] > 0.3:  # the ball approaches
        target = reflected(ball[0] + motion[0] * (field.line - ball[1]) / motion[1], *field.along)
    error = target - (2 * paddle - last_paddle)  # the paddle keeps moving for about a step
    if abs(error) < field.slack:
        return 0
    return field.forward if error > 0 else field.back


def reflected(position: float, low: float, high: float) -> float:
    """Reflects the end of a straight path at two walls.

    Args:
      position: the end of the path without walls.
      low: position of a wall.
      high: position of the other wall, above `low`.

    Returns:
      The position between the walls.
    """
    span = high - low
    offset = (position - low) % (2 * span)
    return low + min(offset, 2 * span - offset)


def _locate(field: Field, frame: np.ndarray) -> tuple[np.ndarray, float] | None:
    """The ball's center (along, across) and the paddle's along; None unless both are visible."""
    picture = (frame if field.vertical else frame.T).astype(np.int16) - field.background
    rows, columns = np.nonzero(picture[slice(*field.along), slice(*field.across)])
    paddle = np.flatnonzero(np.abs(picture[slice(*field.along), field.line]) >= field.contrast)
    if not len(rows) or not len(paddle):
        return None
    ball = np.array([rows.mean() + field.along[0], columns.mean() + field.across[0]])
    return ball, paddle.mean() + field.along[0]
