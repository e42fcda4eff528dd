"""Estimators on many logs of one system at once: what `coverage.py` runs, a program each."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from offline_mbrl.data import episodes, memory, normalize, splits
from offline_mbrl.models import fitting, kinds
from offline_mbrl.models.autoregressive import MaskedConfig
from offline_mbrl.models.feedforward import FeedforwardConfig
from offline_mbrl.ope import batches, intervals, model_based, support, visits
from offline_mbrl.ope.ratios import dice, vpm
from offline_mbrl.ope.values import fqe, fqe_distributional
from offline_mbrl.ope.weights import doubly_robust, importance, magic
from offline_mbrl.problems import known
from offline_mbrl.selection import fits as estimator_fits
from offline_mbrl.selection import weighting
from offline_mbrl.training.blocks import run_block
from offline_mbrl.types import (
    Array,
    Context,
    Estimate,
    Key,
    Learner,
    ModelParams,
    Observation,
    Params,
    PyTree,
    Trajectory,
)

WIDTH: dict[str, Any] = {"hidden_layers": (32,), "batch_size": 128}
RESAMPLED: dict[str, Any] = WIDTH | {"bootstrap": True}
VALUES: dict[str, Any] = {"learning_rate": 3e-3, "weight_decay": 0.0, "tau": 0.05}
PLAYERS: dict[str, Any] = RESAMPLED | {
    "nu_learning_rate": 3e-3,
    "zeta_learning_rate": 3e-3,
    "averaged_updates": 400,
}
ROBUST_UPDATES = 1_500
MODEL_UPDATES = 1_500
MODEL_MEMBERS = 4
REFRESH = 250


class Logs(NamedTuple):
    """R logs of one system; every leaf but the problem's has a leading axis [R]."""

    problem: known.KnownProblem  # its functions; its data are the first log
    dataset: memory.Dataset  # a tenth of the transitions held out
    statistics: normalize.Statistics
    trajectories: Trajectory
    starts: np.ndarray


Estimates = dict[str, Estimate]  # by name, every field [R, P]
Work = Callable[[Logs, Params, int], Estimates]  # (logs, parameters of policies [P, ...], fits)


def stacked(trees: list[Any]) -> Any:
    """N trees of one structure as one, every leaf `[N, ...]`."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def logged(repeats: int) -> Logs:
    """R logs of one system; the repeat's number seeds its episodes and what is held out."""
    problems = [known.linear_gaussian(seed) for seed in range(repeats)]
    parts = [splits.hold_out(problem.dataset, seed=seed) for seed, problem in enumerate(problems)]
    return Logs(
        problem=problems[0],
        dataset=stacked(parts),
        statistics=stacked([normalize.full_statistics(part) for part in parts]),
        trajectories=stacked([episodes.trajectories(part) for part in parts]),
        starts=stacked([episodes.initial_observations(part) for part in parts]),
    )


# --- learned values and ratios ---


def train(
    learner: Learner, key: Key, context: Context, dataset: memory.Dataset, updates: int
) -> PyTree:
    """The state of one fit; pure.

    Args:
      learner: of an estimator.
      key: consumed.
      context: statistics, and the policy's parameters.
      dataset: one log.
      updates: of the fit.
    """
    key_sample, key_init, key_fit = jax.random.split(key, 3)
    state = learner.init(key_init, learner.sample(dataset, None, key_sample), context)
    return run_block(learner, state, context, dataset, (), key_fit, start=0, num_steps=updates)[0]


def fitted(
    make: Callable, config: Any, updates: int, logs: Logs, targets: Params, fits: int
) -> Estimate:
    """A learned estimator: in each of R repeats, F fits to resamples combined, for P policies.

    Args:
      make: (config, spec, policy) -> (learner, read-out).
      config: of the estimator.
      updates: of a fit.
      logs: R of them.
      targets: `[P, ...]` parameters of policies.
      fits: F.

    Returns:
      Every field `[R, P]`.
    """
    problem = logs.problem
    learner, read_out = make(config, problem.spec, problem.policy)

    def single(
        key: Key, context: Context, dataset: memory.Dataset, starts: Observation
    ) -> Estimate:
        state = train(learner, key, context, dataset, updates)
        return read_out(state, context, starts, key)

    def combined(
        keys: Key,
        target: Params,
        dataset: memory.Dataset,
        statistics: normalize.Statistics,
        starts: Observation,
    ) -> Estimate:
        context = Context(statistics=statistics, upstream={"target": target})
        over_fits = jax.vmap(single, (0, None, None, None))(keys, context, dataset, starts)
        estimate = intervals.combine(over_fits, resampled=True)
        key_batch, key_actions = jax.random.split(jax.random.fold_in(keys[0], 1))
        batch = batches.Experience(estimator_fits.NUM_VISITS)(dataset, None, key_batch)
        share = visits.visited_share(
            problem.policy, target, batch, problem.spec, key_actions, gamma=problem.spec.gamma
        )
        return support.with_signs(estimate, share)

    over_policies = jax.vmap(combined, (None, 0, None, None, None))
    over_repeats = jax.jit(jax.vmap(over_policies, (0, None, 0, 0, 0)))
    keys = jax.random.split(jax.random.key(1), (len(logs.starts), fits))
    return over_repeats(keys, targets, logs.dataset, logs.statistics, logs.starts)


def learned(name: str, make: Callable, config: Any, updates: int) -> Work:
    """`fitted` of one estimator, as work."""

    def work(logs: Logs, targets: Params, fits: int) -> Estimates:
        return {name: fitted(make, config, updates, logs, targets, fits)}

    return work


def robust(logs: Logs, targets: Params, fits: int) -> Estimates:
    """Doubly robust ones, with the values of one fit to the same data."""
    del fits
    problem = logs.problem
    config = fqe.Config(**WIDTH, **VALUES)
    learner, _ = fqe.make(config, problem.spec, problem.policy)
    values = fqe.values(config, problem.spec, problem.policy)
    methods = {
        "doubly_robust": doubly_robust.doubly_robust,
        "magic": magic.magic,
        "weighted_doubly_robust": doubly_robust.weighted_doubly_robust,
    }

    def single(
        key: Key,
        target: Params,
        dataset: memory.Dataset,
        statistics: normalize.Statistics,
        batch: Trajectory,
    ) -> Estimates:
        context = Context(statistics=statistics, upstream={"target": target})
        state = train(learner, key, context, dataset, ROBUST_UPDATES)
        params = learner.policy_params(state, context)
        q, v = doubly_robust.along(values.q_value, values.state_value, params, batch, key)
        ratios = log_ratios(logs, target, batch)
        return {
            name: method(batch, ratios, q, v, gamma=problem.spec.gamma)
            for name, method in methods.items()
        }

    over_policies = jax.vmap(single, (None, 0, None, None, None))
    over_repeats = jax.jit(jax.vmap(over_policies, (0, None, 0, 0, 0)))
    keys = jax.random.split(jax.random.key(2), len(logs.starts))
    return over_repeats(keys, targets, logs.dataset, logs.statistics, logs.trajectories)


def log_ratios(logs: Logs, target: Params, batch: Trajectory) -> Array:
    """Of the policy's density to the logged one."""
    logged_density = batch.extras["behavior_log_prob"]
    return importance.log_ratios(logs.problem.policy, target, batch, logged_density)


def weights(logs: Logs, targets: Params, fits: int) -> Estimates:
    """Importance sampling with the logged density; nothing is fitted."""
    del fits
    # Clipped weights are biased.
    consistent = ("ordinary", "weighted", "per_decision", "weighted_per_decision")

    def single(target: Params, batch: Trajectory) -> Estimates:
        ratios = log_ratios(logs, target, batch)
        return {
            name: weighting.WEIGHTINGS[name](batch, ratios, gamma=logs.problem.spec.gamma)
            for name in consistent
        }

    over_policies = jax.vmap(single, (0, None))
    return jax.jit(jax.vmap(over_policies, (None, 0)))(targets, logs.trajectories)


# --- models ---


def rolled_out(
    name: str, config: kinds.ModelConfig, logs: Logs, targets: Params, fits: int
) -> Estimates:
    """Rollouts in an ensemble that is fitted once a repeat, for all policies.

    Args:
      name: of the estimator.
      config: of the ensemble.
      logs: R of them.
      targets: `[P, ...]` parameters of policies.
      fits: not used; the members are the resamples.
    """
    del fits
    problem = logs.problem
    model = kinds.make(config, problem.spec)
    learner = kinds.learner(config, model)
    rollouts = model_based.explicit_rollouts(
        model, problem.policy, gamma=problem.spec.gamma, horizon=problem.spec.horizon
    )
    # Every start by every member, so that members compare in pairs.
    estimator = model_based.make(rollouts, num_rollouts=MODEL_MEMBERS * logs.starts.shape[1])

    def single(
        key: Key,
        dataset: memory.Dataset,
        statistics: normalize.Statistics,
        starts: Observation,
    ) -> Estimate:
        key_init, key_fit, key_rollouts = jax.random.split(key, 3)
        context = Context(statistics=statistics)
        params = fit_model(learner, key_init, key_fit, context, dataset)
        return jax.lax.map(lambda target: estimator(params, target, starts, key_rollouts), targets)

    keys = jax.random.split(jax.random.key(3), len(logs.starts))
    over_repeats = jax.jit(jax.vmap(single))
    return {name: over_repeats(keys, logs.dataset, logs.statistics, logs.starts)}


def fit_model(
    learner: Learner, key_init: Key, key_fit: Key, context: Context, dataset: memory.Dataset
) -> ModelParams:
    """Parameters of a model, each member at its best held-out score; pure.

    Args:
      learner: of the model.
      key_init: of the first parameters.
      key_fit: of the updates.
      context: statistics.
      dataset: one log, with transitions held out.
    """

    def stretch(turn: Array, state: PyTree) -> PyTree:
        start = turn * REFRESH
        state, _ = run_block(
            learner, state, context, dataset, (), key_fit, start=start, num_steps=REFRESH
        )
        return learner.refresh(state, context, dataset, (), start + REFRESH, key_fit)[0]

    state = learner.init(key_init, None, context)
    state = jax.lax.fori_loop(0, MODEL_UPDATES // REFRESH, stretch, state)
    return learner.policy_params(state, context)


# --- the list ---

FIT = fitting.Config(
    num_updates=MODEL_UPDATES,
    batch_size=128,
    learning_rate=3e-3,
    refresh_every=REFRESH,
    patience=0,
)
FEEDFORWARD = FeedforwardConfig(hidden_layers=(32, 32), num_members=MODEL_MEMBERS, fit=FIT)
MASKED = MaskedConfig(hidden_size=32, num_blocks=1, num_members=MODEL_MEMBERS, fit=FIT)


class Estimator(NamedTuple):
    """One piece of work."""

    work: Work
    steps: float  # for how many steps the return goes on that it estimates; 0: to the horizon


ESTIMATORS: Mapping[str, Estimator] = {
    "importance": Estimator(weights, 0.0),
    "model_ff": Estimator(functools.partial(rolled_out, "model_ff", FEEDFORWARD), 0.0),
    "model_ar": Estimator(functools.partial(rolled_out, "model_ar", MASKED), 0.0),
    "fqe": Estimator(learned("fqe", fqe.make, fqe.Config(**RESAMPLED, **VALUES), 1_500), math.inf),
    "robust": Estimator(robust, math.inf),
    "fqe_distributional": Estimator(
        learned(
            "fqe_distributional",
            fqe_distributional.make,
            fqe_distributional.Config(
                **RESAMPLED, learning_rate=2e-3, target_period=10, num_atoms=21
            ),
            1_500,
        ),
        math.inf,
    ),
    "best_dice": Estimator(
        learned("best_dice", dice.make, dice.Config(**PLAYERS), 5_000), math.inf
    ),
    "dual_dice": Estimator(
        learned(
            "dual_dice",
            dice.make,
            dice.Config(**{**dice.PRESETS["dual_dice"], **PLAYERS}),
            5_000,
        ),
        math.inf,
    ),
    "vpm": Estimator(
        learned(
            "vpm",
            vpm.make,
            vpm.Config(**RESAMPLED, learning_rate=3e-3, averaged_updates=200),
            4_000,
        ),
        math.inf,
    ),
}
