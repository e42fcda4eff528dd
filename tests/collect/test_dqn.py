import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offline_mbrl.collect import dqn, replay
from offline_mbrl.types import BoundedActions, DiscreteActions, EnvironmentSpec, UsageError

SPEC = EnvironmentSpec(jax.ShapeDtypeStruct((2, 2), np.float32), DiscreteActions(3))


def episode(rewards, *, final_discount):
    length = len(rewards)
    return {
        "observation": np.arange(length + 1, dtype=np.float32)[:, None],
        "action": np.arange(length + 1, dtype=np.int32) % 3,
        "reward": np.array([*rewards, 99.0], np.float32),  # the last record's reward means nothing
        "discount": np.array([*[1.0] * (length - 1), final_discount, 99.0], np.float32),
    }


# --- n-step windows ---


def test_n_step_sums_stop_at_the_episodes_end_and_never_bootstrap_past_a_terminal():
    batch = replay.n_step(episode([1, 2, 4, 8], final_discount=0.0), td_steps=3, gamma=0.5)
    np.testing.assert_allclose(batch.reward, [1 + 1 + 1, 2 + 2 + 2, 4 + 4, 8])
    np.testing.assert_allclose(batch.discount, [0.125, 0, 0, 0])
    np.testing.assert_allclose(batch.bootstrap_observation[:, 0], [3, 4, 4, 4])
    np.testing.assert_allclose(batch.observation[:, 0], [0, 1, 2, 3])
    np.testing.assert_array_equal(batch.action, [0, 1, 2, 0])


def test_truncation_bootstraps_from_the_last_observation():
    batch = replay.n_step(episode([1, 2, 4, 8], final_discount=1.0), td_steps=3, gamma=0.5)
    np.testing.assert_allclose(batch.discount, [0.125, 0.125, 0.25, 0.5])


def test_episode_shorter_than_the_window_keeps_every_step():
    batch = replay.n_step(episode([1], final_discount=0.0), td_steps=5, gamma=0.9)
    np.testing.assert_allclose(batch.reward, [1])
    np.testing.assert_allclose(batch.discount, [0])


def test_full_replay_holds_the_newest_transitions_and_nothing_else():
    memory = replay.make(5, (1,))
    stored = 0
    for start in (0, 10, 20):
        steps = episode([start, start + 1, start + 2], final_discount=0.0)
        stored = replay.store(memory, stored, replay.n_step(steps, td_steps=1, gamma=0.9))
    assert stored == 9
    assert sorted(memory.reward) == [11, 12, 20, 21, 22]
    drawn = replay.sample(memory, stored, 200, np.random.default_rng(0))
    assert set(drawn.reward) == {11, 12, 20, 21, 22}


def test_partly_filled_replay_never_gives_empty_rows():
    memory = replay.make(100, (1,))
    stored = replay.store(
        memory, 0, replay.n_step(episode([5, 6, 7], final_discount=0.0), td_steps=1, gamma=0.9)
    )
    assert set(replay.sample(memory, stored, 200, np.random.default_rng(0)).reward) == {5, 6, 7}


# --- the agent ---


def test_double_q_lets_the_online_network_choose_and_the_target_network_rate():
    error = dqn.td_error(
        jnp.array([1.0, 2.0]),
        jnp.int32(1),
        jnp.float32(0.5),
        jnp.float32(0.9),
        jnp.array([3.0, 0.0]),
        jnp.array([10.0, 100.0]),
    )
    assert error == pytest.approx(0.5 + 0.9 * 10 - 2)


def test_epsilon_greedy_acts_with_the_probability_it_reports():
    qvalues = jnp.array([0.0, 3.0, 1.0])
    keys = jax.random.split(jax.random.key(0), 20_000)
    actions, log_probs = jax.vmap(lambda key: dqn.epsilon_greedy(qvalues, key, epsilon=0.3))(keys)
    shares = np.bincount(actions, minlength=3) / len(keys)
    np.testing.assert_allclose(shares, [0.1, 0.8, 0.1], atol=0.01)
    np.testing.assert_allclose(
        np.exp(log_probs), np.array([0.1, 0.8, 0.1])[np.asarray(actions)], rtol=1e-5
    )


def batch(key, size=32):
    keys = jax.random.split(key, 3)
    return dqn.Batch(
        observation=jax.random.normal(keys[0], (size, 2, 2)),
        action=jax.random.randint(keys[1], (size,), 0, 3),
        reward=jax.random.normal(keys[2], (size,)),
        discount=jnp.zeros(size),
        bootstrap_observation=jnp.zeros((size, 2, 2)),
    )


def test_target_network_is_copied_exactly_every_period():
    agent = dqn.make(dqn.Config(target_period=3), SPEC)
    state = agent.init(jax.random.key(0))
    step = jax.jit(agent.step)

    def equal(first, second):
        return bool(jax.tree.all(jax.tree.map(lambda x, y: (x == y).all(), first, second)))

    start = state.params
    copied = []
    for update in range(6):
        state, _ = step(state, batch(jax.random.key(update)))
        copied.append(equal(state.params, state.target_params))
        assert update >= 2 or equal(state.target_params, start)
    assert copied == [False, False, True, False, False, True]


def test_updates_fit_the_values_of_a_one_step_problem():
    agent = dqn.make(dqn.Config(learning_rate=3e-3), SPEC)
    observation = jnp.stack([jnp.eye(2), -jnp.eye(2)])
    data = dqn.Batch(
        observation=jnp.repeat(observation, 3, axis=0),
        action=jnp.tile(jnp.arange(3), 2),
        reward=jnp.array([0, 0, 1.0, 1, 0, 0]),
        discount=jnp.zeros(6),
        bootstrap_observation=jnp.zeros((6, 2, 2)),
    )
    state = agent.init(jax.random.key(0))
    step = jax.jit(agent.step)
    for _ in range(300):
        state, metrics = step(state, data)
    assert metrics["loss"] < 1e-3
    greedy = dqn.make(dqn.Config(epsilon=0.0), SPEC).act
    assert [
        int(greedy(state.params, context, jax.random.key(0))[0]) for context in observation
    ] == [2, 0]


def test_continuous_actions_are_refused():
    with pytest.raises(UsageError, match="discrete"):
        dqn.make(dqn.Config(), SPEC.__class__(SPEC.observation, BoundedActions((-1.0,), (1.0,))))
