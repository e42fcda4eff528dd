"""The toy problems' exact scores."""

import jax.numpy as jnp
import numpy as np

from offline_mbrl.problems import toy
from offline_mbrl.types import Policy


def constant(action):
    return Policy(
        sample=lambda params, observation, key: action, mode=lambda params, observation: action
    )


def test_always_right_is_optimal_on_the_chain_and_always_left_never_arrives():
    chain = toy.chain(0, num_episodes=2)
    np.testing.assert_allclose(chain.score(constant(jnp.int32(1)), ()), 1.0, rtol=1e-5)
    optimal, uniform = (float(toy._chain_return(jnp.full(5, right), 0.9)) for right in (1.0, 0.5))
    np.testing.assert_allclose(
        chain.score(constant(jnp.int32(0)), ()), -uniform / (optimal - uniform), rtol=1e-5
    )


def test_the_chains_return_of_always_right_is_gamma_to_the_steps():
    np.testing.assert_allclose(toy._chain_return(jnp.ones(5), 0.9), 0.9**4, rtol=1e-5)


def test_the_bandits_best_action_scores_one_and_a_uniform_one_zero():
    bandit = toy.bandit(0, num_steps=4)
    best = Policy(
        sample=None, mode=lambda params, observation: (observation[:1] - observation[1:]) / 2
    )
    np.testing.assert_allclose(bandit.score(best, ()), 1.0, rtol=1e-6)
    # a constant distance with the variance of a uniform action, on either side of zero
    spread = jnp.sqrt(1.0 / 3.0)
    scores = [
        bandit.score(
            Policy(
                sample=None, mode=lambda params, observation, sign=sign: jnp.array([sign * spread])
            ),
            (),
        )
        for sign in (-1, 1)
    ]
    np.testing.assert_allclose(np.mean(scores), 0.0, atol=1e-5)


def test_episodes_of_the_chain_end_in_terminals_or_in_truncations():
    dataset = toy.chain(0, right=0.5).dataset
    last = np.unique(dataset.episode_end)
    how = dataset.discount[last - 1]
    assert {0.0, 1.0} == set(how.tolist())
    np.testing.assert_array_equal(dataset.reward[last - 1], 1.0 - how)
