"""What decides when a fit ends, what it holds out and what its scores count."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from explicit_examples import D, density, ensemble, linear, spec, transition

from offline_mbrl.data import splits
from offline_mbrl.models import explicit, fitting
from offline_mbrl.training import fit
from offline_mbrl.types import UsageError

MEMBERS = 3
CONFIG = fitting.Config(num_updates=600, batch_size=64, refresh_every=20, learning_rate=0.0, patience=3)


@pytest.mark.parametrize("seeds", [None, [0, 1]])
def test_a_run_ends_early_when_its_patience_does(seeds):
    dataset, known, _ = linear()
    model = explicit.make(density((4,)), spec(), num_members=MEMBERS)
    run = lambda config: fit.fit(  # noqa: E731
        fitting.make(model, config, num_members=MEMBERS), dataset, key=jax.random.key(0), num_updates=600, seeds=seeds,
        statistics=known, block_updates=50, hooks=fitting.hooks(config))  # fmt: skip
    stopped = run(CONFIG)  # nothing is learned, so only the first evaluation, after 20 updates, improves on none
    assert "no held-out score improved in 3 evaluations" in stopped.stopped
    assert stopped.num_updates == 100  # the third in vain comes after 80 updates, before a block of 20 more
    whole = run(dataclasses.replace(CONFIG, patience=0))
    assert (whole.stopped, whole.num_updates) == (None, 600)


def test_the_split_is_as_large_as_the_config_says():
    dataset = linear()[0]._replace(held_out=())
    size = len(dataset.starts)
    for config, expected in (
        (dataclasses.replace(CONFIG, held_out_fraction=0.2, max_held_out=0), int(0.2 * size)),
        (dataclasses.replace(CONFIG, held_out_fraction=0.2, max_held_out=100), 100),
    ):
        found = splits.hold_out(dataset, **fitting.held_out_rule(config))
        assert (len(found.held_out), len(found.starts)) == (expected, size - expected)
        assert len(fitting.held_out(found, config.max_held_out).reward) == expected


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


def test_another_number_of_members_than_the_models_is_refused():
    model = explicit.make(density((4,)), spec(), num_members=2)
    with pytest.raises(UsageError, match="num_members is 3, but the model has 2"):
        fitting.make(model, CONFIG, num_members=3).init(jax.random.key(0), (), linear()[1], ())
