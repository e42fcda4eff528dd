"""How likely a model finds held-out transitions, in three units, and how well its intervals are calibrated.

Negative log-likelihoods are averages over the entries that vary, in nats. They are reported in units in which every
entry's change has deviation 1 (`unit`), every entry itself has (`z`), and in the data's own (`raw`); the three differ
by constants of the training data. A mean over transitions can be decided by a single episode: read the median too. On
deterministic simulators the likelihood has no bound but the model's lowest deviation: do not compare different floors.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from offline_mbrl.models import explicit
from offline_mbrl.types import Array, DynamicsModel, PyTree, Transition

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
    coverage: dict[str, Array]  # "0.5", "0.9": [E, D] share inside that central interval; NaN where it does not vary
    floor_unit: Array  # []   the lowest nll_unit that the model's bounds allow; -inf where none is known
    num_transitions: Array  # []
    num_entries: Array  # []   that vary
    num_constant: Array  # []   that do not and are left out


def report(
    model: DynamicsModel, params: PyTree, transitions: Transition, *,
    conditionals: Callable[[PyTree, Transition], tuple[Array, Array]] | None = None,
    lowest_log_std: float = -jnp.inf, batch_size: int = 256,
) -> Likelihood:  # fmt: skip
    """Likelihood and calibration of held-out transitions; pure, jit it.

    Args:
      model: an explicit model.
      params: its parameters.
      transitions: `[M, ...]`, kept from training (`fitting.held_out`).
      conditionals: `explicit.conditionals` of the same density and units; without it no coverage is counted.
      lowest_log_std: the density's lower bound, in units where the change of an entry has deviation 1.
      batch_size: transitions evaluated at a time; what is kept of each is `[E + 1]`.
    """
    known = params["statistics"]
    varies, count = known["varies"], jnp.maximum(jnp.sum(known["varies"]), 1)
    transitions = transitions._replace(extras=())
    shares = CENTRAL if conditionals else ()

    def of_one(transition: Transition, weight: Array) -> tuple[tuple[Array, Array], tuple[Array, list[Array]]]:
        log_prob = model.log_prob(params, *_arguments(transition))
        nll = -jnp.sum(log_prob, axis=1), -explicit.mixture_log_prob(log_prob, params["elites"])
        inside = [weight * hit for hit in _inside(conditionals(params, transition), transition)] if conditionals else []
        return nll, (-weight * log_prob, inside)

    (each, mixture), (entries, inside) = _accumulate(of_one, transitions, batch_size)
    size = transitions.reward.shape[0]
    in_unit, in_z = _log_scales(known)
    unit, z = (jnp.sum(jnp.where(varies, scale, 0.0)) / count for scale in (in_unit, in_z))
    entries = jnp.where(varies[None], entries / size - in_unit[None], jnp.nan)
    summaries = [
        jax.tree.map(lambda figure, shift=shift: figure - shift, _summary(sums / count))
        for sums in (each, mixture)
        for shift in (unit, z, 0.0)
    ]
    covered = {
        str(share): jnp.where(varies[None], hits / size, jnp.nan) for share, hits in zip(shares, inside, strict=True)
    }
    return Likelihood(
        *summaries, entries_unit=entries, reward_unit=entries[:, -1], coverage=covered,
        floor_unit=jnp.asarray(lowest_log_std + 0.5 * jnp.log(2 * jnp.pi)), num_transitions=jnp.asarray(size),
        num_entries=jnp.sum(varies), num_constant=jnp.sum(~varies))  # fmt: skip


def _arguments(transition: Transition) -> tuple[Array, Array, Array, Array]:
    return transition.observation, transition.action, transition.next_observation, transition.reward


def _log_scales(known: PyTree) -> tuple[Array, Array]:
    """Logarithms of the raw units of `unit` and of `z`, `[D]`."""
    state = (known["delta_std"], known["observation_std"])
    unit, z = (jnp.log(jnp.append(scale, known["reward_std"])) for scale in state)
    return unit, z


def _inside(conditionals: tuple[Array, Array], transition: Transition) -> list[Array]:
    """`[E, D]` for each share: 1 where what happened lies in the central interval of its Gaussian conditional."""
    means, stds = conditionals
    truth = jnp.append(transition.next_observation, transition.reward)
    width = jax.scipy.special.ndtri(0.5 + 0.5 * jnp.asarray(CENTRAL))
    return [(jnp.abs(truth[None] - means) <= width[i] * stds).astype(jnp.float32) for i in range(len(CENTRAL))]


def _accumulate(of_one: Callable, transitions: Transition, batch_size: int) -> tuple[PyTree, PyTree]:
    """Of `of_one(transition, weight) -> (kept, summed)`: what is kept of each `[M, ...]`, and the sums."""
    size = transitions.reward.shape[0]
    rows = jnp.arange(-(-size // batch_size) * batch_size).reshape(-1, batch_size)

    def batch(sums: PyTree, rows: Array) -> tuple[PyTree, PyTree]:
        weights = (rows < size).astype(jnp.float32)
        taken = jax.tree.map(lambda leaf: jnp.asarray(leaf)[jnp.minimum(rows, size - 1)], transitions)
        kept, summed = jax.vmap(of_one)(taken, weights)
        return jax.tree.map(lambda total, part: total + jnp.sum(part, axis=0), sums, summed), kept

    one = jax.tree.map(lambda leaf: jnp.asarray(leaf)[0], transitions)
    shapes = jax.eval_shape(of_one, one, jnp.ones(()))[1]
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    sums, kept = jax.lax.scan(batch, zeros, rows)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:size], kept), sums


def _summary(nll: Array) -> Summary:
    return Summary(jnp.mean(nll, axis=0), jnp.median(nll, axis=0), jnp.percentile(nll, 99.0, axis=0))
