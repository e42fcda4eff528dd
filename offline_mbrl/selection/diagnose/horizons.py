"""How a model's error grows with the horizon: it replays logged actions from logged states.

The prediction for h steps is the mean of several sampled rollouts from one start. Its error is
compared with that of two predictions that need no model: the data's mean, and the state at the
start. A rollout that the model ends, or that diverges, stays where it stopped.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.data import memory
from offline_mbrl.rollouts.unroll import unroll
from offline_mbrl.types import (
    Action,
    Actor,
    Array,
    DynamicsModel,
    Key,
    ModelParams,
    Observation,
    Params,
    PyTree,
    Trajectory,
)

CHUNK = 32  # windows that are replayed side by side
STEPS = (1, 2, 3, 5)  # of each power of ten


class HorizonErrors(NamedTuple):
    """Of predictions 1 .. H steps ahead.

    Errors of observations are in standard deviations of the training data, and only entries that
    vary count. A row is NaN where no window is as long.
    """

    num_windows: np.ndarray  # [H] whose logged episode goes on for h steps
    error: np.ndarray  # [H] root mean square over windows and entries
    median_error: np.ndarray  # [H] median over windows of the root mean square over entries
    entries: np.ndarray  # [H, n] root mean square over windows; NaN where an entry never varies
    mean_error: np.ndarray  # [H] of the data's mean as the prediction
    unchanged_error: np.ndarray  # [H] of the state at the start as the prediction
    return_bias: np.ndarray  # [H] mean of the model's minus the logged discounted return
    return_error: np.ndarray  # [H] root mean square of that difference
    return_std: np.ndarray  # [H] standard deviation of the logged returns
    ended: np.ndarray  # [H] share of rollouts that ended or diverged before the logged episode
    diverged: np.ndarray  # [H] share of rollouts that are not finite


class _Chunk(NamedTuple):
    """Of C windows."""

    valid: Array  # [C, H]
    squares: Array  # [C, H, n] of the model's errors
    mean_square: Array  # [C, H]
    unchanged_square: Array  # [C, H]
    imagined_return: Array  # [C, H]
    logged_return: Array  # [C, H]
    ended: Array  # [C, H]
    diverged: Array  # [C, H]


def log_spaced(longest: int) -> tuple[int, ...]:
    """1, 2, 3, 5, 10, 20, ... up to `longest`, which is the last."""
    powers = range(len(str(longest)))
    steps = [step * 10**power for power in powers for step in STEPS]
    return (*[step for step in steps if step < longest], longest)


def trusted_steps(errors: HorizonErrors) -> int:
    """The most steps up to which the model's error stays below that of the data's mean."""
    worse = np.flatnonzero(~(errors.error <= errors.mean_error) & (errors.num_windows > 0))
    return int(worse[0]) if worse.size else int(np.count_nonzero(errors.num_windows))


def replayer() -> Actor:
    """The actor that plays its parameters: actions `[T, ...]` one after the other."""

    def init(params: Params, observation: Observation, key: Key) -> PyTree:
        del params, observation, key
        return jnp.zeros((), jnp.int32)

    def act(
        params: Params, carry: PyTree, observation: Observation, key: Key
    ) -> tuple[Action, PyTree]:
        del observation, key
        return params[carry], carry + 1

    return Actor(init=init, act=act)


def start_rows(dataset: memory.Dataset, num_windows: int, seed: int) -> np.ndarray:
    """Rows where windows start: up to half of them where episodes do, the others anywhere.

    Args:
      dataset: on the host; windows start at rows of `starts`.
      num_windows: at most so many rows.
      seed: of the choice.
    """
    rng = np.random.default_rng([seed, 17])
    rows = np.asarray(dataset.starts)
    before = np.concatenate([[-1], np.unique(np.asarray(dataset.episode_end))])
    first = rows[np.isin(rows - 1, before)]
    first = rng.permutation(first)[: max(num_windows // 2, 1)]
    others = rng.permutation(np.setdiff1d(rows, first))[: num_windows - len(first)]
    return np.sort(np.concatenate([first, others])).astype(np.int32)


def horizon_errors(
    model: DynamicsModel,
    params: ModelParams,
    dataset: memory.Dataset,
    key: Key,
    *,
    gamma: float,
    horizon: int = 1_000,
    num_windows: int = 128,
    num_rollouts: int = 4,
    seed: int = 0,
) -> HorizonErrors:
    """Errors of predictions 1 .. H steps ahead, H at most the longest window of the data.

    Args:
      model: an explicit model, as it is rolled out.
      params: its parameters.
      dataset: on the host; its `starts` are the transitions to judge by.
      key: consumed.
      gamma: discount factor of returns.
      horizon: the most steps.
      num_windows: starts of rollouts.
      num_rollouts: from each start, whose mean is the prediction.
      seed: of the choice of starts.
    """
    rows = start_rows(dataset, num_windows, seed)
    longest = int(np.max(np.asarray(dataset.episode_end)[rows] - rows))
    sampler = memory.Windows(batch_size=len(rows), length=min(horizon, longest))
    host = jax.tree.map(np.asarray, dataset._replace(extras=()))
    windows = sampler.gather(host, rows)
    padded = -(-len(rows) // CHUNK) * CHUNK
    order = np.arange(padded) % len(rows)  # the last chunk is as long as the others
    chunks = []
    for index, part in enumerate(order.reshape(-1, CHUNK)):
        chunk = jax.tree.map(lambda leaf, part=part: leaf[part], windows)
        keys = jax.random.split(jax.random.fold_in(key, index), CHUNK)
        chunks.append(jax.device_get(_replayed(model, num_rollouts, gamma, params, chunk, keys)))
    merged = jax.tree.map(lambda *parts: np.concatenate(parts)[: len(rows)], *chunks)
    return _summary(merged, np.asarray(params.statistics.varies)[:-1])


@functools.partial(jax.jit, static_argnums=(0, 1))  # compiled once for all sources of a model
def _replayed(
    model: DynamicsModel,
    num_rollouts: int,
    gamma: float,
    params: ModelParams,
    windows: Trajectory,
    keys: Key,
) -> _Chunk:
    """Errors of C windows, H steps each."""
    rollout = unroll(model, replayer(), horizon=windows.reward.shape[1], bounds=None)
    over_rollouts = jax.vmap(rollout, (None, None, None, 0))

    def of_window(window: Trajectory, key: Key) -> _Chunk:
        start = window.observation[0]
        keys = jax.random.split(key, num_rollouts)
        imagined = over_rollouts(params, window.action, start, keys)
        truth = window.observation[1:]
        predicted = jnp.mean(imagined.observation[:, 1:], axis=0)
        statistics = params.statistics
        varies = statistics.varies[:-1]

        def squared(prediction: Array) -> Array:
            """`[H, n]` from predictions `[H, n]` or `[1, n]`."""
            error = (prediction - truth) / statistics.observation_std[None]
            return jnp.where(varies[None], jnp.square(error), 0.0)

        count = jnp.maximum(jnp.sum(varies), 1)
        weights = gamma ** jnp.arange(window.reward.shape[0])
        return _Chunk(
            valid=_is_judged(window),
            squares=squared(predicted),
            mean_square=jnp.sum(squared(statistics.observation_mean[None]), axis=1) / count,
            unchanged_square=jnp.sum(squared(start[None]), axis=1) / count,
            imagined_return=jnp.mean(jnp.cumsum(weights[None] * imagined.reward, axis=1), axis=0),
            logged_return=jnp.cumsum(weights * window.reward),
            ended=jnp.mean(1.0 - imagined.mask, axis=0),
            diverged=jnp.mean(imagined.extras["diverged"], axis=0),
        )

    return jax.vmap(of_window)(windows, keys)


def _is_judged(window: Trajectory) -> Array:
    """`[H]` bool: the step happened and is not a terminal one whose outcome is unknown."""
    is_copy = jnp.all(window.observation[1:] == window.observation[:-1], axis=1)
    return (window.mask > 0) & ~(is_copy & (window.discount == 0))


def _summary(windows: Any, varies: np.ndarray) -> HorizonErrors:
    """The figures of all windows, a `_Chunk` on the host."""
    valid = windows.valid
    num_windows = valid.sum(axis=0)
    no_window = num_windows == 0

    def mean(values: np.ndarray) -> np.ndarray:
        """`[H]` of `[W, H]`, over the windows that count."""
        totals = np.where(valid, values, 0.0).sum(axis=0, dtype=np.float64)
        return np.where(no_window, np.nan, totals / np.maximum(num_windows, 1))

    per_entry = np.stack(
        [mean(windows.squares[:, :, entry]) for entry in range(varies.size)], axis=1
    )
    per_window = windows.squares.sum(axis=2) / max(varies.sum(), 1)
    masked = np.ma.masked_array(np.sqrt(per_window), mask=~valid)
    bias = mean(windows.imagined_return - windows.logged_return)
    logged = mean(windows.logged_return)
    return HorizonErrors(
        num_windows=num_windows,
        error=np.sqrt(mean(per_window)),
        median_error=np.asarray(np.ma.median(masked, axis=0).filled(np.nan)),
        entries=np.where(varies, np.sqrt(per_entry), np.nan),
        mean_error=np.sqrt(mean(windows.mean_square)),
        unchanged_error=np.sqrt(mean(windows.unchanged_square)),
        return_bias=bias,
        return_error=np.sqrt(mean((windows.imagined_return - windows.logged_return) ** 2)),
        return_std=np.sqrt(mean((windows.logged_return - logged) ** 2)),
        ended=mean(windows.ended),
        diverged=mean(windows.diverged),
    )
