"""What estimators that are fitted to transitions refuse, each with one sentence."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learned_examples import context

from offline_mbrl import policies
from offline_mbrl.ope import batches, visits
from offline_mbrl.ope.ratios import dice, vpm
from offline_mbrl.ope.values import fqe, fqe_distributional
from offline_mbrl.problems import known
from offline_mbrl.training.fit import fit
from offline_mbrl.types import UsageError

KEY = jax.random.key(0)
METHODS = {
    "fqe": (fqe, fqe.Config(hidden_layers=(4,))),
    "fqe_distributional": (
        fqe_distributional,
        fqe_distributional.Config(hidden_layers=(4,), torso="mlp"),
    ),
    "dice": (dice, dice.Config(hidden_layers=(4,), batch_size=8)),
    "vpm": (vpm, vpm.Config(hidden_layers=(4,))),
}


@pytest.fixture(scope="module")
def problem():
    return known.tabular(0, num_episodes=20)


def fitted(problem, name, policy=None, params=None):
    module, config = METHODS[name]
    learner, read_out = module.make(config, problem.spec, policy or problem.policy)
    run_context = context(problem.dataset, problem.behavior_params if params is None else params)
    result = fit(learner, problem.dataset, key=KEY, num_updates=1, context=run_context)
    return functools.partial(read_out, result.state.learner, run_context)


@pytest.mark.parametrize("name", METHODS)
def test_policies_with_a_memory_are_refused(name, problem):
    module, config = METHODS[name]
    actor = policies.as_actor(problem.policy)
    with pytest.raises(UsageError, match="needs a policy whose action depends on one observation"):
        module.make(config, problem.spec, actor)


@pytest.mark.parametrize("name", METHODS)
def test_a_discount_factor_is_needed_of_the_config_or_the_spec(name, problem):
    module, config = METHODS[name]
    spec = dataclasses.replace(problem.spec, gamma=None)
    with pytest.raises(UsageError, match="this spec has no discount factor; pass gamma="):
        module.make(config, spec, problem.policy)
    module.make(dataclasses.replace(config, gamma=0.9), spec, problem.policy)


@pytest.mark.parametrize("name", METHODS)
def test_policies_that_do_not_fit_are_refused_with_both_shapes(name, problem):
    pair = policies.as_policy(lambda params, observation, key: jnp.zeros(2, jnp.int32))
    with pytest.raises(
        UsageError, match=r"action has shape \(2,\), but this environment's has \(\)"
    ):
        fitted(problem, name, pair)
    broken = policies.as_policy(lambda params, observation, key: observation @ jnp.ones(3))
    with pytest.raises(UsageError, match=r"cannot act on one observation of shape \(5,\)"):
        fitted(problem, name, broken)


def test_parameters_of_one_policy_are_not_those_of_many_seeds(problem):
    learner, _ = fqe.make(METHODS["fqe"][1], problem.spec, problem.policy)
    run_context = context(problem.dataset, problem.behavior_params)
    message = r"with 3 seeds .* but target/logits has shape \(5, 2\): stack it"
    with pytest.raises(UsageError, match=message):
        fit(
            learner,
            problem.dataset,
            key=KEY,
            num_updates=1,
            seeds=range(3),
            context=run_context,
        )


@pytest.mark.parametrize("name", ["fqe", "fqe_distributional"])
def test_initial_observations_that_do_not_fit_are_refused(name, problem):
    read_out = fitted(problem, name)
    for starts, message in (
        (np.zeros((0, 5)), "are empty"),
        (np.zeros((7, 4)), r"with 5 numbers each, got shapes"),
        (np.zeros(5), r"with 5 numbers each, got shapes \[\(5,\)\]"),
    ):
        with pytest.raises(UsageError, match=message):
            read_out(starts, KEY)
    assert np.isfinite(read_out(np.eye(5, dtype=np.float32), KEY).value)


def test_the_share_of_visits_needs_a_discount_and_a_policy_that_fits(problem):
    batch = batches.Experience(50)(problem.dataset, None, KEY)

    def share(policy, gamma):
        return visits.visited_share(
            policy, problem.behavior_params, batch, problem.spec, KEY, gamma=gamma
        )

    for gamma in (1.0, -0.1):
        with pytest.raises(UsageError, match=r"visited_share: gamma must be inside \[0, 1\)"):
            share(problem.policy, gamma)
    with pytest.raises(UsageError, match=r"action has shape \(3,\)"):
        share(policies.as_policy(lambda params, observation, key: jnp.zeros(3, jnp.int32)), 0.9)
    with pytest.raises(UsageError, match="visited_share needs a policy whose action depends on"):
        share(policies.as_actor(problem.policy), 0.9)
