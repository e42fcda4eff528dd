"""How the members of an explicit model are judged on held-out transitions: lower is better."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from offline_mbrl.models.densities import coordinates
from offline_mbrl.types import Array, DynamicsModel, ModelParams, Transition

BATCH_SIZE = 256  # held-out transitions that are evaluated at a time


class Score(NamedTuple):
    """A figure of each member, and when it counts as better."""

    # (model, params, held-out transitions [M, ...]) -> [E]
    evaluate: Callable[[DynamicsModel, ModelParams, Transition], Array]
    # (score [E], best so far [E]) -> [E] bool
    improved: Callable[[Array, Array], Array]


def median_nll(threshold: float = 0.0) -> Score:
    """Median over transitions of the mean negative log-likelihood of an entry, in raw units.

    Args:
      threshold: by how much a better score is lower, in nats.
    """

    def evaluate(model: DynamicsModel, params: ModelParams, transitions: Transition) -> Array:
        mask = judged_mask(params, transitions)  # [M, D]
        log_prob = log_probs(model, params, transitions)  # [M, E, D]
        sums = -jnp.sum(jnp.where(mask[:, None], log_prob, 0.0), axis=2)
        nll = sums / jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)  # [M, E]
        is_judged = jnp.any(mask, axis=1)
        median = jnp.nanmedian(jnp.where(is_judged[:, None], nll, jnp.nan), axis=0)
        # A member that failed must not be judged by the transitions where it did not.
        failed = jnp.any(jnp.isnan(nll), axis=0)
        return jnp.where(failed, jnp.nan, jnp.where(jnp.any(is_judged), median, 0.0))

    def improved(score: Array, best: Array) -> Array:
        return score < best - threshold

    return Score(evaluate=evaluate, improved=improved)


def squared_error(threshold: float = 0.01, *, units: coordinates.Units = coordinates.raw) -> Score:
    """Mean squared error of each member's mean, in these units.

    For densities whose entries are independent: the means are those beside a sampled outcome.

    Args:
      threshold: fraction of the best score by which a better one is lower.
      units: of the errors.
    """

    def evaluate(model: DynamicsModel, params: ModelParams, transitions: Transition) -> Array:
        scale = units(params.statistics)[1]
        mask = judged_mask(params, transitions)

        def transition_error(row: tuple[Transition, Array]) -> Array:
            transition, row_mask = row
            key = jax.random.key(0)  # of a sample that is not used
            _, prediction = model.step(params, transition.observation, transition.action, key)
            assert prediction.members is not None
            outcome = jnp.append(transition.next_observation, transition.reward)
            error = (prediction.members.mean - outcome[None]) / scale[None]
            return jnp.sum(jnp.where(row_mask, jnp.square(error), 0.0), axis=1)

        rows = (transitions._replace(extras=()), mask)
        errors = jax.lax.map(transition_error, rows, batch_size=BATCH_SIZE)
        return jnp.sum(errors, axis=0) / jnp.maximum(jnp.sum(mask), 1)

    def improved(score: Array, best: Array) -> Array:
        return score < best * (1.0 - threshold)

    return Score(evaluate=evaluate, improved=improved)


def always_improved(score: Score) -> Score:
    """The same figure, where every evaluation counts as better: the last weights are kept."""

    def improved(score: Array, best: Array) -> Array:
        del best
        return jnp.ones_like(score, bool)

    return score._replace(improved=improved)


def judged_mask(params: ModelParams, transitions: Transition) -> Array:
    """`[M, D]` bool: the entries that are judged, those that vary and are observed."""
    observed = jax.vmap(coordinates.observed_mask)(transitions._replace(extras=()))
    return observed & params.statistics.varies[None]


def log_probs(model: DynamicsModel, params: ModelParams, transitions: Transition) -> Array:
    """`model.log_prob` of transitions `[M, ...]`, a batch at a time: `[M, E, D]`."""

    def log_prob(transition: Transition) -> Array:
        return model.log_prob(
            params,
            transition.observation,
            transition.action,
            transition.next_observation,
            transition.reward,
        )

    return jax.lax.map(log_prob, transitions._replace(extras=()), batch_size=BATCH_SIZE)
