"""Explicit models and policy evaluation on one core: training, rollouts, many policies at once.

    python experiments/speed/models.py
    python experiments/speed/models.py --parts training,fqe --seconds 0.3 --rounds 1

Data of the sizes of cheetah run (17 state and 6 action entries), random numbers; parameters as they
are first. What is compared takes turns, so that a machine whose speed drifts slows both; figures
are medians over CPU seconds of this process. FLOPs are those of products.
"""

from collections.abc import Callable, Iterator

import fitted_q  # beside this file
import jax
import jax.numpy as jnp
import stopwatch  # beside this file
import tyro
from actors import STATE_SIZE, policies, policy, separate  # beside this file
from cases import GAMMA, Case, Data, Options, data, repeatedly, table  # beside this file
from rich.console import Console
from rich.table import Table

from offline_mbrl.models import explicit, fitting, kinds
from offline_mbrl.models.densities.density import Density
from offline_mbrl.ope import model_based
from offline_mbrl.rollouts import shares, unroll
from offline_mbrl.training import flops
from offline_mbrl.types import Array, DynamicsModel, Key, Params

ENSEMBLE = "ensemble, 7 x 4 x 200"
FIT = fitting.Config(bootstrap=False)
DENSITIES: dict[str, kinds.ModelConfig] = {  # the single densities of the likelihood study
    "feedforward, 3 x 256": kinds.FeedforwardConfig(num_members=1, fit=FIT),
    "coupled, 3 x 256": kinds.CoupledConfig(num_members=1, fit=FIT),
    "masked autoregressive, 3 x 512": kinds.MaskedConfig(num_members=1, fit=FIT),
    "shared autoregressive, 3 x 256, K = 2": kinds.SharedConfig(num_members=1, fit=FIT),
}
MODELS: dict[str, kinds.ModelConfig] = {ENSEMBLE: kinds.GaussianEnsembleConfig(), **DENSITIES}


def main(options: Options) -> None:
    """Prints the tables of each part."""
    core = stopwatch.one_core(options.core)
    console = Console(highlight=False, width=160)
    peak = stopwatch.matrix_product_peak()
    console.print(
        f"core {core}: {peak / 1e9:.0f} GFLOP/s in a matrix product of 1024 x 1024, float32\n"
    )
    parts = {
        "training": training,
        "rollouts": rollouts,
        "sampling": sampling,
        "fqe": fitted_q.updates,
        "fits": fitted_q.whole_fits,
        "evaluation": evaluation,
    }
    for part in options.parts.split(","):
        for shown in parts[part](options, peak):
            console.print(shown)


def training(options: Options, peak: float) -> Iterator[Table]:
    """Updates of the ensemble that MOPO trains, and of single densities."""
    measured = data(options)
    dataset = measured.dataset._replace(held_out=measured.dataset.starts[:100])
    cases = []
    for name, config in MODELS.items():
        learner = kinds.learner(config, kinds.make(config, measured.spec))
        timed = stopwatch.scanned(learner, dataset, measured.context)
        cases.append(Case(name, timed.run, flops=timed.flops))
    yield table("training, batch 256 a member", "updates / s", cases, options, peak)


def rollouts(options: Options, peak: float) -> Iterator[Table]:
    """Model steps per second: all members at every step, against each member in its share."""
    measured = data(options)
    model = kinds.make(MODELS[ENSEMBLE], measured.spec)
    spreads = {
        "all 7 members at every step": shares.jointly,
        "each member its share": shares.by_member,
    }
    cases = []
    for name, spread in spreads.items():
        run, operations = rolled(model, spread, measured, options.starts, options.horizon)
        work = options.starts * options.horizon
        cases.append(Case(f"{name}, {options.starts} starts", run, work=work, flops=operations))
    yield table(f"rollouts of the {ENSEMBLE}", "steps / s", cases, options, peak)


def rolled(
    model: DynamicsModel, spread: shares.Spread, measured: Data, starts: int, horizon: int
) -> tuple[Callable[[int], None], float]:
    """Rollouts of which only the return is kept, and the FLOPs of all of them.

    Args:
      model: an ensemble's functions.
      spread: over its members.
      measured: the data.
      starts: number of rollouts.
      horizon: steps of each.
    """
    returns = unroll.returns(model, policy(), gamma=GAMMA, horizon=horizon)
    params = jax.jit(model.init)(jax.random.key(0), measured.context.statistics)
    arguments = (
        params,
        separate(policies(1), 1)[0],
        measured.dataset.observation[:starts],
        jax.random.split(jax.random.key(1), starts),
    )
    program = spread.apply(model, returns)
    compiled = jax.jit(program).lower(*arguments).compile()

    def run(turns: int) -> None:
        for _ in range(turns):
            jax.block_until_ready(compiled(*arguments))

    return run, flops.count(program, *arguments)


def sampling(options: Options, peak: float) -> Iterator[Table]:
    """Model steps per second of single densities.

    Of the masked one also by D passes of the whole network.
    """
    measured = data(options)
    cases = []
    for name, config in DENSITIES.items():
        density = kinds.density(config, measured.spec)
        ways = {name: density}
        if name.startswith("masked"):
            by_passes = density._replace(sample=pass_by_pass(density))
            ways = {f"{name}, a whole pass an entry": by_passes, **ways}
        for way, sampler in ways.items():
            model = explicit.make(sampler, measured.spec)
            run, operations = rolled(
                model, shares.jointly, measured, options.sampled, options.horizon
            )
            work = options.sampled * options.horizon
            cases.append(Case(way, run, work=work, flops=operations))
    yield table(f"rollouts from {options.sampled} starts", "steps / s", cases, options, peak)


def pass_by_pass(density: Density) -> Callable[[Params, Params, Array, Key], Array]:
    """The plain sampler of an autoregressive density: entry by entry, the whole network each
    time.
    """

    def sample(params: Params, shared: Params, x: Array, key: Key) -> Array:
        noise = jax.random.normal(key, (STATE_SIZE + 1,))

        def entry(i: Array, y: Array) -> Array:
            mean, std = density.moments(params, shared, x, y)
            return y.at[i].set(mean[i] + std[i] * noise[i])

        return jax.lax.fori_loop(0, STATE_SIZE + 1, entry, jnp.zeros(STATE_SIZE + 1))

    return sample


def evaluation(options: Options, peak: float) -> Iterator[Table]:
    """Model-based evaluation of many policies: one compiled call against a call for each."""
    measured = data(options)
    count, starts, horizon = options.evaluated
    actors = policies(count)
    key = jax.random.key(2)
    first = measured.dataset.observation[:starts]
    for name, config in MODELS.items():
        if name.startswith("shared"):
            continue
        model = kinds.make(config, measured.spec)
        params = jax.jit(model.init)(jax.random.key(0), measured.context.statistics)
        rolled_out = model_based.explicit_rollouts(model, policy(), gamma=GAMMA, horizon=horizon)
        estimator = model_based.make(rolled_out, num_rollouts=starts)
        single = jax.jit(estimator).lower(params, separate(actors, 1)[0], first, key).compile()

        def in_sequence(turns: int, single=single, params=params) -> None:
            for _ in range(turns):
                for actor in separate(actors, count):
                    jax.block_until_ready(single(params, actor, first, key))

        work = count * starts * horizon
        cases = [Case("a call a policy", in_sequence, work=work)]
        chunks = {"one call, all side by side": None, "one call, a policy at a time": 1}
        for way, chunk in chunks.items():
            together = model_based.many(estimator, chunk=chunk)
            run = repeatedly(together, params, actors, first, key)
            cases.append(Case(way, run, work=work))
        title = f"{name}: {count} policies, {starts} starts, horizon {horizon}"
        yield table(title, "steps / s", cases, options, peak)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
