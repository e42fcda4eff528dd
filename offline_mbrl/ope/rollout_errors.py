"""Standard errors of mean returns over rollouts that share starts and members of an ensemble."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.ope import errors, intervals
from offline_mbrl.rollouts import shares
from offline_mbrl.types import Array, Metrics

LEAST_MEMBER_SHARE = 0.5  # of the variance between members' mean returns, never taken for noise


def start_of(num_rollouts: int, num_starts: int, num_members: int) -> np.ndarray:
    """The start of each rollout: all N in order, then again, shifted to meet other members.

    Args:
      num_rollouts: n.
      num_starts: N.
      num_members: E, to which rollouts are dealt in turn.

    Returns:
      `[n]` integers in `0 .. N - 1`.
    """
    row = np.arange(num_rollouts)
    shift = (num_starts - 1) % num_members
    return (row + shift * (row // num_starts)) % num_starts


def rollout_stderr(returns: Array, start: np.ndarray) -> Array:
    """Standard error `[]` of the mean of the returns over episodes whose starts are like these.

    Deviations are added up by start before they are squared,
    `sqrt(N / (N - 1) sum_s (sum_i deviation_i)^2) / n`: several rollouts from one start add nothing
    about other starts. With a rollout a start it is std / sqrt(n), and with a single start (whose
    value is then meant) std / sqrt(n) over its rollouts.

    Args:
      returns: `[n]`.
      start: `[n]` the start of each.
    """
    (by_cluster,) = by_start(returns, start).values()
    return jnp.linalg.norm(by_cluster)


def by_start(returns: Array, start: np.ndarray) -> Metrics:
    """What each start adds to the error whose size is `rollout_stderr`; see `ope.errors`.

    Args:
      returns: `[n]`.
      start: `[n]` the start of each.

    Returns:
      `[N]` by its source: the starts are the first observations of the logged episodes, in their
      order. With a single start the rollouts themselves, `[n]`.
    """
    cluster, count = clusters_of(start)
    source = errors.EPISODES if count == int(start.max()) + 1 else errors.ROLLOUTS
    sums = jax.ops.segment_sum(returns - jnp.mean(returns), cluster, num_segments=count)
    return {source: sums * math.sqrt(count / (count - 1)) / returns.shape[0]}


def by_member(returns: Array, num_members: int, *, stderr: Array) -> Array:
    """What each member adds to the error `[E]`, which together has this size.

    Args:
      returns: `[n]` of `shares.by_member`.
      num_members: E elites.
      stderr: `[]` of the members' mean.
    """
    if num_members < 2:
        return jnp.zeros(num_members)
    values = member_values(returns, num_members)
    return errors.of_size(values - jnp.mean(values), stderr)


def member_values(returns: Array, num_members: int) -> Array:
    """Each elite member's own mean return `[E]`, from `per_episode` of `shares.by_member`."""
    member = shares.member_of(returns.shape[0], num_members)
    totals = jax.ops.segment_sum(returns, member, num_segments=num_members)
    return totals / jax.ops.segment_sum(jnp.ones_like(returns), member, num_segments=num_members)


def member_std(returns: Array, start: np.ndarray, num_members: int) -> Array:
    """Standard deviation `[]` of the members' own values; 0 for one member.

    A rollout's return is a mean plus an effect of its member, one of its start, and noise. Products
    of two deviations then have the members' variance as expectation where the two share the member
    but not the start, and 0 where they share neither: the difference of the two means is unbiased,
    however members and starts are paired. It is the variance R between the members' mean returns
    less what starts and noise add to it, n, and by chance negative. With few members R itself is
    hardly known (its law is `(sigma^2 + n) chi^2_{E-1} / (E - 1)`), so at most half of it counts as
    noise: `sigma^2 = max(R - n, R / 2)`. Of normal returns of 4 members, intervals of 95 % then
    hold the truth in at least 93 %, whatever sigma^2 / n is; cut at 0 instead, in 84 % where
    sigma^2 = n, and R as it is would hold it in at least 95 % and be a third wider there.

    Args:
      returns: `[n]` of `shares.by_member`.
      start: `[n]` the start of each.
      num_members: E elites.
    """
    size = returns.shape[0]
    if num_members < 2 or size < 2 * num_members:
        return jnp.zeros(())
    deviation = returns - jnp.mean(returns)
    cluster, count = clusters_of(start)
    member = shares.member_of(size, num_members)
    columns = jnp.stack([deviation, jnp.ones_like(deviation)], axis=1)

    def squares(group: Any, num_groups: int) -> Array:
        """`[2]`: sums of squares of the groups' sums of deviations, and of their sizes."""
        sums = jax.ops.segment_sum(columns, group, num_segments=num_groups)
        return jnp.sum(sums**2, axis=0)

    by_member = squares(member, num_members)
    by_start = squares(cluster, count)
    by_both = squares(cluster * num_members + member, count * num_members)
    same_member = by_member - by_both
    neither = jnp.array([0.0, size**2]) - by_member - by_start + by_both
    variance = same_member[0] / same_member[1] - neither[0] / neither[1]
    raw_variance = jnp.var(member_values(returns, num_members), ddof=1)
    return jnp.sqrt(jnp.maximum(variance, LEAST_MEMBER_SHARE * raw_variance))


def member_factor(num_members: int) -> float:
    """The error of the members' mean in units of `member_std`.

    The predictive error of one further member, `sqrt(1 + 1/E)`, widened by Student's t over the
    normal quantile because `member_std` is estimated from E members; 1 for one member.
    """
    if num_members < 2:
        return 1.0
    return math.sqrt(1 + 1 / num_members) * intervals.widening(num_members)


def clusters_of(start: np.ndarray) -> tuple[np.ndarray, int]:
    """One cluster a start; with a single start every rollout is its own.

    Returns:
      (`[n]` cluster of each rollout, number of clusters).
    """
    if len(np.unique(start)) == 1:
        return np.arange(len(start)), len(start)
    return start, int(start.max()) + 1
