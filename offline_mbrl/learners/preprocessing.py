"""Learners that see normalized observations or transformed rewards.

Each function takes a learner and returns one. The statistics of normalized observations are part of
the policy's parameters, so that an exported policy acts on raw observations.
"""

from collections.abc import Callable
from typing import Any

import jax

from offline_mbrl.data.normalize import Statistics
from offline_mbrl.types import (
    Action,
    Context,
    Key,
    Learner,
    Metrics,
    Observation,
    Params,
    Policy,
    PyTree,
    Transition,
)

# (rewards [B], statistics of the dataset) -> [B]
RewardTransform = Callable[[jax.Array, Any], jax.Array]


def standardize(statistics: Statistics, observation: Observation, epsilon: float) -> Observation:
    """`(observation - mean) / (std + epsilon)`, for observations `[..., *record]`.

    TD3+BC's form (arXiv:2106.06860, section 4): the constant bounds entries that hardly vary.
    """
    return jax.tree.map(
        lambda x, mean, std: (x - mean) / (std + epsilon),
        observation,
        statistics.mean,
        statistics.std,
    )


def with_standardized_observations(learner: Learner, *, epsilon: float = 1e-3) -> Learner:
    """The learner on observations that are standardized by the dataset's statistics.

    Args:
      learner: of batches of transitions; its policy has no memory.
      epsilon: added to every standard deviation.
    """

    def prepared(context: Context, batch: Transition) -> Transition:
        return batch._replace(
            observation=standardize(context.statistics, batch.observation, epsilon),
            next_observation=standardize(context.statistics, batch.next_observation, epsilon),
        )

    def policy_params(state: PyTree, context: Context) -> Params:
        statistics = context.statistics
        return {
            "policy": learner.policy_params(state, context),
            "mean": statistics.mean,
            "std": statistics.std,
        }

    def inputs(params: Params, observation: Observation) -> Observation:
        return standardize(Statistics(params["mean"], params["std"]), observation, epsilon)

    return _on_batches(learner, prepared)._replace(
        policy=_on_observations(learner.policy, inputs), policy_params=policy_params
    )


def with_rewards(learner: Learner, transform: RewardTransform) -> Learner:
    """The learner on transformed rewards.

    Args:
      learner: of batches of transitions.
      transform: `(rewards [B], statistics) -> [B]`.
    """

    def prepared(context: Context, batch: Transition) -> Transition:
        return batch._replace(reward=transform(batch.reward, context.statistics))

    return _on_batches(learner, prepared)


def _on_batches(learner: Learner, prepared: Callable[[Context, Transition], Transition]) -> Learner:
    """The learner on prepared batches."""

    def init(key: Key, example: Transition, context: Context) -> PyTree:
        return learner.init(key, prepared(context, example), context)

    def step(
        state: PyTree, context: Context, batch: Transition, key: Key
    ) -> tuple[PyTree, Metrics]:
        return learner.step(state, context, prepared(context, batch), key)

    def validate(state: PyTree, context: Context, batch: Transition, key: Key) -> Metrics:
        assert learner.validate is not None
        return learner.validate(state, context, prepared(context, batch), key)

    return learner._replace(
        init=init, step=step, validate=None if learner.validate is None else validate
    )


def _on_observations(policy: Any, inputs: Callable[[Params, Observation], Observation]) -> Policy:
    """The policy on `inputs` of observations; its own parameters are `params["policy"]`."""
    if not isinstance(policy, Policy):
        raise ValueError("only a policy without memory can be given other observations")
    log_prob = policy.log_prob

    def sample(params: Params, observation: Observation, key: Key) -> Action:
        return policy.sample(params["policy"], inputs(params, observation), key)

    def mode(params: Params, observation: Observation) -> Action:
        return policy.mode(params["policy"], inputs(params, observation))

    def transformed_log_prob(params: Params, observation: Observation, action: Action) -> jax.Array:
        assert log_prob is not None
        return log_prob(params["policy"], inputs(params, observation), action)

    return Policy(
        sample=sample, mode=mode, log_prob=None if log_prob is None else transformed_log_prob
    )
