"""The linear-quadratic problem and the bandit with a rare good action: their known answers."""

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.problems import linear_quadratic as lq
from offline_mbrl.problems import support
from offline_mbrl.types import Policy


def score_of_gain(share):
    params = {"gain": jnp.asarray(share * lq.optimal_gain(), jnp.float32)}
    return float(lq.score(lq.controller(), params))


def test_the_optimal_controller_scores_one_and_the_action_zero_scores_zero():
    np.testing.assert_allclose(score_of_gain(1.0), 1.0, atol=1e-5)
    np.testing.assert_allclose(score_of_gain(0.0), 0.0, atol=1e-4)


def test_scores_of_the_documentation():
    np.testing.assert_allclose(
        [score_of_gain(share) for share in (lq.BEHAVIOR_GAIN, 0.6)], [0.78, 0.97], atol=0.01
    )


def test_every_other_gain_costs_more_than_the_optimal_one():
    best = np.trace(lq.optimal_cost())
    for direction in np.eye(2):
        for change in (-0.1, 0.1):
            assert np.trace(lq.cost_of(lq.optimal_gain() + change * direction[None])) > best


def test_the_riccati_cost_is_the_lyapunov_cost_of_its_own_controller():
    np.testing.assert_allclose(lq.cost_of(lq.optimal_gain()), lq.optimal_cost(), rtol=1e-8)


def test_returns_of_rollouts_are_the_quadratic_form():
    gain = 0.7 * lq.optimal_gain()
    states = lq.starts()
    returns = lq.rollout_return(
        lq.controller(), {"gain": jnp.asarray(gain, jnp.float32)}, jnp.asarray(states, jnp.float32)
    )
    np.testing.assert_allclose(returns, -np.sum(states @ lq.cost_of(gain) * states, 1), atol=1e-4)


def test_the_optimal_actions_stay_within_the_bounds_along_the_rollouts():
    states = lq.starts()
    for _ in range(lq.SCORED_STEPS):
        actions = states @ lq.optimal_gain().T
        assert np.abs(actions).max() < 1.0
        states = states @ lq.DYNAMICS.T + actions @ lq.DRIVE.T


def test_logged_steps_follow_the_dynamics_and_rewards_and_none_terminates():
    data = lq.linear_quadratic(0, num_episodes=3).dataset
    rows = data.starts
    state, action = data.observation[rows], data.action[rows]
    following = state @ lq.DYNAMICS.T + action @ lq.DRIVE.T
    np.testing.assert_allclose(data.observation[rows + 1], following, atol=1e-5)
    np.testing.assert_allclose(data.reward[rows], -(state**2).sum(1) - action[:, 0] ** 2, atol=1e-5)
    assert (data.discount[rows] == 1).all()
    assert len(rows) == 60


def test_bounds_are_rarely_active_in_the_data():
    assert np.mean(np.abs(lq.linear_quadratic(0).dataset.action) == 1) < 0.02


# --- the bandit ---


def above(offset):
    """The policy that plays `center + offset`."""

    def mode(params, observation):
        return support.center(observation) + offset

    return Policy(sample=lambda params, observation, key: mode(params, observation), mode=mode)


def test_the_edge_of_the_rare_interval_scores_one_the_common_middle_zero_and_beyond_is_worst():
    problem = support.rare_action(0, num_steps=10)
    best = above(support.OFFSET + support.HALF_WIDTH)
    np.testing.assert_allclose(problem.score(best, ()), 1.0, rtol=1e-5)
    np.testing.assert_allclose(problem.score(above(-support.OFFSET), ()), 0.0, atol=1e-6)
    assert problem.score(above(0.6), ()) < problem.score(above(-0.8), ())


def test_distances_are_those_to_the_nearest_interval():
    problem = support.rare_action(0, num_steps=10)
    pairs = {0.3: 0.0, -0.4: 0.0, 0.0: 0.15, 0.65: 0.2, -0.55: 0.1, 0.2: 0.0}
    for offset, distance in pairs.items():
        distances = problem.distance(above(offset), ())
        assert distances.shape == (41,)
        np.testing.assert_allclose(distances, distance, atol=1e-6)


def test_no_logged_action_is_outside_the_support_and_few_are_good():
    data = support.rare_action(0).dataset
    context, action = data.observation[data.starts], data.action[data.starts]
    distances = jax.jit(support.distance_from_support)(jnp.asarray(context), jnp.asarray(action))
    assert float(jnp.max(distances)) < 1e-6
    good = action > support.center(context)
    assert 0.07 < np.mean(good) < 0.13
    assert data.reward[data.starts][good[:, 0]].min() > data.reward[data.starts][~good[:, 0]].max()
    assert data.reward.min() > support.CLIFF
