"""Units, summaries and coverage of held-out likelihood."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from explicit_examples import D, density, ensemble, statistics, transition

from offline_mbrl.models import explicit, likelihood

M = 37  # no multiple of any batch size


@functools.cache
def reporting(model, batch_size=8, covered=False):
    conditionals = explicit.conditionals(density()) if covered else None

    def report(params, rows):
        return likelihood.report(
            model,
            params,
            rows,
            conditionals=conditionals,
            lowest_log_std=-7.0,
            batch_size=batch_size,
        )

    return jax.jit(report)


def log_probs(model, params, rows):
    """Raw log-likelihoods `[M, E, D]`."""
    single = [jax.tree.map(lambda leaf, i=i: leaf[i], rows) for i in range(M)]
    return np.stack(
        [
            model.log_prob(params, row.observation, row.action, row.next_observation, row.reward)
            for row in single
        ]
    )


def test_summaries_are_those_of_the_log_likelihoods_of_each_transition():
    model, params = ensemble()
    params = params._replace(elites=jnp.array([0, 2]))
    rows = transition(lead=(M,))
    reported = reporting(model)(params, rows)
    log_prob = log_probs(model, params, rows)
    nll = -log_prob.sum(axis=2) / D
    np.testing.assert_allclose(reported.nll_raw.mean, nll.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(reported.nll_raw.median, np.median(nll, axis=0), rtol=1e-4)
    np.testing.assert_allclose(reported.nll_raw.p99, np.percentile(nll, 99, axis=0), rtol=1e-4)
    sums = log_prob.sum(axis=2)[:, [0, 2]]
    mixture = -(scipy.special.logsumexp(sums, axis=1) - np.log(2)) / D
    np.testing.assert_allclose(reported.ensemble_raw.mean, mixture.mean(), rtol=1e-4)
    np.testing.assert_allclose(reported.ensemble_raw.p99, np.percentile(mixture, 99), rtol=1e-4)
    scale = np.append(params.statistics.delta_std, params.statistics.reward_std)
    expected = -log_prob.mean(axis=0) - np.log(scale)
    np.testing.assert_allclose(reported.entries_unit, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(reported.reward_unit, reported.entries_unit[:, -1])
    counts = (reported.num_transitions, reported.num_entries, reported.num_constant)
    assert counts == (M, D, 0)


def test_units_differ_by_the_mean_logarithm_of_their_scales():
    model, params = ensemble()
    reported = reporting(model)(params, transition(lead=(M,)))
    scales = params.statistics
    z = np.mean(np.log(np.append(scales.observation_std, scales.reward_std)))
    unit = np.mean(np.log(np.append(scales.delta_std, scales.reward_std)))
    raw = reported.nll_raw
    np.testing.assert_allclose(raw.mean - reported.nll_z.mean, z, rtol=1e-3)
    np.testing.assert_allclose(raw.p99 - reported.nll_unit.p99, unit, rtol=1e-3)
    ensemble_shift = reported.ensemble_raw.median - reported.ensemble_unit.median
    np.testing.assert_allclose(ensemble_shift, unit, rtol=1e-3)
    means = reported.entries_unit.mean(axis=1)
    np.testing.assert_allclose(means, reported.nll_unit.mean, rtol=1e-4)
    np.testing.assert_allclose(reported.floor_unit, -7 + 0.5 * np.log(2 * np.pi), rtol=1e-6)


@pytest.mark.parametrize("scale", [3.0, 0.25])
def test_scaling_the_data_leaves_z_and_shifts_raw_by_its_logarithm(scale):
    model, params = ensemble()
    rows = transition(lead=(M,))
    scaled = rows._replace(
        observation=scale * rows.observation,
        next_observation=scale * rows.next_observation,
        reward=scale * rows.reward,
    )
    rescaled = params._replace(statistics=explicit.require_statistics(statistics(scale=scale)))
    before = reporting(model)(params, rows)
    after = reporting(model)(rescaled, scaled)
    np.testing.assert_allclose(after.nll_z.mean, before.nll_z.mean, rtol=1e-3)
    np.testing.assert_allclose(after.nll_unit.median, before.nll_unit.median, rtol=1e-3)
    shift = after.nll_raw.mean - before.nll_raw.mean
    np.testing.assert_allclose(shift, np.log(scale), rtol=1e-3)


def test_no_batch_size_changes_a_figure():
    model, params = ensemble()
    rows = transition(lead=(M,))
    in_parts = reporting(model, 8, True)(params, rows)
    at_once = reporting(model, 64, True)(params, rows)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), in_parts, at_once)


def test_constant_entries_are_counted_and_left_out():
    model, params = ensemble(constant=(1,))
    rows = transition(lead=(M,))
    reported = reporting(model, 8, True)(params, rows)
    log_prob = log_probs(model, params, rows)
    assert (reported.num_entries, reported.num_constant) == (D - 1, 1)
    expected = -log_prob.sum(axis=2).mean(axis=0) / (D - 1)
    np.testing.assert_allclose(reported.nll_raw.mean, expected, rtol=1e-4)
    for figure in (reported.entries_unit, reported.coverage["0.5"], reported.coverage["0.9"]):
        np.testing.assert_array_equal(np.isnan(figure), np.tile(np.arange(D) == 1, (3, 1)))


def test_a_model_covers_its_own_samples_as_often_as_its_intervals_claim():
    model, params = ensemble(1)
    rows = transition(lead=(4_000,))
    keys = jax.random.split(jax.random.key(0), 4_000)
    step = jax.jit(jax.vmap(model.step, (None, 0, 0, 0)))
    _, predicted = step(params, rows.observation, rows.action, keys)
    rows = rows._replace(next_observation=predicted.observation, reward=predicted.reward)
    reported = reporting(model, 512, True)(params, rows)
    for share in (0.5, 0.9):
        error = np.sqrt(share * (1 - share) / 4_000)
        np.testing.assert_allclose(reported.coverage[str(share)], share, atol=4 * error)
    without = reporting(model, 512)(params, rows)
    assert without.coverage == {}
    np.testing.assert_allclose(without.nll_z.mean, reported.nll_z.mean, rtol=1e-5)
