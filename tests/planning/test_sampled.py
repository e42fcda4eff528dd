"""One-step lookahead over samples: closed form, limit, and where weights could overflow."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from planning_examples import (
    GAMMA,
    KEY,
    TINY,
    bandit,
    bandit_roots,
    random_embeddings,
    random_model,
    scattered,
    untrained_model,
)

from offline_mbrl.planning import one_step
from offline_mbrl.types import LatentModel, UsageError

PRIOR = np.log([0.2, 0.5, 0.3])


def sample(model, params, embeddings, num_actions, num_samples, gamma=GAMMA, **settings):
    planner = one_step.sampled(
        model, num_actions=num_actions, gamma=gamma, num_samples=num_samples, **settings
    )
    return jax.jit(planner)(params, embeddings, KEY)


def test_weights_follow_the_equation_written_out():
    qvalues, value = np.array([0.3, -0.2, 1.1]), 0.4
    plan = sample(bandit(qvalues, value, PRIOR), (), bandit_roots(5), 3, 4)
    exponentials = np.exp(qvalues - value)[np.asarray(plan.actions)]
    expected = exponentials / (1.0 + exponentials.sum(axis=1, keepdims=True) - exponentials)
    np.testing.assert_allclose(plan.weights, expected, rtol=1e-5)
    np.testing.assert_allclose(plan.qvalues, qvalues[np.asarray(plan.actions)], rtol=1e-6)
    np.testing.assert_allclose(plan.value, value, rtol=1e-6)


def test_normalized_weights_are_the_same_with_mass_one():
    model = bandit(np.array([0.3, -0.2, 1.1]), 0.4, PRIOR)
    plain = sample(model, (), bandit_roots(5), 3, 4)
    normalized = sample(model, (), bandit_roots(5), 3, 4, normalize=True)
    mass = np.sum(plain.weights, axis=1, keepdims=True)
    assert abs(mass - 1.0).max() > 0.05
    np.testing.assert_allclose(normalized.weights, plain.weights / mass, rtol=1e-5)
    np.testing.assert_allclose(
        plain.improved_value, np.sum(normalized.weights * plain.qvalues, axis=1), rtol=1e-5
    )


def test_an_untrained_model_with_odd_bins_gives_the_frequencies_of_the_samples():
    model, params = untrained_model(3)
    plan = sample(model, params, random_embeddings(8), 3, 10)
    counts = np.stack([np.bincount(actions, minlength=3) for actions in np.asarray(plan.actions)])
    np.testing.assert_allclose(scattered(plan, 3), counts / 10, rtol=1e-5)


def test_an_untrained_model_with_twenty_bins_gives_the_published_formula():
    model, params = untrained_model(3, dataclasses.replace(TINY, num_bins=20))
    plan = sample(model, params, random_embeddings(8), 3, 10, gamma=0.997**4)
    counts = np.stack([np.bincount(actions, minlength=3) for actions in np.asarray(plan.actions)])
    c = np.float64(plan.qvalues[0, 0] - plan.value[0])
    assert c == pytest.approx(1.231, abs=5e-4)
    np.testing.assert_allclose(
        scattered(plan, 3), counts * np.exp(c) / (1 + 9 * np.exp(c)), rtol=1e-5
    )


def test_many_samples_of_small_advantages_tend_to_the_exact_weights_up_to_their_mass():
    model, params = random_model(6, scale=0.2)
    embeddings = jnp.tile(random_embeddings(2), (64, 1))
    targets = scattered(sample(model, params, embeddings, 6, 256), 6).reshape(64, 2, 6).mean(axis=0)
    exact = jax.jit(one_step.exact(model, num_actions=6, gamma=GAMMA))(params, embeddings[:2], KEY)
    np.testing.assert_allclose(
        targets / targets.sum(axis=1, keepdims=True), exact.weights, atol=0.01
    )
    assert np.ptp(exact.weights, axis=1).min() > 0.05


def test_samples_and_actions_are_drawn_from_the_prior_and_independently():
    plan = sample(bandit(np.array([5.0, 0.0, -5.0]), 0.0, PRIOR), (), bandit_roots(20_000), 3, 2)
    for drawn in (plan.action, plan.actions[:, 0], plan.actions[:, 1]):
        np.testing.assert_allclose(
            np.bincount(drawn, minlength=3) / 20_000, np.exp(PRIOR), atol=0.015
        )
    both = np.mean(np.asarray(plan.actions[:, 0]) == np.asarray(plan.action))
    assert both == pytest.approx(np.sum(np.exp(PRIOR) ** 2), abs=0.015)


@pytest.mark.parametrize("scale", [1e4, -1e4])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("num_samples", [1, 4])
def test_huge_advantages_stay_finite(scale, normalize, num_samples):
    model = bandit(np.array([0.0, 1.0, 1.0]) * scale, 0.0, PRIOR)
    plan = sample(model, (), bandit_roots(64), 3, num_samples, normalize=normalize)
    mass = np.sum(plan.weights, axis=1)
    assert np.isfinite(mass).all()
    assert np.isfinite(plan.improved_value).all()
    if normalize:
        np.testing.assert_allclose(mass, 1.0, rtol=1e-6)


def test_equal_huge_advantages_weigh_alike():
    plan = sample(bandit(np.full(3, 1e4), 0.0, PRIOR), (), bandit_roots(4), 3, 4)
    np.testing.assert_allclose(plan.weights, 1 / 3, rtol=1e-4)  # e^c / (1 + 3 e^c)


def test_dynamics_are_called_for_the_samples_alone():
    calls = []

    def counted(params, embedding, action):
        del params
        jax.debug.callback(calls.append, action)
        return embedding + action

    base = bandit(np.zeros(18), 0.0, np.zeros(18))
    model = LatentModel(base.init, base.represent, counted, base.predict, base.scalar)
    jax.block_until_ready(sample(model, (), bandit_roots(2), 18, 3))
    jax.effects_barrier()
    assert len(calls) == 2 * 3


def test_no_sample_is_refused():
    with pytest.raises(UsageError, match="num_samples is 0; give a whole number of at least 1"):
        one_step.sampled(random_model(2)[0], num_actions=2, gamma=GAMMA, num_samples=0)
