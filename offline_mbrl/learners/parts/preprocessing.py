"""Learners that see normalized observations or transformed rewards.

Each function takes a learner and returns one. The statistics of normalized observations are part of
the policy's parameters, so that an exported policy acts on raw observations.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from offline_mbrl.data.normalize import Statistics
from offline_mbrl.settings import above
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


@dataclass(frozen=True)
class InputConfig:
    """What a learner does to observations and rewards; by default nothing."""

    standardize_observations: bool = False  # by the dataset's statistics
    # Rewards are scaled until the data's episode returns span it; None: they are not.
    return_range: Annotated[float | None, above(0)] = None
    reward_scale: Annotated[float, above(0)] = 1.0  # after that
    reward_shift: float = 0.0  # after scaling


def with_inputs(learner: Learner, config: InputConfig) -> Learner:
    """The learner on the observations and rewards of a config.

    Args:
      learner: of batches of transitions; its policy has no memory.
      config: the settings.
    """
    if config.return_range is not None or (config.reward_scale, config.reward_shift) != (1.0, 0.0):
        learner = with_rewards(learner, affine_rewards(config))
    if config.standardize_observations:
        learner = with_standardized_observations(learner)
    return learner


def without_density(learner: Learner) -> Learner:
    """The learner whose policy has no `log_prob`, as where actions are clipped."""
    if not isinstance(learner.policy, Policy):
        raise ValueError("only a policy without memory has a density")
    return learner._replace(policy=learner.policy._replace(log_prob=None))


def affine_rewards(config: InputConfig) -> RewardTransform:
    """`reward_scale return_range / (range of returns) reward + reward_shift`.

    Rewards of data whose returns are all equal are not divided by their range.
    """

    def transform(reward: jax.Array, statistics: Statistics) -> jax.Array:
        scale = jnp.float32(config.reward_scale)
        if config.return_range is not None:
            assert statistics.returns is not None
            width = jnp.asarray(statistics.returns.high - statistics.returns.low)
            scale *= jnp.where(width > 0, config.return_range / jnp.where(width > 0, width, 1), 1)
        return scale * reward + config.reward_shift

    return transform


def standardize(statistics: Statistics, observation: Observation, epsilon: float) -> Observation:
    """`(observation - mean) / (std + epsilon)`, for one observation.

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
        def per_record(observation: Observation) -> Observation:
            return standardize(context.statistics, observation, epsilon)

        return batch._replace(
            observation=jax.vmap(per_record)(batch.observation),
            next_observation=jax.vmap(per_record)(batch.next_observation),
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
