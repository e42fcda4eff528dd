"""True errors of one step beside the penalties that stand for them, and how well they agree.

A penalty is of use where it ranks transitions as their true errors do: Spearman's correlation is 1
for any increasing function of the error, in whatever units, and 0 for a penalty that knows nothing.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.data import memory
from offline_mbrl.models.densities import coordinates
from offline_mbrl.models.scores import BATCH_SIZE, judged_mask
from offline_mbrl.rollouts import pessimism
from offline_mbrl.rollouts.pessimism import Penalty
from offline_mbrl.selection.diagnose import ranks
from offline_mbrl.selection.diagnose.ranks import Correlation
from offline_mbrl.types import (
    Array,
    DynamicsModel,
    Key,
    ModelParams,
    Prediction,
    Transition,
)


class OneStep(NamedTuple):
    """Of M transitions."""

    rows: np.ndarray  # [M] which of the given transitions they are
    observation: np.ndarray  # [M, n]
    error: np.ndarray  # [M] root mean square over entries, in deviations of their changes
    penalties: dict[str, np.ndarray]  # by name, [M]
    skipped: tuple[str, ...]  # penalties of members, where the model predicts none


def one_step(
    model: DynamicsModel,
    params: ModelParams,
    transitions: Transition,
    penalties: Mapping[str, Penalty],
    key: Key,
    *,
    num_draws: int = 8,
) -> OneStep:
    """True errors and penalties.

    The error is that of the mean of `num_draws` sampled outcomes, reward included; penalties are
    those of the first of them.

    Args:
      model: an explicit model.
      params: its parameters.
      transitions: `[M, ...]`; those whose outcome is unknown are left out.
      penalties: by name.
      key: consumed.
      num_draws: sampled outcomes of each transition.
    """
    transitions = jax.tree.map(jnp.asarray, transitions._replace(extras=()))
    rows = _with_outcome(params, transitions)
    transitions = jax.tree.map(lambda leaf: leaf[rows], transitions)
    has_members = _has_members(model, params, transitions, key)
    usable = {
        name: rule for name, rule in penalties.items() if has_members or not rule.needs_members
    }

    error, values = jax.device_get(
        _judged(model, tuple(usable.items()), num_draws, params, transitions, key)
    )
    return OneStep(
        rows=rows,
        observation=np.asarray(transitions.observation),
        error=error,
        penalties={name: values[name] for name in usable},
        skipped=tuple(name for name in penalties if name not in usable),
    )


def penalties_of(
    model: DynamicsModel,
    params: ModelParams,
    dataset: memory.Dataset,
    *,
    num_points: int = 2_000,
    seed: int = 0,
) -> dict[str, Penalty]:
    """`PENALTIES`, the model's own likelihood, and the distance from the data it was fitted to.

    Args:
      model: an explicit model.
      params: its parameters.
      dataset: that the model was fitted to, on the host.
      num_points: at most so many of its steps, to which distances are measured.
      seed: of their choice.
    """
    rng = np.random.default_rng([seed, 37])
    rows = rng.permutation(np.asarray(dataset.starts))[:num_points]
    points = np.concatenate(
        [np.asarray(column)[rows] for column in (dataset.observation, dataset.action)], axis=1
    )
    scale = jnp.append(params.statistics.observation_std, params.statistics.action_std)
    return {
        **pessimism.PENALTIES,
        "nearest_data": pessimism.nearest_data(jnp.asarray(points), scale),
        "own_likelihood": pessimism.own_likelihood(model),
    }


def rank_correlations(
    steps: OneStep, episode: np.ndarray, key: Key, *, num_replicates: int = ranks.NUM_REPLICATES
) -> dict[str, Correlation]:
    """Spearman's correlation of each penalty with the true error; NaN where either is constant.

    Args:
      steps: of M transitions.
      episode: which episode each of the transitions belongs to that `one_step` was given.
      key: consumed, by the resampling of episodes.
      num_replicates: resamples of the episodes.
    """
    own = np.asarray(episode)[steps.rows]
    return {
        name: ranks.correlation(values, steps.error, own, key, num_replicates=num_replicates)
        for name, values in steps.penalties.items()
    }


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _judged(
    model: DynamicsModel,
    penalties: tuple[tuple[str, Penalty], ...],
    num_draws: int,
    params: ModelParams,
    transitions: Transition,
    key: Key,
) -> tuple[Array, dict[str, Array]]:
    """Errors `[M]`, and penalties `[M]` by name."""
    scale = coordinates.unit_variance(params.statistics)[1]
    varies = params.statistics.varies
    draws = jax.vmap(model.step, (None, None, None, 0))

    def of_transition(row: tuple[Transition, Key]) -> tuple[Array, dict[str, Array]]:
        transition, key = row
        state = model.reset(params, transition.observation, key)
        _, outcomes = draws(params, state, transition.action, jax.random.split(key, num_draws))
        first = jax.tree.map(lambda leaf: leaf[0], outcomes)
        mean = jnp.append(jnp.mean(outcomes.observation, axis=0), jnp.mean(outcomes.reward))
        truth = jnp.append(transition.next_observation, transition.reward)
        squares = jnp.where(varies, jnp.square((mean - truth) / scale), 0.0)
        values = {
            name: rule.apply(params, transition.observation, transition.action, first)
            for name, rule in penalties
        }
        return jnp.sqrt(jnp.sum(squares) / jnp.maximum(jnp.sum(varies), 1)), values

    keys = jax.random.split(key, transitions.reward.shape[0])
    return jax.lax.map(of_transition, (transitions, keys), batch_size=BATCH_SIZE)


def _has_members(
    model: DynamicsModel, params: ModelParams, transitions: Transition, key: Key
) -> bool:
    def step(params: ModelParams, transitions: Transition, key: Key) -> Prediction:
        first = jax.tree.map(lambda leaf: leaf[0], transitions)
        state = model.reset(params, first.observation, key)
        return model.step(params, state, first.action, key)[1]

    return jax.eval_shape(step, params, transitions, key).members is not None


def best_penalty(correlations: Mapping[str, Correlation]) -> tuple[str, Correlation] | None:
    """The penalty of the highest rank correlation, and that; None where none is a number.

    It is picked by the transitions that measure it, which favors it a little.
    """
    finite = {name: rank for name, rank in correlations.items() if np.isfinite(rank.value)}
    return max(finite.items(), key=lambda item: item[1].value) if finite else None


def _with_outcome(params: ModelParams, transitions: Transition) -> np.ndarray:
    """The rows of those of which more than the reward is known."""
    varies = np.asarray(params.statistics.varies)
    mask = np.asarray(judged_mask(params, transitions))
    return np.flatnonzero(mask.sum(axis=1) == varies.sum())
