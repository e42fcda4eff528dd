"""Continuous policy learners on problems with known answers.

From the data of a weak, noisy controller each is to reach 95 % of the optimal return of the
linear-quadratic problem, or stands below with the reason why it cannot. Those that stay near the
data are to stay within their support where a critic extrapolates over a cliff.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

from offline_mbrl import registry
from offline_mbrl.data import normalize
from offline_mbrl.problems import linear_quadratic, support
from offline_mbrl.training import fit, programs
from offline_mbrl.training.stages import MAIN, of_algorithm, plain, train_stages
from offline_mbrl.types import BoundedActions

NUM_UPDATES = 2_000
# On top of the settings of a learner's own case, where it has a setting of that name.
SHARED = {
    "batch_size": 64,
    "tau": 0.01,
    "target_period": 1,
    "actor_layers": (32,),
    "critic_layers": (32, 32),
    "actor_learning_rate": 1e-3,
    "critic_learning_rate": 1e-3,
}
# Of single learners, on the linear-quadratic problem.
SETTINGS: dict[str, dict] = {
    "bcq": {"num_candidates": 100, "perturbation": 0.3},
    "bear": {"threshold": 0.3, "actor_learning_rate": 3e-3, "critic_learning_rate": 3e-3},
    "brac": {"weight": 0.03},
    "crr": {"value_range": (-12.0, 0.0), "temperature": 0.05, "actor_learning_rate": 3e-3},
}
# Learners that stay below, with their range: they clone actions whatever these lead to, or those
# whose returns are best, which the behavior's noise has a part in.
BELOW = {"bail": (0.75, 0.95), "bc": (0.7, 0.85), "percentile_bc": (0.85, 1.001)}
# Those that stay within the support of the data, with the settings that find the rare good action.
IN_SUPPORT: dict[str, dict] = {
    "bail": {"fraction": 0.1},
    "bcq": {"num_candidates": 100, "minimum_weight": 1.0},
    "bear": {"num_candidates": 50, "threshold": 0.05},
    "brac": {"weight": 2.0},
    "cql": {},
    "crr": {"value_range": (-2.0, 1.0), "temperature": 0.3},
    "fql": {"alpha": 3.0},
    "iql": {"inverse_temperature": 5.0, "expectile": 0.9, "actor_learning_rate": 3e-3},
    "percentile_bc": {},
    "rebrac": {"actor_coef": 1.5},
    "td3_bc": {"alpha": 0.5},
}
# Of those whose constraint is to the data's distribution: they stay among its frequent actions.
LEAST_SCORE = {"bcq": 0.1, "bear": 0.05, "brac": 0.05}
ROOM_FOR_ERROR = 0.1  # of an action, outside the data's support; the cliff is as far


def case_of(name):
    """The first case of an algorithm with continuous actions, or None."""
    for case in registry.lookup(name).cases:
        if isinstance(case.problem().spec.action, BoundedActions):
            return case
    return None


def is_policy_learner(name):
    """Whether an entry learns a policy from data alone."""
    return "policy" in registry.ENTRIES[name].__module__ and case_of(name) is not None


LEARNERS = [name for name in registry.ENTRIES if is_policy_learner(name)]


def trained(name, problem, **settings):
    """A learner's policy, and its parameters after training."""
    algorithm = registry.lookup(name)
    fields = {field.name for field in dataclasses.fields(algorithm.config)}
    shared = {label: value for label, value in SHARED.items() if label in fields}
    if problem.spec.gamma is not None and "gamma" in fields:
        shared["gamma"] = problem.spec.gamma
    config = algorithm.config(
        **{**case_of(name).config, **shared, **settings, "num_updates": NUM_UPDATES}
    )
    entry = of_algorithm(algorithm, config, problem.spec)
    end = train_stages(
        entry,
        problem.dataset,
        key=jax.random.key(5),
        run_stage=plain(seeds=None, block_updates=NUM_UPDATES),
        statistics=normalize.statistics(problem.dataset),
    )
    learner = entry[MAIN].learner
    return learner.policy, fit.policy_params(learner, end.end.state, end.context)


@pytest.fixture(autouse=True)
def optimized(monkeypatch):
    """Thousands of updates take longer to run than to compile."""
    compile_fast = functools.partial(
        programs.jit, compiler_options={"xla_backend_optimization_level": 1}
    )
    monkeypatch.setattr(programs, "jit", compile_fast)


@pytest.mark.parametrize("name", LEARNERS)
def test_it_reaches_the_optimal_return_of_the_linear_quadratic_problem(name):
    problem = linear_quadratic.linear_quadratic(0)
    policy, params = trained(name, problem, **SETTINGS.get(name, {}))
    low, high = BELOW.get(name, (0.95, 1.001))
    assert low <= float(jax.jit(functools.partial(problem.score, policy))(params)) <= high


@pytest.mark.parametrize("name", [name for name in IN_SUPPORT if name in registry.ENTRIES])
def test_a_constrained_learner_stays_in_support_and_prefers_the_rare_action(name):
    problem = support.rare_action(0)
    policy, params = trained(name, problem, **IN_SUPPORT[name])
    assert float(jnp.max(problem.distance(policy, params))) < ROOM_FOR_ERROR
    assert float(problem.score(policy, params)) > LEAST_SCORE.get(name, 0.5)


def test_an_unconstrained_learner_falls_over_the_cliff():
    problem = support.rare_action(0)
    policy, params = trained("sac", problem)
    assert float(jnp.min(problem.distance(policy, params))) > 2 * ROOM_FOR_ERROR
    assert float(problem.score(policy, params)) < -0.5
