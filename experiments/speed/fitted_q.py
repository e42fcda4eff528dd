"""Fitted Q evaluation of several policies in one fit, against one fit after the other."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import stopwatch  # beside this file
from actors import policies, policy, separate  # beside this file
from cases import Case, Data, Options, data, table  # beside this file
from rich.table import Table

from offline_mbrl.ope.values import fqe
from offline_mbrl.training import fit
from offline_mbrl.types import Array, Context, Key, Learner, Params, PyTree

WIDTHS = (64, 256)  # of the critics' two hidden layers


def updates(options: Options, peak: float) -> Iterator[Table]:
    """Updates of several policies' critics in one fit, against one fit after the other."""
    measured = data(options)
    count = options.policies
    actors = policies(count)
    first = with_target(measured, separate(actors, 1)[0])
    for hidden in WIDTHS:
        learner, _ = fqe.make(fqe.Config(hidden_layers=(hidden, hidden)), measured.spec, policy())
        single = stopwatch.scanned(learner, measured.dataset, first)
        together = stopwatch.scanned(
            side_by_side(learner, count), measured.dataset, with_target(measured, actors)
        )

        def in_sequence(turns: int, single: stopwatch.Timed = single) -> None:
            for _ in range(count):
                single.run(turns)

        cases = [
            Case(f"{count} runs", in_sequence, work=count, flops=count * single.flops),
            Case(f"{count} policies in one fit", together.run, work=count, flops=together.flops),
        ]
        title = f"fitted Q evaluation, 2 x {hidden}, batch 256"
        yield table(title, "updates of a policy / s", cases, options, peak)


def whole_fits(options: Options, peak: float) -> Iterator[Table]:
    """The same by `fit`, compilation included: what a user waits for."""
    del peak  # compilation has no floating point operations
    measured = data(options)
    count = options.policies
    actors = policies(count)
    shown = Table(
        "what",
        f"{count} runs, CPU s",
        f"{count} policies in one fit, CPU s",
        "ratio",
        title=f"{options.updates} updates of fitted Q evaluation by fit, compilation included",
    )
    for hidden in WIDTHS:
        learner, _ = fqe.make(fqe.Config(hidden_layers=(hidden, hidden)), measured.spec, policy())
        run = functools.partial(
            fit.fit,
            learner,
            measured.dataset,
            key=jax.random.key(0),
            num_updates=options.updates,
            block_updates=options.updates,
        )

        def run_each(_: int, run: Any = run) -> None:
            for target in separate(actors, count):
                run(context=with_target(measured, target))

        def run_together(_: int, run: Any = run) -> None:
            run(context=with_target(measured, actors), seeds=range(count))

        apart = stopwatch.cpu_seconds(run_each, 1)
        together = stopwatch.cpu_seconds(run_together, 1)
        name = f"2 x {hidden}, batch 256"
        shown.add_row(name, f"{apart:.1f}", f"{together:.1f}", f"{apart / together:.2f}")
    yield shown


def with_target(measured: Data, params: Params) -> Context:
    """The context of a fit that evaluates the policies of these parameters."""
    return measured.context._replace(upstream={"target": params})


def side_by_side(learner: Learner, count: int) -> Learner:
    """A learner of all policies at once, as `fit` makes it of seeds."""

    def keys_of(key: Key) -> Key:
        return jax.random.split(key, count)

    axes = Context(statistics=None, upstream=0)  # type: ignore[arg-type]

    def sample(dataset: PyTree, cache: PyTree, key: Key) -> PyTree:
        return jax.vmap(learner.sample, (None, None, 0))(dataset, cache, keys_of(key))

    def init(key: Key, batch: PyTree, context: Context) -> PyTree:
        return jax.vmap(learner.init, (0, 0, axes))(keys_of(key), batch, context)

    def step(
        state: PyTree, context: Context, batch: PyTree, key: Key
    ) -> tuple[PyTree, dict[str, Array]]:
        over_policies = jax.vmap(learner.step, (0, axes, 0, 0))
        state, metrics = over_policies(state, context, batch, keys_of(key))
        return state, {name: jnp.mean(values) for name, values in metrics.items()}

    return learner._replace(sample=sample, init=init, step=step)
