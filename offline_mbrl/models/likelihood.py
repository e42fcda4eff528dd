"""How likely held-out transitions are under a model, and how well its intervals are calibrated.

Negative log-likelihoods are averages over the entries that vary, in nats. They are reported in
units in which every entry's change has deviation 1 (`unit`), every entry itself has (`z`), and in
the data's own (`raw`); the three differ by constants of the training data. A mean over transitions
can be decided by a single episode: read the median too. On deterministic simulators the likelihood
has no bound but the model's lowest deviation: do not compare different floors.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from offline_mbrl.data.normalize import TransitionStatistics
from offline_mbrl.models import explicit
from offline_mbrl.types import (
    Array,
    DynamicsModel,
    MemberPredictions,
    ModelParams,
    PyTree,
    Transition,
)

CENTRAL = (0.5, 0.9)  # shares of the predictive intervals whose coverage is counted


class Summary(NamedTuple):
    """Of transitions' negative log-likelihoods per entry."""

    mean: Array
    median: Array
    p99: Array


class Likelihood(NamedTuple):
    """Of held-out transitions; E members, D entries, the reward last."""

    nll_unit: Summary  # [E]
    nll_z: Summary  # [E]
    nll_raw: Summary  # [E]
    ensemble_unit: Summary  # []   of the mixture of the members that steps are sampled from
    ensemble_z: Summary  # []
    ensemble_raw: Summary  # []
    entries_unit: Array  # [E, D] mean of each entry; NaN where it does not vary
    reward_unit: Array  # [E] its last column
    # "0.5", "0.9": [E, D] share inside that central interval; NaN where the entry does not vary
    coverage: dict[str, Array]
    # []   the lowest nll_unit that the model's bounds allow; -inf where they are unknown
    floor_unit: Array
    num_transitions: Array  # []
    num_entries: Array  # []   that vary
    num_constant: Array  # []   that do not and are left out


class _Units(NamedTuple):
    """Logarithms of the raw units of `unit` and of `z`, `[D]`."""

    unit: Array
    z: Array


class _Row(NamedTuple):
    """Figures of one transition."""

    nll: Array  # [E] sums over entries
    mixture_nll: Array  # []


class _Sums(NamedTuple):
    """Sums over transitions."""

    entries: Array  # [E, D] negative log-likelihoods
    inside: list[Array]  # [E, D] for each share of `CENTRAL`


def report(
    model: DynamicsModel,
    params: ModelParams,
    transitions: Transition,
    *,
    conditionals: Callable[[ModelParams, Transition], MemberPredictions] | None = None,
    lowest_log_std: float = -jnp.inf,
    batch_size: int = 256,
) -> Likelihood:
    """Likelihood and calibration of held-out transitions; pure, jit it.

    Args:
      model: an explicit model.
      params: its parameters.
      transitions: `[M, ...]`, kept from training (`fitting.held_out`).
      conditionals: `explicit.conditionals` of the same density and units; without it no coverage is
        counted.
      lowest_log_std: the density's lower bound, in units where the change of an entry has
        deviation 1.
      batch_size: transitions evaluated at a time; `[E + 1]` numbers are kept of each.
    """
    varies = params.statistics.varies
    num_entries = jnp.sum(varies)
    count = jnp.maximum(num_entries, 1)
    num_transitions = transitions.reward.shape[0]

    def evaluate(transition: Transition, weight: Array) -> tuple[_Row, _Sums]:
        log_prob = _log_prob(model, params, transition)
        inside = _inside(conditionals(params, transition), transition) if conditionals else []
        row = _Row(
            nll=-jnp.sum(log_prob, axis=1),
            mixture_nll=-explicit.mixture_log_prob(log_prob, params.elites),
        )
        sums = _Sums(entries=-weight * log_prob, inside=[weight * hit for hit in inside])
        return row, sums

    rows, sums = _accumulate(evaluate, transitions._replace(extras=()), batch_size)
    log_units = _log_units(params.statistics)
    unit, z = (jnp.sum(jnp.where(varies, scale, 0.0)) / count for scale in log_units)
    entries = sums.entries / num_transitions - log_units.unit[None]
    entries = jnp.where(varies[None], entries, jnp.nan)
    shares = CENTRAL if conditionals else ()
    coverage = {
        str(share): jnp.where(varies[None], hits / num_transitions, jnp.nan)
        for share, hits in zip(shares, sums.inside, strict=True)
    }
    members = _summary(rows.nll / count)
    mixture = _summary(rows.mixture_nll / count)
    return Likelihood(
        nll_unit=_shifted(members, unit),
        nll_z=_shifted(members, z),
        nll_raw=members,
        ensemble_unit=_shifted(mixture, unit),
        ensemble_z=_shifted(mixture, z),
        ensemble_raw=mixture,
        entries_unit=entries,
        reward_unit=entries[:, -1],
        coverage=coverage,
        floor_unit=jnp.asarray(lowest_log_std + 0.5 * jnp.log(2 * jnp.pi)),
        num_transitions=jnp.asarray(num_transitions),
        num_entries=num_entries,
        num_constant=jnp.sum(~varies),
    )


# --- parts ---


def _log_prob(model: DynamicsModel, params: ModelParams, transition: Transition) -> Array:
    return model.log_prob(
        params,
        transition.observation,
        transition.action,
        transition.next_observation,
        transition.reward,
    )


def _log_units(statistics: TransitionStatistics) -> _Units:
    return _Units(
        unit=jnp.log(jnp.append(statistics.delta_std, statistics.reward_std)),
        z=jnp.log(jnp.append(statistics.observation_std, statistics.reward_std)),
    )


def _inside(predictions: MemberPredictions, transition: Transition) -> list[Array]:
    """`[E, D]` for each share: 1 where the outcome lies in the central interval of its Gaussian
    conditional.
    """
    outcome = jnp.append(transition.next_observation, transition.reward)
    error = jnp.abs(outcome[None] - predictions.mean)
    widths = jax.scipy.special.ndtri(0.5 + 0.5 * jnp.asarray(CENTRAL))
    return [(error <= widths[i] * predictions.std).astype(jnp.float32) for i in range(len(CENTRAL))]


def _accumulate(
    evaluate: Callable[[Transition, Array], tuple[PyTree, PyTree]],
    transitions: Transition,
    batch_size: int,
) -> tuple[PyTree, PyTree]:
    """Rows `[M, ...]` and sums of `evaluate(transition, weight) -> (row, summand)`."""
    size = transitions.reward.shape[0]
    rows = jnp.arange(-(-size // batch_size) * batch_size).reshape(-1, batch_size)

    def evaluate_batch(sums: PyTree, rows: Array) -> tuple[PyTree, PyTree]:
        weights = (rows < size).astype(jnp.float32)
        batch = jax.tree.map(
            lambda leaf: jnp.asarray(leaf)[jnp.minimum(rows, size - 1)], transitions
        )
        kept, summands = jax.vmap(evaluate)(batch, weights)
        sums = jax.tree.map(lambda total, part: total + jnp.sum(part, axis=0), sums, summands)
        return sums, kept

    example = jax.tree.map(lambda leaf: jnp.asarray(leaf)[0], transitions)
    shapes = jax.eval_shape(evaluate, example, jnp.ones(()))[1]
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    sums, kept = jax.lax.scan(evaluate_batch, zeros, rows)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:size], kept), sums


def _summary(nll: Array) -> Summary:
    return Summary(
        mean=jnp.mean(nll, axis=0),
        median=jnp.median(nll, axis=0),
        p99=jnp.percentile(nll, 99.0, axis=0),
    )


def _shifted(summary: Summary, shift: Array) -> Summary:
    return jax.tree.map(lambda figure: figure - shift, summary)
