"""Implicit Q-learning: closed forms of its equations, and what one update does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.data.normalize import ReturnRange, Statistics
from offline_mbrl.learners import iql
from offline_mbrl.learners.parts import actor_critic
from offline_mbrl.learners.parts.preprocessing import InputConfig, affine_rewards
from offline_mbrl.types import BoundedActions, Context, EnvironmentSpec, Transition

SPEC = EnvironmentSpec(
    observation=jax.ShapeDtypeStruct((3,), jnp.float32),
    action=BoundedActions((-1.0,) * 2, (1.0,) * 2),
)
SIZES = {"actor_layers": (8,), "critic_layers": (8,), "batch_size": 6, "inputs": InputConfig()}
STATISTICS = Statistics(
    mean=np.zeros(3, np.float32),
    std=np.ones(3, np.float32),
    returns=ReturnRange(low=np.float32(-50.0), high=np.float32(200.0)),
)


def batch(seed: int = 0, size: int = 6) -> Transition:
    generator = np.random.default_rng(seed)

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(generator.uniform(-1, 1, (size, *shape)), jnp.float32)

    return Transition(
        observation=draw(3),
        action=draw(2),
        reward=draw(),
        discount=jnp.ones(size).at[0].set(0.0),
        next_observation=draw(3),
    )


@functools.cache
def started(**settings):
    """A learner's method, its first state with moved targets, and its compiled losses."""
    method = iql.method(iql.Config(**SIZES, **settings), SPEC)
    learner = iql.make(iql.Config(**SIZES, **settings), SPEC)
    state = learner.init(jax.random.key(0), None, Context())
    state = state._replace(target_critic=jax.tree.map(lambda leaf: 1.5 * leaf, state.critic))
    return method, state, jax.jit(learner.step)


# --- equations ---


def test_weights_are_exponential_and_clipped():
    weigh = functools.partial(iql.action_weight, inverse_temperature=3.0, maximum=100.0)
    np.testing.assert_allclose(weigh(jnp.array([1.0, -1.0]), jnp.float32(0.0)), 0.049787, 1e-5)
    np.testing.assert_allclose(weigh(jnp.array([2.0, 5.0]), jnp.float32(0.0)), 100.0, rtol=1e-5)


def test_the_value_regresses_to_an_expectile_of_the_least_critic():
    losses = [
        iql.value_loss(jnp.array(q), jnp.float32(1.0), expectile=0.7)
        for q in ([0.0, 4.0], [3.0, 5.0])
    ]
    np.testing.assert_allclose(np.mean(losses), 1.55, rtol=1e-5)


def test_the_target_is_the_reward_at_a_terminal_and_has_the_value_of_the_next_state_elsewhere():
    steps = batch()._replace(reward=jnp.full(6, 2.0))
    targets = jax.vmap(functools.partial(iql.target, gamma=0.9))(steps, jnp.full(6, 5.0))
    np.testing.assert_allclose(targets, [2.0] + [6.5] * 5, rtol=1e-6)


# --- rewards ---


def test_returns_span_the_range_that_is_asked_for():
    scaled = affine_rewards(iql.Config().inputs)(jnp.array([-50.0, 200.0]), STATISTICS)
    np.testing.assert_allclose(scaled[1] - scaled[0], 1_000.0, rtol=1e-6)
    shifted = affine_rewards(iql.PRESETS["antmaze"]["inputs"])(jnp.array([0.0, 1.0]), STATISTICS)
    np.testing.assert_allclose(shifted, [-1.0, 0.0])


def test_rewards_of_equal_returns_are_left_as_they_are():
    equal = STATISTICS._replace(returns=ReturnRange(np.float32(3.0), np.float32(3.0)))
    np.testing.assert_allclose(affine_rewards(iql.Config().inputs)(jnp.ones(2), equal), 1.0)


# --- one update ---


def test_losses_equal_the_equations_written_out():
    """Values from target critics, critics from values, actions weighed without a gradient."""
    method, state, step = started(inverse_temperature=2.0)
    data = batch()
    _, metrics = step(state, Context(), data, jax.random.key(1))
    agent = actor_critic.agent_of(method.networks, state)
    value = method.networks.critics  # (params, observations, actions) -> [N, B]
    least = np.min(value(state.target_critic, data.observation, data.action), axis=0)
    q = np.asarray(agent.critics(data.observation, data.action))
    _, values = iql.networks(iql.Config(**SIZES), SPEC)
    here, after = (np.asarray(values(agent, x)) for x in (data.observation, data.next_observation))
    error = least - here
    value_loss = np.mean(np.where(error < 0, 0.3, 0.7) * error**2)
    targets = np.asarray(data.reward + 0.99 * data.discount * after)
    np.testing.assert_allclose(metrics["loss/regularizer"], value_loss, rtol=1e-5)
    critic_loss = value_loss + np.mean(0.5 * np.sum((q - targets) ** 2, axis=0))
    np.testing.assert_allclose(metrics["loss/critic"], critic_loss, rtol=1e-5)
    mean = np.tanh([_outputs(state.actor["mean"], x) for x in np.asarray(data.observation)])
    log_prob = np.sum(-0.5 * (np.asarray(data.action) - mean) ** 2 - 0.5 * np.log(2 * np.pi), 1)
    expected = -np.mean(np.minimum(np.exp(2.0 * error), 100.0) * log_prob)
    np.testing.assert_allclose(metrics["loss/actor"], expected, rtol=1e-4)


def _outputs(params, x):
    hidden = np.maximum(x @ params["layer_0"]["kernel"] + params["layer_0"]["bias"], 0.0)
    return hidden @ params["layer_1"]["kernel"] + params["layer_1"]["bias"]


def test_the_policy_of_beta_zero_clones_all_actions_alike():
    method, state, step = started(inverse_temperature=0.0)
    data = batch()
    log_prob = jax.vmap(lambda x, a: method.networks.policy(state.actor, x).log_prob(a))
    _, metrics = step(state, Context(), data, jax.random.key(1))
    expected = -jnp.mean(log_prob(data.observation, data.action))
    np.testing.assert_allclose(metrics["loss/actor"], expected, rtol=1e-5)


def test_no_action_but_the_datas_is_ever_evaluated():
    """Losses are the same under any key: nothing is sampled from the policy."""
    _, state, step = started(inverse_temperature=2.0)
    first, second = (step(state, Context(), batch(), jax.random.key(key))[1] for key in (1, 2))
    assert {name: float(first[name]) for name in first} == {
        name: float(second[name]) for name in second
    }


def test_the_actors_rate_falls_to_zero_at_the_last_update_and_the_critics_does_not():
    _, state, step = started(num_updates=2)
    states = [state]
    for seed in range(3):
        states.append(step(states[-1], Context(), batch(seed), jax.random.key(1))[0])
    same = jax.tree.map(lambda x, y: bool(jnp.all(x == y)), states[2].actor, states[3].actor)
    assert all(jax.tree.leaves(same))
    assert not jnp.all(states[1].actor["log_std"] == states[2].actor["log_std"])
    moved = states[2].critic["q"]["layer_0"]["kernel"] != states[3].critic["q"]["layer_0"]["kernel"]
    assert bool(jnp.any(moved))


def test_the_exported_policy_takes_the_mean_and_samples_within_the_bounds():
    learner = iql.make(iql.Config(**SIZES), SPEC)
    _, state, _ = started()
    params = learner.policy_params(state, Context())
    observation = jnp.array([0.3, -0.2, 0.9])
    np.testing.assert_allclose(
        learner.policy.mode(params, observation),
        np.tanh(_outputs(state.actor["mean"], observation)),
        rtol=1e-5,
    )
    keys = jax.random.split(jax.random.key(0), 200)
    samples = jax.vmap(lambda key: learner.policy.sample(params, observation, key))(keys)
    assert float(jnp.max(jnp.abs(samples))) == 1.0
    assert learner.policy.log_prob is None
