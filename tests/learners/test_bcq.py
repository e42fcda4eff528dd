"""BCQ: closed forms of its equations, and what reaches which of its networks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transition_rows import SIZES, SPEC, batch, differs

from offline_mbrl.learners import bcq
from offline_mbrl.learners.parts import actor_critic, candidates
from offline_mbrl.networks import conditional_vae
from offline_mbrl.types import Context, DiscreteActions, UsageError

KEY = jax.random.key(1)
CONFIG = bcq.Config(**SIZES, vae_layers=(8,), num_next_actions=3, num_candidates=5)


@functools.cache
def started():
    """A method, its learner, the first state with moved targets, and the compiled step."""
    learner = bcq.make(CONFIG, SPEC)
    state = learner.init(jax.random.key(0), None, Context())
    state = state._replace(
        target_critic=jax.tree.map(lambda leaf: 1.5 * leaf, state.critic),
        target_actor={
            "vae": state.actor["vae"],
            "perturbation": jax.tree.map(lambda leaf: 0.5 * leaf, state.actor["perturbation"]),
        },
    )
    return bcq.method(CONFIG, SPEC), learner, state, jax.jit(learner.step)


@jax.jit
def actor_gradient(state):
    """The gradient of the actor's objective by all that the actor's parameters hold."""
    method, *_ = started()

    def loss(actor):
        agent = actor_critic.agent_of(method.networks, state._replace(actor=actor))
        return method.actor_objective(agent, Context(), batch(), KEY).loss

    return jax.grad(loss)(state.actor)


# --- equations ---


def test_a_target_mixes_the_least_and_the_largest_critic():
    np.testing.assert_allclose(candidates.mixed(jnp.array([1.0, 3.0]), minimum_weight=0.75), 1.5)


def test_a_target_takes_the_best_of_the_mixed_values_and_is_the_reward_at_a_terminal():
    q = jnp.array([[1.0, 2.0, 0.0], [3.0, 1.0, 0.5]])
    values = jax.vmap(functools.partial(candidates.mixed, minimum_weight=0.75), 1)(q)
    np.testing.assert_allclose(values, [1.5, 1.25, 0.125])
    steps = batch()._replace(reward=jnp.ones(6))
    target = functools.partial(candidates.best_target, gamma=0.9, minimum_weight=0.75)
    targets = jax.vmap(target, (0, None))(steps, q)
    np.testing.assert_allclose(targets, [1.0] + [1.0 + 0.9 * 1.5] * 5, rtol=1e-6)


def test_a_perturbation_is_bounded_and_stays_among_the_actions():
    action = jnp.array([0.0, 0.5, 0.99, -0.99])
    raw = jnp.array([1e3, -1e3, 1e3, -1e3])
    np.testing.assert_allclose(bcq.perturbed(action, raw, largest=0.05), [0.05, 0.45, 1.0, -1.0])
    np.testing.assert_array_equal(bcq.perturbed(action, raw, largest=0.0), action)


def test_without_a_perturbation_an_action_is_the_tanh_of_what_is_generated():
    nets, vae = bcq.networks(bcq.Config(**SIZES, vae_layers=(8,), perturbation=0.0), SPEC)
    params = jax.tree.map(lambda leaf: 2.0 * leaf, nets.init_actor(KEY))
    observation = batch().observation[0]
    outputs = conditional_vae.generate(vae, params["vae"], observation, KEY)
    action = nets.policy(params, observation).sample(seed=KEY)
    np.testing.assert_allclose(action, jnp.tanh(outputs), rtol=1e-6)
    assert float(jnp.max(jnp.abs(outputs - action))) > 1e-3


# --- one update ---


def test_critics_do_not_move_the_autoencoder():
    """Ten times the values: the perturbation's gradient grows, the autoencoder's stays."""
    _, _, state, _ = started()
    gradient = actor_gradient(state)
    larger = jax.tree.map(lambda leaf: 10.0 * leaf, state.critic)
    larger = actor_gradient(state._replace(critic=larger))
    assert differs(gradient["perturbation"], larger["perturbation"])
    assert not differs(gradient["vae"], larger["vae"])
    assert differs(
        gradient["vae"]["encoder"], jax.tree.map(jnp.zeros_like, gradient["vae"]["encoder"])
    )


def test_the_target_policy_has_the_present_autoencoder_and_a_lagging_perturbation():
    _, _, state, step = started()
    after, _ = step(state, Context(), batch(), KEY)
    assert not differs(after.target_actor["vae"], after.actor["vae"])
    assert differs(after.actor["vae"], state.actor["vae"])
    expected = jax.tree.map(
        lambda new, old: 0.005 * new + 0.995 * old,
        after.actor["perturbation"],
        state.target_actor["perturbation"],
    )
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7),
        after.target_actor["perturbation"],
        expected,
    )


def test_critics_regress_to_the_best_of_the_target_policys_actions():
    method, _, state, step = started()
    _, metrics = step(state, Context(), batch(), KEY)
    agent = actor_critic.agent_of(method.networks, state)
    key_target, _ = jax.random.split(KEY)
    data = batch()
    actions = candidates.sample(agent.target_policy, data.next_observation, key_target, 3)
    q = np.stack([agent.target_critics(data.next_observation, actions[:, k]) for k in range(3)])
    mixed = 0.75 * q.min(axis=1) + 0.25 * q.max(axis=1)  # [K, B]
    targets = data.reward + 0.99 * data.discount * mixed.max(axis=0)
    errors = np.asarray(agent.critics(data.observation, data.action)) - np.asarray(targets)
    expected = np.mean(0.5 * np.sum(errors**2, axis=0))
    np.testing.assert_allclose(metrics["loss/critic"], expected, rtol=1e-5)


def test_the_perturbation_climbs_the_first_critic_alone():
    _, _, state, _ = started()
    changed = jax.tree.map(lambda leaf: leaf.at[1].multiply(3.0), state.critic)
    first = actor_gradient(state)["perturbation"]
    assert not differs(first, actor_gradient(state._replace(critic=changed))["perturbation"])


# --- acting ---


def test_the_best_of_the_candidates_by_the_first_critic_acts():
    method, learner, state, _ = started()
    params = learner.policy_params(state, Context())
    observation = batch().observation[0]
    policy = method.networks.policy(state.actor, observation)
    actions = jax.vmap(lambda key: policy.sample(seed=key))(jax.random.split(KEY, 5))
    repeated = jnp.tile(observation, (5, 1))
    best = jnp.argmax(method.networks.critics(state.critic, repeated, actions)[0])
    chosen = learner.policy.sample(params, observation, KEY)
    np.testing.assert_allclose(chosen, actions[best], rtol=1e-6)


def test_the_greedy_action_is_the_choice_among_fixed_candidates():
    _, learner, state, _ = started()
    params = learner.policy_params(state, Context())
    observation = batch().observation[0]
    fixed = learner.policy.sample(params, observation, jax.random.key(candidates.GREEDY_SEED))
    np.testing.assert_array_equal(learner.policy.mode(params, observation), fixed)
    assert differs(learner.policy.sample(params, observation, KEY), fixed)


def test_the_exported_policy_has_one_critic_and_no_density():
    _, learner, state, _ = started()
    critic = learner.policy_params(state, Context())["critic"]
    assert {leaf.shape[0] for leaf in jax.tree.leaves(critic)} == {1}
    assert learner.policy.log_prob is None


def test_discrete_actions_are_refused():
    with pytest.raises(UsageError, match="bcq needs continuous actions"):
        bcq.make(CONFIG, SPEC.__class__(observation=SPEC.observation, action=DiscreteActions(2)))
