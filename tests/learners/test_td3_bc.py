"""TD3+BC: closed forms of its equations, and what one update does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transition_rows import SIZES, SPEC, batch, differs, next_actions

from offline_mbrl.learners import td3_bc
from offline_mbrl.learners.parts import actor_critic, td3
from offline_mbrl.learners.parts.preprocessing import InputConfig
from offline_mbrl.types import Context, DiscreteActions, UsageError

RAW = InputConfig()


@functools.cache
def started(**settings):
    """A method, its learner's first state with moved targets, and its compiled step."""
    config = td3_bc.Config(**{**SIZES, "inputs": RAW, "target_noise": 0.0, **settings})
    learner = td3_bc.make(config, SPEC)
    state = learner.init(jax.random.key(0), None, Context())
    state = state._replace(
        target_critic=jax.tree.map(lambda leaf: 1.5 * leaf, state.critic),
        target_actor=jax.tree.map(lambda leaf: 0.5 * leaf, state.actor),
    )
    return td3_bc.method(config, SPEC), state, jax.jit(learner.step)


# --- equations ---


def test_values_are_scaled_to_a_mean_magnitude_of_alpha():
    q = jnp.array([-10.0, 30.0])
    scale = td3.value_scale(q, alpha=2.5)
    np.testing.assert_allclose(scale, 0.125, rtol=1e-5)
    np.testing.assert_allclose(jnp.mean(jnp.abs(scale * q)), 2.5, rtol=1e-6)
    assert jnp.isfinite(td3.value_scale(jnp.zeros(2), alpha=2.5))


def test_no_gradient_goes_through_the_scale():
    gradient = jax.grad(lambda q: jnp.sum(td3.value_scale(q, alpha=2.5)))(jnp.array([-10.0, 30.0]))
    np.testing.assert_array_equal(gradient, 0.0)


def test_the_noise_of_a_next_action_is_clipped_and_then_the_action():
    action = jnp.array([0.0, 0.0, 0.9, -0.9])
    noise = jnp.array([0.3, -2.0, 0.4, -0.4])
    np.testing.assert_allclose(td3.smoothed(action, noise, bound=0.5), [0.3, -0.5, 1.0, -1.0])


def test_the_target_takes_the_least_critic_and_is_the_reward_at_a_terminal():
    steps = batch()._replace(reward=jnp.full(6, 2.0))
    q = jnp.array([5.0, 7.0])
    targets = jax.vmap(lambda step: td3.target(step, q, gamma=0.9, penalty=1.0))(steps)
    np.testing.assert_allclose(targets, [2.0] + [2.0 + 0.9 * 4.0] * 5, rtol=1e-6)


def test_the_distance_is_a_mean_over_the_entries_of_an_action():
    distance = td3_bc.mean_distance(jnp.array([1.0, 0.0]), jnp.array([0.0, 0.5]))
    np.testing.assert_allclose(distance, 0.625, rtol=1e-6)


# --- one update ---


def test_losses_equal_the_equations_written_out():
    """Targets from both lagging networks; the actor climbs the first critic alone."""
    method, state, step = started()
    data = batch()
    _, metrics = step(state, Context(), data, jax.random.key(1))
    agent = actor_critic.agent_of(method.networks, state)
    next_action = jax.vmap(lambda x: agent.target_policy(x).mode())(data.next_observation)
    next_q = np.min(agent.target_critics(data.next_observation, next_action), axis=0)
    targets = np.asarray(data.reward + 0.99 * data.discount * next_q)
    q = np.asarray(agent.critics(data.observation, data.action))
    critic_loss = np.mean(0.5 * np.sum((q - targets) ** 2, axis=0))
    np.testing.assert_allclose(metrics["loss/critic"], critic_loss, rtol=1e-5)
    action = jax.vmap(lambda x: agent.policy(x).mode())(data.observation)
    value = np.asarray(agent.critics(data.observation, action))[0]
    scale = 2.5 / np.mean(np.abs(value))
    cloning = np.mean((np.asarray(action) - np.asarray(data.action)) ** 2)
    np.testing.assert_allclose(metrics["loss/actor"], cloning - scale * np.mean(value), rtol=1e-4)


def test_the_actor_and_all_targets_move_at_every_second_update():
    _, state, step = started()
    first, _ = step(state, Context(), batch(1), jax.random.key(1))
    second, _ = step(first, Context(), batch(2), jax.random.key(2))
    for name in ("actor", "target_actor", "target_critic"):
        assert not differs(getattr(first, name), getattr(state, name))
        assert differs(getattr(second, name), getattr(first, name))
    assert differs(first.critic, state.critic)
    tau = td3_bc.Config().tau
    followed = jax.tree.map(
        lambda new, old: tau * new + (1 - tau) * old, second.actor, first.target_actor
    )
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-6), followed, second.target_actor
    )


def test_an_alpha_of_zero_clones():
    _, state, step = started(alpha=0.0)
    _, metrics = step(state, Context(), batch(), jax.random.key(1))
    np.testing.assert_allclose(metrics["loss/actor"], metrics["distance"], rtol=1e-6)


def test_the_actor_learns_the_same_from_values_of_any_scale():
    """Ten times the last layer is ten times the value, and the same loss."""
    _, state, step = started(actor_period=1)
    scaled = jax.tree_util.tree_map_with_path(
        lambda path, leaf: 10.0 * leaf if "layer_1" in str(path) else leaf, state.critic
    )
    first, _ = step(state, Context(), batch(), jax.random.key(1))
    second, _ = step(state._replace(critic=scaled), Context(), batch(), jax.random.key(1))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6),
        first.actor,
        second.actor,
    )


def test_next_actions_are_the_target_actors_with_clipped_noise():
    method, state, _ = started(target_noise=0.2)
    agent = actor_critic.agent_of(method.networks, state)
    data = batch(size=2_000)
    mode = jax.vmap(lambda x: agent.target_policy(x).mode())(data.next_observation)
    noise = np.asarray(next_actions(method.backup, agent, data, jax.random.key(1)) - mode)
    np.testing.assert_allclose(np.std(noise), 0.1977, rtol=0.05)  # 0.2, clipped at 2.5 of them
    np.testing.assert_allclose(np.max(np.abs(noise)), 0.5, rtol=1e-5)
    np.testing.assert_allclose(np.corrcoef(noise.T)[0, 1], 0.0, atol=0.1)


# --- the learner ---


def test_critics_alone_have_normalized_layers_where_that_is_asked_for():
    config = td3_bc.Config(**SIZES, normalize_critic_layers=True)
    nets = td3.networks(config, SPEC, "td3_bc")
    assert "normalization_0" in nets.init_critics(jax.random.key(0))
    assert "normalization_0" not in nets.init_actor(jax.random.key(0))


def test_the_exported_policy_is_deterministic_and_has_no_density():
    learner = td3_bc.make(td3_bc.Config(**SIZES, inputs=RAW), SPEC)
    _, state, _ = started()
    params = learner.policy_params(state, Context())
    observation = jnp.array([0.3, -0.2, 0.9])
    drawn = learner.policy.sample(params, observation, jax.random.key(1))
    np.testing.assert_array_equal(drawn, learner.policy.mode(params, observation))
    assert learner.policy.log_prob is None


def test_discrete_actions_are_refused():
    discrete = SPEC.__class__(observation=SPEC.observation, action=DiscreteActions(2))
    with pytest.raises(UsageError, match="td3_bc needs continuous actions"):
        td3_bc.make(td3_bc.Config(), discrete)
