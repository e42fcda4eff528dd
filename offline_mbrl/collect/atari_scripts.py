"""Scripted play of two Atari games from frames alone: the paddle goes to where the ball will
arrive.

Both games are the same problem with exchanged axes: find the ball in the field and the paddle on
its line, extrapolate the ball's last motion to that line with reflections at the walls, and steer.
Positions are in pixels of 84 x 84 frames.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class Field(NamedTuple):
    """Where a game shows what, and its actions (of the minimal set) for going up the paddle's axis
    and down it."""

    along: tuple[int, int]  # pixels on the paddle's axis, between the walls
    across: tuple[int, int]  # pixels on the other axis, up to the paddle
    line: int  # of the paddle, on the other axis
    vertical: bool  # the paddle's axis
    background: int  # grey of the empty field
    contrast: int  # difference from it that makes a pixel the paddle
    forward: int
    back: int
    lost: int  # what to do while there is no ball
    slack: float  # pixels off target that are close enough


FIELDS: Mapping[str, Field] = {
    "Pong": Field((15, 76), (12, 72), 73, True, 87, 1, forward=3, back=2, lost=0, slack=2.0),
    # lost: a new ball
    "Breakout": Field((5, 79), (38, 75), 76, False, 0, 60, forward=2, back=3, lost=1, slack=4.0),
}


def act(game: str, frames: np.ndarray) -> int:
    """The scripted action in `Pong` or `Breakout`.

    Args:
      game: a key of `FIELDS`.
      frames: `[84, 84, F]` uint8, F at least 2, the newest last.
    """
    field = FIELDS[game]
    before, now = (_look(field, frames[..., index]) for index in (-2, -1))
    if now is None:
        return field.lost
    ball, paddle = now
    last_ball, last_paddle = before or now
    motion = ball - last_ball
    target = ball[0]
    if motion[1] > 0.3:  # it comes nearer
        target = reflected(ball[0] + motion[0] * (field.line - ball[1]) / motion[1], *field.along)
    error = target - (2 * paddle - last_paddle)  # the paddle keeps moving for about one step
    if abs(error) < field.slack:
        return 0
    return field.forward if error > 0 else field.back


def reflected(position: float, low: float, high: float) -> float:
    """Where a straight path that ends at `position` ends when walls at `low` and `high` reflect
    it."""
    span = high - low
    offset = (position - low) % (2 * span)
    return low + min(offset, 2 * span - offset)


def _look(field: Field, frame: np.ndarray) -> tuple[np.ndarray, float] | None:
    """The ball's centre (along, across) and the paddle's along; None unless both are seen."""
    picture = (frame if field.vertical else frame.T).astype(np.int16) - field.background
    rows, columns = np.nonzero(picture[slice(*field.along), slice(*field.across)])
    paddle = np.flatnonzero(np.abs(picture[slice(*field.along), field.line]) >= field.contrast)
    if not len(rows) or not len(paddle):
        return None
    return np.array(
        [rows.mean() + field.along[0], columns.mean() + field.across[0]]
    ), paddle.mean() + field.along[0]
