"""The compiled programs of a run: a block of updates, and a refresh, of all seeds side by side."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from offline_mbrl.training import feeding, sharding
from offline_mbrl.training.blocks import Report, freeze, newly_nonfinite, run_block
from offline_mbrl.training.feeding import Feed
from offline_mbrl.types import Array, Context, Key, Learner, Metrics, PyTree

_UPSTREAM_AXIS: Any = 0
SEEDED_CONTEXT = Context(statistics=None, upstream=_UPSTREAM_AXIS)  # its axes of seeds


class FitState(NamedTuple):
    """Everything a run needs to resume, apart from its key and its context."""

    learner: PyTree  # the learner's state; every leaf has a leading axis [S] when seeds are given
    cache: PyTree  # imagined data, likewise; saved with the rest, so that resuming is bit-exact
    alive: Array  # [S], or [] without seeds: false once the seed became non-finite and was frozen
    step: Array  # [] int32 updates done


class DeviceMemory(NamedTuple):
    """Bytes that a run holds on each device."""

    dataset: int  # 0 where it is streamed
    state: int  # of the learner, all seeds
    cache: int
    temporary: int  # the larger of a block's and a refresh's, as the compiler counts them


class Programs(NamedTuple):
    """Compiled functions of a run. The learner's state is donated; a block only reads the cache."""

    # (state, data, number of updates) -> (state, report)
    block: Callable[[FitState, PyTree, np.int32], tuple[FitState, Report]]
    # (state, dataset) -> (state, report, metrics); it donates the cache too
    refresh: Callable[[FitState, PyTree], tuple[FitState, Report, Metrics]] | None
    flops: float | None  # of one update of all seeds on one device, as the compiler counts
    memory: DeviceMemory


def compile_programs(
    feed: Feed, state: FitState, context: Context, keys: Key, mesh: Mesh | None
) -> tuple[Programs, float]:
    """The programs of a run, and the seconds that compiling took.

    Args:
      feed: what a block is given.
      state: placed on the device(s); only its shapes are used.
      context: placed.
      keys: [S, 3] or [3], placed; see `fit.keys_for`.
      mesh: devices that batches are split over.
    """
    began = time.perf_counter()
    block = _compile_block(feed, state, context, keys, mesh)
    flops = (block.cost_analysis() or {}).get("flops") or None

    def run(state: FitState, data: PyTree, num_updates: np.int32) -> tuple[FitState, Report]:
        num_steps = sharding.replicate(num_updates, mesh)
        learner, alive, step, report = block(
            state.learner, state.alive, state.step, state.cache, context, data, keys, num_steps
        )
        return state._replace(learner=learner, alive=alive, step=step), report

    refresh = None
    temporary = _temporary_bytes(block)
    if feed.learner.refresh_every:
        compiled_refresh = _compile_refresh(feed, state, context, keys, mesh)
        refresh = _refresh_program(compiled_refresh, context, keys)
        temporary = max(temporary, _temporary_bytes(compiled_refresh))
    memory = DeviceMemory(
        dataset=tree_bytes(feed.resident),
        state=tree_bytes(state.learner),
        cache=tree_bytes(state.cache),
        temporary=temporary,
    )
    programs = Programs(block=run, refresh=refresh, flops=flops, memory=memory)
    return programs, time.perf_counter() - began


def tree_bytes(tree: PyTree) -> int:
    """The size of all leaves."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _temporary_bytes(compiled: Any) -> int:
    analysis = compiled.memory_analysis()
    return analysis.temp_size_in_bytes if analysis else 0


def _refresh_program(
    refresh: Any, context: Context, keys: Key
) -> Callable[[FitState, PyTree], tuple[FitState, Report, Metrics]]:
    def run(state: FitState, dataset: PyTree) -> tuple[FitState, Report, Metrics]:
        learner, cache, alive, report, metrics = refresh(
            state.learner, state.cache, state.alive, state.step, context, dataset, keys
        )
        return state._replace(learner=learner, cache=cache, alive=alive), report, metrics

    return run


def _compile_block(
    feed: Feed, state: FitState, context: Context, keys: Key, mesh: Mesh | None
) -> Any:
    split = sharding.split_batch(mesh)

    def block(state, alive, start, cache, context, data, keys, num_steps):
        after, report = run_block(
            feed.learner,
            state,
            context,
            data,
            cache,
            keys[1],
            start=start,
            num_steps=num_steps,
            split=split,
            pick=feed.pick,
        )
        return *freeze(state, after, alive, report), report

    axes = (0, 0, None, 0, SEEDED_CONTEXT, feed.seed_axis, 0, None)
    block_of_seeds = _over_seeds(block, axes, state)

    def program(learner, alive, step, cache, context, data, keys, num_steps):
        after, alive, report = block_of_seeds(
            learner, alive, step, cache, context, data, keys, num_steps
        )
        return after, alive, step + num_steps, report

    arguments = (state.learner, state.alive, state.step, state.cache, context, feed.example, keys)
    jitted = jit(program, mesh, donate_argnums=(0, 1, 2))
    return jitted.lower(*arguments, np.int32(1)).compile()


def _compile_refresh(
    feed: Feed, state: FitState, context: Context, keys: Key, mesh: Mesh | None
) -> Any:
    def refresh(state, cache, alive, step, context, dataset, keys):
        key = jax.random.fold_in(keys[2], step)
        after, cache, metrics = feed.learner.refresh(state, context, dataset, cache, step, key)
        report = Report(metrics={}, metric_failed_at={}, leaf_failed=newly_nonfinite(state, after))
        after, alive = freeze(state, after, alive, report)
        return after, cache, alive, report, metrics

    axes = (0, 0, 0, None, SEEDED_CONTEXT, None, 0)
    arguments = (state.learner, state.cache, state.alive, state.step, context, feed.resident, keys)
    jitted = jit(_over_seeds(refresh, axes, state), mesh, donate_argnums=(0, 1, 2))
    return jitted.lower(*arguments).compile()


def _over_seeds(function: Callable, in_axes: tuple, state: FitState) -> Callable:
    return jax.vmap(function, in_axes=in_axes) if state.alive.ndim else function


def jit(function: Callable, mesh: Mesh | None, **options: Any) -> Any:
    """`jax.jit` whose results are whole on each device."""
    return jax.jit(function, out_shardings=sharding.replicated(mesh), **options)


def initialize(learner: Learner, dataset: PyTree, keys: Key, context: Context) -> FitState:
    """The state of a run before its first update.

    Args:
      learner: the learner.
      dataset: what `learner.sample` draws from, or a `Stream`.
      keys: [S, 3] or [3]; see `fit.keys_for`.
      context: constants.
    """
    learner, dataset = feeding.source(learner, dataset)

    def initialize_seed(keys: Key, context: Context) -> tuple[PyTree, PyTree]:
        key_sample, key_init = jax.random.split(keys[0])
        example = learner.sample(dataset, None, key_sample)
        return learner.init(key_init, example, context), learner.init_cache(example)

    lead = keys.shape[:-1]
    over_seeds = jax.vmap(initialize_seed, in_axes=(0, SEEDED_CONTEXT)) if lead else initialize_seed
    state, cache = over_seeds(keys, context)
    return FitState(
        learner=state, cache=cache, alive=jnp.ones(lead, bool), step=jnp.zeros((), jnp.int32)
    )
