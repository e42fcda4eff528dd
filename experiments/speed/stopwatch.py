"""CPU seconds and floating point operations of compiled programs, for the scripts beside this."""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.training import feeding, fit, flops, programs
from offline_mbrl.training.blocks import run_block, update
from offline_mbrl.types import Array, Context, Learner, PyTree


def one_core(core: int | None) -> int:
    """Keeps this process on one core, by default its first; call it before any computation."""
    core = min(os.sched_getaffinity(0)) if core is None else core
    os.sched_setaffinity(0, {core})  # JAX starts its threads with its first computation
    return core


class Timed(NamedTuple):
    """A program, compiled."""

    run: Callable[[int], None]  # runs it n times; a learner's updates in one dispatch
    flops: float  # of one time, in products and convolutions


def scanned(learner: Learner, dataset: PyTree, context: Context = Context()) -> Timed:
    """Updates of a learner without a cache, in one compiled loop.

    Args:
      learner: whose updates.
      dataset: on the device.
      context: constants.
    """
    key = jax.random.key(0)
    batch = learner.sample(dataset, (), key)
    states = [copied(learner.init(key, batch, context))]

    def block(state: PyTree, context: Context, dataset: PyTree, num_updates: Array) -> PyTree:
        return run_block(learner, state, context, dataset, (), key, start=0, num_steps=num_updates)[
            0
        ]

    def single(state: PyTree, context: Context, dataset: PyTree) -> PyTree:
        return update(learner, state, context, dataset, (), key)

    inputs = (states[0], context, dataset)
    compiled = jax.jit(block, donate_argnums=0).lower(*inputs, np.int32(1)).compile()
    operations = flops.count(single, *inputs)

    def run(num_updates: int) -> None:
        state = compiled(states[0], context, dataset, np.int32(num_updates))
        states[0] = jax.block_until_ready(state)

    return Timed(run=run, flops=operations)


def fitted(
    learner: Learner,
    dataset: PyTree,
    context: Context = Context(),
    seeds: Sequence[int] | None = None,
) -> Callable[[int], None]:
    """The program that `fit` compiles for its blocks: runs n updates of all seeds in one dispatch.

    Args:
      learner: whose updates.
      dataset: on the device.
      context: constants, with an axis of seeds where `fit` needs it.
      seeds: side by side; None for a single run.
    """
    key = jax.random.key(0)
    keys = fit.keys_for(key, seeds)
    feed = feeding.make(learner, dataset, keys[..., 1], None)
    states = [copied(fit.init(learner, dataset, key=key, seeds=seeds, context=context))]
    compiled, _ = programs.compile_programs(feed, states[0], context, keys, None)

    def run(num_updates: int) -> None:
        state, report = compiled.block(states[0], feed.resident, np.int32(num_updates))
        states[0] = jax.block_until_ready(state)
        jax.device_get(report)

    return run


def update_flops(learner: Learner, dataset: PyTree, context: Context = Context()) -> float:
    """FLOPs of an update in products and convolutions: the mean over two consecutive ones.

    Counters are constants, so that of two branches the one that is taken counts. Random bits are
    those of a generator without loops, since loops are unrolled then.

    Args:
      learner: whose updates.
      dataset: on the device.
      context: constants.
    """
    key = jax.random.key(0, impl="unsafe_rbg")
    state = learner.init(key, learner.sample(dataset, (), key), context)

    def count(state: PyTree) -> float:
        leaves, tree = jax.tree.flatten(state)
        counters = [np.asarray(leaf) if is_counter(leaf) else None for leaf in leaves]

        def constant(leaves: list[Array]) -> PyTree:
            pairs = zip(leaves, counters, strict=True)
            merged = [leaf if counter is None else counter for leaf, counter in pairs]
            return update(learner, tree.unflatten(merged), context, dataset, (), key)

        with jax.disable_jit():
            return flops.count(constant, leaves)

    following = jax.jit(lambda state: update(learner, state, context, dataset, (), key)[0])(state)
    return statistics.mean(count(each) for each in (state, following))


def is_counter(leaf: Array) -> bool:
    """Whether a leaf of a state counts updates."""
    return leaf.shape == () and jnp.issubdtype(leaf.dtype, jnp.integer)


def repeated(program: Callable, *arguments: Any, seconds: float = 0.3) -> tuple[float, float]:
    """CPU seconds of one call inside a compiled loop, and its FLOPs.

    Each turn depends on the one before it.

    Args:
      program: pure.
      *arguments: of the program.
      seconds: of one measurement, about.
    """
    operations = flops.count(program, *arguments)

    def is_floating(leaf: Array) -> bool:
        return jnp.issubdtype(leaf.dtype, jnp.floating)

    def loop(arguments: PyTree, num_turns: Array) -> Array:
        def turn(_: Array, carry: Array) -> Array:
            def shift(leaf: Array) -> Array:
                return leaf + carry.astype(leaf.dtype) if is_floating(leaf) else leaf

            outputs = jax.tree.leaves(program(*jax.tree.map(shift, arguments)))
            return 1e-30 * sum(jnp.sum(leaf) for leaf in outputs if is_floating(leaf))

        return jax.lax.fori_loop(0, num_turns, turn, jnp.zeros(()))

    compiled = jax.jit(loop).lower(arguments, np.int32(1)).compile()

    def run(turns: int) -> None:
        jax.block_until_ready(compiled(arguments, np.int32(turns)))

    turns = calibrate(run, seconds)
    return min(cpu_seconds(run, turns) for _ in range(3)) / turns, operations


def matrix_product(size: int = 1024) -> Timed:
    """A float32 matrix product."""
    matrix = jnp.ones((size, size))
    product = jax.jit(jnp.dot)
    product(matrix, matrix).block_until_ready()

    def run(turns: int) -> None:
        for _ in range(turns):
            product(matrix, matrix).block_until_ready()

    return Timed(run=run, flops=2.0 * size**3)


def matrix_product_peak(size: int = 1024) -> float:
    """FLOP per CPU second of the best of some float32 matrix products."""
    product = matrix_product(size)
    return 10 * product.flops / min(cpu_seconds(product.run, 10) for _ in range(5))


def in_turn(
    runs: Sequence[Callable[[int], Any]],
    seconds: float,
    rounds: int,
    summary: Callable[[list[float]], float] = statistics.median,
) -> list[float]:
    """CPU seconds of one turn of each program, from measurements in turn.

    Args:
      runs: (turns) -> runs a program that often; see `cpu_seconds`.
      seconds: of one measurement, about.
      rounds: measurements of each.
      summary: of them.
    """
    turns = [calibrate(run, seconds) for run in runs]
    table = [
        [cpu_seconds(run, count) / count for run, count in zip(runs, turns, strict=True)]
        for _ in range(rounds)
    ]
    return [summary(list(column)) for column in zip(*table, strict=True)]


def cpu_seconds(run: Callable[[int], Any], count: int) -> float:
    """CPU seconds of `run(count)`: of this process, or what a run in another one returns."""
    began = time.process_time()
    elsewhere = run(count)
    spent = time.process_time() - began
    return spent if elsewhere is None else elsewhere


def calibrate(run: Callable[[int], Any], seconds: float) -> int:
    """How many fit in about this many seconds."""
    count = 1
    while (spent := cpu_seconds(run, count)) < seconds / 4:
        count *= 2
    return max(int(count * seconds / spent), 1)


def copied(tree: Any) -> Any:
    """A copy that can be donated."""
    return jax.tree.map(jnp.copy, tree)
