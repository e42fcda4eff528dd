"""ROSMO updates per second on catch, on one core: many updates a dispatch against one at a time.

    python experiments/speed/rosmo.py

Both run the same `learner.step` on the same dataset. The first samples windows from device arrays
inside one compiled loop; the second gathers every batch with numpy and dispatches one donated
update at a time. They take turns, so that a machine whose speed drifts slows both; figures are CPU
seconds of this process. The second table says where the time of an update goes: each part compiled
and timed alone, beside the time of its FLOPs at this core's peak.
"""

import dataclasses
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import stopwatch  # beside this file
import tyro
from rich.console import Console
from rich.table import Table

from offline_mbrl import registry
from offline_mbrl.algorithms import advantages, latent, latent_targets, rosmo
from offline_mbrl.commands import datasets
from offline_mbrl.data.memory import Dataset
from offline_mbrl.models import muzero, unrolled
from offline_mbrl.networks import optimizers
from offline_mbrl.planning import one_step
from offline_mbrl.targets import weights
from offline_mbrl.training.blocks import update
from offline_mbrl.types import (
    Array,
    Context,
    EnvironmentSpec,
    Key,
    Learner,
    Params,
    PyTree,
    Trajectory,
    num_actions,
)


@dataclasses.dataclass(frozen=True)
class Options:
    """What is measured."""

    batch_sizes: tuple[int, ...] = (32, 128, 512)  # windows per update
    rounds: int = 7  # interleaved pairs per batch size; medians are shown
    seconds: float = 1.0  # of one measurement, about
    core: int | None = None  # which core; default: the first that this process may use


def main(options: Options) -> None:
    """Prints both tables."""
    core = stopwatch.one_core(options.core)
    console = Console(highlight=False, soft_wrap=True)
    data = datasets.load("local/catch", console)
    dataset = jax.tree.map(jax.device_put, data.dataset)
    peak = stopwatch.matrix_product_peak()
    console.print(
        f"core {core}: {peak / 1e9:.0f} GFLOP/s in a matrix product of 1024 x 1024, float32\n"
    )
    algorithm = registry.lookup("rosmo")
    learners = {
        size: algorithm.make(algorithm.config(batch_size=size), data.spec)
        for size in options.batch_sizes
    }
    console.print(compare(learners, dataset, data.dataset, peak, options))
    console.print(breakdown(learners, dataset, data.spec, peak))


# --- one dispatch against many ---


def compare(
    learners: dict[int, Learner], dataset: Dataset, host: Dataset, peak: float, options: Options
) -> Table:
    """The table of updates per CPU second.

    Args:
      learners: by batch size.
      dataset: on the device.
      host: the same on the host.
      peak: FLOP per second.
      options: how it is measured.
    """
    table = Table(title="updates per CPU second, medians of interleaved pairs")
    for column in (
        "windows",
        "in one loop",
        "one at a time",
        "ratio",
        "MFLOP per update",
        "share of peak",
    ):
        table.add_column(column, justify="right")
    for size, learner in learners.items():
        together = stopwatch.scanned(learner, dataset)
        apart = one_at_a_time(learner, host)
        count = stopwatch.calibrate(together.run, options.seconds)
        few = max(count // 2, 1)
        pairs = [
            (
                count / stopwatch.cpu_seconds(together.run, count),
                few / stopwatch.cpu_seconds(apart, few),
            )
            for _ in range(options.rounds)
        ]
        rates = [statistics.median(column) for column in zip(*pairs, strict=True)]
        ratio = statistics.median(fast / slow for fast, slow in pairs)
        table.add_row(
            str(size),
            f"{rates[0]:.0f}",
            f"{rates[1]:.0f}",
            f"{ratio:.2f}",
            f"{together.flops / 1e6:.1f}",
            f"{rates[0] * together.flops / peak:.0%}",
        )
    return table


def one_at_a_time(learner: Learner, host: Dataset) -> Callable[[int], None]:
    """Runs n updates, each a dispatch of its own on a batch that numpy gathers."""
    key = jax.random.key(0)
    context = Context()
    example = jax.device_get(learner.sample(host, None, key))
    batch_size, length = example.reward.shape
    host = jax.tree.map(np.asarray, host)
    generator = np.random.default_rng(0)
    states = [stopwatch.copied(learner.init(key, example, context))]
    split = jax.jit(jax.random.split)
    keys = [key]

    def single(state: PyTree, batch: Trajectory, key: Key) -> PyTree:
        return learner.step(state, context, batch, key)[0]

    step = jax.jit(single, donate_argnums=0)

    def run(num_updates: int) -> None:
        for _ in range(num_updates):
            keys[0], key_step = split(keys[0])
            states[0] = step(states[0], gather(host, generator, batch_size, length), key_step)
        jax.block_until_ready(states[0])

    run(1)  # compiles
    return run


def gather(host: Dataset, generator: Any, batch_size: int, length: int) -> Trajectory:
    """The windows that `data.memory.Windows` samples, by numpy on the host.

    Args:
      host: the dataset.
      generator: of numpy.
      batch_size: windows.
      length: of each.
    """
    first = host.starts[generator.integers(len(host.starts), size=batch_size)]
    end = host.episode_end[first]
    rows = first[:, None] + np.arange(length + 1)
    happened = rows[:, :-1] < end[:, None]
    rows = np.minimum(rows, end[:, None])
    steps = rows[:, :-1]
    ended = host.discount[end - 1][:, None]
    return Trajectory(
        observation=host.observation[rows],
        action=host.action[steps],
        reward=np.where(happened, host.reward[steps], np.float32(0)),
        discount=np.where(happened, host.discount[steps], ended),
        mask=happened.astype(np.float32),
        extras={name: column[steps] for name, column in host.extras.items()},
    )


# --- where the time of an update goes ---


def breakdown(
    learners: dict[int, Learner], dataset: Dataset, spec: EnvironmentSpec, peak: float
) -> Table:
    """The table of parts: milliseconds alone, and of their floating point operations at peak.

    Args:
      learners: by batch size.
      dataset: on the device.
      spec: of it.
      peak: FLOP per second.
    """
    table = Table(title="where an update's time goes: ms alone (ms of its FLOPs at peak)")
    table.add_column("windows", justify="right")
    for size, learner in learners.items():
        cells = [str(size)]
        for name, (program, arguments) in parts(learner, dataset, spec, size).items():
            if len(table.columns) < 7:
                table.add_column(name, justify="right")
            seconds, flops = stopwatch.repeated(program, *arguments)
            cells.append(f"{1e3 * seconds:.3f} ({1e3 * flops / peak:.3f})")
        table.add_row(*cells)
    return table


def parts(
    learner: Learner, dataset: Dataset, spec: EnvironmentSpec, size: int
) -> dict[str, tuple[Callable, tuple]]:
    """Name -> (pure function, arguments), in the order of the table's columns.

    Args:
      learner: the whole.
      dataset: on the device.
      spec: of it.
      size: of the batch.
    """
    config = rosmo.Config(batch_size=size)
    key = jax.random.key(0)
    context = Context()
    model = muzero.make(config.model, spec)
    optimizer = optimizers.make(config.optimizer)
    count = num_actions(spec, "rosmo")
    planner = one_step.exact(model, num_actions=count, gamma=config.gamma)
    batch = jax.jit(learner.sample)(dataset, None, key)
    state = learner.init(key, batch, context)
    keys = jax.random.split(key, size)

    def clone(*inputs: Any) -> Array:
        return weights.indicator(advantages.planned(*inputs), at_zero=config.behavior_at_zero)

    method = latent.method_of(config, model, planner, clone, count)

    def whole(state: PyTree, dataset: Dataset) -> PyTree:
        return update(learner, state, context, dataset, (), key)

    def sample(dataset: Dataset, key: Key) -> Trajectory:
        return learner.sample(dataset, None, key)

    def targets(params: Params, batch: Trajectory) -> unrolled.Targets:
        return latent_targets.compute_targets(method, params, batch, key)

    def loss(params: Params, batch: Trajectory, goals: unrolled.Targets) -> Array:
        def per_window(trajectory: Trajectory, goal: unrolled.Targets, key: Key) -> Array:
            return unrolled.loss(
                model, config.loss, config.behavior_coef, params, trajectory, goal, key
            )[0]

        return jnp.mean(jax.vmap(per_window)(batch, goals, keys))

    def finish(state: latent.State, gradient: Params) -> PyTree:
        params, opt_state = optimizers.descend(optimizer, gradient, state.opt_state, state.params)
        target = optax.periodic_update(
            params, state.target_params, state.step, config.target_period
        )
        return params, opt_state, target

    goals = jax.jit(targets)(state.params, batch)
    return {
        "whole update": (whole, (state, dataset)),
        "sample": (sample, (dataset, key)),
        "targets": (targets, (state.params, batch)),
        "loss": (loss, (state.params, batch, goals)),
        "loss and gradient": (jax.grad(loss), (state.params, batch, goals)),
        "optimizer and copy": (finish, (state, state.params)),
    }


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
