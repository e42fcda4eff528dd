"""How far a target policy leaves the data: five kinds of signs, and one verdict with its reasons.

* importance weights: the effective number of episodes (`weights.diagnostics`), and how far weights
  that are not normalized are from a mean of 1;
* visits: the share of the transitions that effectively count (`visits.visited_share`);
* actions: how likely the policy's actions are under a model of the behavior, beside the data's own;
* the model: how far its members disagree along the policy's rollouts, how often a prediction leaves
  the data's range, how many rollouts diverge, and whether none ended although the data have true
  terminals;
* the episodes: how many of them were cut before the horizon that importance sampling adds rewards
  up to.

Estimators put these into `Estimate.diagnostics` by the names of the fields of `Limits`; a verdict
judges those that are present.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl import policies
from offline_mbrl.rollouts.step import Measure
from offline_mbrl.types import (
    Action,
    Array,
    Estimate,
    Key,
    Metrics,
    ModelParams,
    Observation,
    Params,
    Policy,
    Prediction,
    UsageError,
)


@dataclass(frozen=True)
class Limits:
    """Where support counts as low; ours, chosen so that the data's own policy passes."""

    # Episodes, at least: an interval over fewer is too narrow.
    effective_sample_size: float = 10.0
    # Of the mean weight from 1, at most: a reward that is always paid is counted so much too often.
    weight_error: float = 0.25
    visited_share: float = 1 / 3  # of the transitions, at least; 1 for the behavior itself
    unlikely_actions: float = 0.25  # share of states, at most; 0.01 for the behavior itself
    log_ratio: float = 5.0  # nats per action entry, at most; 0 for the behavior itself
    disagreement: float = 0.5  # of members, in units of a typical change of the state, at most
    outside_fraction: float = 0.05  # of predicted entries beyond the data's range, at most
    diverged_fraction: float = 0.01  # of rollouts that are not finite, at most
    # At most; 1 where the data have true terminals and no rollout of a model ended.
    missing_ends: float = 0.5
    # Of the logged episodes cut before the horizon, at most; what came after counts as 0.
    cut_fraction: float = 0.05


_LOWER_LIMITS = ("effective_sample_size", "visited_share")  # the others are upper ones
_REASONS = {
    "effective_sample_size": (
        "the importance weights leave {value:.3g} effective episodes (limit {limit:g})"
    ),
    "weight_error": (
        "the mean importance weight is {value:.0%} off 1 (limit {limit:.0%}), so that the estimate "
        "changes with what rewards are counted from: use a self-normalized one"
    ),
    "visited_share": "its visits rest on {value:.0%} of the data's transitions (limit {limit:.0%})",
    "unlikely_actions": (
        "in {value:.0%} of the data's states its action is less likely under the behavior than "
        "99 % of the data's actions (limit {limit:.0%})"
    ),
    "log_ratio": (
        "its actions are {value:.3g} nats per entry less likely under the behavior than under "
        "itself (limit {limit:g})"
    ),
    "disagreement": (
        "the models disagree by {value:.3g} of a typical step along its rollouts (limit {limit:g})"
    ),
    "outside_fraction": (
        "{value:.1%} of the predicted state entries leave the data's range (limit {limit:.0%})"
    ),
    "diverged_fraction": "{value:.1%} of its rollouts diverged (limit {limit:.0%})",
    "missing_ends": (
        "the data have true terminals, but none of its rollouts ended: give the model `terminate`, "
        "or `continuation=explicit.learned_continuation(spec)`"
    ),
    "cut_fraction": (
        "{value:.0%} of the logged episodes are cut before the horizon, and what came after counts "
        "as nothing (limit {limit:.0%}): shorten the horizon, or use an estimator of values"
    ),
}


class Verdict(NamedTuple):
    """Whether an estimate can be trusted, in words."""

    low_support: bool
    reasons: tuple[str, ...]


def low_support(diagnostics: Metrics, limits: Limits = Limits()) -> Array:
    """1.0 where a sign among the diagnostics exceeds its limit or is NaN, else 0.0.

    Args:
      diagnostics: `[...]` by name.
      limits: by the same names.

    Returns:
      `[...]` float32; runs inside jit.
    """
    exceeded = [
        _exceeds(name, jnp.asarray(diagnostics[name]), limits) for name in _signs_among(diagnostics)
    ]
    return jnp.asarray(jnp.any(jnp.stack(exceeded), axis=0) if exceeded else 0.0, jnp.float32)


def with_signs(estimate: Estimate, signs: Metrics, limits: Limits = Limits()) -> Estimate:
    """The estimate with these signs among its diagnostics.

    `low_support` is raised where a sign exceeds its limit and never lowered.

    Args:
      estimate: any leading axes.
      signs: of the same axes.
      limits: by the same names.
    """
    own = estimate.diagnostics.get("low_support", jnp.zeros(()))
    low = jnp.maximum(own, low_support(signs, limits))
    return estimate._replace(diagnostics={**estimate.diagnostics, **signs, "low_support": low})


def verdict(diagnostics: Mapping[str, Any], limits: Limits = Limits()) -> Verdict:
    """The same for one estimate, with a sentence for every sign that exceeds its limit.

    An estimator's own `low_support` (importance sampling has tests of its own) counts too.

    Args:
      diagnostics: scalars by name, of one estimate of one policy. Judge several estimates one by
        one: the same names mean different things.
      limits: by the same names.
    """
    reasons = []
    for name in _signs_among(diagnostics):
        value = float(diagnostics[name])
        if bool(_exceeds(name, np.asarray(value), limits)):
            reasons.append(_REASONS[name].format(value=value, limit=getattr(limits, name)))
    if not reasons and float(diagnostics.get("low_support", 0.0)):
        reasons.append("the estimator itself reports low support")
    return Verdict(low_support=bool(reasons), reasons=tuple(reasons))


# --- signs ---


def _disagreement(
    params: ModelParams, observation: Observation, action: Action, prediction: Prediction
) -> Metrics:
    """The root of the mean over entries that vary of `(std over elites / std of changes)^2`."""
    del observation, action
    statistics = params.statistics
    varies = statistics.varies[:-1]
    assert prediction.members is not None  # the measure needs members
    means = prediction.members.mean[params.elites][:, :-1]
    spread = jnp.where(varies, jnp.std(means, axis=0) / statistics.delta_std, 0.0)
    return {"disagreement": jnp.sqrt(jnp.sum(spread**2) / jnp.maximum(jnp.sum(varies), 1))}


def _outside_range(
    params: ModelParams, observation: Observation, action: Action, prediction: Prediction
) -> Metrics:
    del observation, action
    data = params.statistics
    following = prediction.observation
    outside = (following < data.observation_min) | (following > data.observation_max)
    return {"outside_fraction": jnp.mean(outside)}


# A measure of rollouts: how far the elites' mean next states are apart, over the data's typical
# change. It needs the whole ensemble at every step (`spread=shares.jointly`).
disagreement = Measure(apply=_disagreement, needs_members=True)

# A measure of rollouts: the share of predicted state entries beyond the data's smallest and largest
# value.
outside_range = Measure(apply=_outside_range)


def action_support(
    behavior: Policy,
    behavior_params: Params,
    policy: Policy,
    params: Params,
    observations: Observation,
    actions: Action,
    key: Key,
) -> Metrics:
    """How likely a policy's actions are under a model of the behavior, at states of the data.

    Args:
      behavior: with `log_prob`, for example cloned from the data.
      behavior_params: its parameters.
      policy: the target policy.
      params: its parameters.
      observations: `[N, ...]` of the data.
      actions: `[N, ...]` of the data at these.
      key: of the policy's noise.

    Returns:
      `unlikely_actions`, the share of states in which the policy's action is less likely than 99 %
      of the data's actions are; and, if the policy has a density, `log_ratio`: the mean of
      `log pi(a|s) - log b(a|s)` at its own actions, per action entry.

    Raises:
      UsageError: the behavior has no `log_prob`, or a policy has a memory.
    """
    behavior = policies.require_memoryless(behavior, "action_support")
    policy = policies.require_memoryless(policy, "action_support")
    if behavior.log_prob is None:
        raise UsageError(
            "the support of actions is measured by a behavior model that has a log_prob; this one "
            "has none"
        )
    keys = jax.random.split(key, actions.shape[0])
    sampled = jax.vmap(policy.sample, (None, 0, 0))(params, observations, keys)
    density = jax.vmap(behavior.log_prob, (None, 0, 0))
    data_log_prob = density(behavior_params, observations, actions)
    sampled_log_prob = density(behavior_params, observations, sampled)
    threshold = jnp.quantile(data_log_prob, 0.01)
    signs = {"unlikely_actions": jnp.mean(sampled_log_prob < threshold)}
    if policy.log_prob is None:
        return signs
    own_log_prob = jax.vmap(policy.log_prob, (None, 0, 0))(params, observations, sampled)
    num_entries = max(1, actions[0].size)
    return signs | {"log_ratio": jnp.mean(own_log_prob - sampled_log_prob) / num_entries}


# --- parts ---


def _signs_among(diagnostics: Mapping[str, Any]) -> list[str]:
    return [field.name for field in fields(Limits) if field.name in diagnostics]


def _exceeds(name: str, value: Any, limits: Limits) -> Any:
    """Whether a sign is beyond its limit; NaN is."""
    limit = getattr(limits, name)
    return ~(value >= limit) if name in _LOWER_LIMITS else ~(value <= limit)
