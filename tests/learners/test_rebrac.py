"""ReBRAC: closed forms of its penalties, and what they reduce to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transition_rows import SIZES, SPEC, batch, next_actions

from offline_mbrl.data.memory import Dataset
from offline_mbrl.learners import rebrac, td3_bc
from offline_mbrl.learners.parts import actor_critic, td3
from offline_mbrl.learners.parts.preprocessing import InputConfig
from offline_mbrl.types import Context

SETTINGS = {**SIZES, "target_noise": 0.0, "actor_coef": 0.3, "critic_coef": 0.2}


@functools.cache
def started(**settings):
    """A method, its learner's first state with moved targets, and its compiled step."""
    config = rebrac.Config(**{**SETTINGS, **settings})
    learner = rebrac.make(config, SPEC)
    state = learner.init(jax.random.key(0), None, Context())
    state = state._replace(target_critic=jax.tree.map(lambda leaf: 1.5 * leaf, state.critic))
    return rebrac.method(config, SPEC), state, jax.jit(learner.step)


# --- equations ---


def test_the_penalty_is_the_squared_distance_of_next_actions():
    step = jax.tree.map(lambda leaf: leaf[1], batch())
    step = step._replace(
        extras={"next_action": jnp.array([1.0, 0.0]), "has_next_action": jnp.float32(1.0)}
    )
    penalty = rebrac.next_action_penalty(step, jnp.array([0.0, 0.5]), coef=0.2)
    np.testing.assert_allclose(penalty, 0.2 * 1.25, rtol=1e-6)


def test_nothing_is_paid_where_no_logged_action_follows():
    """At a truncation the row after it belongs to another episode."""
    dataset = Dataset.from_arrays(
        {
            "observation": np.arange(4, dtype=np.float32)[:, None],
            "action": np.array([[0.1], [0.2], [0.3], [0.4]], np.float32),
            "reward": np.zeros(4, np.float32),
            "next_observation": np.array([[1.0], [1.5], [3.0], [3.5]], np.float32),
            "is_terminal": np.zeros(4, bool),
            "is_truncated": np.array([False, True, False, True]),
        }
    )
    sample = rebrac.make(rebrac.Config(**{**SETTINGS, "batch_size": 64}), SPEC).sample
    drawn = sample(dataset, None, jax.random.key(0))
    penalty = jax.vmap(lambda step: rebrac.next_action_penalty(step, jnp.ones(1), coef=1.0))(drawn)
    is_last = np.isin(np.asarray(drawn.observation)[:, 0], (1.0, 3.0))
    assert 0 < is_last.sum() < 64
    np.testing.assert_array_equal(np.asarray(penalty) == 0.0, is_last)
    np.testing.assert_array_equal(drawn.discount, 1.0)


# --- one update ---


def test_losses_equal_the_equations_written_out():
    method, state, step = started()
    data = batch()
    _, metrics = step(state, Context(), data, jax.random.key(1))
    agent = actor_critic.agent_of(method.networks, state)
    next_action = jax.vmap(lambda x: agent.target_policy(x).mode())(data.next_observation)
    next_q = np.min(np.asarray(agent.target_critics(data.next_observation, next_action)), axis=0)
    gap = np.sum((np.asarray(next_action) - np.asarray(data.extras["next_action"])) ** 2, axis=1)
    targets = np.asarray(data.reward) + 0.99 * np.asarray(data.discount) * (next_q - 0.2 * gap)
    q = np.asarray(agent.critics(data.observation, data.action))
    critic_loss = np.mean(0.5 * np.sum((q - targets) ** 2, axis=0))
    np.testing.assert_allclose(metrics["loss/critic"], critic_loss, rtol=1e-5)
    action = jax.vmap(lambda x: agent.policy(x).mode())(data.observation)
    value = np.min(agent.critics(data.observation, action), axis=0)
    gap = np.sum((np.asarray(action) - np.asarray(data.action)) ** 2, axis=1)
    expected = 0.3 * np.mean(gap) - np.mean(value) / np.mean(np.abs(value))
    np.testing.assert_allclose(metrics["loss/actor"], expected, rtol=1e-4)


def test_the_target_pays_for_the_action_with_its_noise():
    method, state, _ = started(target_noise=0.2)
    free, _, _ = started(target_noise=0.2, critic_coef=0.0)
    agent = actor_critic.agent_of(method.networks, state)
    data, key = batch(), jax.random.key(1)
    actions = next_actions(free.backup, agent, data, key)
    gap = jnp.sum((actions - data.extras["next_action"]) ** 2, axis=1)
    paid = free.backup(agent, Context(), data, key) - method.backup(agent, Context(), data, key)
    expected = 0.99 * data.discount * data.extras["has_next_action"] * 0.2 * gap
    np.testing.assert_allclose(paid, expected, rtol=1e-4, atol=1e-6)


def test_without_the_critics_penalty_the_target_is_td3s():
    method, state, _ = started(critic_coef=0.0)
    agent = actor_critic.agent_of(method.networks, state)
    config = rebrac.Config(**{**SETTINGS, "critic_coef": 0.0})
    arguments = (agent, Context(), batch(), jax.random.key(1))
    np.testing.assert_array_equal(
        rebrac.backup(config)(*arguments), td3.smoothed_backup(config)(*arguments)
    )


def test_with_one_critic_it_reduces_to_td3_bc():
    """A coefficient of 1 / (alpha A) turns its loss into TD3+BC's over alpha."""
    shared = {**SIZES, "num_critics": 1, "target_noise": 0.0, "normalize_critic_layers": False}
    alpha = 4.0
    _, state, step = started(**shared, actor_coef=1.0 / (2 * alpha), critic_coef=0.0)
    other = td3_bc.make(td3_bc.Config(**shared, alpha=alpha, inputs=InputConfig()), SPEC)
    _, metrics = step(state, Context(), batch(), jax.random.key(1))
    _, expected = jax.jit(other.step)(state, Context(), batch(), jax.random.key(1))
    np.testing.assert_allclose(metrics["loss/critic"], expected["loss/critic"], rtol=1e-6)
    np.testing.assert_allclose(alpha * metrics["loss/actor"], expected["loss/actor"], rtol=1e-5)


# --- settings ---


def test_critics_are_normalized_and_the_actor_is_not():
    _, state, _ = started()
    assert "normalization_0" in state.critic
    assert "normalization_0" not in state.actor


@pytest.mark.parametrize("name", rebrac.PRESETS)
def test_presets_are_configs(name):
    config = rebrac.Config(**rebrac.PRESETS[name])
    assert 0.0 <= config.critic_coef <= 0.5 < config.gamma
