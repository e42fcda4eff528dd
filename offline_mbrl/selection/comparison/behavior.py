"""What the logged policy itself is worth: the first row of every comparison."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from offline_mbrl.data import episodes
from offline_mbrl.ope import errors
from offline_mbrl.selection.comparison.voting import CONTINUING, FAMILIES
from offline_mbrl.selection.records import Data
from offline_mbrl.types import Array, Estimate

LATE_SHARE = 0.1  # of an episode, whose mean reward stands for what comes after a time limit


class Logged(NamedTuple):
    """Returns of the logged episodes."""

    within_horizon: Estimate  # discounted, of the horizon's steps
    continuing: Estimate  # discounted, going on after time limits
    undiscounted: float  # of the horizon's steps

    def by_family(self) -> dict[str, Estimate]:
        """The value that each family's estimates are compared with."""
        return {
            family: self.continuing if family in CONTINUING else self.within_horizon
            for family in FAMILIES
        }


def logged(data: Data) -> Logged:
    """The logged episodes' returns.

    After a time limit an episode that goes on is taken to earn, step by step, the mean reward of
    the last tenth of such episodes: estimates of values count it, and gamma^200 is 0.13 for a gamma
    of 0.99.

    Args:
      data: of `estimators.prepare`.
    """
    steps = episodes.trajectories(data.dataset, data.horizon)
    mask = np.asarray(steps.mask, np.float64)
    rewards = np.asarray(steps.reward, np.float64) * mask
    powers = data.gamma ** np.arange(mask.shape[1])
    within = rewards @ powers
    lengths = mask.sum(axis=1)
    ended = np.any((np.asarray(steps.discount) == 0) & (mask > 0), axis=1)
    first_late = np.minimum((1 - LATE_SHARE) * lengths, lengths - 1)[:, None]
    late = (np.arange(mask.shape[1]) >= first_late) * mask * ~ended[:, None]
    count = late.sum()
    late_reward = float((rewards * late).sum() / count) if count else 0.0
    rest = ~ended * data.gamma**lengths * late_reward / (1 - data.gamma)
    return Logged(
        within_horizon=_mean(within),
        continuing=_mean(within + rest),
        undiscounted=float(rewards.sum(axis=1).mean()),
    )


def _mean(returns: np.ndarray) -> Estimate:
    deviations: Array = jnp.asarray(returns - returns.mean(), jnp.float32)
    vector = errors.of_influence(deviations)
    return Estimate(
        value=jnp.float32(returns.mean()),
        stderr=jnp.linalg.norm(vector),
        per_episode=jnp.asarray(returns, jnp.float32),
        diagnostics={},
        errors={errors.EPISODES: vector},
    )
