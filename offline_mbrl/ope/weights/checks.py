"""What estimators of whole logged episodes refuse."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from offline_mbrl.types import Array, Trajectory, UsageError


def require_episodes(trajectories: Trajectory) -> None:
    """Refuses a trajectory without the axis of episodes.

    Raises:
      UsageError: rewards are not [N, T].
    """
    if np.ndim(trajectories.reward) != 2:
        raise UsageError(
            "trajectories are several episodes [N, T, ...], but their rewards have shape "
            f"{np.shape(trajectories.reward)}: see data.episodes.trajectories"
        )


def require_gamma(gamma: Any) -> None:
    """Refuses a discount factor outside [0, 1].

    Raises:
      UsageError: it is.
    """
    if not isinstance(gamma, Tracer) and not 0 <= gamma <= 1:
        raise UsageError(f"gamma must be in [0, 1], got {gamma}")


def require_steps(name: str, array: Any, trajectories: Trajectory) -> None:
    """Refuses an array that has not one number for each step [N, T].

    Raises:
      UsageError: with both shapes.
    """
    if array.shape != trajectories.reward.shape:
        raise UsageError(
            f"{name} has shape {array.shape}, but the trajectories' rewards "
            f"{trajectories.reward.shape}"
        )


def checked_log_ratios(ratios: Any, trajectories: Trajectory) -> Array:
    """Log ratios `[N, T]`, 0 past the ends.

    Minus infinity, an action that the policy never takes, is allowed.

    Raises:
      UsageError: the shapes differ, there are fewer than 2 episodes, or (outside jit) a ratio is
        NaN or infinite.
    """
    require_episodes(trajectories)
    require_steps("log_ratios", ratios, trajectories)
    if len(ratios) < 2:
        raise UsageError(f"importance sampling needs at least 2 episodes, got {len(ratios)}")
    ratios = jnp.where(trajectories.mask > 0, ratios, 0.0)
    if not isinstance(ratios, Tracer):
        bad = np.argwhere(np.isnan(ratios) | np.isposinf(ratios))
        if len(bad):
            episode, step = bad[0]
            raise UsageError(
                f"the log ratio of episode {episode}, step {step} is {ratios[episode, step]}: "
                "densities must not be NaN, and the behavior's must not be 0 at an action it took"
            )
    return ratios
