"""How often 95 % intervals of off-policy estimators hold the truth, where the truth is known. For example

    python experiments/benchmarks/ope/coverage.py
    python experiments/benchmarks/ope/coverage.py --estimators fqe,vpm --repeats 10 --folder /tmp/coverage

The linear-Gaussian system is logged again and again, 200 episodes each time; every consistent estimator says what two
policies return, and is held against the exact values: over the horizon for importance weights and models, without end
for what bootstraps past the time limit. An estimator passes where its intervals hold the truth in at least 90 % of the
repeats, or it raised `low_support`. All repeats of an estimator are one program; what `runs.csv` has is not redone,
and a table is of one number of repeats and fits.
"""

import dataclasses
import functools
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[3])
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    )

import jax
import numpy as np
from rich.console import Console

from experiments.benchmarks import rows as table
from experiments.benchmarks.ope.coverage_report import Row, begun, measured, report
from offline_mbrl import provenance
from offline_mbrl.commands import arguments
from offline_mbrl.data import episodes, memory, normalize, splits
from offline_mbrl.models import autoregressive, explicit, feedforward, fitting
from offline_mbrl.models.density import Density
from offline_mbrl.ope import batches, intervals, model_based, support, visits
from offline_mbrl.ope.ratios import dice, vpm
from offline_mbrl.ope.values import fqe, fqe_distributional
from offline_mbrl.ope.weights import doubly_robust, importance, magic  # fmt: skip
from offline_mbrl.problems import known
from offline_mbrl.selection import fits as estimators
from offline_mbrl.selection import weighting
from offline_mbrl.training.blocks import run_block
from offline_mbrl.types import Array, Estimate, Learner, PyTree, Trajectory, UsageError

RESULTS = Path(__file__).resolve().parents[2] / "results" / "ope" / "coverage"
POLICIES = (1, 5)  # of `known.STRENGTHS`: one near the behavior, one as far as there is
WIDTH = {"hidden_layers": (32,), "batch_size": 128}
RESAMPLED = WIDTH | {"bootstrap": True}
PLAYERS = RESAMPLED | {"nu_learning_rate": 3e-3, "zeta_learning_rate": 3e-3, "averaged_updates": 400}
VALUES = {"learning_rate": 3e-3, "weight_decay": 0.0, "tau": 0.05}
REPEATS, FITS = 200, 4
MODEL_UPDATES, MODEL_MEMBERS, REFRESH = 1_500, 4, 250


@dataclasses.dataclass(frozen=True)
class Options:
    """Measures how often intervals of off-policy estimators hold the truth."""

    repeats: int = REPEATS  # logs of the same system; another number: give another folder too
    fits: int = FITS  # of a learned estimator, each on its own resample of the episodes; the same
    estimators: str = ""  # comma-separated; default: all
    fresh: bool = False  # forget what is there of these estimators
    folder: Path | None = None  # of the results; default: under experiments/results/ope


class Logs(NamedTuple):
    """R logs of one system; every leaf but the problem's has a leading axis [R]."""

    problem: known.KnownProblem  # its functions; its data are the first log
    dataset: memory.Dataset  # a tenth of the transitions held out
    statistics: normalize.Statistics
    trajectories: Trajectory
    starts: np.ndarray


Estimates = dict[str, Estimate]  # by name, every field [R, P]
Work = Callable[[Logs, PyTree, int], Estimates]  # (logs, parameters of policies [P, ...], fits)


# --- the logs ---


def stacked(trees: list[Any]) -> Any:
    """N trees of one structure as one, every leaf `[N, ...]`."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def logged(repeats: int) -> Logs:
    """R logs; the system is the same, seeds of episodes and of what is held out are the repeat's number."""
    problems = [known.linear_gaussian(seed) for seed in range(repeats)]
    parts = [splits.hold_out(problem.dataset, seed=seed) for seed, problem in enumerate(problems)]
    whole = [normalize.transition_statistics(part) for part in parts]
    measured = [normalize.statistics(part)._replace(transitions=of) for part, of in zip(parts, whole, strict=True)]
    return Logs(problems[0], stacked(parts), stacked(measured), stacked([*map(episodes.trajectories, parts)]),
                stacked([*map(episodes.initial_observations, parts)]))  # fmt: skip


# --- estimators ---


def trained(learner: Learner, key: Array, target: PyTree, dataset: PyTree, statistics: PyTree, updates: int) -> PyTree:
    """The state of one fit; pure."""
    key_sample, key_init, key_fit = jax.random.split(key, 3)
    state = learner.init(key_init, learner.sample(dataset, key_sample), statistics, {"target": target})
    return run_block(learner, state, dataset, key_fit, start=0, num_steps=updates)[0]


def fitted(name: str, make: Callable, config: Any, updates: int, logs: Logs, targets: PyTree, fits: int) -> Estimates:
    """A learned estimator: in each of R repeats, fits to F resamples combined, for each of P policies alike.

    Returns:
      `name` and its estimate, every field `[R, P]`.
    """
    problem = logs.problem
    learner, read_out = make(config, problem.spec, problem.policy)

    def one(key: Array, target: PyTree, dataset: PyTree, statistics: PyTree, starts: Array) -> Estimate:
        return read_out(trained(learner, key, target, dataset, statistics, updates), starts, key)

    over_fits = jax.vmap(one, (0, None, None, None, None))

    def combined(keys: Array, target: PyTree, dataset: PyTree, statistics: PyTree, starts: Array) -> Estimate:
        found = intervals.combine(over_fits(keys, target, dataset, statistics, starts), resampled=True)
        key_batch, key_actions = jax.random.split(jax.random.fold_in(keys[0], 1))
        batch = batches.experience(estimators.VISITS_SEEN)(dataset, key_batch)
        share = visits.visited_share(problem.policy, target, batch, problem.spec, key_actions, gamma=problem.spec.gamma)
        return support.with_signs(found, share)

    over_policies = jax.vmap(combined, (None, 0, None, None, None))
    over_repeats = jax.jit(jax.vmap(over_policies, (0, None, 0, 0, 0)))
    keys = jax.random.split(jax.random.key(1), (len(logs.starts), fits))
    return {name: over_repeats(keys, targets, logs.dataset, logs.statistics, logs.starts)}


def robust(logs: Logs, targets: PyTree, fits: int) -> Estimates:
    """Doubly robust ones, with the values of one fit to the same data."""
    del fits
    problem, config = logs.problem, fqe.Config(**WIDTH, **VALUES)
    learner, _ = fqe.make(config, problem.spec, problem.policy)
    values = fqe.values(config, problem.spec, problem.policy)
    methods = {"doubly_robust": doubly_robust.doubly_robust, "magic": magic.magic,
               "weighted_doubly_robust": doubly_robust.weighted_doubly_robust}  # fmt: skip

    def one(key: Array, target: PyTree, dataset: PyTree, statistics: PyTree, batch: Trajectory) -> Estimates:
        params = learner.policy_params(trained(learner, key, target, dataset, statistics, 1_500))
        q, v = doubly_robust.along(values.q_value, values.state_value, params, batch, key)
        log_ratios = importance.log_ratios(problem.policy, target, batch, batch.extras["behavior_log_prob"])
        return {name: method(batch, log_ratios, q, v, gamma=problem.spec.gamma) for name, method in methods.items()}

    over_policies = jax.vmap(one, (None, 0, None, None, None))
    over_repeats = jax.jit(jax.vmap(over_policies, (0, None, 0, 0, 0)))
    keys = jax.random.split(jax.random.key(2), len(logs.starts))
    return over_repeats(keys, targets, logs.dataset, logs.statistics, logs.trajectories)


def weights(logs: Logs, targets: PyTree, fits: int) -> Estimates:
    """Importance sampling with the logged density, every field `[R, P]`; nothing is fitted."""
    del fits
    problem = logs.problem
    consistent = ("ordinary", "weighted", "per_decision", "weighted_per_decision")  # clipped weights are biased
    methods = {name: weighting.WEIGHTINGS[name] for name in consistent}

    def one(target: PyTree, batch: Trajectory) -> Estimates:
        log_ratios = importance.log_ratios(problem.policy, target, batch, batch.extras["behavior_log_prob"])
        return {name: method(batch, log_ratios, gamma=problem.spec.gamma) for name, method in methods.items()}

    return jax.jit(jax.vmap(jax.vmap(one, (0, None)), (None, 0)))(targets, logs.trajectories)


def rolled_out(name: str, density: Callable[[int, int], Density], logs: Logs, targets: PyTree, fits: int) -> Estimates:
    """Rollouts in an ensemble that is fitted once a repeat, for all policies; every field `[R, P]`."""
    del fits  # the members are the resamples
    problem = logs.problem
    model = explicit.make(density(*explicit.sizes(problem.spec)), problem.spec, num_members=MODEL_MEMBERS)
    config = fitting.Config(num_updates=MODEL_UPDATES, batch_size=128, learning_rate=3e-3, refresh_every=REFRESH)
    learner = fitting.make(model, config, num_members=MODEL_MEMBERS)
    rollouts = MODEL_MEMBERS * logs.starts.shape[1]  # every start by every member, so that members compare in pairs
    estimator = model_based.make(model, problem.policy, gamma=problem.spec.gamma, horizon=problem.spec.horizon,
                                 num_rollouts=rollouts)  # fmt: skip

    def one(key: Array, dataset: PyTree, statistics: PyTree, starts: Array) -> Estimate:
        key_init, key_fit, key_rollouts = jax.random.split(key, 3)

        def stretch(turn: Array, state: PyTree) -> PyTree:
            state, _ = run_block(learner, state, dataset, key_fit, start=turn * REFRESH, num_steps=REFRESH)
            return learner.refresh(state, dataset, key_fit)

        state = jax.lax.fori_loop(0, MODEL_UPDATES // REFRESH, stretch, learner.init(key_init, None, statistics, ()))
        params = learner.policy_params(state)
        return jax.lax.map(lambda target: estimator(params, target, starts, key_rollouts), targets)

    keys = jax.random.split(jax.random.key(3), len(logs.starts))
    return {name: jax.jit(jax.vmap(one))(keys, logs.dataset, logs.statistics, logs.starts)}


def learned_by(name: str, make: Callable, config: Any, updates: int) -> Work:
    """`fitted` of one estimator, as work."""
    return functools.partial(fitted, name, make, config, updates)


WORK: Mapping[str, tuple[Work, float]] = {  # and for how many steps what it estimates goes on
    "importance": (weights, 0.0),
    "model_ff": (functools.partial(rolled_out, "model_ff", functools.partial(
        feedforward.make, feedforward.Config((32, 32)))), 0.0),
    "model_ar": (functools.partial(rolled_out, "model_ar", functools.partial(
        autoregressive.masked, autoregressive.MaskedConfig(32, 1))), 0.0),
    "fqe": (learned_by("fqe", fqe.make, fqe.Config(**RESAMPLED, **VALUES), 1_500), math.inf),
    "robust": (robust, math.inf),
    "fqe_distributional": (learned_by("fqe_distributional", fqe_distributional.make, fqe_distributional.Config(
        **RESAMPLED, learning_rate=2e-3, target_period=10, num_atoms=21), 1_500), math.inf),
    "best_dice": (learned_by("best_dice", dice.make, dice.Config(**PLAYERS), 5_000), math.inf),
    "dual_dice": (learned_by("dual_dice", dice.make, dice.Config(
        **{**dice.PRESETS["dual_dice"], **PLAYERS}), 5_000), math.inf),
    "vpm": (learned_by("vpm", vpm.make, vpm.Config(
        **RESAMPLED, learning_rate=3e-3, averaged_updates=200), 4_000), math.inf),
}  # fmt: skip


# --- work ---


def run(piece: str, options: Options, logs: Logs, *, revision: str, command: str) -> list[Row]:
    """Does a piece: a row for each of its estimators and policies."""
    work, steps = WORK[piece]
    params = [logs.problem.target_params[policy] for policy in POLICIES]
    truth = np.array([logs.problem.value(one, steps or logs.problem.spec.horizon) for one in params])
    start = time.process_time()
    found = jax.block_until_ready(work(logs, stacked(params), options.fits))
    seconds = round(time.process_time() - start, 1)
    return [Row(piece, name, known.STRENGTHS[at], options.repeats, options.fits, **each, cpu_seconds=seconds,
                revision=revision, command=command)
            for name, of in found.items() for at, each in zip(POLICIES, measured(of, truth), strict=True)]  # fmt: skip


def main(options: Options) -> int:
    """Does what is missing, then reports; the exit code.

    Raises:
      UsageError: an estimator is unknown, repeats or fits are fewer than 2, or they are not the folder's.
    """
    console = Console(highlight=False, soft_wrap=True)
    names = [name for name in options.estimators.split(",") if name] or list(WORK)
    if unknown := [name for name in names if name not in WORK]:
        raise UsageError(f"unknown estimator {unknown[0]!r}: choose from {', '.join(WORK)}")
    if options.repeats < 2 or options.fits < 2:
        raise UsageError(f"repeats and fits must be at least 2, got {options.repeats} and {options.fits}")
    for name, default in (("repeats", REPEATS), ("fits", FITS)):
        if getattr(options, name) != default and options.folder is None:
            raise UsageError(f"--{name} differs from the committed results' {default}: give a --folder as well")
    folder = options.folder or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    if options.fresh and not options.estimators:
        (folder / table.TABLE).unlink(missing_ok=True)  # even a damaged one
    forgotten = names if options.fresh else ()
    done = begun(folder, forgotten, repeats=options.repeats, fits=options.fits)
    logs = logged(options.repeats)
    told = {"revision": provenance.revision() or "not under version control",
            "command": shlex.join(["python", "experiments/benchmarks/ope/coverage.py", *sys.argv[1:]])}  # fmt: skip
    for piece in (name for name in names if name not in done):
        found = run(piece, options, logs, **told)
        table.append(folder, Row, found)
        for row in found:
            console.print(f"{row.estimator} {row.strength:+g}: covered {row.covered:.2f}, either {row.either:.2f}, "
                          f"width / error {row.width_over_error:.1f}, {row.cpu_seconds:.0f} s of CPU")  # fmt: skip
    report(folder, members=MODEL_MEMBERS)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(arguments.parse(Options, sys.argv[1:], prog="ope_coverage.py", description=__doc__)))
    except UsageError as error:
        sys.exit(f"error: {error}")
