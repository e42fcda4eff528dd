"""The share of the data that a policy's visits rest on: known ratios and limiting cases."""

import jax
import numpy as np
import pytest

from offline_mbrl.ope import batches, support, visits
from offline_mbrl.problems import known


def shares(problem, policies, size=4_000):
    batch = batches.Experience(size)(problem.dataset, None, jax.random.key(0))
    gamma = problem.spec.gamma

    @jax.jit
    def share(params):
        key = jax.random.key(1)
        return visits.visited_share(problem.policy, params, batch, problem.spec, key, gamma=gamma)

    return np.array([share(params)["visited_share"] for params in policies])


def exact(problem, params):
    """The same of the exact density ratio."""
    rows = problem.dataset.starts
    state = np.argmax(problem.dataset.observation[rows], axis=1)
    action = problem.dataset.action[rows]
    ratio = problem.density_ratio(params)[state, action]
    return ratio.mean() ** 2 / np.mean(ratio**2)


@pytest.mark.parametrize("make", [known.tabular, known.linear_gaussian])
def test_the_behavior_itself_visits_all_of_its_data(make):
    problem = make(0)
    assert shares(problem, [problem.behavior_params])[0] > 0.95


@pytest.mark.parametrize("terminal", [False, True])
def test_on_a_chain_it_is_near_the_share_of_the_exact_density_ratio(terminal):
    problem = known.tabular(0, terminal=terminal, num_episodes=2_000)
    expected = np.array([exact(problem, params) for params in problem.target_params])
    found = shares(problem, problem.target_params, size=20_000)
    np.testing.assert_allclose(found, expected, atol=0.1)


def test_policies_farther_from_the_behavior_rest_on_less():
    problem = known.linear_gaussian(0, num_episodes=2_000)
    found = shares(problem, problem.target_params, size=20_000)  # -1, -1/2, -1/4, 1/4, 1/2, 1
    assert found[0] < found[1] < found[2] > found[3] > found[4] > found[5]
    low = [bool(support.low_support({"visited_share": share})) for share in found]
    assert low == [False] * 5 + [True]


def test_actions_that_the_data_never_hold_leave_nothing():
    problem = known.unsupported(0)
    assert (shares(problem, problem.target_params) < 1e-3).all()
    assert shares(problem, [problem.behavior_params])[0] > 0.95
