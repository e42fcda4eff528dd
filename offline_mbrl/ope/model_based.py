"""Model-based evaluation: the target policy is rolled out in a learned model (Algorithm 1 of Zhang et al., 2021,
"Autoregressive Dynamics Models for Offline Policy Evaluation and Optimization", arXiv:2104.13877).

For i = 1 .. n: start at a first observation of the data, take `horizon` steps with sampled actions and sampled
outcomes, add up `gamma^t r`; the estimate is the mean. One model serves every policy, and all policies meet the same
noise (common random numbers), so that their order is told better than their values.

Where this differs from the algorithm:

* starts are taken in turn, all of them before any a second time, instead of being drawn;
* predictions are clipped to the data's range by default (`policy_eval` of Google Research does so);
* by default each member of an ensemble rolls a share of the starts, alone and to the end;
* `stderr` has two parts, both in the diagnostics. Rollouts from one start are no independent episodes, so
  `rollout_stderr` is clustered by start; with one rollout a start it is std / sqrt(n). And members that were fitted on
  resampled data differ by what the data leave open: `member_std` is the part of their spread that neither their starts
  nor the noise of their rollouts explain. It enters as one more draw beside E would err, `sqrt(1 + 1 / E)` times it,
  and widened by Student's t over the normal quantile, because it is estimated from E members: 1.96 `stderr` is meant.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl import policies
from offline_mbrl.ope import intervals, support
from offline_mbrl.rollouts import adjust as adjustments
from offline_mbrl.rollouts import shares, unroll
from offline_mbrl.types import Array, DynamicsModel, Estimate, Metrics, Policy, PyTree, UsageError

Estimator = Callable[[PyTree, PyTree, PyTree, Array], Estimate]  # (model_params, policy_params, starts [N, ...], key)
FEWEST_ROLLOUTS = 100
ROWS_ON_CPU, ROWS_ELSEWHERE = 2**10, 2**17  # rollouts side by side


def make(
    model: DynamicsModel, policy: Policy, *, gamma: float, horizon: int, num_rollouts: int | None = None,
    adjust: adjustments.Adjust = adjustments.clip_to_data, measure: unroll.Measure = support.outside_range,
    bounds: unroll.Bounds = (-1.0, 1.0), spread: shares.Spread = shares.by_member,
    limits: support.Limits = support.Limits(),
) -> Estimator:  # fmt: skip
    """The estimator, pure: `jax.jit` it once and call it for any parameters.

    Args:
      model: a fitted ensemble's functions.
      policy: the target policy's functions; its `sample` acts.
      gamma: discount factor, in (0, 1].
      horizon: steps of a rollout; an episode's length, 1000 in the control suite.
      num_rollouts: n; the larger of 100 and the number of starts when absent. With E members and E times the starts
        every member meets every start, and `member_std` is a comparison in pairs, so less often 0 by chance.
      adjust: what becomes of each prediction, for example
        `adjust.chain(adjust.terminate(rule), adjust.clip_to_data)`.
      measure: scalars of each step; their means over steps and rollouts join the diagnostics.
      bounds: of continuous actions; None leaves them as they are.
      spread: `shares.by_member`, or `shares.jointly` where the model's own `step` chooses among its members.
      limits: of the diagnostics, for `low_support`.

    Returns:
      `(model_params, policy_params, starts [N, ...], key) -> Estimate` with `per_episode` `[n]`, of which the first N
      are of the starts in their order (see `start_of`); `many` takes several policies.

    Raises:
      UsageError: gamma, horizon or num_rollouts make no sense; when the estimator is called, the policy does not act on
        these starts or not with the model's actions.
    """
    if not 0 < gamma <= 1 or horizon < 1 or (num_rollouts is not None and num_rollouts < 2):
        raise UsageError(f"gamma must be in (0, 1], horizon at least 1 and num_rollouts at least 2, got {gamma}, "
                         f"{horizon} and {num_rollouts}")  # fmt: skip
    run = spread(model, unroll.returns(
        model, policy, gamma=gamma, horizon=horizon, adjust=adjust, measure=measure, bounds=bounds))  # fmt: skip

    def estimate(model_params: PyTree, policy_params: PyTree, starts: PyTree, key: Array) -> Estimate:
        _check(policy, policy_params, model_params, starts)
        num_starts = jax.tree.leaves(starts)[0].shape[0]
        size = max(FEWEST_ROLLOUTS, num_starts) if num_rollouts is None else num_rollouts
        num_members = model_params["elites"].shape[0] if spread is shares.by_member else 1
        start = start_of(size, num_starts, num_members)
        rolled = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32)[start], starts)
        found = run(model_params, policy_params, rolled, jax.random.split(key, size))
        error, between = rollout_stderr(found.value, start), member_std(found.value, start, num_members)
        told = {**_diagnostics(found, gamma, horizon), "rollout_stderr": error, "member_std": between}
        told["missing_ends"] = _missing_ends(model_params["statistics"], found)
        told["low_support"] = support.low_support(told, limits)
        total = jnp.sqrt(error**2 + (_widening(num_members) * between) ** 2)
        return Estimate(jnp.mean(found.value), total, found.value, told)

    return estimate


def many(estimator: Estimator, *, chunk: int | None = None) -> Estimator:
    """The estimator over policies of one kind stacked on `[P]`, in one program and with the same noise for all.

    Args:
      estimator: what `make` returned, or any other of that shape, with `per_episode`.
      chunk: policies side by side, which bounds memory; the others wait their turn. When absent, as many as have about
        1024 rollouts together on a CPU (beyond it the activations of wide models leave the caches: a masked
        autoregressive one took 1.4 times as long for ten policies of 1000 rollouts), 131,072 elsewhere.

    Returns:
      `(model_params, policy_params [P, ...], starts, key) -> Estimate`, every field `[P, ...]`.

    Raises:
      UsageError: when called: the parameters have no common leading axis.
    """

    def estimates(model_params: PyTree, policy_params: PyTree, starts: PyTree, key: Array) -> Estimate:
        sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(policy_params)}
        if len(sizes) != 1 or sizes == {()}:
            raise UsageError("policies that are evaluated together are stacked: every array of their parameters needs "
                             "the same leading axis [P]")  # fmt: skip
        one = lambda params: estimator(model_params, params, starts, key)  # noqa: E731
        side_by_side = chunk or _chunk(one, jax.tree.map(lambda leaf: leaf[0], policy_params))
        if side_by_side >= sizes.pop()[0]:
            return jax.vmap(one)(policy_params)
        return jax.lax.map(one, policy_params, batch_size=None if side_by_side == 1 else side_by_side)

    return estimates


def estimate(
    model: DynamicsModel, model_params: PyTree, policy: Policy, policy_params: PyTree, starts: PyTree, key: Array,
    **settings: Any,
) -> Estimate:  # fmt: skip
    """One policy, once: `make(model, policy, **settings)` compiled and called; keep the program to call it again."""
    return jax.jit(make(model, policy, **settings))(model_params, policy_params, starts, key)


def estimate_many(
    model: DynamicsModel, model_params: PyTree, policy: Policy, policy_params: PyTree, starts: PyTree, key: Array, *,
    chunk: int | None = None, **settings: Any,
) -> Estimate:  # fmt: skip
    """Policies of one kind stacked on `[P]`, once: `many(make(model, policy, **settings), chunk=chunk)` compiled."""
    estimator = jax.jit(many(make(model, policy, **settings), chunk=chunk))
    return estimator(model_params, policy_params, starts, key)


# --- errors of the mean ---


def start_of(num_rollouts: int, num_starts: int, num_members: int) -> np.ndarray:
    """The start `[n]` of each rollout: all N in order, then again, so shifted that a start meets other members."""
    row = np.arange(num_rollouts)
    return (row + (num_starts - 1) % num_members * (row // num_starts)) % num_starts


def rollout_stderr(returns: Array, start: np.ndarray) -> Array:
    """Standard error `[]` of the mean of `returns` `[n]` over episodes whose starts are like these.

    Deviations are added up by start before they are squared, `sqrt(N / (N - 1) sum_s (sum_i deviation_i)^2) / n`:
    several rollouts from one start tell nothing new about other starts. With a rollout a start it is std / sqrt(n), and
    with a single start (whose value is asked for) std / sqrt(n) over its rollouts.

    Args:
      returns: `[n]`.
      start: `[n]` which start each is from.
    """
    group, count = _groups(start)
    sums = jax.ops.segment_sum(returns - jnp.mean(returns), group, num_segments=count)
    return jnp.sqrt(jnp.sum(sums**2) * count / (count - 1)) / returns.shape[0]


def member_values(returns: Array, num_members: int) -> Array:
    """Each elite member's own mean return `[E]`, from `per_episode` of `shares.by_member`."""
    member = shares.member_of(returns.shape[0], num_members)
    total = lambda values: jax.ops.segment_sum(values, member, num_segments=num_members)  # noqa: E731
    return total(returns) / total(jnp.ones_like(returns))


def member_std(returns: Array, start: np.ndarray, num_members: int) -> Array:
    """Standard deviation `[]` of the members' own values; 0 for one member.

    A rollout's return is a mean plus an effect of its member, one of its start, and noise. Products of two deviations
    then have the members' variance as expectation where the two share the member but not the start, and 0 where they
    share neither: the difference of the two means is unbiased, however members and starts are paired.

    Args:
      returns: `[n]` of `shares.by_member`.
      start: `[n]` which start each is from.
      num_members: E elites.
    """
    size = returns.shape[0]
    if num_members < 2 or size < 2 * num_members:
        return jnp.zeros(())
    deviation = returns - jnp.mean(returns)
    group, count = _groups(start)
    member = shares.member_of(size, num_members)

    def squares(which: Any, num: int) -> Array:  # [2]: of the sums of a group's deviations, and of its size
        both = jnp.stack([deviation, jnp.ones_like(deviation)], axis=1)
        return jnp.sum(jax.ops.segment_sum(both, which, num_segments=num) ** 2, axis=0)

    by_member, by_start = squares(member, num_members), squares(group, count)
    by_both = squares(group * num_members + member, count * num_members)
    same, neither = by_member - by_both, jnp.array([0.0, size**2]) - by_member - by_start + by_both
    return jnp.sqrt(jnp.maximum(same[0] / same[1] - neither[0] / neither[1], 0.0))


def _widening(num_members: int) -> float:
    """What the error of the members' mean is in units of `member_std`; 1 for one member, of which nothing is known."""
    return math.sqrt(1 + 1 / num_members) * intervals.widening(num_members) if num_members > 1 else 1.0


def _groups(start: np.ndarray) -> tuple[np.ndarray, int]:
    """Rollouts by start, and the number of groups; every rollout by itself where there is but one start."""
    start = np.arange(len(start)) if len(np.unique(start)) == 1 else start
    return start, int(start.max()) + 1


# --- parts ---


def _check(policy: Policy, policy_params: PyTree, model_params: PyTree, starts: PyTree) -> None:
    """Refuses starts and policies that do not fit the model."""
    statistics = model_params["statistics"]
    wanted, taken = jnp.shape(statistics["observation_min"]), jnp.shape(statistics["action_mean"])
    if len(wanted) > 1:
        raise UsageError(f"the model's parameters have one more leading axis {wanted[:-1]}: take those of one seed, "
                         "jax.tree.map(lambda leaf: leaf[0], params)")  # fmt: skip
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(starts)]
    if len(shapes) != 1 or shapes[0][1:] != wanted or not shapes[0]:
        got = f"{shapes[0][1:]} each" if len(shapes) == 1 and shapes[0] else f"{len(shapes)} arrays or numbers"
        raise UsageError(f"starts are one array of N observations of the model's shape {wanted}, got {got}")
    if not shapes[0][0]:
        raise UsageError("starts are empty: at least one first observation is needed")
    found = policies.action_of(policy, policy_params, jax.ShapeDtypeStruct(wanted, jnp.float32))
    if found.shape != taken:
        raise UsageError(f"the policy's action has shape {found.shape}, but the model takes {taken}")
    if taken and not jnp.issubdtype(found.dtype, jnp.floating):
        raise UsageError(f"the policy's action is of {found.dtype}, but the model takes floating numbers")


def _chunk(one: Callable[[PyTree], Estimate], params: PyTree) -> int:
    rollouts = jax.eval_shape(one, params).per_episode.shape[0]
    rows = ROWS_ON_CPU if jax.default_backend() == "cpu" else ROWS_ELSEWHERE
    return max(1, rows // rollouts)


def _missing_ends(statistics: PyTree, found: unroll.Return) -> Array:
    """1 where the data have true terminals and no rollout met one: nothing then tells the model when episodes end."""
    never_ended = jnp.all(found.continuation != 0)
    return jnp.asarray(jnp.asarray(statistics.get("terminates", False)) & never_ended, jnp.float32)


def _diagnostics(found: unroll.Return, gamma: float, horizon: int) -> Metrics:
    """What there is to tell about n rollouts.

    `truncation_bound` bounds what the steps after the horizon could add for an endless task, `gamma^H / (1 - gamma)`
    times the largest reward that was met, for the share of rollouts that had not ended.
    """
    going_on = jnp.mean((found.continuation != 0) & (found.diverged == 0))
    tail = gamma**horizon / (1 - gamma) if gamma < 1 else float("inf")
    bound = jnp.where(going_on > 0, tail * going_on * jnp.max(found.largest_reward), 0.0)
    return {
        "diverged_fraction": jnp.mean(found.diverged), "terminated_fraction": jnp.mean(found.continuation == 0),
        "mean_length": jnp.mean(found.length), "truncation_bound": bound,
        **{name: jnp.mean(values) for name, values in found.measured.items()},
    }  # fmt: skip
