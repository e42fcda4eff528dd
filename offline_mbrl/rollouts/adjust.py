"""What may happen to a prediction before a rollout continues from it: records that compose.

Clipping, known terminations, penalties and halting are all of this kind.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from offline_mbrl.types import Action, Key, ModelParams, Observation, Prediction, Termination

# (model params, observation, action, prediction, key) -> prediction
ApplyAdjust = Callable[[ModelParams, Observation, Action, Prediction, Key], Prediction]


class Adjust(NamedTuple):
    """A change of predictions, and what it needs."""

    apply: ApplyAdjust
    # Whether `apply` may return another observation: the model is then reset to it at every step,
    # and a recurrent model forgets what it carries.
    changes_observation: bool
    # Whether it compares members: it is refused where a member is rolled out alone.
    needs_members: bool = False


def _unchanged(
    params: ModelParams, observation: Observation, action: Action, prediction: Prediction, key: Key
) -> Prediction:
    del params, observation, action, key
    return prediction


identity = Adjust(apply=_unchanged, changes_observation=False)


def chain(*adjustments: Adjust) -> Adjust:
    """Adjustments one after the other, each with a key of its own."""

    def apply(
        params: ModelParams,
        observation: Observation,
        action: Action,
        prediction: Prediction,
        key: Key,
    ) -> Prediction:
        for index, adjustment in enumerate(adjustments):
            own_key = jax.random.fold_in(key, index)
            prediction = adjustment.apply(params, observation, action, prediction, own_key)
        return prediction

    return Adjust(
        apply=apply,
        changes_observation=any(part.changes_observation for part in adjustments),
        needs_members=any(part.needs_members for part in adjustments),
    )


def _clip_observation(
    params: ModelParams, observation: Observation, action: Action, prediction: Prediction, key: Key
) -> Prediction:
    """Next observation within the smallest and the largest value of the data."""
    del observation, action, key
    data = params.statistics
    clipped = jnp.clip(prediction.observation, data.observation_min, data.observation_max)
    return prediction._replace(observation=clipped)


clip_observation = Adjust(apply=_clip_observation, changes_observation=True)


def _clip_to_data(
    params: ModelParams, observation: Observation, action: Action, prediction: Prediction, key: Key
) -> Prediction:
    """The same of next observation and reward."""
    clipped = _clip_observation(params, observation, action, prediction, key)
    data = params.statistics
    return clipped._replace(reward=jnp.clip(clipped.reward, data.reward_min, data.reward_max))


# Entry by entry, as the model-based baseline of `policy_eval` (Google Research) does. The range is
# that of `params.statistics`. An infinite prediction counts as diverged all the same, because
# rollouts look at it before any adjustment.
clip_to_data = Adjust(apply=_clip_to_data, changes_observation=True)


def terminate(terminated: Termination) -> Adjust:
    """Ends the episode where a known rule holds, for example that of
    `environments.termination.lookup("gym/Hopper-v4")`.

    Args:
      terminated: (observation, action, next_observation) -> [] bool. It sees the prediction as
        adjusted so far, so it comes before clipping in a `chain`, which could move a state back
        into the healthy range.
    """

    def apply(
        params: ModelParams,
        observation: Observation,
        action: Action,
        prediction: Prediction,
        key: Key,
    ) -> Prediction:
        del params, key
        is_terminal = terminated(observation, action, prediction.observation)
        return prediction._replace(discount=jnp.where(is_terminal, 0.0, prediction.discount))

    return Adjust(apply=apply, changes_observation=False)


def noise(scale: float) -> Adjust:
    """Normal noise on next observations: a model that is worse by a chosen amount, for studies.

    Args:
      scale: deviation of the noise, in those of the data's observations.
    """

    def apply(
        params: ModelParams,
        observation: Observation,
        action: Action,
        prediction: Prediction,
        key: Key,
    ) -> Prediction:
        del observation, action
        deviation = scale * params.statistics.observation_std
        error = deviation * jax.random.normal(key, deviation.shape)
        return prediction._replace(observation=prediction.observation + error)

    return Adjust(apply=apply, changes_observation=True)
