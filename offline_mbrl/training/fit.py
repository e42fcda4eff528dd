"""The only training loop: blocks of many updates in one dispatch, hooks on the host between them.

Randomness depends only on (key, seed, update): seed `s` has the key `fold_in(key, s)`, and update
`t` folds `t` into its part of it. So a run that resumes from a saved `FitState` repeats the
uninterrupted one, whatever the blocks. The number of updates in a block is a traced argument, so
neither a shorter last block nor a refresh recompiles.
"""

import functools
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from offline_mbrl.training import checks, feeding, programs, sharding
from offline_mbrl.training.blocks import all_failed, name_failures
from offline_mbrl.training.feeding import Feed, Piece
from offline_mbrl.training.programs import SEEDED_CONTEXT, DeviceMemory, FitState, Programs
from offline_mbrl.training.validation import of_living, validation
from offline_mbrl.types import Context, Key, Learner, Params, PyTree, UsageError

__all__ = [
    "DeviceMemory",
    "FitResult",
    "FitState",
    "Hook",
    "Progress",
    "cache_bytes",
    "fit",
    "init",
    "keys_for",
    "policy_params",
    "template",
    "validation",
]


class Progress(NamedTuple):
    """What a hook sees after a block.

    `state.learner` is donated to the next block, `state.cache` to the next refresh: copy what
    outlives the call.
    """

    step: int  # updates done
    state: FitState
    # Mean over the block's updates, and what a refresh before them reported: [S] or []; NaN for a
    # frozen seed.
    metrics: dict[str, np.ndarray]
    failures: dict[int, str]  # seed -> which figure became non-finite, and when
    num_updates: int  # updates in this block
    seconds: float  # wall time of this block, without compilation
    block_updates: int  # the block length in use (pass it to `fit` when resuming)


class FitResult(NamedTuple):
    """How a run ended."""

    state: FitState
    failures: dict[int, str]  # seed -> which figure became non-finite; seed 0 where none was given
    stopped: str | None  # why it ended early, or None
    compile_seconds: float
    update_seconds: float  # in blocks and refreshes; hooks and compilation excluded
    num_updates: int  # updates done by this call
    flops_per_update: float | None  # of all seeds on one device, as the compiler counts
    block_updates: int


Hook = Callable[[Progress], str | None]  # a returned string stops the run and is its reason


# --- the learner's state, for one seed or many ---


def keys_for(key: Key, seeds: Sequence[int] | None) -> Key:
    """[S, 3] keys (or [3] without seeds): of init, of updates, of refreshes."""
    if seeds is None:
        return jax.random.split(key, 3)
    if not len(seeds):
        raise UsageError("seeds is empty: name at least one, or None for a single unbatched run")
    numbers = jnp.asarray(seeds, jnp.uint32)
    return jax.vmap(lambda seed: jax.random.split(jax.random.fold_in(key, seed), 3))(numbers)


def init(
    learner: Learner,
    dataset: PyTree,
    *,
    key: Key,
    seeds: Sequence[int] | None = None,
    context: Context = Context(),
) -> FitState:
    """The state of a run before its first update; pure.

    Args:
      learner: the learner.
      dataset: what `learner.sample` draws from, or a `Stream`; an example batch is drawn for
        `learner.init`.
      key: the run's key.
      seeds: S seed numbers, or None for a single unbatched state.
      context: the dataset's statistics, shared by the seeds, and what earlier stages hand on, with
        a leading axis [S] when seeds are given.

    Raises:
      UsageError: `context.upstream` lacks that axis.
    """
    checks.require_seed_axis(context, seeds)
    return programs.initialize(learner, dataset, keys_for(key, seeds), context)


def template(
    learner: Learner,
    dataset: PyTree,
    *,
    key: Key,
    seeds: Sequence[int] | None = None,
    context: Context = Context(),
) -> FitState:
    """Shapes and dtypes of `init`'s result, without computing anything.

    `checkpoint.restore` needs it. The arguments are those of `init`.
    """
    checks.require_seed_axis(context, seeds)
    learner, dataset = feeding.source(learner, dataset)

    def shapes(dataset: PyTree, key: Key, context: Context) -> FitState:
        return programs.initialize(learner, dataset, keys_for(key, seeds), context)

    return jax.eval_shape(shapes, dataset, key, context)


def cache_bytes(state: FitState) -> int:
    """Bytes of the imagined data of all seeds, from a state or its `template`."""
    return programs.tree_bytes(state.cache)


def policy_params(learner: Learner, state: FitState, context: Context = Context()) -> Params:
    """`learner.policy_params` of a run's state, over all its seeds: what a policy acts with."""
    return over_seeds(learner.policy_params, state, context)


def over_seeds(
    function: Callable[[PyTree, Context], PyTree], state: FitState, context: Context
) -> PyTree:
    """A function of one seed's (state, context), applied to all seeds of a run."""
    if not state.alive.ndim:
        return function(state.learner, context)
    return jax.vmap(function, in_axes=(0, SEEDED_CONTEXT))(state.learner, context)


# --- the loop ---


def fit(
    learner: Learner,
    dataset: PyTree,
    *,
    key: Key,
    num_updates: int,
    seeds: Sequence[int] | None = None,
    context: Context = Context(),
    start: FitState | None = None,
    failures: Mapping[int, str] | None = None,
    block_updates: int | None = None,
    block_seconds: float = 1.0,
    mesh: Mesh | None = None,
    hooks: Sequence[Hook] = (),
    announce: Callable[[DeviceMemory], None] | None = None,
) -> FitResult:
    """Trains until `num_updates` updates are done, a hook stops it, or every seed has failed.

    Args:
      learner: what to train.
      dataset: what `learner.sample` draws from; it is placed on the device(s). A `Stream` stays on
        the disk: its batches take the place of `learner.sample`'s, and `learner.refresh` has no
        dataset.
      key: the run's key. Together with `start.step` it decides all randomness.
      num_updates: updates of the whole run, those before `start` included.
      seeds: S seed numbers trained side by side by vmap; None for a single unbatched run.
      context: the dataset's statistics, and what earlier stages hand on, with a leading axis [S]
        when seeds are given.
      start: a state to resume from (of the host or the device; it is copied, not consumed); None
        starts afresh.
      failures: what is known of the seeds that failed before `start`.
      block_updates: updates between two calls of the hooks; blocks end at its multiples, at
        refreshes and at the end. None measures the learner and takes 1, 2 or 5 times a power of ten
        that lasts at most `block_seconds`.
      block_seconds: see `block_updates`.
      mesh: devices to split every batch over (`sharding.mesh`); None for one device.
      hooks: called in turn after each block. The first reason that any of them returns ends the
        run.
      announce: called once all is compiled, before the first update, with what the run will hold.

    Returns:
      The final state and how the run ended. (A block holds two states: a seed that fails gets its
      old one back. It holds the imagined data once.)

    Raises:
      UsageError: an argument, or a function of the learner, is not what it has to be; the message
        says which.
    """
    checks.require_arguments(
        learner,
        dataset,
        key=key,
        num_updates=num_updates,
        seeds=seeds,
        context=context,
        hooks=hooks,
    )
    checks.require_seed_axis(context, seeds)
    learner = checks.checked(learner)
    keys = keys_for(key, seeds)
    longest = min(num_updates, block_updates or num_updates, learner.refresh_every or num_updates)
    feed = feeding.make(learner, dataset, keys[..., 1], mesh, longest=longest)
    began = time.perf_counter()
    context = sharding.replicate(context, mesh)
    keys = sharding.replicate(keys, mesh)
    state = _placed(learner, dataset, feed, keys, context, start, mesh)
    init_seconds = time.perf_counter() - began
    compiled, compile_seconds = programs.compile_programs(feed, state, context, keys, mesh)
    if announce is not None:
        announce(compiled.memory)
    block_updates = block_updates or feeding.measure_block(
        compiled.block, feed, state, block_seconds
    )
    loop = _Loop(compiled, feed, num_updates, block_updates, seeds, tuple(hooks))
    result = _run(loop, state, dict(failures or {}))
    return result._replace(compile_seconds=init_seconds + compile_seconds)


def _placed(
    learner: Learner,
    dataset: PyTree,
    feed: Feed,
    keys: Key,
    context: Context,
    start: FitState | None,
    mesh: Mesh | None,
) -> FitState:
    """The state to start from, on the device(s), in buffers that may be donated."""
    if start is not None:
        # A copy: the caller's arrays must survive.
        return sharding.copied(sharding.replicate(start, mesh))
    drawing, source = feeding.source(learner, dataset)
    source = sharding.replicate(source, mesh) if feed.reads_ahead else feed.resident
    fresh = programs.jit(functools.partial(programs.initialize, drawing), mesh)
    state = fresh(source, keys, context)
    # One buffer (zeros shared by leaves) cannot be donated twice; the cache shares none.
    return state._replace(learner=sharding.copied(state.learner))


class _Loop(NamedTuple):
    """What stays the same from block to block."""

    programs: Programs
    feed: Feed
    num_updates: int
    block_updates: int
    seeds: Sequence[int] | None
    hooks: tuple[Hook, ...]


def _run(loop: _Loop, state: FitState, failures: dict[int, str]) -> FitResult:
    """Blocks, refreshes and hooks until the end; `compile_seconds` is for the caller to fill in."""
    first = int(state.step)
    seconds = 0.0
    stopped = None
    failures = name_failures(
        state.learner, state.alive, None, loop.seeds, "before this run was resumed", failures
    )
    plan = functools.partial(
        feeding.blocks,
        first,
        loop.num_updates,
        block_updates=loop.block_updates,
        refresh_every=loop.feed.learner.refresh_every,
        most_updates=loop.feed.most_updates,
    )
    with feeding.opened(loop.feed, itertools.chain.from_iterable(plan())) as batches:
        for block in plan():
            if stopped is None and not np.any(state.alive):
                stopped = all_failed(failures)
            if stopped is not None:
                break
            began = time.perf_counter()
            state, refreshed, failures = _refresh_when_due(loop, state, block[0].start, failures)
            state, metrics, failures = _advance(loop, state, block, batches, failures)
            elapsed = time.perf_counter() - began
            seconds += elapsed
            step = int(state.step)
            progress = Progress(
                step=step,
                state=state,
                metrics=metrics | refreshed,
                failures=failures,
                num_updates=step - block[0].start,
                seconds=elapsed,
                block_updates=loop.block_updates,
            )
            reasons = [hook(progress) for hook in loop.hooks]  # every hook is called
            stopped = next(filter(None, reasons), None)
    if stopped is None and not np.any(state.alive):
        stopped = all_failed(failures)
    return FitResult(
        state=state,
        failures=failures,
        stopped=stopped,
        compile_seconds=0.0,
        update_seconds=seconds,
        num_updates=int(state.step) - first,
        flops_per_update=loop.programs.flops,
        block_updates=loop.block_updates,
    )


def _refresh_when_due(
    loop: _Loop, state: FitState, step: int, failures: dict[int, str]
) -> tuple[FitState, dict[str, np.ndarray], dict[int, str]]:
    """The state after the refresh before update `step`, its metrics, and the failures by then."""
    if loop.programs.refresh is None or step % loop.feed.learner.refresh_every:
        return state, {}, failures
    state, report, metrics = loop.programs.refresh(state, loop.feed.resident)
    when = f"in the refresh after update {step}"
    failures = name_failures(state.learner, state.alive, report, loop.seeds, when, failures)
    values, alive = jax.device_get((dict(metrics), state.alive))
    return state, of_living(values, alive), failures


def _advance(
    loop: _Loop,
    state: FitState,
    block: list[Piece],
    batches: Iterator[PyTree],
    failures: dict[int, str],
) -> tuple[FitState, dict[str, np.ndarray], dict[int, str]]:
    """One block, piece by piece until no seed is left: state, mean metrics, failures by then."""
    counts = []
    means = []
    alive = np.asarray(True)
    for piece in block:
        num_updates = piece.stop - piece.start
        state, report = loop.programs.block(state, next(batches), np.int32(num_updates))
        report, alive = jax.device_get((report, state.alive))
        when = f"between updates {piece.start} and {piece.stop}"
        failures = name_failures(state.learner, alive, report, loop.seeds, when, failures)
        counts.append(num_updates)
        means.append(report.metrics)
        if not alive.any():
            break
    merged = {
        name: np.average([mean[name] for mean in means], axis=0, weights=counts)
        for name in means[0]
    }
    return state, of_living(merged, alive), failures
