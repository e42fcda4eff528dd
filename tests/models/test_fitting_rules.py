"""What decides when a fit ends, what it holds out and what its scores count."""

import jax
import jax.numpy as jnp
import numpy as np
from explicit_examples import D, ensemble, transition

from offline_mbrl.models import fitting


def blind(of, num):
    """The same, the first `num` terminal and of unknown outcome."""
    return of._replace(
        discount=of.discount.at[:num].set(0.0), next_observation=of.next_observation.at[:num].set(of.observation[:num])
    )


def test_of_an_unknown_outcome_the_reward_alone_is_judged():
    model, params = ensemble()
    of = transition(lead=(9,))
    for score in (fitting.median_nll(), fitting.squared_error()):
        evaluate = jax.jit(lambda of, score=score: score.evaluate(model, params, of))
        assert np.all(evaluate(blind(of, 4)) != evaluate(of))
        other = of._replace(reward=of.reward.at[:4].add(3.0))
        assert np.all(evaluate(blind(of, 4)) != evaluate(blind(other, 4)))
    log_prob = np.asarray(jax.jit(lambda of: fitting.log_probs(model, params, of))(blind(of, 4)))
    each = np.where(np.arange(9)[:, None] < 4, -log_prob[..., -1], -log_prob.mean(axis=2))
    evaluate = jax.jit(lambda of: fitting.median_nll().evaluate(model, params, of))
    np.testing.assert_allclose(evaluate(blind(of, 4)), np.median(each, axis=0), rtol=1e-5)
    broken = of._replace(observation=of.observation.at[8].set(jnp.nan))
    np.testing.assert_array_equal(evaluate(blind(broken, 4)), np.nan)  # not what is left of it


def test_a_transition_of_which_nothing_varies_or_is_known_counts_in_no_score():
    model, params = ensemble(constant=(D - 1,))
    of = transition(lead=(9,))
    known = jax.tree.map(lambda leaf: leaf[4:] if isinstance(leaf, jax.Array) else leaf, of)
    for score in (fitting.median_nll(), fitting.squared_error()):
        evaluate = jax.jit(lambda of, score=score: score.evaluate(model, params, of))
        np.testing.assert_allclose(evaluate(blind(of, 4)), evaluate(known), rtol=1e-5)
        np.testing.assert_array_equal(evaluate(blind(of, 9)), 0.0)
