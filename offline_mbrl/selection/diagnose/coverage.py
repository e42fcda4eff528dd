"""Whether predictive intervals hold what they promise: shares of outcomes by their levels.

The prediction of an entry is the mixture of the elite members' Gaussians. An outcome lies in its
central interval of level L where the mixture's distribution function there is within L / 2 of one
half, so no quantile has to be searched. Of autoregressive densities the conditionals at the logged
entries are judged.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.models.scores import BATCH_SIZE, judged_mask
from offline_mbrl.types import Array, DynamicsModel, MemberPredictions, ModelParams, Transition

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
SMALLEST_STD = 1e-12

Predictive = Callable[[ModelParams, Transition], MemberPredictions]


class Calibration(NamedTuple):
    """L levels, D entries: those of the observation, then the reward."""

    level: np.ndarray  # [L]
    coverage: np.ndarray  # [L] share of outcomes inside, over transitions and entries
    entries: np.ndarray  # [L, D] of each entry; NaN where it never varies
    num_transitions: int

    @property
    def gap(self) -> float:
        """Mean over levels of coverage minus level: below 0 where the model is overconfident."""
        return float(np.mean(self.coverage - self.level))


@functools.cache
def of_steps(model: DynamicsModel) -> Predictive:
    """The moments that `model.step` gives, for densities whose entries are independent."""

    def predictive(params: ModelParams, transition: Transition) -> MemberPredictions:
        key = jax.random.key(0)  # of a sample that is not used
        _, prediction = model.step(params, transition.observation, transition.action, key)
        assert prediction.members is not None
        return prediction.members

    return predictive


def calibration(
    predictive: Predictive,
    params: ModelParams,
    transitions: Transition,
    *,
    levels: tuple[float, ...] = LEVELS,
) -> Calibration:
    """Coverage of central predictive intervals.

    Args:
      predictive: `explicit.conditionals` of the model's density and units, or `of_steps(model)`.
      params: of the model.
      transitions: `[M, ...]` that the model was not fitted to.
      levels: L of them.
    """
    transitions = jax.tree.map(jnp.asarray, transitions._replace(extras=()))

    rank, mask = (np.asarray(part) for part in _ranks(predictive, params, transitions))
    distance = 2 * np.abs(rank - 0.5)  # the level of the interval that just holds the outcome
    inside = (distance[None] <= np.asarray(levels)[:, None, None]) & mask  # [L, M, D]
    count = mask.sum(axis=0)
    entries = np.where(count > 0, inside.sum(axis=1) / np.maximum(count, 1), np.nan)
    return Calibration(
        level=np.asarray(levels),
        coverage=inside.sum(axis=(1, 2)) / max(mask.sum(), 1),
        entries=entries,
        num_transitions=len(rank),
    )


@functools.partial(jax.jit, static_argnums=0)
def _ranks(
    predictive: Predictive, params: ModelParams, transitions: Transition
) -> tuple[Array, Array]:
    """`[M, D]`: the mixture's distribution function at each outcome, and which are judged."""

    def rank(transition: Transition) -> Array:
        moments = predictive(params, transition)
        outcome = jnp.append(transition.next_observation, transition.reward)
        std = jnp.maximum(moments.std[params.elites], SMALLEST_STD)
        errors = (outcome[None] - moments.mean[params.elites]) / std
        return jnp.mean(jax.scipy.special.ndtr(errors), axis=0)

    mask = judged_mask(params, transitions)
    return jax.lax.map(rank, transitions, batch_size=BATCH_SIZE), mask
