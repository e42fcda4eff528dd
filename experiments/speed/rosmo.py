"""ROSMO updates per second on catch, on one core: many updates a dispatch against one at a time.

    python experiments/speed/rosmo.py

Both run the same `learner.step` on the same dataset. The first samples windows from device arrays inside one compiled
loop; the second gathers every batch with numpy and dispatches one donated update at a time. They take turns, so that a
machine whose speed drifts slows both; figures are CPU seconds of this process. The second table says where the time of
an update goes: each part compiled and timed alone, beside what its matrix products would take at this core's peak.
"""

import dataclasses
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import stopwatch  # beside this file
import tyro
from rich.console import Console
from rich.table import Table

from offline_mbrl import registry
from offline_mbrl.algorithms import advantages, latent, latent_targets, rosmo
from offline_mbrl.commands import datasets
from offline_mbrl.models import muzero, unrolled
from offline_mbrl.networks import optimizers
from offline_mbrl.planning import one_step
from offline_mbrl.targets import weights
from offline_mbrl.training.blocks import update
from offline_mbrl.types import Trajectory


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
    console.print(f"core {core}: {peak / 1e9:.0f} GFLOP/s in a matrix product of 1024 x 1024, float32\n")
    algorithm = registry.lookup("rosmo")
    learners = {size: algorithm.make(algorithm.config(batch_size=size), data.spec) for size in options.batch_sizes}
    console.print(compare(learners, dataset, data.dataset, peak, options))
    console.print(breakdown(learners, dataset, data.spec, peak))


# --- one dispatch against many ---


def compare(learners: dict[int, Any], dataset: Any, host: Any, peak: float, options: Options) -> Any:
    """The table of updates per CPU second."""
    table = Table(title="updates per CPU second, medians of interleaved pairs")
    for column in ("windows", "in one loop", "one at a time", "ratio", "MFLOP per update", "share of peak"):
        table.add_column(column, justify="right")
    for size, learner in learners.items():
        together, flops = stopwatch.scanned(learner, dataset)
        apart = one_at_a_time(learner, host)
        num_updates = stopwatch.calibrate(together, options.seconds)
        few = max(num_updates // 2, 1)
        pairs = [(num_updates / stopwatch.cpu_seconds(together, num_updates), few / stopwatch.cpu_seconds(apart, few))
                 for _ in range(options.rounds)]  # fmt: skip
        rates = [statistics.median(column) for column in zip(*pairs, strict=True)]
        ratio = statistics.median(a / b for a, b in pairs)
        table.add_row(str(size), f"{rates[0]:.0f}", f"{rates[1]:.0f}", f"{ratio:.2f}", f"{flops / 1e6:.1f}",
                      f"{rates[0] * flops / peak:.0%}")  # fmt: skip
    return table


def one_at_a_time(learner: Any, host: Any) -> Callable[[int], None]:
    """Runs n updates, each a dispatch of its own on a batch that numpy gathers."""
    key = jax.random.key(0)
    example = jax.device_get(learner.sample(host, key))
    batch_size, length = example.reward.shape
    host, generator = jax.tree.map(np.asarray, host), np.random.default_rng(0)
    states = [stopwatch.copied(learner.init(key, example, (), ()))]
    step = jax.jit(lambda state, batch, key: learner.step(state, batch, key)[0], donate_argnums=0)
    split = jax.jit(jax.random.split)
    keys = [key]

    def run(num_updates: int) -> None:
        for _ in range(num_updates):
            keys[0], key_step = split(keys[0])
            states[0] = step(states[0], gather(host, generator, batch_size, length), key_step)
        jax.block_until_ready(states[0])

    run(1)  # compiles
    return run


def gather(host: Any, generator: Any, batch_size: int, length: int) -> Any:
    """What `data.memory.windows` samples, by numpy on the host."""
    first = host.starts[generator.integers(len(host.starts), size=batch_size)]
    end = host.episode_end[first]
    rows = first[:, None] + np.arange(length + 1)
    happened = rows[:, :-1] < end[:, None]
    rows = np.minimum(rows, end[:, None])
    steps, ended = rows[:, :-1], host.discount[end - 1][:, None]
    return Trajectory(
        observation=host.observation[rows], action=host.action[steps],
        reward=np.where(happened, host.reward[steps], np.float32(0)),
        discount=np.where(happened, host.discount[steps], ended), mask=happened.astype(np.float32),
        extras={name: column[steps] for name, column in host.extras.items()})  # fmt: skip


# --- where the time of an update goes ---


def breakdown(learners: dict[int, Any], dataset: Any, spec: Any, peak: float) -> Any:
    """The table of parts: milliseconds alone, and of their floating point operations at peak."""
    table = Table(title="where an update's time goes: ms alone (ms of its FLOPs at peak)")
    for column in ("windows", "whole update", "sample", "targets", "loss", "loss and gradient", "optimizer and copy"):
        table.add_column(column, justify="right")
    for size, learner in learners.items():
        cells = []
        for program, arguments in parts(learner, dataset, spec, size).values():
            seconds, flops = stopwatch.repeated(program, *arguments)
            cells.append(f"{1e3 * seconds:.3f} ({1e3 * flops / peak:.3f})")
        table.add_row(str(size), *cells)
    return table


def parts(learner: Any, dataset: Any, spec: Any, size: int) -> dict[str, tuple[Callable, tuple]]:
    """Name -> (pure function, arguments), in the order of the table's columns."""
    config, key = rosmo.Config(batch_size=size), jax.random.key(0)
    model, optimizer = muzero.make(config.model, spec), optimizers.make(config.optimizer)
    planner = one_step.exact(model, num_actions=spec.action.num_actions, gamma=config.gamma)
    batch = jax.jit(learner.sample)(dataset, key)
    state, keys = learner.init(key, batch, (), ()), jax.random.split(key, size)

    def clone(*inputs):
        return weights.indicator(advantages.planned(*inputs), at_zero=config.behavior_at_zero)

    method = latent.method_of(config, model, planner, clone, spec.action.num_actions)

    def targets(params, batch):
        return latent_targets.compute_targets(method, params, batch, key)

    def loss(params, batch, goals):
        one = lambda *inputs: unrolled.loss(model, config.loss, config.behavior_coef, params, *inputs)[0]  # noqa: E731
        return jnp.mean(jax.vmap(one)(batch, goals, keys))

    def finish(state, gradient):
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        copy = state.step % config.target_period == 0
        return updates, opt_state, jax.tree.map(lambda a, b: jnp.where(copy, a, b), state.params, state.target_params)

    goals = jax.jit(targets)(state.params, batch)
    return {
        "whole update": (lambda state, dataset: update(learner, state, dataset, key), (state, dataset)),
        "sample": (lambda dataset, key: learner.sample(dataset, key), (dataset, key)),
        "targets": (targets, (state.params, batch)),
        "loss": (loss, (state.params, batch, goals)),
        "loss and gradient": (jax.grad(loss), (state.params, batch, goals)),
        "optimizer and copy": (finish, (state, state.params)),
    }


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
