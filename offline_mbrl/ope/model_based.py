"""Model-based evaluation: the target policy is rolled out in a learned model.

Algorithm 1 of Zhang et al., 2021, "Autoregressive Dynamics Models for Offline Policy Evaluation and
Optimization", arXiv:2104.13877: for i = 1 .. n, start at a first observation of the data, take
`horizon` steps with sampled actions and sampled outcomes, add up `gamma^t r`; the estimate is the
mean. One model serves every policy, and all policies meet the same noise (common random numbers),
so that their order is more certain than their values.

Where this differs from the algorithm:

* starts are taken in turn, all of them before any a second time, instead of being drawn;
* predictions are clipped to the data's range by default (`policy_eval` of Google Research does so);
* by default each member of an ensemble rolls a share of the starts, alone and to the end;
* `stderr` has two parts, both in the diagnostics. Rollouts from one start are not independent
  episodes, so `rollout_stderr` is clustered by start; with one rollout a start it is std / sqrt(n).
  And members that were fitted on resampled data differ by what the data leave open: `member_std` is
  the part of their spread that neither their starts nor the noise of their rollouts explain, and at
  least half of its variance, because a few members do not tell how much noise explains. It is
  scaled by `sqrt(1 + 1/E)`, the predictive error of one further member, and by
  `t_{0.975,E-1} / z_{0.975}`, so that `value ± 1.96 * stderr` is a nominal 95 % interval.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from offline_mbrl import policies
from offline_mbrl.ope import errors, rollout_errors, support
from offline_mbrl.rollouts import adjust as adjustments
from offline_mbrl.rollouts import shares, unroll
from offline_mbrl.rollouts.step import Bounds, Measure
from offline_mbrl.types import (
    Actor,
    Array,
    DynamicsModel,
    Estimate,
    Key,
    Metrics,
    ModelParams,
    Observation,
    Params,
    Policy,
    UsageError,
)

# (model params, policy params, starts [N, ...], key) -> estimate
Estimator = Callable[[Params, Params, Observation, Key], Estimate]
MIN_ROLLOUTS = 100
ROWS_ON_CPU = 2**10  # rollouts side by side
ROWS_ELSEWHERE = 2**17


def _single_member(params: Params) -> int:
    del params
    return 1


def _terminals_unknown(params: Params) -> Array:
    del params
    return jnp.array(False)


def _no_check(params: Params, policy_params: Params, starts: Observation) -> None:
    del params, policy_params, starts


class Rollouts(NamedTuple):
    """Discounted returns in any kind of model, and what their errors are computed from.

    `explicit_rollouts` makes those in explicit models. For others `apply` is enough: a function of
    one start that returns a `unroll.Return`, mapped over starts and keys.
    """

    # (model params, policy params, starts [n, ...], keys [n]) -> unroll.Return of [n]
    apply: Callable[[Params, Params, Observation, Key], unroll.Return]
    tail: float  # what an endless task can add per unit of reward: gamma^horizon / (1 - gamma)
    # (model params) -> members that are rolled out separately, in turn
    num_members: Callable[[Params], int] = _single_member
    # (model params) -> [] bool, whether the data have true terminals
    terminates: Callable[[Params], Array] = _terminals_unknown
    # (model params, policy params, starts): raises a UsageError where they do not fit
    check: Callable[[Params, Params, Observation], None] = _no_check


def explicit_rollouts(
    model: DynamicsModel,
    policy: Policy | Actor,
    *,
    gamma: float,
    horizon: int,
    adjust: adjustments.Adjust = adjustments.clip_to_data,
    measure: Measure = support.outside_range,
    bounds: Bounds = (-1.0, 1.0),
    spread: shares.Spread = shares.by_member,
) -> Rollouts:
    """Rollouts of a policy in an explicit model.

    Args:
      model: a fitted ensemble's functions.
      policy: the target policy's functions; its sampled actions are taken.
      gamma: discount factor, in (0, 1].
      horizon: steps of a rollout; an episode's length, 1000 in the control suite.
      adjust: what becomes of each prediction, for example
        `adjust.chain(adjust.terminate(rule), adjust.clip_to_data)`.
      measure: scalars of each step; their means over steps and rollouts join the diagnostics.
      bounds: of continuous actions; None leaves them as they are.
      spread: `shares.by_member`, or `shares.jointly` where the model's own `step` chooses among
        its members.

    Raises:
      UsageError: gamma or horizon is out of range; when called: the policy does not act on these
        starts or not with the model's actions.
    """
    if not 0 < gamma <= 1 or horizon < 1:
        raise UsageError(
            "model-based evaluation: gamma must be in (0, 1] and horizon at least 1, got "
            f"{gamma} and {horizon}"
        )
    returns = unroll.returns(
        model,
        policy,
        gamma=gamma,
        horizon=horizon,
        adjust=adjust,
        measure=measure,
        bounds=bounds,
    )

    def check(params: ModelParams, policy_params: Params, starts: Observation) -> None:
        _check_fits(policy, policy_params, params, starts)

    return Rollouts(
        apply=spread.apply(model, returns),
        tail=gamma**horizon / (1 - gamma) if gamma < 1 else float("inf"),
        num_members=spread.num_members,
        terminates=_data_terminate,
        check=check,
    )


def make(
    rollouts: Rollouts,
    *,
    num_rollouts: int | None = None,
    limits: support.Limits = support.Limits(),
) -> Estimator:
    """The estimator, pure: `jax.jit` it once and call it for any parameters.

    Args:
      rollouts: of a policy in a model.
      num_rollouts: n; None: the larger of 100 and the number of starts. With E members and E times
        the starts every member meets every start, and `member_std` is a comparison in pairs, in
        which starts cancel.
      limits: of the diagnostics, for `low_support`.

    Returns:
      `(model_params, policy_params, starts [N, ...], key) -> Estimate` with `per_episode` `[n]`, of
      which the first N are of the starts in their order (`rollout_errors.start_of`); `many` takes
      several policies.

    Raises:
      UsageError: num_rollouts is below 2; when the estimator is called, as `rollouts.check`.
    """
    if num_rollouts is not None and num_rollouts < 2:
        raise UsageError(
            f"model-based evaluation: num_rollouts must be at least 2, got {num_rollouts}"
        )

    def estimate(
        model_params: Params, policy_params: Params, starts: Observation, key: Key
    ) -> Estimate:
        rollouts.check(model_params, policy_params, starts)
        num_starts = jax.tree.leaves(starts)[0].shape[0]
        size = max(MIN_ROLLOUTS, num_starts) if num_rollouts is None else num_rollouts
        num_members = rollouts.num_members(model_params)
        start = rollout_errors.start_of(size, num_starts, num_members)
        rolled = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32)[start], starts)
        keys = jax.random.split(key, size)
        returns = rollouts.apply(model_params, policy_params, rolled, keys)
        sampling_stderr = rollout_errors.rollout_stderr(returns.value, start)
        between_member_std = rollout_errors.member_std(returns.value, start, num_members)
        member_stderr = rollout_errors.member_factor(num_members) * between_member_std
        diagnostics = {
            **_diagnostics(returns, rollouts.tail),
            "rollout_stderr": sampling_stderr,
            "member_std": between_member_std,
            "missing_ends": _missing_ends(rollouts.terminates(model_params), returns),
        }
        diagnostics["low_support"] = support.low_support(diagnostics, limits)
        return Estimate(
            value=jnp.mean(returns.value),
            stderr=jnp.sqrt(sampling_stderr**2 + member_stderr**2),
            per_episode=returns.value,
            diagnostics=diagnostics,
            errors={
                **rollout_errors.by_start(returns.value, start),
                errors.MEMBERS: rollout_errors.by_member(
                    returns.value, num_members, stderr=member_stderr
                ),
            },
        )

    return estimate


def many(estimator: Estimator, *, chunk: int | None = None) -> Estimator:
    """The estimator over policies of one kind, in one program and with the same noise for all.

    Args:
      estimator: what `make` returned, or any other of that shape, with `per_episode`.
      chunk: policies side by side, which bounds memory; the others wait their turn. None: as many
        as have about 1024 rollouts together on a CPU (beyond it the activations of wide models
        leave the caches: a masked autoregressive one took 1.4 times as long for ten policies of
        1000 rollouts), 131,072 elsewhere.

    Returns:
      `(model_params, policy_params [P, ...], starts, key) -> Estimate`, every field `[P, ...]`.

    Raises:
      UsageError: when called: the parameters have no common leading axis.
    """

    def estimates(
        model_params: Params, policy_params: Params, starts: Observation, key: Key
    ) -> Estimate:
        sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(policy_params)}
        if len(sizes) != 1 or sizes == {()}:
            raise UsageError(
                "policies that are evaluated together are stacked: every array of their "
                "parameters needs the same leading axis [P]"
            )
        ((num_policies,),) = sizes

        def single_policy(params: Params) -> Estimate:
            return estimator(model_params, params, starts, key)

        first = jax.tree.map(lambda leaf: leaf[0], policy_params)
        side_by_side = chunk or _default_chunk(single_policy, first)
        if side_by_side >= num_policies:
            return jax.vmap(single_policy)(policy_params)
        batch_size = None if side_by_side == 1 else side_by_side
        return jax.lax.map(single_policy, policy_params, batch_size=batch_size)

    return estimates


# --- parts ---


def _check_fits(
    policy: Policy | Actor, policy_params: Params, params: ModelParams, starts: Observation
) -> None:
    """Refuses starts and policies that do not fit an explicit model."""
    expected = jnp.shape(params.statistics.observation_min)
    expected_action = jnp.shape(params.statistics.action_mean)
    if len(expected) > 1:
        raise UsageError(
            f"the model's parameters have one more leading axis {expected[:-1]}: take those of one "
            "seed, jax.tree.map(lambda leaf: leaf[0], params)"
        )
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(starts)]
    if len(shapes) != 1 or shapes[0][1:] != expected or not shapes[0]:
        is_array = len(shapes) == 1 and shapes[0]
        actual = f"{shapes[0][1:]} each" if is_array else f"{len(shapes)} arrays or numbers"
        raise UsageError(
            f"starts are one array of N observations of the model's shape {expected}, got {actual}"
        )
    if not shapes[0][0]:
        raise UsageError("starts are empty: at least one first observation is needed")
    observation = jax.ShapeDtypeStruct(expected, jnp.float32)
    action = policies.action_of(policy, policy_params, observation)
    if action.shape != expected_action:
        raise UsageError(
            f"the policy's action has shape {action.shape}, but the model takes {expected_action}"
        )
    if expected_action and not jnp.issubdtype(action.dtype, jnp.floating):
        raise UsageError(
            f"the policy's action is of {action.dtype}, but the model takes floating numbers"
        )


def _default_chunk(single_policy: Callable[[Params], Estimate], params: Params) -> int:
    per_episode = jax.eval_shape(single_policy, params).per_episode
    rows = ROWS_ON_CPU if jax.default_backend() == "cpu" else ROWS_ELSEWHERE
    return max(1, rows // per_episode.shape[0])


def _data_terminate(params: ModelParams) -> Array:
    return jnp.asarray(params.statistics.terminates)


def _missing_ends(terminates: Array, returns: unroll.Return) -> Array:
    """1 where the data have true terminals and no rollout met one.

    Nothing then tells the model when episodes end.
    """
    never_ended = jnp.all(returns.continuation != 0)
    return jnp.asarray(terminates & never_ended, jnp.float32)


def _diagnostics(returns: unroll.Return, tail: float) -> Metrics:
    """Means over n rollouts.

    `truncation_bound` bounds what the steps after the horizon could add for an endless task: `tail`
    times the largest reward that was met, for the share of rollouts that had not ended.
    """
    unfinished = jnp.mean((returns.continuation != 0) & (returns.diverged == 0))
    bound = jnp.where(unfinished > 0, tail * unfinished * jnp.max(returns.largest_reward), 0.0)
    return {
        "diverged_fraction": jnp.mean(returns.diverged),
        "terminated_fraction": jnp.mean(returns.continuation == 0),
        "mean_length": jnp.mean(returns.length),
        "undiscounted": jnp.mean(returns.undiscounted),
        "truncation_bound": bound,
        **{name: jnp.mean(values) for name, values in returns.measured.items()},
    }
