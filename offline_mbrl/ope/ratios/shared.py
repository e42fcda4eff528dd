"""What estimators of density ratios share: `w(s, a) = d_pi(s, a) / d_D(s, a)`, and the estimate made of it.

`d_pi` is `(1 - gamma)` times the discounted visits, so that a return is `E_D[w r] / (1 - gamma)`. Episodes that truly
terminate leave `d_pi` with less than mass one; what always holds is `E_D[w (1 - gamma discount)] = 1 - gamma` (the
flow of all visits into the start), which is `E_D[w] = 1` where nothing terminates. Ratios are normalized by that.

Departure from the reference codes: an estimate is a mean over the batches of the last updates, each with the ratio
of its moment, instead of over fresh batches at the end; averaging the iterates steadies a saddle point.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from offline_mbrl.ope import batches, convergence, critics
from offline_mbrl.types import Array, Estimate, PyTree, Transition

SMALLEST_SHARE = 0.02  # of the transitions, effectively, below which support is low
LARGEST_ERROR = 0.2  # of a normalization, above which a ratio has not been found


class Moments(NamedTuple):
    """Running means over the last updates, and how the estimate moved."""

    ratio: Array  # [] E[w]
    mass: Array  # [] E[w (1 - gamma discount)] / (1 - gamma), 1 for the true ratio
    reward: Array  # [] E[w r]
    ratio_square: Array  # [] E[w^2]
    error_square: Array  # [] of what `stderr` is the root of, in units of r
    largest: Array  # [] largest ratio of late
    num_transitions: Array  # [] of the dataset
    track: convergence.Track  # of the value


def start(num_transitions: Array) -> Moments:
    """Before the first update."""
    zero = jnp.zeros(())
    return Moments(zero, zero, zero, zero, zero, zero, num_transitions, convergence.start())


def mass(discount: Array, gamma: float) -> Array:
    """`(1 - gamma discount) / (1 - gamma)`, elementwise: 1 except at a true terminal."""
    return (1.0 - gamma * discount) / (1.0 - gamma)


def follow(moments: Moments, ratio: Array, transition: Transition, weights: Array, *, gamma: float, normalize: bool,
           over: float) -> Moments:  # fmt: skip
    """The moments after one more batch.

    Args:
      moments: before it.
      ratio: `[B]` at the batch's transitions.
      transition: `[B, ...]` the batch's.
      weights: `[B]` of the transitions.
      gamma: discount factor.
      normalize: whether the estimate is divided by the ratio's mass.
      over: updates that the means look back over.
    """
    each = mass(transition.discount, gamma)
    rate = jnp.maximum(1.0 / (moments.track.updates + 1.0), 1.0 / over)
    mean = lambda old, values: old + rate * (batches.weighted_mean(values, weights) - old)  # noqa: E731
    moments = moments._replace(
        ratio=mean(moments.ratio, ratio), mass=mean(moments.mass, ratio * each),
        reward=mean(moments.reward, ratio * transition.reward),
        ratio_square=mean(moments.ratio_square, ratio**2),
        largest=jnp.maximum((1.0 - rate) * moments.largest, jnp.max(ratio)))  # fmt: skip
    center = average_reward(moments, normalize=normalize)
    error = ratio * transition.reward - center * (ratio * each if normalize else 1.0)
    return moments._replace(
        error_square=mean(moments.error_square, error**2),
        track=convergence.follow(moments.track, center / (1.0 - gamma), over=10.0 * over))  # fmt: skip


def average_reward(moments: Moments, *, normalize: bool) -> Array:
    """`(1 - gamma)` times the return, `[]`."""
    return moments.reward / _mass(moments) if normalize else moments.reward


def read_out(moments: Moments, *, gamma: float, normalize: bool, over: float, width: Array) -> Estimate:
    """The estimate of one fit.

    `stderr` takes the ratio as given and the transitions as independent; the rest is seen by fitting several seeds,
    best each on its own resample of the episodes (`combine`).

    Args:
      moments: after the fit.
      gamma: discount factor.
      normalize: as of `follow`.
      over: as of `follow`.
      width: `[]` between the smallest and the largest return that there can be.
    """
    variance = moments.error_square / moments.num_transitions
    stderr = jnp.sqrt(variance) / (1.0 - gamma) / (_mass(moments) if normalize else 1.0)
    value = average_reward(moments, normalize=normalize) / (1.0 - gamma)
    share = moments.ratio**2 / jnp.maximum(moments.ratio_square, 1e-12)
    found = convergence.diagnostics(moments.track, needed_updates=10.0 * over, width=width)
    astray = jnp.abs(moments.mass - 1.0) > LARGEST_ERROR
    none: Any = ()
    return Estimate(value, stderr, none, {
        "mean_ratio": moments.ratio, "mass": moments.mass, "drift": found["drift"],
        "updates_too_few": jnp.maximum(found["updates_too_few"], astray),
        "effective_transitions": share * moments.num_transitions, "largest_weight": moments.largest,
        "low_support": jnp.asarray(share < SMALLEST_SHARE, jnp.float32)})  # fmt: skip


def ratio(apply: critics.Critic, shape: Callable[[Array], Array]) -> Callable[[Mapping, PyTree, Array], Array]:
    """`(policy_params, observation, action) -> []` of a network whose one output `shape` makes a ratio of."""

    def one(params: Mapping, observation: PyTree, action: Array) -> Array:
        return shape(apply(params["network"], params["scales"], observation, action)[0])

    return one


def width(scales: Mapping, gamma: float) -> Array:
    """`[]` between the smallest and the largest return that there can be."""
    return (scales["high"] - scales["low"]) / (1.0 - gamma)


def _mass(moments: Moments) -> Array:
    return jnp.where(jnp.abs(moments.mass) < 1e-6, 1e-6, moments.mass)


def weights(key: Array, batch: batches.Batch, *, gamma: float, geometric: bool, bootstrap: bool) -> tuple[Array, Array]:
    """`[B]` weights of the transitions and of the initial observations.

    Args:
      key: of the bootstrap resample.
      batch: the batch.
      gamma: discount factor.
      geometric: weigh step t by `gamma^t`: the discounted sampling that the papers assume.
      bootstrap: whether to count the episodes of a resample.
    """
    of_steps = batches.weights(key, batch.episode, bootstrap=bootstrap)
    of_starts = batch.initial_weight * batches.weights(key, batch.initial_episode, bootstrap=bootstrap)
    return of_steps * gamma**batch.step if geometric else of_steps, of_starts
