"""Searches per second of every improvement operator, and their share of an update, on one core.

    python experiments/speed/search.py

The first table searches from one batch of roots of a BSuite-size latent model with random
parameters. Tree searches are timed in turn with mctx called directly on the same model, so that the
planner's own share shows; FLOPs are those of products. The second table trains: updates per CPU
second of ROSMO and of each MuZero variant, on catch.
"""

import dataclasses
import functools
import statistics
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mctx
import stopwatch  # beside this file
import tyro
from rich.console import Console
from rich.table import Table

from offline_mbrl import registry
from offline_mbrl.algorithms import operators
from offline_mbrl.algorithms.operators import SearchConfig
from offline_mbrl.commands import datasets
from offline_mbrl.models import muzero
from offline_mbrl.planning import mcts
from offline_mbrl.training import flops
from offline_mbrl.types import (
    Array,
    DiscreteActions,
    EnvironmentSpec,
    Key,
    LatentModel,
    Params,
    PyTree,
)

GAMMA = 0.997**4
TREES = ("gumbel", "muzero", "muzero_q")
UPDATES = (  # name in the registry, settings of the search
    ("rosmo", {}),
    ("rosmo", {"operator": "one_step_sampled", "num_simulations": 4}),
    ("rosmo", {"operator": "lookahead", "depth": 2}),
    ("gumbel", {"num_simulations": 4}),
    ("muzero_unplugged", {"num_simulations": 4}),
    ("mzu_q", {"num_simulations": 4}),
    ("gumbel", {"num_simulations": 16}),
    ("muzero_unplugged", {"num_simulations": 16}),
    ("mzu_q", {"num_simulations": 16}),
)


@dataclasses.dataclass(frozen=True)
class Options:
    """What is measured."""

    roots: int = 512
    num_actions: int = 3
    budgets: tuple[int, ...] = (4, 16, 50)
    depths: tuple[int, ...] = (1, 2, 3)
    batch_size: int = 128  # windows per update in the second table
    rounds: int = 5  # interleaved measurements; medians are shown
    seconds: float = 0.5  # of one measurement, about
    core: int | None = None  # which core; default: the first that this process may use


def main(options: Options) -> None:
    """Prints both tables."""
    core = stopwatch.one_core(options.core)
    console = Console(highlight=False, width=160)
    peak = stopwatch.matrix_product_peak()
    console.print(
        f"core {core}: {peak / 1e9:.0f} GFLOP/s in a matrix product of 1024 x 1024, float32\n"
    )
    console.print(searches(options, peak))
    console.print(updates(options, peak, console))


# --- searches alone ---


class Measured(NamedTuple):
    """A planner, and mctx's own policy where it has one."""

    seconds: float  # of CPU, of a call
    flops: float
    mctx_seconds: float | None = None
    flops_ratio: float | None = None  # to mctx's


def searches(options: Options, peak: float) -> Table:
    """The table of searches per CPU second."""
    spec = EnvironmentSpec(
        jax.ShapeDtypeStruct((10, 5), jnp.float32), DiscreteActions(options.num_actions)
    )
    model, params = random_model(spec)
    embeddings = jax.random.normal(jax.random.key(1), (options.roots, 32))
    arguments = (params, embeddings, jax.random.key(2))
    size = f"{options.roots} roots, {options.num_actions} actions"
    table = Table(title=f"{size}: searches per CPU second, medians")
    for column in (
        "operator",
        "searches / s",
        "mctx alone",
        "ours / mctx, time",
        "ours / mctx, FLOPs",
        "one-step is faster by",
        "MFLOP of the model",
        "share of peak",
    ):
        table.add_column(column, justify="right")
    one_step = 0.0
    for name, search in cases(options):
        planner = operators.make(search, model, num_actions=options.num_actions, gamma=GAMMA)
        measured = measure(planner, mctx_alone(search, model), arguments, options)
        seconds, operations, theirs, ratio = measured
        one_step = one_step or seconds
        table.add_row(
            name,
            f"{options.roots / seconds:,.0f}",
            f"{options.roots / theirs:,.0f}" if theirs else "",
            f"{seconds / theirs:.2f}" if theirs else "",
            f"{ratio:.3f}" if ratio else "",
            f"{seconds / one_step:.1f}",
            f"{operations / 1e6:.1f}",
            f"{operations / seconds / peak:.0%}",
        )
    return table


def random_model(spec: EnvironmentSpec) -> tuple[LatentModel, Params]:
    """A model whose heads do not start at zero, so that searches have something to choose."""
    model = muzero.make(muzero.ModelConfig(), spec)
    leaves, tree = jax.tree.flatten(model.init(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(3), len(leaves))
    random = [
        0.3 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)
    ]
    return model, jax.tree.unflatten(tree, random)


def cases(options: Options) -> list[tuple[str, SearchConfig]]:
    """Name and settings of each row, one-step first."""
    sampled = min(options.budgets)
    rows = [
        ("one_step", SearchConfig()),
        (
            f"one_step_sampled, N = {sampled}",
            SearchConfig(operator="one_step_sampled", num_simulations=sampled),
        ),
    ]
    for depth in options.depths:
        for name in ("lookahead", "lookahead_max"):
            rows.append((f"{name}, depth {depth}", SearchConfig(operator=name, depth=depth)))
    for budget in options.budgets:
        for name in TREES:
            search = SearchConfig(operator=name, num_simulations=budget)
            rows.append((f"{name}, N = {budget}", search))
    return rows


def mctx_alone(search: SearchConfig, model: LatentModel) -> Callable | None:
    """mctx's own policy on the same model; None for an operator that is not mctx's."""
    policies = {
        "gumbel": mctx.gumbel_muzero_policy,
        "muzero": functools.partial(
            mctx.muzero_policy,
            dirichlet_fraction=search.dirichlet_fraction,
            dirichlet_alpha=search.dirichlet_alpha,
        ),
    }
    policy = policies.get(search.operator)
    if policy is None:
        return None
    recurrent = mcts.recurrent_fn(model, GAMMA)

    def alone(params: Params, embeddings: PyTree, key: Key) -> tuple[Array, Array]:
        root = mcts.root(model, params, embeddings)
        output = policy(params, key, root, recurrent, search.num_simulations)
        return output.action, output.action_weights

    return alone


def measure(
    planner: Callable, alone: Callable | None, arguments: tuple, options: Options
) -> Measured:
    """Our call in turn with mctx's.

    Args:
      planner: ours.
      alone: mctx's, or None.
      arguments: of both.
      options: how it is measured.
    """
    functions = [planner] if alone is None else [planner, alone]
    programs = [jax.jit(function).lower(*arguments).compile() for function in functions]

    def repeat(program: Callable, turns: int) -> None:
        jax.block_until_ready([program(*arguments) for _ in range(turns)])

    runs = [functools.partial(repeat, program) for program in programs]
    seconds = stopwatch.in_turn(runs, options.seconds, options.rounds)
    operations = [flops.count(function, *arguments) for function in functions]
    if alone is None:
        return Measured(seconds=seconds[0], flops=operations[0])
    return Measured(
        seconds=seconds[0],
        flops=operations[0],
        mctx_seconds=seconds[1],
        flops_ratio=operations[0] / operations[1],
    )


# --- whole updates ---


def updates(options: Options, peak: float, console: Console) -> Table:
    """The table of updates per CPU second."""
    data = datasets.load("local/catch", console)
    dataset = jax.tree.map(jax.device_put, data.dataset)
    table = Table(title=f"catch, {options.batch_size} windows: updates per CPU second")
    for column in (
        "algorithm",
        "operator",
        "updates / s",
        "ROSMO is faster by",
        "MFLOP",
        "share of peak",
    ):
        table.add_column(column, justify="right")
    base = 0.0
    for name, changes in UPDATES:
        algorithm = registry.lookup(name)
        config = algorithm.config(batch_size=options.batch_size)
        config = dataclasses.replace(config, search=dataclasses.replace(config.search, **changes))
        timed = stopwatch.scanned(algorithm.make(config, data.spec), dataset)
        count = stopwatch.calibrate(timed.run, options.seconds)
        seconds = statistics.median(
            stopwatch.cpu_seconds(timed.run, count) / count for _ in range(options.rounds)
        )
        base = base or seconds
        settings = {key: value for key, value in changes.items() if key != "operator"}
        words = [config.search.operator, *(f"{key} = {value}" for key, value in settings.items())]
        table.add_row(
            name,
            ", ".join(words),
            f"{1 / seconds:.0f}",
            f"{seconds / base:.1f}",
            f"{timed.flops / 1e6:.1f}",
            f"{timed.flops / seconds / peak:.0%}",
        )
    return table


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
