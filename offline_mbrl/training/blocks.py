"""Many updates as one pure function of one seed, and what becomes of a seed that turns
non-finite."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.types import Array, Context, Key, Learner, Metrics, PyTree

NEVER = np.iinfo(np.int32).max


class Report(NamedTuple):
    """What one block, or one refresh, reports about one seed."""

    metrics: dict[str, Array]  # [] mean over the block
    metric_failed_at: dict[
        str, Array
    ]  # [] int32: first update with a non-finite metric, else NEVER
    leaf_failed: list[Array]  # [] bool per leaf of the state: non-finite now, finite before


def whole_batch(batch: PyTree) -> PyTree:
    """The split of a batch over one device."""
    return batch


def whole_dataset(dataset: PyTree, index: Array) -> PyTree:
    """What every update of a block draws from when the dataset is on the device."""
    del index
    return dataset


def update(
    learner: Learner,
    state: PyTree,
    context: Context,
    dataset: PyTree,
    cache: PyTree,
    key: Key,
    *,
    split: Callable[[PyTree], PyTree] = whole_batch,
) -> tuple[PyTree, Metrics]:
    """One update: sample, then step.

    Args:
      learner: the learner.
      state: its state.
      context: constants.
      dataset: what `learner.sample` draws from, beside the cache.
      cache: imagined data.
      key: consumed.
      split: applied to the batch (`sharding.split_batch`).

    Returns:
      (state, metrics).
    """
    key_sample, key_step = jax.random.split(key)
    batch = split(learner.sample(dataset, cache, key_sample))
    return learner.step(state, context, batch, key_step)


def run_block(
    learner: Learner,
    state: PyTree,
    context: Context,
    dataset: PyTree,
    cache: PyTree,
    key: Key,
    *,
    start: Array | int,
    num_steps: Array | int,
    split: Callable[[PyTree], PyTree] = whole_batch,
    pick: Callable[[PyTree, Array], PyTree] = whole_dataset,
) -> tuple[PyTree, Report]:
    """`num_steps` updates of one seed. Pure; `start` and `num_steps` may be traced.

    Args:
      learner: the learner.
      state: its state before the block.
      context: constants.
      dataset: what `learner.sample` draws from, beside the cache.
      cache: imagined data, which a block only reads.
      key: the seed's key for updates; update `t` uses `fold_in(key, t)`.
      start: [] number of updates done before.
      num_steps: [] updates to do, at least 1.
      split: applied to every batch (`sharding.split_batch`).
      pick: (dataset, number of the update in this block) -> what that update's batch is drawn from.

    Returns:
      The state after the block, and the block's report.
    """
    start = jnp.asarray(start, jnp.int32)

    # A jitted function is traced once for its shapes here and for the loop below; `inline` leaves
    # no call behind.
    def numbered_update(state: PyTree, t: Array) -> tuple[PyTree, Metrics]:
        source = pick(dataset, t - start)
        return update(
            learner, state, context, source, cache, jax.random.fold_in(key, t), split=split
        )

    step = jax.jit(numbered_update, inline=True)
    names = list(jax.eval_shape(step, state, start)[1])

    def body(t: Array, carry: tuple) -> tuple:
        state, totals, failed_at = carry
        state, metrics = step(state, t)
        metrics = {name: jnp.asarray(metrics[name], jnp.float32) for name in names}
        failing = {name: jnp.where(jnp.isfinite(metrics[name]), NEVER, t) for name in names}
        totals = jax.tree.map(jnp.add, totals, metrics)
        return state, totals, jax.tree.map(jnp.minimum, failed_at, failing)

    zero = {name: jnp.zeros((), jnp.float32) for name in names}
    never = {name: jnp.full((), NEVER, jnp.int32) for name in names}
    after, totals, failed_at = jax.lax.fori_loop(
        start, start + num_steps, body, (state, zero, never)
    )
    means = {name: total / num_steps for name, total in totals.items()}
    return after, Report(
        metrics=means, metric_failed_at=failed_at, leaf_failed=newly_nonfinite(state, after)
    )


def newly_nonfinite(before: PyTree, after: PyTree) -> list[Array]:
    """[] bool per leaf: an element is non-finite that was finite before.

    A state may hold an infinity on purpose.
    """

    def changed(old: Array, new: Array) -> Array:
        if not jnp.issubdtype(new.dtype, jnp.inexact):
            return jnp.zeros((), bool)
        return jnp.any(jnp.isfinite(old) & ~jnp.isfinite(new))

    return [
        changed(old, new)
        for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    ]


def freeze(before: PyTree, after: PyTree, alive: Array, report: Report) -> tuple[PyTree, Array]:
    """Keeps `after` for a seed that is alive and stayed finite; else puts `before` back.

    Returns:
      (state, alive).
    """
    failed = [at < NEVER for at in report.metric_failed_at.values()] + report.leaf_failed
    if failed:
        alive = alive & ~jnp.any(jnp.stack(failed))
    return jax.tree.map(lambda new, old: jnp.where(alive, new, old), after, before), alive


def validate(
    learner: Learner,
    state: PyTree,
    context: Context,
    dataset: PyTree,
    keys: Key,
    *,
    split: Callable[[PyTree], PyTree] = whole_batch,
) -> dict[str, Array]:
    """Mean of one seed's `learner.validate` over batches of held-out data, none of it imagined.

    Args:
      learner: a learner that has `validate`.
      state: its state (one seed's).
      context: constants.
      dataset: held-out data that `learner.sample` draws from.
      keys: one for each batch that is averaged over.
      split: applied to every batch (`sharding.split_batch`).

    Returns:
      [] float32 per metric.
    """
    measure = learner.validate
    assert measure is not None

    def measure_batch(key: Key) -> Metrics:
        key_sample, key_measure = jax.random.split(key)
        batch = split(learner.sample(dataset, None, key_sample))
        return measure(state, context, batch, key_measure)

    metrics = jax.lax.map(measure_batch, keys)
    return {name: jnp.mean(jnp.asarray(value, jnp.float32)) for name, value in metrics.items()}


# --- what became non-finite, in words ---


def name_failures(
    state: PyTree,
    alive: Array,
    report: Report | None,
    seeds: Sequence[int] | None,
    when: str,
    earlier: dict[int, str],
) -> dict[int, str]:
    """`earlier`, and a line for each seed that is frozen without one.

    Args:
      state: the learner's, with a leading axis [S] when seeds are given.
      alive: [S] or [].
      report: of the block or refresh that just ended; None when nothing is known.
      seeds: their numbers; None counts as the one seed 0.
      when: for the message.
      earlier: seed -> what became non-finite before.
    """
    is_alive = np.atleast_1d(jax.device_get(alive))
    numbers = [0] if seeds is None else seeds
    frozen = [
        (index, seed)
        for index, seed in enumerate(numbers)
        if not is_alive[index] and seed not in earlier
    ]
    if not frozen:
        return earlier
    report = jax.tree.map(np.atleast_1d, jax.device_get(report))
    return {
        **earlier,
        **{seed: _name_failure(state, report, index, when) for index, seed in frozen},
    }


def _name_failure(state: PyTree, report: Report | None, index: int, when: str) -> str:
    if report is None:
        return f"a figure became non-finite {when}"
    failed_at = {name: int(at[index]) for name, at in report.metric_failed_at.items()}
    earliest = min(failed_at, key=failed_at.__getitem__, default="")
    if failed_at.get(earliest, NEVER) < NEVER:
        return f"{earliest} became non-finite at update {failed_at[earliest] + 1} ({when})"
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    leaf = next(
        path for path, failed in zip(paths, report.leaf_failed, strict=True) if failed[index]
    )
    return f"state{leaf} became non-finite {when}"


def all_failed(failures: Mapping[int, str]) -> str:
    """The reason that a run ends with when no seed is left."""
    reasons = "; ".join(f"seed {seed}: {reason}" for seed, reason in failures.items())
    return f"all seeds became non-finite: {reasons}"
