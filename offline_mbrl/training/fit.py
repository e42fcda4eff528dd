"""The only training loop: blocks of many updates in one dispatch, hooks on the host between them.

Randomness depends only on (key, seed, update): seed `s` has the key `fold_in(key, s)`, and update `t` folds `t` into
its part of it. So a run that starts again from a saved `FitState` repeats the uninterrupted one, whatever the blocks.
The number of updates in a block is a traced argument, so neither a shorter last block nor a refresh recompiles.
"""

import functools
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from offline_mbrl.training import feeding, sharding
from offline_mbrl.training.blocks import Report, all_failed, freeze, name_failures, newly_nonfinite, run_block, validate
from offline_mbrl.training.feeding import Feed, Piece
from offline_mbrl.types import Array, Learner, PyTree, UsageError


class FitState(NamedTuple):
    """Everything a run needs to go on, apart from its key."""

    learner: PyTree  # the learner's state; every leaf has a leading axis [S] when seeds are given
    alive: Array  # [S], or [] without seeds: false once the seed became non-finite and was frozen
    step: Array  # [] int32 updates done


class Progress(NamedTuple):
    """What a hook sees after a block. `state` is donated to the next block: copy what outlives the call."""

    step: int  # updates done
    state: FitState
    metrics: dict[str, np.ndarray]  # mean over the block's updates, [S] or []; NaN for a frozen seed
    failures: dict[int, str]  # seed -> which figure became non-finite, and when
    num_updates: int  # updates in this block
    seconds: float  # wall time of this block, without compilation
    block_updates: int  # the block length in use (pass it to `fit` when resuming)


class FitResult(NamedTuple):
    """How a run ended."""

    state: FitState
    failures: dict[int, str]  # seed -> which figure became non-finite, and when; seed 0 where none was given
    stopped: str | None  # why it ended early, or None
    compile_seconds: float
    update_seconds: float  # in blocks and refreshes; hooks and compilation excluded
    num_updates: int  # updates done by this call
    flops_per_update: float | None  # of all seeds on one device, as the compiler counts; None where it does not
    block_updates: int


Hook = Callable[[Progress], str | None]  # a returned string stops the run and is its reason


def keys_for(key: Array, seeds: Sequence[int] | None) -> Array:
    """[S, 3] keys (or [3] without seeds): of init, of updates, of refreshes."""
    if seeds is None:
        return jax.random.split(key, 3)
    if not len(seeds):
        raise UsageError("seeds is empty: name at least one, or None for a single unbatched run")
    return jax.vmap(lambda seed: jax.random.split(jax.random.fold_in(key, seed), 3))(jnp.asarray(seeds, jnp.uint32))


# --- the learner's state, for one seed or many ---


def init(
    learner: Learner, dataset: PyTree, *, key: Array, seeds: Sequence[int] | None = None, statistics: PyTree = (),
    given: PyTree = (),
) -> FitState:  # fmt: skip
    """The state of a run before its first update; pure, so `jax.eval_shape` of it gives a template to restore into.

    Args:
      learner: the learner.
      dataset: what `learner.sample` draws from, or a `Stream`; an example batch is drawn for `learner.init`.
      key: the run's key.
      seeds: S seed numbers, or None for a single unbatched state.
      statistics: the dataset's statistics, shared by the seeds.
      given: what earlier stages hand on; with a leading axis [S] when seeds are given.

    Raises:
      UsageError: `given` lacks that axis.
    """
    _check_given(given, seeds)
    learner, dataset = feeding.drawn(learner, dataset)

    def one(keys: Array, given: PyTree) -> PyTree:
        key_sample, key_init = jax.random.split(keys[0])
        return learner.init(key_init, learner.sample(dataset, key_sample), statistics, given)

    many = one if seeds is None else jax.vmap(one)
    state = many(keys_for(key, seeds), given)
    return FitState(state, jnp.ones(() if seeds is None else (len(seeds),), bool), jnp.zeros((), jnp.int32))


def _check_given(given: PyTree, seeds: Sequence[int] | None) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(given if seeds is not None else ()):
        if jnp.shape(leaf)[:1] != (len(seeds or ()),):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise UsageError(f"with {len(seeds or ())} seeds every array of `given` has a leading axis of that length, "
                             f"one entry a seed, but {name} has shape {jnp.shape(leaf)}: stack it")  # fmt: skip


def template(
    learner: Learner, dataset: PyTree, *, key: Array, seeds: Sequence[int] | None = None, statistics: PyTree = (),
    given: PyTree = (),
) -> FitState:  # fmt: skip
    """Shapes and dtypes of `init`'s result, without computing anything: what `checkpoint.restore` needs."""
    learner, dataset = feeding.drawn(learner, dataset)
    return jax.eval_shape(
        lambda dataset, key, statistics, given: init(
            learner, dataset, key=key, seeds=seeds, statistics=statistics, given=given),
        dataset, key, statistics, given)  # fmt: skip


def policy_params(learner: Learner, state: FitState) -> PyTree:
    """`learner.policy_params` of a run's state, over all its seeds: what a policy acts with and a next stage gets."""
    return (jax.vmap(learner.policy_params) if state.alive.ndim else learner.policy_params)(state.learner)


# --- the loop ---


def fit(
    learner: Learner, dataset: PyTree, *, key: Array, num_updates: int, seeds: Sequence[int] | None = None,
    statistics: PyTree = (), given: PyTree = (), start: FitState | None = None,
    failures: Mapping[int, str] | None = None, block_updates: int | None = None, block_seconds: float = 1.0,
    mesh: Mesh | None = None, hooks: Sequence[Hook] = (),
) -> FitResult:  # fmt: skip
    """Trains until `num_updates` updates are done, a hook stops it, or every seed has failed.

    Args:
      learner: what to train.
      dataset: what `learner.sample` draws from; it is placed on the device(s). A `Stream` stays on the disk: its
        batches take the place of `learner.sample`'s, and `learner.refresh` has no dataset.
      key: the run's key. Together with `start.step` it decides all randomness.
      num_updates: updates of the whole run, those before `start` included.
      seeds: S seed numbers trained side by side by vmap; None for a single unbatched run.
      statistics: the dataset's statistics, handed to `learner.init`.
      given: what earlier stages hand on, with a leading axis [S] when seeds are given.
      start: a state to go on from (of the host or the device; it is copied, not consumed); None starts afresh.
      failures: what is known of the seeds that failed before `start`.
      block_updates: updates between two calls of the hooks; blocks end at its multiples, at refreshes and at the
        end. None measures the learner and takes 1, 2 or 5 times a power of ten that lasts at most `block_seconds`.
      block_seconds: see `block_updates`.
      mesh: devices to split every batch over (`sharding.mesh`); None for one device.
      hooks: called in turn after each block. The first reason that any of them returns ends the run.

    Returns:
      The final state and how the run ended. (A block holds two states: a seed that fails gets its old one back.)
    """
    programs, feed, state, compile_seconds = _prepare(
        learner, dataset, key=key, seeds=seeds, statistics=statistics, given=given, start=start, mesh=mesh,
        longest=min(num_updates, block_updates or num_updates, learner.refresh_every or num_updates))  # fmt: skip
    block_updates = block_updates or feeding.measure_block(programs.block, feed, state, block_seconds)
    first, seconds, stopped = int(state.step), 0.0, None
    failures = name_failures(
        state.learner, state.alive, None, seeds, "before this run went on", dict(failures or {}))  # fmt: skip
    plan = functools.partial(
        feeding.blocks, first, num_updates, block_updates=block_updates, refresh_every=learner.refresh_every,
        most_updates=feed.most_updates)  # fmt: skip
    with feeding.opened(feed, itertools.chain.from_iterable(plan())) as batches:
        for block in plan():
            if not np.any(state.alive):
                stopped = all_failed(failures)
            if stopped is not None:
                break
            began, step = time.perf_counter(), block[0].start
            if programs.refresh and step % learner.refresh_every == 0:
                state, report = programs.refresh(state, feed.resident, np.int32(0))
                when = f"in the refresh after update {step}"
                failures = name_failures(state.learner, state.alive, report, seeds, when, failures)
            state, metrics, failures = _advance(programs.block, state, block, batches, seeds, failures)
            elapsed, step = time.perf_counter() - began, int(state.step)
            seconds += elapsed
            progress = Progress(step, state, metrics, failures, step - block[0].start, elapsed, block_updates)
            stopped = next(filter(None, [hook(progress) for hook in hooks]), None)  # every hook is called
            if stopped is None and not np.any(state.alive):
                stopped = all_failed(failures)
    return FitResult(
        state=state, failures=failures, stopped=stopped, compile_seconds=compile_seconds, update_seconds=seconds,
        num_updates=int(state.step) - first, flops_per_update=programs.flops, block_updates=block_updates)  # fmt: skip


def _advance(
    run: Callable, state: FitState, block: list[Piece], batches: Iterator[PyTree], seeds: Sequence[int] | None,
    failures: dict[int, str],
) -> tuple[FitState, dict[str, np.ndarray], dict[int, str]]:  # fmt: skip
    """One block, piece by piece until no seed is left: the state, the mean metrics, and the failures known by then."""
    counts, means, alive = [], [], np.asarray(True)
    for piece in block:
        state, report = run(state, next(batches), np.int32(piece.stop - piece.start))
        report, alive = jax.device_get((report, state.alive))
        when = f"between updates {piece.start} and {piece.stop}"
        failures = name_failures(state.learner, alive, report, seeds, when, failures)
        counts.append(piece.stop - piece.start)
        means.append(report.metrics)
        if not alive.any():
            break
    merged = {name: np.average([mean[name] for mean in means], axis=0, weights=counts) for name in means[0]}
    metrics = {name: np.where(alive, np.asarray(mean, np.float32), np.nan) for name, mean in merged.items()}
    return state, metrics, failures


class _Programs(NamedTuple):
    """Compiled: (state, data, number of updates) -> (state, report). The state is donated."""

    block: Callable[[FitState, PyTree, np.int32], tuple[FitState, Report]]
    refresh: Callable[[FitState, PyTree, np.int32], tuple[FitState, Report]] | None
    flops: float | None


def _prepare(
    learner: Learner, dataset: PyTree, *, key: Array, seeds: Sequence[int] | None, statistics: PyTree, given: PyTree,
    start: FitState | None, mesh: Mesh | None, longest: int,
) -> tuple[_Programs, Feed, FitState, float]:  # fmt: skip
    """The compiled programs, what feeds them, the state to start from, and the seconds that compiling took."""
    place = lambda tree: sharding.replicate(tree, mesh)  # noqa: E731
    keys = place(keys_for(key, seeds))
    feed = feeding.make(learner, dataset, keys_for(key, seeds)[..., 1], mesh, longest=longest)
    began = time.perf_counter()
    if start is None:
        drawing, source = feeding.drawn(learner, dataset)
        fresh = _jit(lambda dataset, key, statistics, given: init(
            drawing, dataset, key=key, seeds=seeds, statistics=statistics, given=given), mesh)  # fmt: skip
        source = place(source) if feed.ahead else feed.resident
        start = fresh(source, place(key), place(statistics), place(given))
    # A copy: the caller's arrays must survive, and one buffer (zeros shared by leaves) cannot be donated twice.
    state = jax.tree.map(jnp.copy, place(start))
    learner, split = feed.learner, sharding.split_batch(mesh)

    def block(state, alive, dataset, keys, start, num_steps):
        after, report = run_block(
            learner, state, dataset, keys[1], start=start, num_steps=num_steps, split=split, pick=feed.pick
        )
        return *freeze(state, after, alive, report), report

    def refresh(state, alive, dataset, keys, start, num_steps):
        del num_steps
        after = learner.refresh(state, dataset, jax.random.fold_in(keys[2], start))
        report = Report({}, {}, newly_nonfinite(state, after))
        return *freeze(state, after, alive, report), report

    def compiled(one: Callable, data: PyTree, seed_axis: int | None) -> Any:
        def program(state: FitState, dataset: PyTree, keys: Array, num_steps: Array) -> tuple[FitState, Report]:
            many = jax.vmap(one, in_axes=(0, 0, seed_axis, 0, None, None)) if state.alive.ndim else one
            inner, alive, report = many(state.learner, state.alive, dataset, keys, state.step, num_steps)
            return FitState(inner, alive, state.step + num_steps), report

        return _jit(program, mesh, donate_argnums=0).lower(state, data, keys, np.int32(1)).compile()

    def bind(executable: Any) -> Callable:
        return lambda state, data, num_steps: executable(state, data, keys, place(num_steps))

    run = compiled(block, feed.example, feed.seed_axis)
    flops = (run.cost_analysis() or {}).get("flops") or None
    again = bind(compiled(refresh, feed.resident, None)) if learner.refresh_every else None
    return _Programs(bind(run), again, flops), feed, state, time.perf_counter() - began


def _jit(function: Callable, mesh: Mesh | None, **options: Any) -> Any:
    return jax.jit(function, out_shardings=sharding.replicated(mesh), **options)


# --- held-out data ---


def validation(
    learner: Learner, dataset: PyTree, *, key: Array, num_batches: int, mesh: Mesh | None = None
) -> Callable[[FitState], dict[str, np.ndarray]]:
    """`validate` over all seeds of a run, compiled on its first call; the same batches each time and for each seed.

    Returns:
      (state of the run) -> [S] (or []) float32 per metric, NaN for a frozen seed.
    """
    learner, batches = feeding.held_out(learner, dataset, key, num_batches, mesh)
    split = sharding.split_batch(mesh)

    def one(state: PyTree, dataset: PyTree, keys: Array) -> dict[str, Array]:
        return validate(learner, state, dataset, keys, split=split)

    def program(state: FitState, dataset: PyTree, keys: Array) -> dict[str, Array]:
        return (jax.vmap(one, in_axes=(0, None, None)) if state.alive.ndim else one)(state.learner, dataset, keys)

    jitted = _jit(program, mesh)

    def call(state: FitState) -> dict[str, np.ndarray]:
        measured = [jax.device_get(jitted(state, *drawn_from)) for drawn_from in batches()]
        metrics = jax.tree.map(lambda *means: np.mean(means, axis=0, dtype=np.float32), *measured)
        alive = jax.device_get(state.alive)
        return {name: np.where(alive, value, np.nan) for name, value in metrics.items()}

    return call
