"""What estimators of density ratios share: `w(s, a) = d_pi(s, a) / d_D(s, a)`, and the estimate.

`d_pi` is `(1 - gamma)` times the discounted visits, so that a return is `E_D[w r] / (1 - gamma)`.
Episodes that truly terminate leave `d_pi` with less than mass one; what always holds is
`E_D[w (1 - gamma discount)] = 1 - gamma` (the flow of all visits into the start), which is
`E_D[w] = 1` where nothing terminates. Ratios are normalized by that.

Departure from the reference codes: an estimate is a mean over the batches of the last updates, each
with the ratio of its moment, instead of over fresh batches at the end; averaging the iterates
steadies a saddle point.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from offline_mbrl.ope import batches, convergence, critics
from offline_mbrl.ope.critics import FittedParams
from offline_mbrl.types import (
    Action,
    Array,
    Context,
    Estimate,
    Key,
    Observation,
    PyTree,
    Transition,
)

SMALLEST_SHARE = 0.02  # of the transitions, effectively, below which support is low
LARGEST_ERROR = 0.2  # of a normalization, above which a ratio has not been found

# (state, context, initial_observations [N, ...], key) -> estimate of one fit
ReadOut = Callable[[PyTree, Context, Observation, Key], Estimate]


class Averaging(NamedTuple):
    """How the iterates of a fit become an estimate."""

    gamma: float  # discount factor
    normalize: bool  # whether the estimate is divided by the ratio's mass
    over: float  # updates that the means look back over


class Moments(NamedTuple):
    """Running means over the last updates, and how the estimate moved."""

    ratio: Array  # [] E[w]
    mass: Array  # [] E[w (1 - gamma discount)] / (1 - gamma), 1 for the true ratio
    reward: Array  # [] E[w r]
    ratio_square: Array  # [] E[w^2]
    error_square: Array  # [] of what `stderr` is the root of, in units of r
    largest: Array  # [] largest ratio of late
    num_transitions: Array  # [] of the dataset
    convergence: convergence.Track  # of the value


def start(num_transitions: Array) -> Moments:
    """Before the first update."""
    zero = jnp.zeros(())
    return Moments(
        ratio=zero,
        mass=zero,
        reward=zero,
        ratio_square=zero,
        error_square=zero,
        largest=zero,
        num_transitions=num_transitions,
        convergence=convergence.start(),
    )


def mass(discount: Array, gamma: float) -> Array:
    """`(1 - gamma discount) / (1 - gamma)`, elementwise: 1 except at a true terminal."""
    return (1.0 - gamma * discount) / (1.0 - gamma)


def follow(
    moments: Moments, ratio: Array, transition: Transition, weights: Array, averaging: Averaging
) -> Moments:
    """The moments after one more batch.

    Args:
      moments: before it.
      ratio: `[B]` at the batch's transitions.
      transition: `[B, ...]` the batch's.
      weights: `[B]` of the transitions.
      averaging: how long the means look back, and whether they are normalized.
    """
    gamma = averaging.gamma
    masses = mass(transition.discount, gamma)
    rate = jnp.maximum(1.0 / (moments.convergence.updates + 1.0), 1.0 / averaging.over)

    def mean(old: Array, values: Array) -> Array:
        return old + rate * (batches.weighted_mean(values, weights) - old)

    moments = moments._replace(
        ratio=mean(moments.ratio, ratio),
        mass=mean(moments.mass, ratio * masses),
        reward=mean(moments.reward, ratio * transition.reward),
        ratio_square=mean(moments.ratio_square, ratio**2),
        largest=jnp.maximum((1.0 - rate) * moments.largest, jnp.max(ratio)),
    )
    center = average_reward(moments, normalize=averaging.normalize)
    center_weight = ratio * masses if averaging.normalize else 1.0
    error = ratio * transition.reward - center * center_weight
    track = convergence.follow(
        moments.convergence, center / (1.0 - gamma), over=10.0 * averaging.over
    )
    return moments._replace(
        error_square=mean(moments.error_square, error**2),
        convergence=track,
    )


def average_reward(moments: Moments, *, normalize: bool) -> Array:
    """`(1 - gamma)` times the return, `[]`."""
    return moments.reward / _nonzero_mass(moments) if normalize else moments.reward


def read_out(moments: Moments, averaging: Averaging, *, width: Array) -> Estimate:
    """The estimate of one fit.

    `stderr` takes the ratio as given and the transitions as independent; the rest shows in fits of
    several seeds, best each on its own resample of the episodes (`intervals.combine`).

    Args:
      moments: after the fit.
      averaging: as of `follow`.
      width: `[]` distance between the smallest and the largest return that is possible.
    """
    gamma = averaging.gamma
    variance = moments.error_square / moments.num_transitions
    divisor = _nonzero_mass(moments) if averaging.normalize else 1.0
    share = moments.ratio**2 / jnp.maximum(moments.ratio_square, 1e-12)
    settling = convergence.diagnostics(
        moments.convergence, needed_updates=10.0 * averaging.over, width=width
    )
    misses_mass = jnp.abs(moments.mass - 1.0) > LARGEST_ERROR
    return Estimate(
        value=average_reward(moments, normalize=averaging.normalize) / (1.0 - gamma),
        stderr=jnp.sqrt(variance) / (1.0 - gamma) / divisor,
        per_episode=None,
        diagnostics={
            "mean_ratio": moments.ratio,
            "mass": moments.mass,
            "drift": settling["drift"],
            "updates_too_few": jnp.maximum(settling["updates_too_few"], misses_mass),
            "effective_transitions": share * moments.num_transitions,
            "largest_weight": moments.largest,
            "low_support": jnp.asarray(share < SMALLEST_SHARE, jnp.float32),
        },
    )


def ratio(
    apply: critics.Critic, shape: Callable[[Array], Array]
) -> Callable[[FittedParams, Observation, Action], Array]:
    """The density ratio of a network with one output.

    Args:
      apply: the network.
      shape: its output to a ratio.

    Returns:
      `(learner.policy_params(state, context), observation, action) -> []`.
    """

    def density_ratio(params: FittedParams, observation: Observation, action: Action) -> Array:
        return shape(apply(params.network, params.scales, observation, action)[0])

    return density_ratio


def weights(
    key: Key, batch: batches.Batch, *, gamma: float, geometric: bool, bootstrap: bool
) -> tuple[Array, Array]:
    """Weights `[B]` of the transitions and of the initial observations.

    Args:
      key: of the bootstrap resample.
      batch: the batch.
      gamma: discount factor.
      geometric: weight step t by `gamma^t`: the discounted sampling that the papers assume.
      bootstrap: whether to count the episodes of a resample.
    """
    step_weights = batches.weights(key, batch.episode, bootstrap=bootstrap)
    start_counts = batches.weights(key, batch.initial_episode, bootstrap=bootstrap)
    start_weights = batch.initial_weight * start_counts
    return step_weights * gamma**batch.step if geometric else step_weights, start_weights


def _nonzero_mass(moments: Moments) -> Array:
    return jnp.where(jnp.abs(moments.mass) < 1e-6, 1e-6, moments.mass)
