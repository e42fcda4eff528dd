"""Tree searches: plans that equal mctx called by hand, and searches with a closed form."""

import functools

import jax
import jax.numpy as jnp
import mctx
import numpy as np
import pytest
from planning_examples import (
    GAMMA,
    KEY,
    mctx_by_hand,
    mdp_model,
    random_embeddings,
    random_model,
    root_by_hand,
)

from offline_mbrl.models.muzero import ModelConfig
from offline_mbrl.planning import mcts, one_step
from offline_mbrl.types import UsageError

# Search with these visits every child once: the root's prior is uniform noise, and nothing but it
# and visits counts.
EVENLY = {"dirichlet_fraction": 1.0, "dirichlet_alpha": 1e6, "pb_c_init": 1e6, "max_depth": 1}


def run(make, model, params, embeddings, num_actions, key=KEY, **settings):
    return jax.jit(make(model, num_actions=num_actions, gamma=GAMMA, **settings))(
        params, embeddings, key
    )


# --- the adapter ---


def test_predictions_come_from_the_embedding_that_the_action_leads_to():
    model = mdp_model(
        [[1, 2], [2, 0], [0, 1]], [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], np.eye(3)[:, :2]
    )
    before = {"state": jnp.eye(3), "reward": jnp.full(3, 9.0)}
    output, after = jax.jit(mcts.recurrent_fn(model, GAMMA))((), KEY, jnp.array([0, 1, 0]), before)
    np.testing.assert_array_equal(jnp.argmax(after["state"], axis=1), [1, 0, 0])
    np.testing.assert_array_equal(output.reward, [1.0, 4.0, 5.0])
    np.testing.assert_array_equal(output.prior_logits, [[0, 1], [1, 0], [1, 0]])
    np.testing.assert_allclose(output.discount, GAMMA)


def test_the_root_is_the_model_at_the_embeddings_given():
    model, params = random_model(3)
    embeddings = random_embeddings(4)
    both = jax.jit(lambda *inputs: (mcts.root(model, *inputs), root_by_hand(model, *inputs)))
    root, expected = both(params, embeddings)
    np.testing.assert_array_equal(root.embedding, embeddings)
    np.testing.assert_allclose(root.prior_logits, expected.prior_logits, rtol=1e-6)
    np.testing.assert_allclose(root.value, expected.value, rtol=1e-6)


# --- the same search as mctx alone ---

SAME = {
    "muzero": (
        mcts.muzero,
        mctx.muzero_policy,
        {"temperature": 0.5, "max_depth": 0},
        {"temperature": 0.5},
    ),
    "gumbel": (
        mcts.gumbel,
        mctx.gumbel_muzero_policy,
        {"max_depth": 2, "max_num_considered_actions": 4},
        {"max_depth": 2, "max_num_considered_actions": 4},
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_a_plan_of_many_roots_is_mctx_called_by_hand_bit_for_bit_at_no_more_flops(name):
    make, policy, ours, theirs = SAME[name]
    model, params = random_model(3, config=ModelConfig())
    embeddings = random_embeddings(16, ModelConfig())
    planner = make(model, num_actions=3, gamma=GAMMA, num_simulations=5, **ours)
    search = mctx_by_hand(policy, model, num_simulations=5, **theirs)

    def alone(*inputs):
        found = search(*inputs)
        return found.action, found.action_weights, found.search_tree.node_values[:, 0]

    planner, alone = (jax.jit(f).lower(params, embeddings, KEY).compile() for f in (planner, alone))
    plan = planner(params, embeddings, KEY)
    for ours, theirs in zip(
        (plan.action, plan.weights, plan.improved_value),
        alone(params, embeddings, KEY),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)
    assert np.ptp(plan.weights, axis=0).min() > 0.1  # the roots differ
    assert planner.cost_analysis()["flops"] <= 1.05 * alone.cost_analysis()["flops"]


# --- closed forms ---


@pytest.mark.parametrize("num_actions", [2, 3, 6, 18])
def test_muzero_q_at_temperature_one_with_every_child_visited_once_is_exact_one_step(num_actions):
    model, params = random_model(num_actions)
    embeddings = random_embeddings(16)
    exact = run(one_step.exact, model, params, embeddings, num_actions)
    plan = run(
        mcts.muzero_q, model, params, embeddings, num_actions, num_simulations=num_actions, **EVENLY
    )
    np.testing.assert_allclose(plan.weights, exact.weights, atol=1e-5)
    np.testing.assert_allclose(plan.qvalues, exact.qvalues, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(plan.value, exact.value, rtol=1e-6)
    mean = (exact.value + np.sum(exact.qvalues, axis=1)) / (num_actions + 1)
    np.testing.assert_allclose(plan.improved_value, mean, rtol=1e-5, atol=1e-5)


def test_the_temperature_of_muzero_q_divides_the_qvalues_and_its_action_follows_the_weights():
    model, params = random_model(3)
    embeddings = jnp.tile(random_embeddings(1), (4096, 1))
    plan = run(
        mcts.muzero_q, model, params, embeddings, 3, num_simulations=3, temperature=0.1, **EVENLY
    )
    logits = root_by_hand(model, params, embeddings[:1]).prior_logits + plan.qvalues[:1] / 0.1
    np.testing.assert_allclose(plan.weights[:1], jax.nn.softmax(logits), atol=1e-5)
    np.testing.assert_allclose(
        np.bincount(plan.action, minlength=3) / 4096, plan.weights[0], atol=0.03
    )


def test_muzero_with_as_many_simulations_as_children_visits_each_once():
    model, params = random_model(6)
    plan = run(mcts.muzero, model, params, random_embeddings(16), 6, num_simulations=6, **EVENLY)
    np.testing.assert_allclose(plan.weights, 1 / 6, rtol=1e-6)


def test_gumbel_with_as_many_simulations_as_children_is_exact_one_step_under_plain_scales():
    model, params = random_model(6)
    embeddings = random_embeddings(16)
    plan = run(
        mcts.gumbel,
        model,
        params,
        embeddings,
        6,
        num_simulations=6,
        max_depth=1,
        value_scale=1.0,
        maxvisit_init=0.0,
        rescale_values=False,
    )
    exact = run(one_step.exact, model, params, embeddings, 6)
    np.testing.assert_allclose(plan.weights, exact.weights, atol=1e-5)
    np.testing.assert_allclose(plan.qvalues, exact.qvalues, rtol=1e-5, atol=1e-5)


def test_an_action_without_a_visit_gets_the_mixed_value_under_the_prior_without_noise():
    model, params = random_model(6)
    embeddings = random_embeddings(16)
    search = mctx_by_hand(mctx.muzero_policy, model, num_simulations=3, dirichlet_fraction=0.9)
    tree = jax.jit(search)(params, embeddings, KEY).search_tree
    root = root_by_hand(model, params, embeddings)
    completed = jax.jit(mcts.completed_qvalues)(tree, root.prior_logits)
    summary, prior = tree.summary(), np.asarray(jax.nn.softmax(root.prior_logits))
    visited = np.asarray(summary.visit_counts) > 0
    assert visited.any(axis=1).all()
    assert not visited.all(axis=1).any()
    average = np.sum(visited * prior * summary.qvalues, axis=1) / np.sum(visited * prior, axis=1)
    mixed = (root.value + 3 * average) / (1 + 3)
    expected = np.where(visited, summary.qvalues, mixed[:, None])
    np.testing.assert_allclose(completed, expected, rtol=1e-5, atol=1e-5)


# --- what is refused ---


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (mcts.muzero, {"num_simulations": 0}, "num_simulations is 0"),
        (mcts.gumbel, {"num_simulations": 2.0}, "num_simulations is 2.0; give a whole number"),
        (mcts.gumbel, {"max_depth": -1}, "max_depth is -1"),
        (mcts.gumbel, {"max_num_considered_actions": 0}, "max_num_considered_actions is 0"),
        (mcts.muzero, {"temperature": -1.0}, "temperature is -1.0; give 0 or more"),
        (mcts.muzero_q, {"temperature": 0.0}, "temperature is 0.0; give more than 0"),
        (mcts.muzero, {"dirichlet_fraction": 1.5}, "dirichlet_fraction is 1.5"),
        (mcts.muzero_q, {"dirichlet_alpha": 0.0}, "dirichlet_alpha 0.0"),
    ],
)
def test_settings_that_make_no_search_are_refused(make, settings, message):
    with pytest.raises(UsageError, match=message):
        make(random_model(2)[0], num_actions=2, gamma=GAMMA, **{"num_simulations": 2} | settings)


def test_a_whole_number_for_the_noise_will_do():
    settings = functools.partial(mcts.muzero, dirichlet_fraction=0, num_simulations=1)
    model, params = random_model(2)
    assert jax.eval_shape(
        settings(model, num_actions=2, gamma=1), params, random_embeddings(2), KEY
    ).value.shape == (2,)
