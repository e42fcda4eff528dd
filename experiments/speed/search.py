"""Searches per second of every improvement operator, and what they make of an update, on one core.

    python experiments/speed/search.py

The first table searches from one batch of roots of a BSuite-size latent model with random parameters. Tree searches
are timed in turn with mctx called directly on the same model, so that the planner's own share shows; FLOPs are the
compiler's, but for trees, where they are those of one model step for the root and for each simulation. The second
table trains: updates per CPU second of ROSMO and of each MuZero variant, on catch.
"""

import dataclasses
import functools
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import mctx
import stopwatch  # beside this file
import tyro
from rich.console import Console
from rich.table import Table

from offline_mbrl import registry
from offline_mbrl.algorithms import operators
from offline_mbrl.commands import datasets
from offline_mbrl.models import muzero
from offline_mbrl.planning import mcts
from offline_mbrl.types import DiscreteActions, EnvironmentSpec, LatentModel

GAMMA = 0.997**4
TREES = ("gumbel", "muzero", "muzero_q")  # the compiler counts one turn of their loops
UPDATES = (  # name in the registry, settings of the search
    ("rosmo", {}), ("rosmo", {"operator": "one_step_sampled", "num_simulations": 4}),
    ("rosmo", {"operator": "lookahead", "depth": 2}), ("gumbel", {"num_simulations": 4}),
    ("muzero_unplugged", {"num_simulations": 4}), ("mzu_q", {"num_simulations": 4}),
    ("gumbel", {"num_simulations": 16}), ("muzero_unplugged", {"num_simulations": 16}),
    ("mzu_q", {"num_simulations": 16}),
)  # fmt: skip


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
    console.print(f"core {core}: {peak / 1e9:.0f} GFLOP/s in a matrix product of 1024 x 1024, float32\n")
    console.print(searches(options, peak))
    console.print(updates(options, peak, console))


# --- searches alone ---


def searches(options: Options, peak: float) -> Any:
    """The table of searches per CPU second."""
    spec = EnvironmentSpec(jax.ShapeDtypeStruct((10, 5), jnp.float32), DiscreteActions(options.num_actions))
    model, params = random_model(spec)
    embeddings, key = jax.random.normal(jax.random.key(1), (options.roots, 32)), jax.random.key(2)
    table = Table(title=f"{options.roots} roots, {options.num_actions} actions: searches per CPU second, medians")
    for column in ("operator", "searches / s", "mctx alone", "ours / mctx, time", "ours / mctx, FLOPs",
                   "one-step is faster by", "MFLOP of the model", "share of peak"):  # fmt: skip
        table.add_column(column, justify="right")
    one_step = None
    for name, search in cases(options):
        planner = operators.make(search, model, num_actions=options.num_actions, gamma=GAMMA)
        alone = mctx_alone(search, model)
        ours, theirs, flops, more = interleaved(planner, alone, (params, embeddings, key), options)
        one_step = one_step or ours
        if search.operator in TREES:
            flops = (1 + search.num_simulations) * step_flops(model, params, embeddings)
        table.add_row(
            name, f"{options.roots / ours:,.0f}", f"{options.roots / theirs:,.0f}" if theirs else "",
            f"{ours / theirs:.2f}" if theirs else "", f"{more:.3f}" if more else "", f"{ours / one_step:.1f}",
            f"{flops / 1e6:.1f}", f"{flops / ours / peak:.0%}")  # fmt: skip
    return table


def random_model(spec: EnvironmentSpec) -> tuple[LatentModel, Any]:
    """A model whose heads do not start at zero, so that searches have something to choose."""
    model = muzero.make(muzero.ModelConfig(), spec)
    leaves, tree = jax.tree.flatten(model.init(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(3), len(leaves))
    random = [0.3 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    return model, jax.tree.unflatten(tree, random)


def cases(options: Options) -> list[tuple[str, operators.SearchConfig]]:
    """Name and settings of each row, one-step first."""
    found = [("one_step", operators.SearchConfig())]
    sampled = min(options.budgets)
    found.append((f"one_step_sampled, N = {sampled}", operators.SearchConfig("one_step_sampled", sampled)))
    for depth in options.depths:
        for name in ("lookahead", "lookahead_max"):
            found.append((f"{name}, depth {depth}", operators.SearchConfig(name, depth=depth)))
    for budget in options.budgets:
        for name in ("gumbel", "muzero", "muzero_q"):
            found.append((f"{name}, N = {budget}", operators.SearchConfig(name, budget)))
    return found


def mctx_alone(search: operators.SearchConfig, model: LatentModel) -> Callable | None:
    """mctx's own policy on the same model; None for an operator that is not mctx's."""
    policies = {
        "gumbel": mctx.gumbel_muzero_policy,
        "muzero": functools.partial(
            mctx.muzero_policy, dirichlet_fraction=search.dirichlet_fraction, dirichlet_alpha=search.dirichlet_alpha),
    }  # fmt: skip
    if (policy := policies.get(search.operator)) is None:
        return None
    recurrent = mcts.recurrent_fn(model, GAMMA)

    def alone(params, embeddings, key):
        found = policy(params, key, mcts.root(model, params, embeddings), recurrent, search.num_simulations)
        return found.action, found.action_weights

    return alone


def interleaved(
    planner: Callable, alone: Callable | None, arguments: tuple, options: Options
) -> tuple[float, float | None, float, float | None]:
    """(CPU seconds of our call, of mctx's, our compiled FLOPs, their ratio), medians of measurements in turn."""
    programs = [jax.jit(one).lower(*arguments).compile() for one in (planner, alone) if one is not None]
    runs = [lambda turns, one=one: jax.block_until_ready([one(*arguments) for _ in range(turns)]) for one in programs]
    turns = [stopwatch.calibrate(run, options.seconds) for run in runs]
    rounds = [[stopwatch.cpu_seconds(run, n) / n for run, n in zip(runs, turns, strict=True)]
              for _ in range(options.rounds)]  # fmt: skip
    medians = [statistics.median(column) for column in zip(*rounds, strict=True)]
    flops = [one.cost_analysis()["flops"] for one in programs]
    return (*medians, flops[0], flops[0] / flops[1]) if alone else (medians[0], None, flops[0], None)


def step_flops(model: LatentModel, params: Any, embeddings: Any) -> float:
    """FLOPs of one model step from every root, heads included."""
    recurrent = mcts.recurrent_fn(model, GAMMA)
    actions = jnp.zeros(embeddings.shape[0], jnp.int32)
    return jax.jit(recurrent).lower(params, jax.random.key(0), actions, embeddings).compile().cost_analysis()["flops"]


# --- whole updates ---


def updates(options: Options, peak: float, console: Console) -> Any:
    """The table of updates per CPU second."""
    data = datasets.load("local/catch", console)
    dataset = jax.tree.map(jax.device_put, data.dataset)
    table = Table(title=f"catch, {options.batch_size} windows: updates per CPU second")
    for column in ("algorithm", "operator", "updates / s", "ROSMO is faster by", "MFLOP", "share of peak"):
        table.add_column(column, justify="right")
    base = None
    for name, given in UPDATES:
        algorithm = registry.lookup(name)
        config = algorithm.config(batch_size=options.batch_size)
        config = dataclasses.replace(config, search=dataclasses.replace(config.search, **given))
        learner = algorithm.make(config, data.spec)
        run, flops = stopwatch.scanned(learner, dataset)
        count = stopwatch.calibrate(run, options.seconds)
        seconds = statistics.median(stopwatch.cpu_seconds(run, count) / count for _ in range(options.rounds))
        base = base or (seconds, flops)
        if config.search.operator in TREES:
            flops = base[1] + tree_flops(config, data.spec)
        how = ", ".join(f"{key} = {value}" for key, value in given.items() if key != "operator")
        table.add_row(name, config.search.operator + (f", {how}" if how else ""), f"{1 / seconds:.0f}",
                      f"{seconds / base[0]:.1f}", f"{flops / 1e6:.1f}", f"{flops / seconds / peak:.0%}")  # fmt: skip
    return table


def tree_flops(config: Any, spec: EnvironmentSpec) -> float:
    """FLOPs of an update's searches by a tree, less those of its one-step lookaheads."""
    model, params = random_model(spec)
    roots, key = jnp.zeros((config.batch_size * (config.unroll_steps + 1), 32)), jax.random.key(0)
    one_step = operators.make(operators.SearchConfig(), model, num_actions=spec.action.num_actions, gamma=GAMMA)
    looked = jax.jit(one_step).lower(params, roots, key).compile().cost_analysis()["flops"]
    return (1 + config.search.num_simulations) * step_flops(model, params, roots) - looked


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
