"""The exact one-step operator: its closed form, and the searches that it equals."""

import functools

import jax
import jax.numpy as jnp
import mctx
import numpy as np
import pytest
from planning_examples import (
    GAMMA,
    KEY,
    bandit,
    bandit_roots,
    mctx_by_hand,
    random_embeddings,
    random_model,
    untrained_model,
)

from offline_mbrl.planning import one_step
from offline_mbrl.types import UsageError


def plan_all(model, params, embeddings, num_actions):
    planner = one_step.exact(model, num_actions=num_actions, gamma=GAMMA)
    return jax.jit(planner)(params, embeddings, KEY)


@pytest.mark.parametrize("num_actions", [2, 3, 6, 18])
def test_it_equals_gumbel_muzero_that_visits_every_child_once(num_actions):
    model, params = random_model(num_actions)
    embeddings = random_embeddings(32)
    transform = functools.partial(
        mctx.qtransform_completed_by_mix_value,
        value_scale=1.0,
        maxvisit_init=0.0,
        rescale_values=False,
    )
    search = mctx_by_hand(
        mctx.gumbel_muzero_policy,
        model,
        num_simulations=num_actions,
        max_depth=1,
        max_num_considered_actions=num_actions,
        qtransform=transform,
    )
    searched = jax.jit(search)(params, embeddings, KEY)
    plan = plan_all(model, params, embeddings, num_actions)
    np.testing.assert_allclose(plan.weights, searched.action_weights, atol=1e-5)
    np.testing.assert_allclose(
        plan.qvalues, searched.search_tree.summary().qvalues, rtol=1e-5, atol=1e-5
    )
    assert np.ptp(plan.weights, axis=0).min() > 0.01  # the roots differ


def test_the_weights_are_the_prior_tilted_by_the_exponential_advantage():
    qvalues, value, prior = np.array([0.3, -0.2, 1.1]), 0.4, np.log([0.2, 0.5, 0.3])
    plan = plan_all(bandit(qvalues, value, prior), (), bandit_roots(2), 3)
    unnormalized = np.exp(prior) * np.exp(qvalues - value)
    weights = unnormalized / unnormalized.sum()
    np.testing.assert_allclose(plan.weights, [weights] * 2, rtol=1e-6)
    np.testing.assert_allclose(plan.qvalues, [qvalues] * 2, rtol=1e-6)
    np.testing.assert_allclose(plan.value, [value] * 2, rtol=1e-6)
    np.testing.assert_allclose(plan.improved_value, [weights @ qvalues] * 2, rtol=1e-6)
    np.testing.assert_array_equal(plan.actions, [[0, 1, 2]] * 2)


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_huge_advantages_stay_finite(scale):
    plan = plan_all(bandit(np.array([0.0, 1.0]) * scale, 0.0, np.zeros(2)), (), bandit_roots(1), 2)
    np.testing.assert_allclose(plan.weights[0], [0.0, 1.0] if scale > 0 else [1.0, 0.0], atol=1e-6)


def test_an_untrained_model_keeps_the_policy_uniform():
    model, params = untrained_model(3)
    plan = plan_all(model, params, random_embeddings(4), 3)
    np.testing.assert_allclose(plan.weights, 1 / 3, rtol=1e-6)


def test_the_chosen_action_follows_the_weights_at_every_root_apart():
    plan = plan_all(
        bandit(np.array([0.0, 1.0, 2.0]), 0.0, np.zeros(3)), (), bandit_roots(20_000), 3
    )
    frequency = np.bincount(plan.action, minlength=3) / 20_000
    np.testing.assert_allclose(frequency, plan.weights[0], atol=0.015)


def test_the_state_part_of_the_dynamics_is_computed_once_for_all_actions():
    def flops(num_actions):
        model, params = random_model(num_actions)
        dynamics = jax.jit(
            lambda params, embeddings: one_step.outcomes.follow(
                model, params, embeddings, jnp.arange(num_actions)
            )[0]
        )
        return dynamics.lower(params, random_embeddings(256)).compile().cost_analysis()["flops"]

    state_part = 2 * 256 * 8 * 8
    assert flops(6) < 2 * state_part < 6 * state_part


def test_no_action_is_refused():
    with pytest.raises(UsageError, match="num_actions is 0; give a whole number of at least 1"):
        one_step.exact(random_model(2)[0], num_actions=0, gamma=GAMMA)
