"""What may happen to a prediction before a rollout goes on from it: functions that compose.

An adjustment sees what the model saw and what it said, `(params, observation, action, prediction, key) -> Prediction`;
clipping, known terminations, penalties and halting are all of this kind.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from offline_mbrl.types import Array, Prediction, PyTree

Adjust = Callable[[PyTree, PyTree, Array, Prediction, Array], Prediction]
Termination = Callable[[PyTree, Array, PyTree], Array]  # (observation, action, next_observation) -> [] bool


def identity(params: PyTree, observation: PyTree, action: Array, prediction: Prediction, key: Array) -> Prediction:
    """The prediction as it is."""
    del params, observation, action, key
    return prediction


def chain(*adjustments: Adjust) -> Adjust:
    """Adjustments one after the other, each with a key of its own."""

    def adjust(params: PyTree, observation: PyTree, action: Array, prediction: Prediction, key: Array) -> Prediction:
        for index, one in enumerate(adjustments):
            prediction = one(params, observation, action, prediction, jax.random.fold_in(key, index))
        return prediction

    return adjust


def clip_to_data(params: PyTree, observation: PyTree, action: Array, prediction: Prediction, key: Array) -> Prediction:
    """Next observation and reward kept within the smallest and the largest value of the data, entry by entry.

    As the model-based baseline of `policy_eval` (Google Research) does. The bounds are those of
    `params["statistics"]` (the fields of `data.normalize.TransitionStatistics`); an infinite prediction counts as
    diverged all the same, because rollouts look at it before any adjustment.
    """
    del observation, action, key
    data = params["statistics"]
    return prediction._replace(
        observation=jnp.clip(prediction.observation, data["observation_min"], data["observation_max"]),
        reward=jnp.clip(prediction.reward, data["reward_min"], data["reward_max"]))  # fmt: skip


def terminate(terminated: Termination) -> Adjust:
    """Ends the episode where a known rule says so, for example `environments.termination.lookup("gym/Hopper-v4")`.

    Args:
      terminated: `(observation, action, next_observation) -> [] bool`; it sees the prediction as adjusted so far, so
        it comes before clipping in a `chain`, which could move a state back into the healthy range.
    """

    def adjust(params: PyTree, observation: PyTree, action: Array, prediction: Prediction, key: Array) -> Prediction:
        del params, key
        over = terminated(observation, action, prediction.observation)
        return prediction._replace(discount=jnp.where(over, 0.0, prediction.discount))

    return adjust
