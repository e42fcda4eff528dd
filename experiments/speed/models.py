"""Explicit models and policy evaluation on one core: training, rollouts, fitted Q evaluation, many policies at once.

    python experiments/speed/models.py
    python experiments/speed/models.py --parts training,fqe --seconds 0.3 --rounds 1

Data of the sizes of cheetah run (17 state and 6 action entries), random numbers; parameters as they are first. What is
compared takes turns, so that a machine whose speed drifts slows both; figures are medians over CPU seconds of this
process. FLOPs are the compiler's; it counts one turn of a loop, so that a model that samples in a loop has none.
"""

import dataclasses
import functools
import statistics
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import stopwatch  # beside this file
import tyro
from actors import ACTION_SIZE, STATE_SIZE, policies, policy, separate  # beside this file
from rich.console import Console
from rich.table import Table

from offline_mbrl.data import memory, normalize, specs
from offline_mbrl.models import autoregressive, coordinates, explicit, feedforward, fitting, gaussian_ensemble
from offline_mbrl.models.density import Density
from offline_mbrl.ope import model_based
from offline_mbrl.ope.values import fqe
from offline_mbrl.rollouts import shares, unroll
from offline_mbrl.training import fit
from offline_mbrl.types import Array, DynamicsModel, Learner, PyTree

EPISODE, GAMMA = 1000, 0.995
PARTS = ("training", "rollouts", "sampling", "fqe", "fits", "evaluation")


@dataclasses.dataclass(frozen=True)
class Options:
    """What is measured."""

    parts: str = ",".join(PARTS)  # comma-separated
    transitions: int = 50_000
    starts: int = 5_000  # of a rollout
    horizon: int = 5  # of a rollout
    sampled: int = 512  # starts of the rollouts that compare ways of sampling
    policies: int = 8  # of fitted Q evaluation
    updates: int = 2_000  # of whole fits
    evaluated: tuple[int, int, int] = (10, 1_000, 100)  # policies, starts, horizon of the last part
    rounds: int = 5  # measurements in turn; medians are shown
    seconds: float = 0.5  # of one measurement, about
    core: int | None = None  # which core; default: the first that this process may use


class Case(NamedTuple):
    """Something that is timed."""

    name: str
    run: Callable[[int], Any]  # does it so many times
    work: float = 1.0  # what is counted, in one time
    flops: float | None = None  # of one time


def main(options: Options) -> None:
    """Prints the tables of each part."""
    core = stopwatch.one_core(options.core)
    console = Console(highlight=False, width=160)
    peak = stopwatch.matrix_product_peak()
    console.print(f"core {core}: {peak / 1e9:.0f} GFLOP/s in a matrix product of 1024 x 1024, float32\n")
    made = {"training": training, "rollouts": rollouts, "sampling": sampling, "fqe": fitted_q, "fits": whole_fits,
            "evaluation": evaluation}  # fmt: skip
    for part in options.parts.split(","):
        for shown in made[part](options, peak):
            console.print(shown)


def rates(cases: list[Case], options: Options) -> list[float]:
    """Work per CPU second of each, medians of measurements in turn."""
    counts = [stopwatch.calibrate(case.run, options.seconds) for case in cases]
    rounds = [[stopwatch.cpu_seconds(case.run, count) / count for case, count in zip(cases, counts, strict=True)]
              for _ in range(options.rounds)]  # fmt: skip
    medians = [statistics.median(column) for column in zip(*rounds, strict=True)]
    return [case.work / seconds for case, seconds in zip(cases, medians, strict=True)]


def table(title: str, unit: str, cases: list[Case], options: Options, peak: float) -> Table:
    """Rates, how much faster than the first of them each is, and its share of the peak."""
    shown, found = Table(title=title), rates(cases, options)
    for column in ("what", unit, "against the first", "MFLOP", "share of peak"):
        shown.add_column(column, justify="left" if column == "what" else "right")
    for case, rate in zip(cases, found, strict=True):
        each = case.flops and case.flops / case.work
        shown.add_row(case.name, f"{rate:,.0f}", f"{rate / found[0]:.2f}", f"{each / 1e6:.3g}" if each else "",
                      f"{each * rate / peak:.0%}" if each else "")  # fmt: skip
    return shown


# --- what is measured with ---


def data(options: Options) -> tuple[memory.Dataset, normalize.Statistics, Any]:
    """Random transitions with their statistics and spec."""
    rng, size = np.random.default_rng(0), options.transitions
    dataset = memory.Dataset.from_arrays({
        "observation": rng.normal(size=(size, STATE_SIZE)).astype(np.float32),
        "action": rng.uniform(-1, 1, (size, ACTION_SIZE)).astype(np.float32),
        "reward": rng.uniform(0, 1, size).astype(np.float32), "is_terminal": np.zeros(size, bool),
        "is_truncated": np.arange(size) % EPISODE == EPISODE - 1})  # fmt: skip
    known = normalize.statistics(dataset)._replace(transitions=normalize.transition_statistics(dataset))
    return jax.tree.map(jnp.asarray, dataset), known, specs.spec_of(dataset, gamma=GAMMA)


def densities() -> dict[str, Density]:
    """The single densities of the likelihood study."""
    sizes = STATE_SIZE, ACTION_SIZE
    return {
        "feedforward, 3 x 256": feedforward.make(feedforward.Config(), *sizes),
        "masked autoregressive, 3 x 512": autoregressive.masked(autoregressive.MaskedConfig(), *sizes),
        "shared autoregressive, 3 x 256, K = 2": autoregressive.shared(autoregressive.SharedConfig(), *sizes),
    }


def ready(learner: Learner, known: normalize.Statistics, given: PyTree = ()) -> Learner:
    """The learner with what `stopwatch.scanned` does not hand on."""
    return learner._replace(init=lambda key, batch, *_: learner.init(key, batch, known, given))


def repeatedly(program: Callable, *arguments: Any) -> Callable[[int], Any]:
    """Runs a compiled program so many times."""
    compiled = jax.jit(program).lower(*arguments).compile()
    return lambda turns: [jax.block_until_ready(compiled(*arguments)) for _ in range(turns)]


# --- parts ---


def training(options: Options, peak: float) -> Iterator[Table]:
    """Updates of the ensemble that MOPO trains, and of single densities."""
    dataset, known, spec = data(options)
    dataset = dataset._replace(held_out=dataset.starts[:100])
    config = gaussian_ensemble.Config()
    learners = {"ensemble, 7 x 4 x 200": gaussian_ensemble.learner(config, gaussian_ensemble.make(config, spec))}
    for name, density in densities().items():
        learners[name] = fitting.make(explicit.make(density, spec), fitting.Config(bootstrap=False))
    cases = []
    for name, learner in learners.items():
        run, flops = stopwatch.scanned(ready(learner, known), dataset)
        cases.append(Case(name, run, flops=flops))
    yield table("training, batch 256 a member", "updates / s", cases, options, peak)


def rollouts(options: Options, peak: float) -> Iterator[Table]:
    """Model steps per second: all members at every step, against each member in its share of the starts."""
    dataset, known, spec = data(options)
    model = gaussian_ensemble.make(gaussian_ensemble.Config(), spec)
    cases = [rolled(f"{name}, {options.starts} starts", model, spread, known, dataset, options.starts, options.horizon)
             for name, spread in (("all 7 members at every step", shares.jointly),
                                  ("each member its share", shares.by_member))]  # fmt: skip
    yield table("rollouts of the ensemble, 7 x 4 x 200", "steps / s", cases, options, peak)


def rolled(
    name: str, model: DynamicsModel, spread: shares.Spread, known: normalize.Statistics, dataset: memory.Dataset,
    starts: int, horizon: int, *, counted: bool = True,
) -> Case:  # fmt: skip
    """Rollouts of which only the return is kept."""
    run = spread(model, unroll.returns(model, policy(), gamma=GAMMA, horizon=horizon))
    params = jax.jit(model.init)(jax.random.key(0), known)
    actor = jax.tree.map(lambda leaf: leaf[0], policies(1))
    arguments = (params, actor, dataset.observation[:starts], jax.random.split(jax.random.key(1), starts))
    compiled = jax.jit(run).lower(*arguments).compile()
    flops = compiled.cost_analysis()["flops"] * horizon if counted else None  # one turn of the loop over steps
    return Case(name, lambda turns: [jax.block_until_ready(compiled(*arguments)) for _ in range(turns)],
                starts * horizon, flops)  # fmt: skip


def sampling(options: Options, peak: float) -> Iterator[Table]:
    """Model steps per second of single densities; of the masked one also by D passes of the whole network."""
    dataset, known, spec = data(options)
    cases = []
    for name, density in densities().items():
        ways = {name: density}
        if name.startswith("masked"):
            ways = {f"{name}, a whole pass an entry": density._replace(sample=pass_by_pass(density)), **ways}
        cases += [
            rolled(way, explicit.make(made, spec), shares.jointly, known, dataset, options.sampled, options.horizon,
                   counted=way == name and not name.startswith("shared"))
            for way, made in ways.items()
        ]  # fmt: skip
    yield table(f"rollouts from {options.sampled} starts", "steps / s", cases, options, peak)


def pass_by_pass(density: Density) -> Callable:
    """The plain sampler of an autoregressive density: entry by entry, the whole network each time."""

    def sample(params: PyTree, shared: PyTree, x: Array, key: Array) -> Array:
        noise = jax.random.normal(key, (STATE_SIZE + 1,))

        def entry(i: Array, y: Array) -> Array:
            mean, std = density.moments(params, shared, x, y)
            return y.at[i].set(mean[i] + std[i] * noise[i])

        return jax.lax.fori_loop(0, STATE_SIZE + 1, entry, jnp.zeros(STATE_SIZE + 1))

    return sample


def fitted_q(options: Options, peak: float) -> Iterator[Table]:
    """Updates of several policies' critics in one fit, against one fit after the other."""
    dataset, known, spec = data(options)
    count = options.policies
    actors = policies(count)
    for hidden in (64, 256):
        learner, _ = fqe.make(fqe.Config(hidden_layers=(hidden, hidden)), spec, policy())
        one = ready(learner, known, {"target": separate(actors, 1)[0]})
        run, flops = stopwatch.scanned(one, dataset)
        apart = Case(f"{count} runs", lambda turns, run=run: [run(turns) for _ in range(count)], count, count * flops)
        run, flops = stopwatch.scanned(stacked(learner, known, actors, count), dataset)
        cases = [apart, Case(f"{count} policies in one fit", run, count, flops)]
        title = f"fitted Q evaluation, 2 x {hidden}, batch 256"
        yield table(title, "updates of a policy / s", cases, options, peak)


def whole_fits(options: Options, peak: float) -> Iterator[Table]:
    """The same by `fit`, compilation included: what a user waits for."""
    dataset, known, spec = data(options)
    count, actors = options.policies, policies(options.policies)
    shown = Table("what", f"{count} runs, CPU s", f"{count} policies in one fit, CPU s", "ratio",
                  title=f"{options.updates} updates of fitted Q evaluation by fit, compilation included")  # fmt: skip
    for hidden in (64, 256):
        learner, _ = fqe.make(fqe.Config(hidden_layers=(hidden, hidden)), spec, policy())
        run = functools.partial(fit.fit, learner, dataset, key=jax.random.key(0), num_updates=options.updates,
                                block_updates=options.updates, statistics=known)  # fmt: skip
        each = separate(actors, count)
        apart = stopwatch.cpu_seconds(lambda _, run=run, each=each: [run(given={"target": one}) for one in each], 1)
        together = stopwatch.cpu_seconds(lambda _, run=run: run(given={"target": actors}, seeds=range(count)), 1)
        shown.add_row(f"2 x {hidden}, batch 256", f"{apart:.1f}", f"{together:.1f}", f"{apart / together:.2f}")
    yield shown


def stacked(learner: Learner, known: normalize.Statistics, actors: PyTree, count: int) -> Learner:
    """A learner of all policies side by side, as `fit` makes them of seeds."""
    keys = lambda key: jax.random.split(key, count)  # noqa: E731

    def init(key: Array, batch: PyTree, *_: Any) -> PyTree:
        one = lambda key, batch, actor: learner.init(key, batch, known, {"target": actor})  # noqa: E731
        return jax.vmap(one)(keys(key), batch, actors)

    def step(state: PyTree, batch: PyTree, key: Array) -> tuple[PyTree, dict[str, Array]]:
        state, metrics = jax.vmap(learner.step)(state, batch, keys(key))
        return state, {name: jnp.mean(each) for name, each in metrics.items()}

    sample = lambda dataset, key: jax.vmap(learner.sample, (None, 0))(dataset, keys(key))  # noqa: E731
    return learner._replace(sample=sample, init=init, step=step)


def evaluation(options: Options, peak: float) -> Iterator[Table]:
    """Model-based evaluation of many policies: one compiled call against a compiled call for each."""
    dataset, known, spec = data(options)
    count, starts, horizon = options.evaluated
    actors, key = policies(count), jax.random.key(2)
    models = {"ensemble, 7 x 4 x 200": gaussian_ensemble.make(gaussian_ensemble.Config(), spec)}
    models |= {name: explicit.make(density, spec, units=coordinates.unit_variance)
               for name, density in densities().items() if not name.startswith("shared")}  # fmt: skip
    for name, model in models.items():
        params = jax.jit(model.init)(jax.random.key(0), known)
        estimator = model_based.make(model, policy(), gamma=GAMMA, horizon=horizon, num_rollouts=starts)
        first = dataset.observation[:starts]
        ways = {"one call, all side by side": None, "one call, a policy at a time": 1}
        together = {way: repeatedly(model_based.many(estimator, chunk=chunk), params, actors, first, key)
                    for way, chunk in ways.items()}  # fmt: skip
        each = separate(actors, count)
        alone = jax.jit(estimator).lower(params, each[0], first, key).compile()

        def loop(turns, alone=alone, each=each, params=params, first=first):
            for _ in range(turns):
                jax.block_until_ready([alone(params, actor, first, key) for actor in each])

        work = count * starts * horizon
        cases = [Case("a call a policy", loop, work), *(Case(way, run, work) for way, run in together.items())]
        yield table(f"{name}: {count} policies, {starts} starts, horizon {horizon}", "steps / s", cases, options, peak)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
