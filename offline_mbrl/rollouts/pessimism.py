"""How far a model may be wrong at one step, and what a rollout makes of that.

A `Penalty` is a number of a step, 0 where the model is trusted. `subtract` takes it off the reward
(MOPO, arXiv:2005.13239, equation 6), `halt` ends the episode where it is large (MOReL,
arXiv:2005.05951, definition 2). None of them is a proven bound of the model's error: measure how
they rank it.

Those of members compare the predictions of all E, elites or not, in raw units unless `standardized`
says otherwise. Where a model is autoregressive they are conditional on the outcome that was
sampled (see `types.MemberPredictions`).
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from offline_mbrl.rollouts.adjust import Adjust
from offline_mbrl.rollouts.step import Measure
from offline_mbrl.types import (
    Action,
    Array,
    DynamicsModel,
    Key,
    MemberPredictions,
    Metrics,
    ModelParams,
    Observation,
    Prediction,
    UsageError,
)


class Penalty(NamedTuple):
    """A number of one step: how little its prediction is trusted."""

    # (model params, observation, action, prediction) -> []
    apply: Callable[[ModelParams, Observation, Action, Prediction], Array]
    # Whether it compares members; where it does not, each may be rolled out alone (`by_member`).
    needs_members: bool = True


# --- of the members' moments; the last of their D entries is the reward ---


def _root(square: Array) -> Array:
    """`sqrt(square)`, with the gradient 0 where it is 0: members that agree, a point of the data.

    The root's own gradient is infinite there, and NaN for what it is a root of.
    """
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


def _norm(vector: Array) -> Array:
    """Euclidean, over the last axis."""
    return _root(jnp.sum(jnp.square(vector), axis=-1))


def _aleatoric(members: MemberPredictions) -> Array:
    return jnp.max(_norm(members.std))


def _from_first(members: MemberPredictions) -> Array:
    """Means of the next observation, `[E, D - 1]`, as differences from the first member's: where
    all agree, every figure of them is 0 without rounding."""
    means = members.mean[:, :-1]
    return means - means[:1]


def _centroid_disagreement(members: MemberPredictions) -> Array:
    means = _from_first(members)
    return jnp.max(_norm(means - jnp.mean(means, axis=0, keepdims=True)))


def _pairwise_disagreement(members: MemberPredictions) -> Array:
    means = _from_first(members)
    return jnp.max(_norm(means[:, None] - means[None]))


def _std_of_means(members: MemberPredictions) -> Array:
    return _root(jnp.mean(jnp.var(_from_first(members), axis=0)))


def _mixture_variances(members: MemberPredictions) -> Array:
    """`[D - 1]`: those of the equal mixture of the members' densities."""
    within = jnp.mean(jnp.square(members.std[:, :-1]), axis=0)
    return within + jnp.var(_from_first(members), axis=0)


def _mixture_variance(members: MemberPredictions) -> Array:
    return jnp.sum(_mixture_variances(members))


def _mixture_std(members: MemberPredictions) -> Array:
    return _root(jnp.mean(_mixture_variances(members)))


def _members(prediction: Prediction) -> MemberPredictions:
    if prediction.members is None:
        raise UsageError("this penalty compares members, but the model predicts none")
    return prediction.members


def _of_members(figure: Callable[[MemberPredictions], Array]) -> Penalty:
    def apply(
        params: ModelParams, observation: Observation, action: Action, prediction: Prediction
    ) -> Array:
        del params, observation, action
        return figure(_members(prediction))

    return Penalty(apply=apply)


# `max_e |sigma_e|`, the reward's deviation included: MOPO's published results. The paper writes the
# norm of the covariance, its code takes that of the deviations.
max_aleatoric = _of_members(_aleatoric)
# `max_e |mu_e - mean mu|` of next observations: MOPO's code without learned variances.
max_centroid_disagreement = _of_members(_centroid_disagreement)
# `max_ij |mu_i - mu_j|` of next observations: MOReL.
max_pairwise_disagreement = _of_members(_pairwise_disagreement)
# `sqrt(mean_j Var_e mu_ej)`, variances over E: an option of OfflineRL-Kit.
ensemble_std = _of_members(_std_of_means)
# The variances of the members' mixture, `mean_e sigma^2 + Var_e mu`, summed over the entries of the
# next observation; and the root of their mean.
mixture_variance = _of_members(_mixture_variance)
mixture_std = _of_members(_mixture_std)

PENALTIES: Mapping[str, Penalty] = {
    "max_aleatoric": max_aleatoric,
    "max_centroid_disagreement": max_centroid_disagreement,
    "max_pairwise_disagreement": max_pairwise_disagreement,
    "ensemble_std": ensemble_std,
    "mixture_variance": mixture_variance,
    "mixture_std": mixture_std,
}


def standardized(penalty: Penalty) -> Penalty:
    """The penalty of predictions in standard deviations of the data's observations and rewards.

    An option that MOPO's code has and leaves off.
    """

    def apply(
        params: ModelParams, observation: Observation, action: Action, prediction: Prediction
    ) -> Array:
        members = _members(prediction)
        scale = jnp.append(params.statistics.observation_std, params.statistics.reward_std)[None]
        scaled = MemberPredictions(mean=members.mean / scale, std=members.std / scale)
        return penalty.apply(params, observation, action, prediction._replace(members=scaled))

    return Penalty(apply=apply, needs_members=True)


# --- without members ---


def nearest_data(points: Array, scale: Array) -> Penalty:
    """The distance of a step's observation and action from the nearest point of the data.

    Every step compares with all points: give a few thousand, a sample of the data.

    Args:
      points: `[N, n + A]` observations beside their actions.
      scale: `[n + A]` what each entry is divided by, for example its deviation.
    """
    scaled_points = points / scale[None]

    def apply(
        params: ModelParams, observation: Observation, action: Action, prediction: Prediction
    ) -> Array:
        del params, prediction
        point = jnp.concatenate([observation, action]) / scale
        return _root(jnp.min(jnp.sum(jnp.square(scaled_points - point[None]), axis=-1)))

    return Penalty(apply=apply, needs_members=False)


def own_likelihood(model: DynamicsModel) -> Penalty:
    """Minus the log density, in nats, that the elites' mixture gives to its own prediction.

    It is the surprise of one sample, so its mean is the entropy of the prediction, and it may be
    negative.

    Args:
      model: the model that is rolled out; its predictions must not have been adjusted before.
    """

    def apply(
        params: ModelParams, observation: Observation, action: Action, prediction: Prediction
    ) -> Array:
        entries = model.log_prob(
            params, observation, action, prediction.observation, prediction.reward
        )
        log_probs = jnp.sum(entries, axis=-1)[params.elites]
        return jnp.log(log_probs.shape[0]) - jax.nn.logsumexp(log_probs)

    return Penalty(apply=apply, needs_members=False)


# --- what a rollout makes of a penalty ---


def subtract(penalty: Penalty, coef: Array | float) -> Adjust:
    """The reward `r - coef u(s, a)` of MOPO.

    Args:
      penalty: u.
      coef: its weight, the lambda of the paper.
    """

    def apply(
        params: ModelParams,
        observation: Observation,
        action: Action,
        prediction: Prediction,
        key: Key,
    ) -> Prediction:
        del key  # deterministic
        lost = coef * penalty.apply(params, observation, action, prediction)
        return prediction._replace(reward=prediction.reward - lost)

    return Adjust(apply=apply, changes_observation=False, needs_members=penalty.needs_members)


def halt(penalty: Penalty, threshold: Array | float, halt_reward: Array | float) -> Adjust:
    """Ends the episode where the penalty exceeds a threshold, as MOReL's HALT state does.

    Args:
      penalty: how little a step is trusted.
      threshold: the largest value that is.
      halt_reward: of the step that ends there, in the place of the model's; low enough that
        nothing is worth it.
    """

    def apply(
        params: ModelParams,
        observation: Observation,
        action: Action,
        prediction: Prediction,
        key: Key,
    ) -> Prediction:
        del key  # deterministic
        halted = penalty.apply(params, observation, action, prediction) > threshold
        return prediction._replace(
            reward=jnp.where(halted, halt_reward, prediction.reward),
            discount=jnp.where(halted, 0.0, prediction.discount),
        )

    return Adjust(apply=apply, changes_observation=False, needs_members=penalty.needs_members)


def measure(penalty: Penalty, name: str = "penalty") -> Measure:
    """The penalty of every step, beside the rollout."""

    def apply(
        params: ModelParams, observation: Observation, action: Action, prediction: Prediction
    ) -> Metrics:
        return {name: penalty.apply(params, observation, action, prediction)}

    return Measure(apply=apply, needs_members=penalty.needs_members)
