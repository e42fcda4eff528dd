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
    return jax.jit(lambda params, of: likelihood.report(
        model, params, of, conditionals=conditionals, lowest_log_std=-7.0, batch_size=batch_size))  # fmt: skip


def told(model, params, of):
    """Raw log-likelihoods `[M, E, D]`."""
    rows = [jax.tree.map(lambda leaf, i=i: leaf[i], of) for i in range(M)]
    return np.stack([
        model.log_prob(params, row.observation, row.action, row.next_observation, row.reward) for row in rows
    ])  # fmt: skip


def test_summaries_are_those_of_the_log_likelihoods_of_each_transition():
    model, params = ensemble()
    params |= {"elites": jnp.array([0, 2])}
    of = transition(lead=(M,))
    found, log_prob = reporting(model)(params, of), told(model, params, of)
    nll = -log_prob.sum(axis=2) / D
    np.testing.assert_allclose(found.nll_raw.mean, nll.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(found.nll_raw.median, np.median(nll, axis=0), rtol=1e-4)
    np.testing.assert_allclose(found.nll_raw.p99, np.percentile(nll, 99, axis=0), rtol=1e-4)
    mixture = -(scipy.special.logsumexp(log_prob.sum(axis=2)[:, [0, 2]], axis=1) - np.log(2)) / D
    np.testing.assert_allclose(found.ensemble_raw.mean, mixture.mean(), rtol=1e-4)
    np.testing.assert_allclose(found.ensemble_raw.p99, np.percentile(mixture, 99), rtol=1e-4)
    scale = np.append(params["statistics"]["delta_std"], params["statistics"]["reward_std"])
    np.testing.assert_allclose(found.entries_unit, -log_prob.mean(axis=0) - np.log(scale), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found.reward_unit, found.entries_unit[:, -1])
    assert (found.num_transitions, found.num_entries, found.num_constant) == (M, D, 0)


def test_units_differ_by_the_mean_logarithm_of_their_scales():
    model, params = ensemble()
    found = reporting(model)(params, transition(lead=(M,)))
    known = params["statistics"]
    z = np.mean(np.log(np.append(known["observation_std"], known["reward_std"])))
    unit = np.mean(np.log(np.append(known["delta_std"], known["reward_std"])))
    np.testing.assert_allclose(found.nll_raw.mean - found.nll_z.mean, z, rtol=1e-3)
    np.testing.assert_allclose(found.nll_raw.p99 - found.nll_unit.p99, unit, rtol=1e-3)
    np.testing.assert_allclose(found.ensemble_raw.median - found.ensemble_unit.median, unit, rtol=1e-3)
    np.testing.assert_allclose(found.entries_unit.mean(axis=1), found.nll_unit.mean, rtol=1e-4)
    np.testing.assert_allclose(found.floor_unit, -7 + 0.5 * np.log(2 * np.pi), rtol=1e-6)


@pytest.mark.parametrize("scale", [3.0, 0.25])
def test_scaling_the_data_leaves_z_and_shifts_raw_by_its_logarithm(scale):
    model, params = ensemble()
    of = transition(lead=(M,))
    scaled = of._replace(
        observation=scale * of.observation, next_observation=scale * of.next_observation, reward=scale * of.reward
    )
    other = params | {"statistics": explicit.transition_statistics(statistics(scale=scale))}
    before, after = reporting(model)(params, of), reporting(model)(other, scaled)
    np.testing.assert_allclose(after.nll_z.mean, before.nll_z.mean, rtol=1e-3)
    np.testing.assert_allclose(after.nll_unit.median, before.nll_unit.median, rtol=1e-3)
    np.testing.assert_allclose(after.nll_raw.mean - before.nll_raw.mean, np.log(scale), rtol=1e-3)


def test_no_batch_size_changes_a_figure():
    model, params = ensemble()
    of = transition(lead=(M,))
    one, all_at_once = reporting(model, 8, True)(params, of), reporting(model, 64, True)(params, of)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), one, all_at_once)


def test_constant_entries_are_counted_and_left_out():
    model, params = ensemble(constant=(1,))
    of = transition(lead=(M,))
    found, log_prob = reporting(model, 8, True)(params, of), told(model, params, of)
    assert (found.num_entries, found.num_constant) == (D - 1, 1)
    np.testing.assert_allclose(found.nll_raw.mean, -log_prob.sum(axis=2).mean(axis=0) / (D - 1), rtol=1e-4)
    for figure in (found.entries_unit, found.coverage["0.5"], found.coverage["0.9"]):
        np.testing.assert_array_equal(np.isnan(figure), np.tile(np.arange(D) == 1, (3, 1)))


def test_a_model_covers_its_own_samples_as_often_as_its_intervals_say():
    model, params = ensemble(1)
    of = transition(lead=(4_000,))
    keys = jax.random.split(jax.random.key(0), 4_000)
    said = jax.jit(jax.vmap(model.step, (None, 0, 0, 0)))(params, of.observation, of.action, keys)[1]
    of = of._replace(next_observation=said.observation, reward=said.reward)
    found = reporting(model, 512, True)(params, of)
    for share in (0.5, 0.9):
        np.testing.assert_allclose(found.coverage[str(share)], share, atol=4 * np.sqrt(share * (1 - share) / 4_000))
    without = reporting(model, 512)(params, of)
    assert without.coverage == {}
    np.testing.assert_allclose(without.nll_z.mean, found.nll_z.mean, rtol=1e-5)
