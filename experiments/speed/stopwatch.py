"""CPU seconds and floating point operations of compiled programs, for the scripts beside this."""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.training.blocks import run_block, update
from offline_mbrl.types import Array, Context, Learner, PyTree


def one_core(core: int | None) -> int:
    """Keeps this process on one core, by default its first; call it before any computation."""
    core = min(os.sched_getaffinity(0)) if core is None else core
    os.sched_setaffinity(0, {core})  # JAX starts its threads with its first computation
    return core


class Timed(NamedTuple):
    """A learner's updates, compiled."""

    run: Callable[[int], None]  # runs n updates in one dispatch
    flops: float  # per update, as the compiler counts them


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
    analysis = jax.jit(single).lower(*inputs).compile().cost_analysis()

    def run(num_updates: int) -> None:
        state = compiled(states[0], context, dataset, np.int32(num_updates))
        states[0] = jax.block_until_ready(state)

    return Timed(run=run, flops=analysis["flops"])


def repeated(program: Callable, *arguments: Any, seconds: float = 0.3) -> tuple[float, float]:
    """CPU seconds of one call inside a compiled loop, and its FLOPs.

    Each turn depends on the one before it.

    Args:
      program: pure.
      *arguments: of the program.
      seconds: of one measurement, about.
    """
    flops = jax.jit(program).lower(*arguments).compile().cost_analysis()["flops"]

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
    return min(cpu_seconds(run, turns) for _ in range(3)) / turns, flops


def matrix_product_peak(size: int = 1024) -> float:
    """FLOP per CPU second of the best of some float32 matrix products."""
    matrix = jnp.ones((size, size))
    product = jax.jit(jnp.dot)
    product(matrix, matrix).block_until_ready()

    def run(turns: int) -> None:
        for _ in range(turns):
            product(matrix, matrix).block_until_ready()

    return 10 * 2 * size**3 / min(cpu_seconds(run, 10) for _ in range(5))


def in_turn(runs: Sequence[Callable[[int], Any]], seconds: float, rounds: int) -> list[float]:
    """CPU seconds of one turn of each program, medians of measurements in turn.

    Args:
      runs: (turns) -> runs a program that often.
      seconds: of one measurement, about.
      rounds: measurements of each.
    """
    turns = [calibrate(run, seconds) for run in runs]
    table = [
        [cpu_seconds(run, count) / count for run, count in zip(runs, turns, strict=True)]
        for _ in range(rounds)
    ]
    return [statistics.median(column) for column in zip(*table, strict=True)]


def cpu_seconds(run: Callable[[int], Any], count: int) -> float:
    """CPU seconds of `run(count)`."""
    began = time.process_time()
    run(count)
    return time.process_time() - began


def calibrate(run: Callable[[int], Any], seconds: float) -> int:
    """How many fit in about this many seconds."""
    count = 1
    while (spent := cpu_seconds(run, count)) < seconds / 4:
        count *= 2
    return max(int(count * seconds / spent), 1)


def copied(tree: Any) -> Any:
    """A copy that can be donated."""
    return jax.tree.map(jnp.copy, tree)
