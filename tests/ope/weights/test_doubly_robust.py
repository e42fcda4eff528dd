"""Doubly robust estimates: exact where the values are, unbiased where either part is right."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from logged_examples import FORMS, blended, exact, logged, ratios_of, robust, split, wrong

from offline_mbrl.ope.weights import doubly_robust, importance, magic
from offline_mbrl.problems import known
from offline_mbrl.types import UsageError


@jax.jit
def of_many(batches, log_ratios, q, v):
    return {
        name: jax.vmap(functools.partial(estimate, gamma=0.9))(batches, log_ratios, q, v)
        for name, estimate in FORMS.items()
    }


# --- identities ---


@pytest.mark.parametrize("terminal", [False, True])
def test_exact_values_of_a_deterministic_problem_leave_no_variance_whatever_the_weights(terminal):
    problem, batch = logged(known.tabular, num_episodes=200, slip=0.0, terminal=terminal)
    params = problem.target_params[3]
    q, v = exact(problem, params, batch)
    log_ratios = np.random.default_rng(0).normal(size=batch.reward.shape).astype(np.float32)
    for estimate in (
        *robust(batch, log_ratios, q, v).values(),
        blended(batch, log_ratios, q, v, (0, 3, 10)),
    ):
        np.testing.assert_allclose(estimate.per_episode, v[:, 0], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(estimate.value, v[:, 0].mean(), rtol=1e-4)
        np.testing.assert_allclose(estimate.stderr, v[:, 0].std(ddof=1) / math.sqrt(200), rtol=0.02)


def test_the_textbook_s_formula_written_out(setting):
    """V = mean sum_t gamma^t (w_t (r_t - q_t) + w_{t-1} v_t), the last v by the episode's w."""
    _, _, batch, log_ratios, q, v = setting
    q, v = wrong(q, v)
    total = np.zeros(200)
    for i in range(200):
        before, length = 1.0, int(batch.mask[i].sum())
        for t in range(length):
            after = before * math.exp(log_ratios[i, t])
            total[i] += 0.9**t * (after * (batch.reward[i, t] - q[i, t]) + before * v[i, t])
            before = after
        total[i] += 0.9**length * before * v[i, length] * batch.discount[i, length - 1]
    estimate = robust(batch, log_ratios, q, v)["plain"]
    np.testing.assert_allclose(estimate.per_episode, total, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(estimate.value, total.mean(), rtol=1e-4)


def test_without_values_they_are_per_decision_importance_sampling(setting):
    _, _, batch, log_ratios, q, v = setting
    found = robust(batch, log_ratios, 0 * q, 0 * v)
    for name, plain in (
        ("plain", importance.ordinary_per_decision),
        ("weighted", importance.weighted_per_decision),
    ):
        same = jax.jit(functools.partial(plain, gamma=0.9))(batch, log_ratios)
        np.testing.assert_allclose(found[name].value, same.value, rtol=1e-5)
        np.testing.assert_allclose(found[name].stderr, same.stderr, rtol=1e-4)


def test_the_behavior_policy_s_estimate_is_the_mean_return_within_two_standard_errors(setting):
    problem, _, batch, _, _, _ = setting
    q, v = wrong(*exact(problem, problem.behavior_params, batch))
    zeros = np.zeros_like(batch.reward)
    found = robust(batch, zeros, q, v) | {"blend": blended(batch, zeros, q, v, (0, 2, 10))}
    returns = (batch.reward * 0.9 ** np.arange(10)).sum(axis=1)
    for estimate in found.values():
        assert abs(estimate.value - returns.mean()) < 2 * estimate.stderr
        assert estimate.diagnostics["low_support"] == 0


def test_good_values_shrink_the_standard_error(setting):
    _, _, batch, log_ratios, q, v = setting
    with_values, without = robust(batch, log_ratios, q, v), robust(batch, log_ratios, 0 * q, 0 * v)
    assert with_values["plain"].stderr < 0.7 * without["plain"].stderr
    assert with_values["weighted"].stderr < without["weighted"].stderr


# --- doubly robust ---


@pytest.mark.parametrize("terminal", [False, True])
def test_unbiased_over_ten_thousand_datasets_if_values_or_weights_are_right_and_biased_else(
    terminal,
):
    problem, batch = logged(known.tabular, num_episodes=50_000, horizon=6, terminal=terminal)
    params = problem.target_params[3]
    right, truth = ratios_of(problem.policy)(params, batch), problem.value(params)
    q, v = exact(problem, params, batch)
    inverse = -right  # a function of state and action, but not the ratio

    def errors(log_ratios, values):
        found = np.asarray(
            of_many(*split((batch, log_ratios, *values), 10_000))["plain"].value, np.float64
        )
        return abs(found.mean() - truth) / (found.std() / 100)

    assert errors(right, wrong(q, v)) < 3.5
    assert errors(inverse, (q, v)) < 3.5
    assert errors(inverse, wrong(q, v)) > 20


@pytest.mark.parametrize("strength", [1, 3, 4])
def test_intervals_cover_the_truth_or_support_is_flagged(strength):
    problem, batch = logged(known.linear_gaussian, num_episodes=10_000, horizon=20)
    params = problem.target_params[strength]
    log_ratios, values = ratios_of(problem.policy)(params, batch), exact(problem, params, batch)
    for q, v in (values, wrong(*values)):
        for name, estimate in of_many(*split((batch, log_ratios, q, v), 50)).items():
            covered = np.abs(estimate.value - problem.value(params)) < 1.96 * estimate.stderr
            assert np.mean(covered | (estimate.diagnostics["low_support"] == 1)) >= 0.9, name
            if strength == 3:
                assert estimate.diagnostics["low_support"].mean() < 0.5


# --- traps ---


def test_what_follows_a_true_terminal_is_worth_nothing():
    problem, batch = logged(known.tabular, num_episodes=200, terminal=True)
    params = problem.target_params[3]
    log_ratios, (q, v) = ratios_of(problem.policy)(params, batch), exact(problem, params, batch)
    arrived = batch.observation[:, :, 4] == 1
    assert arrived.any()
    found = (
        robust(batch, log_ratios, q, v),
        robust(batch, log_ratios, q, np.where(arrived, np.float32(50.0), v)),
    )
    for name in FORMS:
        np.testing.assert_array_equal(found[0][name].value, found[1][name].value)
    forgotten = batch._replace(discount=np.ones_like(batch.discount))
    assert (
        robust(forgotten, log_ratios, q, np.where(arrived, np.float32(50.0), v))["plain"].value > 5
    )


def test_a_time_limit_is_no_terminal_and_stationary_values_go_on_past_it():
    problem, batch = logged(known.tabular, num_episodes=50_000, horizon=6)
    params = problem.target_params[3]
    log_ratios = ratios_of(problem.policy)(params, batch)
    q = problem.q(params, batch.observation[:, :-1], batch.action).astype(np.float32)
    v = problem.v(params, batch.observation).astype(np.float32)
    endless, over_six = problem.value(params, math.inf), problem.value(params)
    for estimate in robust(batch, log_ratios, q, v).values():
        assert abs(estimate.value - endless) < 4 * estimate.stderr
        assert abs(estimate.value - over_six) > 40 * estimate.stderr
    v[:, -1] = 0
    for estimate in robust(batch, log_ratios, q, v).values():
        assert abs(estimate.value - over_six) < 4 * estimate.stderr


@pytest.mark.parametrize("scale", [3.0, 100.0])
def test_a_thousand_steps_stay_finite(scale):
    rng = np.random.default_rng(0)
    _, batch = logged(known.tabular, num_episodes=40, horizon=1000)
    q, v = (
        rng.normal(size=(40, 1000)).astype(np.float32),
        rng.normal(size=(40, 1001)).astype(np.float32),
    )
    log_ratios = scale * rng.normal(size=(40, 1000)).astype(np.float32)
    blend = blended(batch, log_ratios, q, v, (0, 10), 0.995)
    for estimate in (*robust(batch, log_ratios, q, v, 0.995).values(), blend):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(estimate))
        assert estimate.diagnostics["low_support"] == 1


# --- values along trajectories ---


def test_values_along_trajectories_are_those_of_each_observation_and_action():
    problem, batch = logged(known.tabular, num_episodes=200, terminal=True)
    params = problem.target_params[0]
    table = jnp.asarray(problem.q(params, np.eye(5)[:, None], np.arange(2)[None]))

    def q_value(table, observation, action):
        return (observation @ table)[action]

    def state_value(table, observation, key):
        actions = jax.random.categorical(key, observation @ params["logits"], shape=(300,))
        return jnp.mean((observation @ table)[actions])

    q, v = jax.jit(functools.partial(doubly_robust.along, q_value, state_value))(
        table, batch, jax.random.key(0)
    )
    np.testing.assert_allclose(
        q, problem.q(params, batch.observation[:, :-1], batch.action), rtol=1e-5
    )
    np.testing.assert_allclose(v, problem.v(params, batch.observation), atol=0.1)
    assert v.shape == (200, 11)


@pytest.mark.parametrize("estimate", [*FORMS.values(), magic.magic])
def test_wrong_shapes_and_undefined_ratios_are_refused(estimate):
    _, batch = logged(known.tabular, num_episodes=200)
    zeros = np.zeros((200, 11), np.float32)
    with pytest.raises(UsageError, match=r"q and v have shapes \(200, 10\) and \(200, 10\)"):
        estimate(batch, zeros[:, 1:], zeros[:, 1:], zeros[:, 1:], gamma=0.9)
    with pytest.raises(UsageError, match="log ratio of episode 0, step 0 is nan"):
        estimate(batch, zeros[:, 1:] + np.nan, zeros[:, 1:], zeros, gamma=0.9)
