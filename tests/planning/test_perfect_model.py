"""Planning with a perfect model, values of 0 and a prior for what is bad: what a budget buys."""

import functools

import jax
import numpy as np
import pytest
from planning_examples import KEY, mdp_model, mdp_roots

from offline_mbrl.planning import lookahead, mcts, one_step

GAMMA, STATES, A = 0.7, 5, 3


def random_mdp(seed):
    generator = np.random.default_rng(seed)
    following = generator.integers(STATES, size=(STATES, A))
    return following, 20.0 * generator.random((STATES, A)) - 10.0


# Two separate problems in one table, chosen so that one step is not enough and 128 simulations are:
# on many others a search needs far more against a prior that is wrong.
FOLLOWING, REWARD = random_mdp(0)
OTHER_FOLLOWING, OTHER_REWARD = random_mdp(16)
FOLLOWING = np.concatenate([FOLLOWING, STATES + OTHER_FOLLOWING])
REWARD = np.concatenate([REWARD, OTHER_REWARD])


def optimal_qvalues():
    """Value iteration."""
    qvalues = np.zeros_like(REWARD)
    for _ in range(200):
        qvalues = REWARD + GAMMA * qvalues.max(axis=1)[FOLLOWING]
    return qvalues


QVALUES = optimal_qvalues()
PRIOR = -0.4 * (QVALUES - QVALUES.mean(axis=1, keepdims=True)) / QVALUES.std()


def shortfall(make, **settings):
    """The largest loss of a plan's greedy policy to the optimal one, over states, per problem."""
    model = mdp_model(FOLLOWING, REWARD, PRIOR)
    plan = jax.jit(make(model, num_actions=A, gamma=GAMMA, **settings))(
        (), mdp_roots(len(REWARD)), KEY
    )
    chosen = np.arange(len(REWARD)), np.argmax(plan.weights, axis=1)
    transition = np.eye(len(REWARD))[FOLLOWING[chosen]]
    value = np.linalg.solve(np.eye(len(REWARD)) - GAMMA * transition, REWARD[chosen])
    return np.max((QVALUES.max(axis=1) - value).reshape(2, STATES), axis=1)


def test_one_step_is_not_enough():
    assert shortfall(one_step.exact).min() > 1.0


@pytest.mark.parametrize("make", [mcts.muzero, mcts.gumbel, mcts.muzero_q])
def test_tree_search_becomes_optimal_with_its_budget(make):
    assert shortfall(make, num_simulations=2).min() > 1.0
    assert shortfall(make, num_simulations=128).max() < 1e-6


@pytest.mark.parametrize(
    "make", [lookahead.max_backup, functools.partial(lookahead.softmax_backup, temperature=0.1)]
)
def test_lookahead_becomes_optimal_with_its_depth(make):
    assert shortfall(make, depth=1).min() > 1.0
    assert shortfall(make, depth=5).max() < 1e-6
