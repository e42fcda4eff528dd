"""Exact values agree with simulation, with each other, and with solutions by hand."""

import math

import jax
import numpy as np
import pytest

from offline_mbrl.problems import known, linear_gaussian, tables
from offline_mbrl.types import UsageError


def discounted(reward, gamma):
    return np.sum(reward * gamma ** np.arange(reward.shape[1]), axis=1)


def close(sample, truth, errors=4.0):
    assert abs(sample.mean() - truth) <= errors * sample.std() / math.sqrt(len(sample)) + 1e-9


# --- linear-Gaussian ---


@pytest.mark.parametrize("sizes", [(2, 1), (3, 2)])
def test_the_linear_system_s_values_are_the_mean_returns_of_simulated_episodes(sizes):
    problem = known.linear_gaussian(0, state_size=sizes[0], action_size=sizes[1], num_episodes=1)
    system = linear_gaussian.System(**problem.truth)
    for params in (problem.behavior_params, *problem.target_params):
        _, _, reward, _ = linear_gaussian.simulate(
            system, params, np.random.default_rng(1), 20_000, 20
        )
        close(discounted(reward, 0.9), problem.value(params))


def test_the_logged_data_of_the_linear_system_are_the_simulation_s():
    problem = known.linear_gaussian(3, num_episodes=4000, horizon=5)
    dataset = problem.dataset
    rewards = dataset.reward[dataset.starts].reshape(4000, 5)
    close(discounted(rewards, 0.9), problem.value(problem.behavior_params))
    assert (dataset.discount == 1).all()  # a time limit is no terminal
    following = dataset.observation[dataset.starts + 1]
    z = np.concatenate([dataset.observation, dataset.action, np.ones_like(dataset.action)], axis=1)[
        dataset.starts
    ]
    error = following - z @ problem.truth["dynamics"][:2].T
    np.testing.assert_allclose(error.std(axis=0), linear_gaussian.DYNAMICS_NOISE, rtol=0.03)
    paid = np.sum(z @ problem.truth["reward"] * z, axis=1)
    np.testing.assert_allclose(
        (dataset.reward[dataset.starts] - paid).std(), linear_gaussian.REWARD_NOISE, rtol=0.03
    )


@pytest.mark.parametrize("make", [known.linear_gaussian, known.tabular])
def test_the_logged_density_is_the_behavior_policy_s(make):
    problem = make(0, num_episodes=20)
    rows = problem.dataset.starts
    log_prob = jax.jit(jax.vmap(problem.policy.log_prob, (None, 0, 0)))(
        problem.behavior_params, problem.dataset.observation[rows], problem.dataset.action[rows]
    )
    np.testing.assert_allclose(
        problem.dataset.extras["behavior_log_prob"][rows], log_prob, atol=2e-5
    )


def test_actions_of_the_linear_policies_need_no_clipping():
    problem = known.linear_gaussian(0, num_episodes=1, state_size=3, action_size=2)
    system = linear_gaussian.System(**problem.truth)
    for params in (problem.behavior_params, *problem.target_params):
        _, action, _, _ = linear_gaussian.simulate(
            system, params, np.random.default_rng(1), 5_000, 50
        )
        deviations = (1 - np.abs(action.mean(axis=(0, 1)))) / action.std(axis=(0, 1))
        assert (deviations > 5.4).all()  # 7e-8 of a Gaussian lies beyond


@pytest.mark.parametrize("steps", [1, 7, math.inf])
@pytest.mark.parametrize("make", [known.linear_gaussian, known.tabular])
def test_v_is_the_policy_s_mean_of_q(make, steps):
    problem = make(0, num_episodes=5)
    params = problem.target_params[0]
    observation = problem.dataset.observation[3]
    keys = jax.random.split(jax.random.key(0), 20_000)
    actions = jax.jit(jax.vmap(problem.policy.sample, (None, None, 0)))(params, observation, keys)
    close(
        problem.q(
            params, np.broadcast_to(observation, (20_000, *observation.shape)), actions, steps
        ),
        problem.v(params, observation, steps),
    )


@pytest.mark.parametrize("steps", [1, 7, math.inf])
def test_q_of_the_linear_system_satisfies_bellman_s_equation(steps):
    problem = known.linear_gaussian(0, num_episodes=1)
    params = problem.target_params[-1]
    z = np.array([0.3, -0.2, 0.4, 1.0])
    noise = linear_gaussian.DYNAMICS_NOISE * np.random.default_rng(0).normal(size=(20_000, 2))
    following = problem.truth["dynamics"][:2] @ z + noise
    backup = z @ problem.truth["reward"] @ z + 0.9 * problem.v(params, following, steps - 1)
    close(backup, problem.q(params, z[:2], z[2:3], steps))


@pytest.mark.parametrize("make", [known.linear_gaussian, known.tabular])
def test_many_steps_are_as_good_as_no_end_and_none_are_worth_nothing(make):
    problem = make(0, num_episodes=1)
    params = problem.target_params[-1]
    np.testing.assert_allclose(
        problem.value(params, 400), problem.value(params, math.inf), rtol=1e-9
    )
    assert problem.value(params, 0) == 0
    assert (
        problem.value(params)
        == problem.value(params, problem.spec.horizon)
        < problem.value(params, math.inf)
    )


def test_steps_may_differ_along_the_trajectory():
    for problem in (known.linear_gaussian(0, num_episodes=1), known.tabular(0, num_episodes=1)):
        params = problem.target_params[0]
        horizon = problem.spec.horizon
        steps = horizon - np.arange(horizon + 1)
        observation = problem.dataset.observation
        together = problem.v(params, observation[None], steps)[0]
        apart = [problem.v(params, row, left) for row, left in zip(observation, steps, strict=True)]
        np.testing.assert_allclose(together, apart, rtol=1e-12)
        action = problem.dataset.action[None]
        apart = [
            problem.q(params, row, act, left)
            for row, act, left in zip(observation, action[0], steps, strict=True)
        ]
        np.testing.assert_allclose(
            problem.q(params, observation[None], action, steps)[0], apart, rtol=1e-12
        )


def test_targets_differ_in_value_and_more_so_farther_from_the_behavior():
    problem = known.linear_gaussian(0, num_episodes=1)
    values = [problem.value(params) for params in problem.target_params]
    assert values == sorted(values)
    assert values[-1] - values[0] > 0.5
    assert values[2] < problem.value(problem.behavior_params) < values[3]


def test_more_actions_than_states_are_refused():
    with pytest.raises(UsageError, match=r"action_size must be in 1 \.\. state_size = 2, got 3"):
        known.linear_gaussian(0, action_size=3)


# --- tables ---


@pytest.mark.parametrize("terminal", [False, True])
def test_the_chain_s_values_are_the_mean_returns_of_simulated_episodes(terminal):
    problem = known.tabular(0, terminal=terminal, num_episodes=1)
    table = tables.Table(**problem.truth)
    for params in (problem.behavior_params, *problem.target_params):
        policy = tables.probabilities(params)
        state, action, length, _ = tables.simulate(
            table, policy, np.random.default_rng(1), 20_000, 10
        )
        reward = table.reward[state[:, :-1], action] * (np.arange(10)[None] < length[:, None])
        close(discounted(reward, 0.9), problem.value(params))


def test_the_chain_s_values_by_hand():
    problem = known.tabular(0, slip=0.0, num_episodes=1, gamma=0.5)
    right = {"logits": np.array([[-99.0, 0.0]] * 5)}
    state = np.eye(5)[4]
    np.testing.assert_allclose(problem.v(right, state), 0.9 / 0.5)  # 0.9 a step, for ever
    np.testing.assert_allclose(problem.v(right, np.eye(5)[3]), 0.65 + 0.5 * 1.8)
    np.testing.assert_allclose(
        problem.q(right, np.eye(5)[3], 0), 0.75 + 0.5 * (0.4 + 0.5 * (0.65 + 0.5 * 1.8))
    )
    ending = known.tabular(0, terminal=True, slip=0.0, num_episodes=1, gamma=0.5)
    np.testing.assert_allclose(ending.v(right, np.eye(5)[3]), 2.65)
    np.testing.assert_allclose(ending.v(right, state), 0.0)


def test_episodes_of_the_ending_chain_are_terminal_at_the_right_end_and_truncated_elsewhere():
    dataset = known.tabular(0, terminal=True).dataset
    ends = np.unique(dataset.episode_end)
    at_the_end = dataset.observation[ends][:, 4] == 1
    assert 0 < at_the_end.mean() < 1
    np.testing.assert_array_equal(dataset.discount[ends - 1], 1.0 - at_the_end)
    inside = np.setdiff1d(np.arange(len(dataset.reward)), ends)
    assert (dataset.observation[inside][:, 4] == 0).all()
    assert (np.diff(np.append(-1, ends))[~at_the_end] == 11).all()


@pytest.mark.parametrize("terminal", [False, True])
def test_rewards_weighted_by_the_density_ratio_give_the_value_without_end(terminal):
    problem = known.tabular(0, terminal=terminal, num_episodes=20_000)
    rows = problem.dataset.starts
    state = problem.dataset.observation[rows].argmax(axis=1)
    action = problem.dataset.action[rows]
    for params in problem.target_params:
        ratio = problem.density_ratio(params)
        assert ratio.shape == (5, 2)
        weighted = np.mean(ratio[state, action] * problem.dataset.reward[rows])
        np.testing.assert_allclose(weighted / (1 - 0.9), problem.value(params, math.inf), rtol=0.02)


def test_the_unsupported_action_is_in_no_data_and_changes_the_value():
    problem = known.unsupported(0)
    assert set(problem.dataset.action.tolist()) == {0, 1}
    values = [problem.value(params) for params in (problem.behavior_params, *problem.target_params)]
    assert values == sorted(values)
    assert values[-1] > 1.5 * values[0]
    share = [tables.probabilities(params)[0, 2] for params in problem.target_params]
    np.testing.assert_allclose(share, [0.1, 0.5, 0.9], atol=1e-6)


@pytest.mark.parametrize("make", [known.linear_gaussian, known.tabular, known.unsupported])
def test_data_depend_on_the_seed_alone_and_the_system_does_not(make):
    first = make(1, num_episodes=2)
    same = make(1, num_episodes=2)
    other = make(2, num_episodes=2)
    jax.tree.map(np.testing.assert_array_equal, first.dataset, same.dataset)
    assert not np.array_equal(first.dataset.action, other.dataset.action)
    assert first.value(first.target_params[0]) == other.value(other.target_params[0])
