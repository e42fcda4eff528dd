"""How far a target policy leaves the data: signs of five kinds, and one verdict with its reasons.

* importance weights: the effective number of episodes (`importance.effective_sample_size`);
* visits: the share of the transitions that effectively count (`visits.visited_share`);
* actions: how likely the policy's actions are under a model of the behavior, beside the data's own;
* the model: how far its members disagree along the policy's rollouts, how often a prediction leaves the data's range,
  how many rollouts diverge, and whether none ended although the data have true terminals;
* the episodes: how many of them were cut before the horizon that importance sampling adds rewards up to.

Estimators put these into `Estimate.diagnostics` by the names that `Limits` has; whatever of them is there is judged.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.types import Array, Estimate, Metrics, Policy, Prediction, PyTree, UsageError


@dataclass(frozen=True)
class Limits:
    """Where support counts as low; ours, chosen to be left alone by a policy that is the data's own."""

    effective_sample_size: float = 10.0  # episodes, at least: an interval over fewer is too narrow
    visited_share: float = 1 / 3  # of the transitions, at least; 1 for the behavior itself
    unlikely_actions: float = 0.25  # share of states, at most; 0.01 for the behavior itself
    log_ratio: float = 5.0  # nats per action entry, at most; 0 for the behavior itself
    disagreement: float = 0.5  # of members, in units of a typical change of the state, at most
    outside_fraction: float = 0.05  # of predicted entries beyond the data's range, at most
    diverged_fraction: float = 0.01  # of rollouts that are not finite, at most
    missing_ends: float = 0.5  # at most; 1 where the data have true terminals and no rollout of a model ended
    cut_fraction: float = 0.05  # of the logged episodes cut before the horizon, at most; what came after counts as 0


_AT_LEAST = ("effective_sample_size", "visited_share")  # the other limits are upper ones
_REASONS = {
    "effective_sample_size": "the importance weights leave {value:.3g} effective episodes (limit {limit:g})",
    "visited_share": "its visits rest on {value:.0%} of the data's transitions (limit {limit:.0%})",
    "unlikely_actions": "in {value:.0%} of the data's states its action is less likely under the behavior than 99 % of "
                        "the data's actions (limit {limit:.0%})",
    "log_ratio": "its actions are {value:.3g} nats per entry less likely under the behavior than under itself (limit "
                 "{limit:g})",
    "disagreement": "the models disagree by {value:.3g} of a typical step along its rollouts (limit {limit:g})",
    "outside_fraction": "{value:.1%} of the predicted state entries leave the data's range (limit {limit:.0%})",
    "diverged_fraction": "{value:.1%} of its rollouts diverged (limit {limit:.0%})",
    "missing_ends": "the data have true terminals, but none of its rollouts ended: give the model `terminate`, or "
                    "`continuation=explicit.learned_continuation(spec)`",
    "cut_fraction": "{value:.0%} of the logged episodes are cut before the horizon, and what came after counts as "
                    "nothing (limit {limit:.0%}): shorten the horizon, or use an estimator of values",
}  # fmt: skip


class Verdict(NamedTuple):
    """Whether an estimate can be trusted, in words."""

    low_support: bool
    reasons: tuple[str, ...]


def low_support(diagnostics: Metrics, limits: Limits = Limits()) -> Array:
    """1.0 where any sign that is there exceeds its limit or is NaN, else 0.0, `[...]`; runs inside jit."""
    exceeded = [_exceeded(name, jnp.asarray(diagnostics[name]), limits) for name in _known(diagnostics)]
    return jnp.asarray(jnp.any(jnp.stack(exceeded), axis=0) if exceeded else 0.0, jnp.float32)


def with_signs(estimate: Estimate, signs: Metrics, limits: Limits = Limits()) -> Estimate:
    """The estimate with these signs among its diagnostics, and `low_support` also where they say so; any axes."""
    own = estimate.diagnostics.get("low_support", jnp.zeros(()))
    low = jnp.maximum(own, low_support(signs, limits))
    return estimate._replace(diagnostics={**estimate.diagnostics, **signs, "low_support": low})


def verdict(diagnostics: Mapping[str, Any], limits: Limits = Limits()) -> Verdict:
    """The same for one estimate, with a sentence for every sign that exceeds its limit.

    An estimator's own `low_support` (importance sampling has tests of its own) counts too.

    Args:
      diagnostics: scalars by name, of one estimate of one policy. Judge several estimates one by one: they say
        different things by the same names.
      limits: by the same names.
    """
    reasons = []
    for name in _known(diagnostics):
        value = float(diagnostics[name])
        if bool(_exceeded(name, np.asarray(value), limits)):
            reasons.append(_REASONS[name].format(value=value, limit=getattr(limits, name)))
    if not reasons and float(diagnostics.get("low_support", 0.0)):
        reasons.append("the estimator itself reports low support")
    return Verdict(bool(reasons), tuple(reasons))


# --- signs ---


def disagreement(params: PyTree, observation: PyTree, action: Array, prediction: Prediction) -> Metrics:
    """A measure for rollouts: how far the elites' mean next states are apart, over the data's typical change.

    The root of the mean over entries that vary of `(std over elites / std of changes)^2`. It needs the whole ensemble
    at every step: roll out with `spread=shares.jointly`; a member alone agrees with itself.

    Args:
      params: the model's, with its `elites` and `statistics`.
      observation: before the step.
      action: taken.
      prediction: `members` are means and deviations `[E, D]` in raw units.
    """
    del observation, action
    statistics, varies = params["statistics"], params["statistics"]["varies"][:-1]
    means = prediction.members[0][params["elites"]][:, :-1]
    spread = jnp.where(varies, jnp.std(means, axis=0) / statistics["delta_std"], 0.0)
    return {"disagreement": jnp.sqrt(jnp.sum(spread**2) / jnp.maximum(jnp.sum(varies), 1))}


def outside_range(params: PyTree, observation: PyTree, action: Array, prediction: Prediction) -> Metrics:
    """A measure for rollouts: the share of predicted state entries beyond the data's smallest and largest value."""
    del observation, action
    data, following = params["statistics"], prediction.observation
    outside = (following < data["observation_min"]) | (following > data["observation_max"])
    return {"outside_fraction": jnp.mean(outside)}


def action_support(
    behavior: Policy, behavior_params: PyTree, policy: Policy, params: PyTree, observations: PyTree, actions: Array,
    key: Array,
) -> Metrics:  # fmt: skip
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
      `unlikely_actions`, the share of states in which the policy's action is less likely than 99 % of the data's
      actions are; and, if the policy has a density, `log_ratio`: the mean of `log pi(a|s) - log b(a|s)` at its own
      actions, per action entry.

    Raises:
      UsageError: the behavior has no `log_prob`.
    """
    if behavior.log_prob is None:
        raise UsageError("support of actions is told by a behavior model that has a log_prob; this one has none")
    mine = jax.vmap(policy.sample, (None, 0, 0))(params, observations, jax.random.split(key, actions.shape[0]))
    density = jax.vmap(behavior.log_prob, (None, 0, 0))
    of_data, of_mine = density(behavior_params, observations, actions), density(behavior_params, observations, mine)
    signs = {"unlikely_actions": jnp.mean(of_mine < jnp.quantile(of_data, 0.01))}
    if policy.log_prob is None:
        return signs
    entries = max(1, actions[0].size)
    return signs | {"log_ratio": jnp.mean(jax.vmap(policy.log_prob, (None, 0, 0))(params, observations, mine) - of_mine)
                    / entries}  # fmt: skip


# --- parts ---


def _known(diagnostics: Mapping[str, Any]) -> list[str]:
    return [field.name for field in fields(Limits) if field.name in diagnostics]


def _exceeded(name: str, value: Any, limits: Limits) -> Any:
    """Whether a sign is beyond its limit; NaN is."""
    limit = getattr(limits, name)
    return ~(value >= limit) if name in _AT_LEAST else ~(value <= limit)
