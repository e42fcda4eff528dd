"""MAGIC: the blend with the least estimated error, from the direct method to the weighted one."""

import functools

import jax
import numpy as np
import pytest
from logged_examples import batch_of, blended, exact, logged, ratios_of, robust, split, wrong

from offline_mbrl.ope.weights import diagnostics, doubly_robust, magic
from offline_mbrl.problems import known
from offline_mbrl.types import UsageError


@pytest.mark.parametrize(
    ("matrix", "shares"),
    [
        (np.diag([1.0, 3.0]), [0.75, 0.25]),  # inversely to the variances
        (np.array([[1.0, 2.0], [2.0, 9.0]]), [1.0, 0.0]),  # the second only adds
        (np.array([[2.0, 1.0], [1.0, 2.0]]), [0.5, 0.5]),
        (np.diag([0.0, 1.0, 2.0]), [1.0, 0.0, 0.0]),
        (1e-12 * np.diag([1.0, 3.0]), [0.75, 0.25]),
        (1e20 * np.diag([1.0, 3.0]), [0.75, 0.25]),
        (
            np.array([[np.inf, np.inf, np.nan], [np.inf, 1.0, 0.0], [np.nan, 0.0, 3.0]]),
            [0.0, 0.75, 0.25],
        ),
        (np.full((2, 2), np.nan), [np.nan, np.nan]),
    ],
)
def test_the_blend_minimizes_the_squared_error(matrix, shares):
    np.testing.assert_allclose(magic.blend(matrix), shares, atol=1e-6)


def test_the_blend_is_no_worse_than_any_other_share():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(6, 6))
    matrix = root @ root.T
    best = magic.blend(matrix)
    others = rng.dirichlet(np.full(6, 0.5), 10_000)
    assert best @ matrix @ best <= np.einsum("ij,jk,ik->i", others, matrix, others).min()
    np.testing.assert_allclose(best.sum(), 1.0, rtol=1e-6)
    assert (best >= 0).all()


def test_partial_estimates_reach_from_the_direct_method_to_the_weighted_estimate(setting):
    _, _, batch, log_ratios, q, v = setting
    q, v = wrong(q, v)
    parts = jax.jit(functools.partial(magic.partial_estimates, gamma=0.9, lengths=[0, 1, 10]))(
        batch, log_ratios, q, v
    )
    estimate = robust(batch, log_ratios, q, v)["weighted"]
    np.testing.assert_allclose(parts.value[0], v[:, 0].mean(), rtol=1e-5)
    np.testing.assert_allclose(parts.value[2], estimate.value, rtol=1e-5)
    np.testing.assert_allclose(parts.last_stderr, estimate.stderr, rtol=1e-3)
    assert diagnostics.standard_error(parts.influence[2]) <= 1.001 * estimate.stderr
    weights = np.exp(log_ratios[:, 0])
    first = (
        weights
        / weights.mean()
        * (batch.reward[:, 0] + 0.9 * batch.discount[:, 0] * v[:, 1] - q[:, 0])
    )
    np.testing.assert_allclose(parts.value[1], (v[:, 0] + first).mean(), rtol=1e-4)


def test_the_blend_takes_exact_values_and_leaves_wrong_ones():
    problem, batch = logged(known.tabular, num_episodes=50_000, horizon=6)
    params = problem.target_params[3]
    log_ratios, values = ratios_of(problem.policy)(params, batch), exact(problem, params, batch)
    with_exact, with_wrong = (
        blended(batch, log_ratios, *of, (0, 1, 3, 6)) for of in (values, wrong(*values))
    )
    assert with_exact.diagnostics["direct_share"] > 0.5
    assert with_wrong.diagnostics["direct_share"] < 0.01
    for estimate in (with_exact, with_wrong):
        assert abs(estimate.value - problem.value(params)) < 4 * estimate.stderr
        assert estimate.diagnostics["low_support"] == 0
        np.testing.assert_allclose(estimate.per_episode.mean(), estimate.value, rtol=1e-4)


def test_where_weights_say_nothing_the_blend_stays_with_the_values_and_says_so():
    problem, batch = logged(known.linear_gaussian, num_episodes=200, horizon=20)
    params = problem.target_params[-1]
    log_ratios, (q, v) = 3 * ratios_of(problem.policy)(params, batch), exact(problem, params, batch)
    estimate = blended(batch, log_ratios, q, v, (0, 10))
    assert estimate.diagnostics["low_support"] == 1
    assert abs(estimate.value - problem.value(params)) < 0.1
    assert abs(robust(batch, log_ratios, q, v)["plain"].value - problem.value(params)) > 0.1


def single_episode_counts(error, *, size=60, steps=20):
    """(batch, log ratios, q, v): of rewards that are noise, and values that are wrong by `error`.

    Values are `error` more than the 0 that is right, starts differ, and one episode has all the
    weight.
    """
    rng = np.random.default_rng(1)
    batch = batch_of(rng.normal(size=(size, steps)))
    log_ratios = np.zeros((size, steps), np.float32)
    log_ratios[0] = 20.0
    v = np.full((size, steps + 1), error, np.float32)
    v[:, 0] += rng.normal(size=size)
    v[:, -1] = 0.0
    return batch, log_ratios, v[:, :-1], v


def test_where_a_single_episode_counts_the_direct_method_keeps_its_share():
    """The jackknife calls the weighted estimate certain, however far it is off."""
    batch, log_ratios, q, v = single_episode_counts(0.1)
    estimate = blended(batch, log_ratios, q, v, (0, 1, 5))
    weighted = robust(batch, log_ratios, q, v)["weighted"]
    assert estimate.diagnostics["effective_sample_size"] < 1.01
    assert abs(weighted.value) > 1.0
    assert estimate.diagnostics["direct_share"] > 0.9
    assert abs(estimate.value) < 0.4
    assert estimate.stderr >= 0.999 * weighted.stderr


def test_values_that_are_off_by_more_than_an_episode_can_be_lose_their_share():
    estimate = blended(*single_episode_counts(60.0), (0, 1, 5))
    assert estimate.diagnostics["direct_share"] < 0.1


def test_what_few_episodes_leave_open_is_shared_by_all_estimates_with_those_weights():
    rng = np.random.default_rng(0)
    influence = rng.normal(size=(4, 30)).astype(np.float32)
    least = np.array([0.0, 1.0, 0.5, 2.0], np.float32)
    covariance = np.asarray(magic.covariance(influence, least))
    by_jackknife = influence @ influence.T / (30 * 29)
    added = np.array([0, 1, 1, 4]) - np.array([0, *by_jackknife.diagonal()[[1, 1, 3]]])
    np.testing.assert_allclose(
        covariance - by_jackknife, np.minimum(added[:, None], added[None]), atol=1e-5
    )
    assert np.linalg.eigvalsh(covariance).min() > -1e-6


def test_the_blend_s_intervals_cover_the_truth_or_support_is_flagged_and_many_are_one_call():
    problem, batch = logged(known.linear_gaussian, num_episodes=10_000, horizon=20)
    params = problem.target_params[4]
    log_ratios, values = ratios_of(problem.policy)(params, batch), exact(problem, params, batch)
    many = jax.jit(jax.vmap(functools.partial(magic.magic, gamma=0.9, lengths=(0, 2, 8))))
    for q, v in (values, wrong(*values)):
        data = split((batch, log_ratios, q, v), 50)
        estimate = many(*data)
        covered = np.abs(estimate.value - problem.value(params)) < 1.96 * estimate.stderr
        assert np.mean(covered | (estimate.diagnostics["low_support"] == 1)) >= 0.9
        last = jax.jit(
            jax.vmap(functools.partial(doubly_robust.weighted_doubly_robust, gamma=0.9))
        )(*data)
        assert np.all(
            estimate.stderr >= 0.999 * last.stderr
        )  # which knows how fitted values would err
    alone = blended(*jax.tree.map(lambda leaf: leaf[7], data), (0, 2, 8))
    np.testing.assert_allclose(estimate.value[7], alone.value, rtol=1e-4)


def test_lengths_beyond_the_trajectories_are_refused_and_defaults_span_them():
    _, batch = logged(known.tabular, num_episodes=200)
    zeros = np.zeros((200, 11), np.float32)
    with pytest.raises(
        UsageError, match=r"lengths must be in 0 \.\. 10, the trajectories' steps, got \[0, 11\]"
    ):
        magic.magic(batch, zeros[:, 1:], zeros[:, 1:], zeros, gamma=0.9, lengths=[0, 11])
    assert magic._lengths(None, 1000)[:3] == [0, 1, 2]
    assert magic._lengths(None, 1000)[-1] == 1000
    assert magic._lengths([2], 10) == [2, 10]
    assert len(magic._lengths(None, 1000)) <= magic.NUM_LENGTHS
