"""Steps of balls in mazes side by side, on one core.

    python experiments/speed/maze2d.py
    python experiments/speed/maze2d.py --maze large-sparse --policy-layers 256 256

Each row is `environments.maze2d.step` of so many balls in one compiled loop: under actions that are
given, and under a network that acts at every step as in an evaluation.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import stopwatch  # beside this file
import tyro
from rich.console import Console
from rich.table import Table

from offline_mbrl.environments import maze2d
from offline_mbrl.networks import torsos
from offline_mbrl.types import Array

STEPS = 100  # of the compiled loop


@dataclass(frozen=True)
class Options:
    """What is measured."""

    maze: str = "umaze-sparse"
    balls: tuple[int, ...] = (100, 1_000, 10_000)
    policy_layers: tuple[int, ...] = (64, 64)  # ReLU
    rounds: int = 5  # measurements in turn; medians are shown
    seconds: float = 0.5  # of one measurement, about
    core: int | None = None  # which core; default: the first that this process may use


def main(options: Options) -> None:
    """Prints the table."""
    core = stopwatch.one_core(options.core)
    console = Console(highlight=False)
    console.print(f"{options.maze}, core {core}, medians of {options.rounds} measurements\n")
    table = Table("balls", "million steps / s", "with a network", box=None)
    for size in options.balls:
        runs = [program(options, size, policy) for policy in (given, acting(options))]
        seconds = stopwatch.in_turn(runs, options.seconds, options.rounds)
        table.add_row(f"{size:,}", *(f"{1e-6 * size * STEPS / spent:.2f}" for spent in seconds))
    console.print(table)


def given(states: Array, step: Array) -> Array:
    """Actions `[N, 2]` that go round."""
    angle = step + jnp.arange(states.shape[0])
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)


def acting(options: Options) -> Any:
    """The actions of a network with random weights."""
    network = torsos.MLP((*options.policy_layers, 2))
    params = torsos.init(network, jax.random.key(0), jnp.zeros(4))

    def act(states: Array, step: Array) -> Array:
        del step
        return jnp.tanh(jax.vmap(lambda state: torsos.apply(network, params, state))(states))

    return act


def program(options: Options, size: int, policy: Any) -> Any:
    """(turns) -> runs `STEPS` steps of `size` balls that often."""
    task = maze2d.maze(options.maze)
    move = jax.vmap(functools.partial(maze2d.step, task))

    @jax.jit
    def loop(states: Array) -> Array:
        def body(states: Array, step: Array) -> tuple[Array, Array]:
            states, reward = move(states, policy(states, step))
            return states, jnp.mean(reward)

        states, rewards = jax.lax.scan(body, states, jnp.arange(STEPS, dtype=jnp.float32))
        return states.at[0, 0].add(0 * rewards[-1])

    keys = jax.random.split(jax.random.key(0), size)
    states = [jax.vmap(functools.partial(maze2d.reset, task))(keys)]

    def run(turns: int) -> None:
        for _ in range(turns):
            states[0] = jax.block_until_ready(loop(states[0]))

    run(1)
    return run


if __name__ == "__main__":
    main(tyro.cli(Options))
