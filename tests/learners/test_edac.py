"""EDAC: closed forms of its diversity term, and what it does to one update."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transition_rows import SIZES, SPEC, batch, differs

from offline_mbrl.learners import edac, sac
from offline_mbrl.types import Context

SETTINGS = {**SIZES, "num_critics": 4}


@functools.cache
def started(**settings):
    """A method, its learner's first state, and its compiled step."""
    config = edac.Config(**{**SETTINGS, **settings})
    learner = edac.make(config, SPEC)
    state = learner.init(jax.random.key(0), None, Context())
    return edac.method(config, SPEC), state, jax.jit(learner.step)


# --- equations ---


def test_the_term_sums_cosines_over_pairs():
    gradients = jnp.array([[3.0, 4.0], [0.0, 2.0], [-1.0, 0.0]])
    np.testing.assert_allclose(edac.diversity_loss(gradients), 0.2, rtol=1e-5)


def test_equal_gradients_score_the_number_of_critics_and_opposite_ones_the_least():
    same = jnp.tile(jnp.array([[0.3, -2.0]]), (5, 1))
    np.testing.assert_allclose(edac.diversity_loss(same), 5.0, rtol=1e-5)
    opposite = jnp.array([[1.0, 1.0], [-2.0, -2.0]])
    np.testing.assert_allclose(edac.diversity_loss(opposite), -2.0, rtol=1e-5)


def test_neither_the_order_nor_the_lengths_of_gradients_count():
    gradients = jax.random.normal(jax.random.key(0), (4, 3))
    changed = gradients[::-1] * jnp.array([1.0, 2.0, 30.0, 0.1])[:, None]
    np.testing.assert_allclose(
        edac.diversity_loss(gradients), edac.diversity_loss(changed), rtol=1e-5
    )


def test_a_gradient_of_zero_counts_as_zero_and_stays_finite():
    """A critic whose hidden units are all off must not end a run."""
    gradients = jnp.array([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    value, slope = jax.value_and_grad(edac.diversity_loss)(gradients)
    np.testing.assert_allclose(value, 1.0, rtol=1e-5)
    assert jnp.all(jnp.isfinite(slope))


# --- one update ---


def test_gradients_are_those_of_each_critic_by_the_action():
    method, state, _ = started()
    critics = method.networks.critics
    data = batch()
    gradients = edac.action_gradients(critics, state.critic, data.observation, data.action)
    assert gradients.shape == (4, 6, 2)
    for sign in (1.0, -1.0):
        moved = critics(state.critic, data.observation, data.action.at[:, 1].add(sign * 1e-2))
        change = sign * (moved - critics(state.critic, data.observation, data.action))
        close = jnp.abs(change - 1e-2 * gradients[:, :, 1]) < 1e-4
        assert jnp.mean(close) > 0.9  # a few steps cross a kink of the activation


def test_the_term_is_weighed_against_squared_errors_without_a_half():
    method, state, step = started(eta=3.0)
    _, plain, sac_step = started(eta=0.0)
    assert not differs(state.critic, plain.critic)
    data = batch()
    _, metrics = step(state, Context(), data, jax.random.key(1))
    _, without = sac_step(state, Context(), data, jax.random.key(1))
    gradients = edac.action_gradients(
        method.networks.critics, state.critic, data.observation, data.action
    )
    similarity = np.mean([edac.diversity_loss(gradients[:, i]) for i in range(6)])
    published = 2.0 * without["loss/critic"] + 3.0 * similarity
    np.testing.assert_allclose(2.0 * metrics["loss/critic"], published, rtol=1e-5)
    np.testing.assert_allclose(metrics["diversity"], similarity, rtol=1e-5)


def test_without_the_term_it_is_sac_with_n_critics():
    _, state, step = started(eta=0.0)
    learner = sac.make(sac.Config(**SETTINGS), SPEC)
    after, metrics = step(state, Context(), batch(), jax.random.key(1))
    expected, losses = jax.jit(learner.step)(state, Context(), batch(), jax.random.key(1))
    assert not differs(after, expected)
    assert {name: float(value) for name, value in metrics.items()} == {
        name: float(value) for name, value in losses.items()
    }


def test_the_term_turns_the_gradients_of_critics_apart():
    _, state, step = started(eta=100.0, critic_learning_rate=1e-2)
    data = batch()
    similarities = []
    for key in range(30):
        state, metrics = step(state, Context(), data, jax.random.key(key))
        similarities.append(float(metrics["diversity"]))
    assert similarities[-1] < similarities[0] - 0.5


def test_the_exported_policy_acts_by_the_mode():
    learner = edac.make(edac.Config(**SETTINGS), SPEC)
    method, state, _ = started()
    observation = jnp.array([0.3, -0.2, 0.9])
    params = learner.policy_params(state, Context())
    mean = method.networks.policy(state.actor, observation).mean
    np.testing.assert_allclose(learner.policy.mode(params, observation), jnp.tanh(mean), rtol=1e-6)


@pytest.mark.parametrize("name", edac.PRESETS)
def test_presets_without_the_term_are_those_of_sac_n(name):
    config = edac.Config(**edac.PRESETS[name])
    assert (config.eta == 0.0) == name.startswith("sac_n")
    assert config.num_critics >= 10
