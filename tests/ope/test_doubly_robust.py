"""Doubly robust estimates: exact where the values are, unbiased where either part is right; and the blend of them."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offline_mbrl.data import episodes, known
from offline_mbrl.ope import doubly_robust, importance, magic
from offline_mbrl.types import UsageError

FORMS = {"plain": doubly_robust.doubly_robust, "weighted": doubly_robust.weighted_doubly_robust}


@jax.jit
def estimates(batch, log_ratios, q, v, gamma=0.9):
    return {name: estimate(batch, log_ratios, q, v, gamma=gamma) for name, estimate in FORMS.items()}


@jax.jit
def of_many(batches, log_ratios, q, v):
    return {name: jax.vmap(functools.partial(estimate, gamma=0.9))(batches, log_ratios, q, v)
            for name, estimate in FORMS.items()}  # fmt: skip


@functools.partial(jax.jit, static_argnames="lengths")
def blended(batch, log_ratios, q, v, lengths, gamma=0.9):
    return magic.magic(batch, log_ratios, q, v, gamma=gamma, lengths=lengths)


@functools.cache
def logged(make, **sizes):
    problem = make(0, **sizes)
    return problem, episodes.trajectories(problem.dataset)


@functools.cache
def ratios_of(policy):
    return jax.jit(lambda params, batch: importance.log_ratios(
        policy, params, batch, batch.extras["behavior_log_prob"]))  # fmt: skip


def exact(problem, params, batch):
    """Values with the steps left until the horizon; nothing is left there."""
    steps = problem.spec.horizon - np.arange(problem.spec.horizon + 1)
    before = batch.observation[:, :-1]
    q, v = problem.q(params, before, batch.action, steps[:-1]), problem.v(params, batch.observation, steps)
    return q.astype(np.float32), v.astype(np.float32)


def wrong(q, v):
    """Far from the truth, but `v` is still the policy's mean of `q`, and nothing is left at the horizon."""
    v = 0.6 * v + 0.5
    v[:, -1] = 0
    return 0.6 * q + 0.5, v


def split(tree, repeats):
    return jax.tree.map(lambda leaf: leaf.reshape(repeats, -1, *leaf.shape[1:]), tree)


@pytest.fixture(scope="module", params=[False, True], ids=["continuing", "terminal"])
def setting(request):
    """Two hundred episodes: problem, target, trajectories, log ratios, exact values."""
    problem, batch = logged(known.tabular, num_episodes=200, terminal=request.param)
    params = problem.target_params[3]
    return problem, params, batch, ratios_of(problem.policy)(params, batch), *exact(problem, params, batch)


# --- identities ---


@pytest.mark.parametrize("terminal", [False, True])
def test_exact_values_of_a_deterministic_problem_leave_no_variance_whatever_the_weights(terminal):
    problem, batch = logged(known.tabular, num_episodes=200, slip=0.0, terminal=terminal)
    params = problem.target_params[3]
    q, v = exact(problem, params, batch)
    log_ratios = np.random.default_rng(0).normal(size=batch.reward.shape).astype(np.float32)
    for estimate in (*estimates(batch, log_ratios, q, v).values(), blended(batch, log_ratios, q, v, (0, 3, 10))):
        np.testing.assert_allclose(estimate.per_episode, v[:, 0], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(estimate.value, v[:, 0].mean(), rtol=1e-4)
        np.testing.assert_allclose(estimate.stderr, v[:, 0].std(ddof=1) / math.sqrt(200), rtol=0.02)


def test_the_textbook_s_formula_written_out(setting):
    """V = mean sum_t gamma^t (w_t (r_t - q_t) + w_{t-1} v_t), the last v weighted by the whole episode's w."""
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
    estimate = estimates(batch, log_ratios, q, v)["plain"]
    np.testing.assert_allclose(estimate.per_episode, total, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(estimate.value, total.mean(), rtol=1e-4)


def test_without_values_they_are_per_decision_importance_sampling(setting):
    _, _, batch, log_ratios, q, v = setting
    found = estimates(batch, log_ratios, 0 * q, 0 * v)
    for name, plain in (("plain", importance.ordinary_per_decision), ("weighted", importance.weighted_per_decision)):
        same = jax.jit(functools.partial(plain, gamma=0.9))(batch, log_ratios)
        np.testing.assert_allclose(found[name].value, same.value, rtol=1e-5)
        np.testing.assert_allclose(found[name].stderr, same.stderr, rtol=1e-4)


def test_the_behavior_policy_s_estimate_is_the_mean_return_within_two_standard_errors(setting):
    problem, _, batch, _, _, _ = setting
    q, v = wrong(*exact(problem, problem.behavior_params, batch))
    zeros = np.zeros_like(batch.reward)
    found = estimates(batch, zeros, q, v) | {"blend": blended(batch, zeros, q, v, (0, 2, 10))}
    returns = (batch.reward * 0.9 ** np.arange(10)).sum(axis=1)
    for estimate in found.values():
        assert abs(estimate.value - returns.mean()) < 2 * estimate.stderr
        assert estimate.diagnostics["low_support"] == 0


def test_good_values_shrink_the_standard_error(setting):
    _, _, batch, log_ratios, q, v = setting
    with_values, without = estimates(batch, log_ratios, q, v), estimates(batch, log_ratios, 0 * q, 0 * v)
    assert with_values["plain"].stderr < 0.7 * without["plain"].stderr
    assert with_values["weighted"].stderr < without["weighted"].stderr


# --- doubly robust ---


@pytest.mark.parametrize("terminal", [False, True])
def test_unbiased_over_ten_thousand_datasets_if_values_or_weights_are_right_and_biased_if_neither_is(terminal):
    problem, batch = logged(known.tabular, num_episodes=50_000, horizon=6, terminal=terminal)
    params = problem.target_params[3]
    right, truth = ratios_of(problem.policy)(params, batch), problem.value(params)
    q, v = exact(problem, params, batch)
    inverse = -right  # a function of state and action, but not the ratio

    def errors(log_ratios, values):
        found = np.asarray(of_many(*split((batch, log_ratios, *values), 10_000))["plain"].value, np.float64)
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
    found = estimates(batch, log_ratios, q, v), estimates(batch, log_ratios, q, np.where(arrived, np.float32(50.0), v))
    for name in FORMS:
        np.testing.assert_array_equal(found[0][name].value, found[1][name].value)
    forgotten = batch._replace(discount=np.ones_like(batch.discount))
    assert estimates(forgotten, log_ratios, q, np.where(arrived, np.float32(50.0), v))["plain"].value > 5


def test_a_time_limit_is_no_terminal_and_stationary_values_go_on_past_it():
    problem, batch = logged(known.tabular, num_episodes=50_000, horizon=6)
    params = problem.target_params[3]
    log_ratios = ratios_of(problem.policy)(params, batch)
    q = problem.q(params, batch.observation[:, :-1], batch.action).astype(np.float32)
    v = problem.v(params, batch.observation).astype(np.float32)
    endless, over_six = problem.value(params, math.inf), problem.value(params)
    for estimate in estimates(batch, log_ratios, q, v).values():
        assert abs(estimate.value - endless) < 4 * estimate.stderr
        assert abs(estimate.value - over_six) > 40 * estimate.stderr
    v[:, -1] = 0
    for estimate in estimates(batch, log_ratios, q, v).values():
        assert abs(estimate.value - over_six) < 4 * estimate.stderr


@pytest.mark.parametrize("scale", [3.0, 100.0])
def test_a_thousand_steps_stay_finite(scale):
    rng = np.random.default_rng(0)
    _, batch = logged(known.tabular, num_episodes=40, horizon=1000)
    q, v = rng.normal(size=(40, 1000)).astype(np.float32), rng.normal(size=(40, 1001)).astype(np.float32)
    log_ratios = scale * rng.normal(size=(40, 1000)).astype(np.float32)
    blend = blended(batch, log_ratios, q, v, (0, 10), 0.995)
    for estimate in (*estimates(batch, log_ratios, q, v, 0.995).values(), blend):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(estimate))
        assert estimate.diagnostics["low_support"] == 1


# --- values along trajectories ---


def test_values_along_trajectories_are_those_of_each_observation_and_action():
    problem, batch = logged(known.tabular, num_episodes=200, terminal=True)
    params = problem.target_params[0]
    table = jnp.asarray(problem.q(params, np.eye(5)[:, None], np.arange(2)[None]))
    q_value = lambda table, observation, action: (observation @ table)[action]  # noqa: E731

    def state_value(table, observation, key):
        actions = jax.random.categorical(key, observation @ params["logits"], shape=(300,))
        return jnp.mean((observation @ table)[actions])

    q, v = jax.jit(functools.partial(doubly_robust.along, q_value, state_value))(table, batch, jax.random.key(0))
    np.testing.assert_allclose(q, problem.q(params, batch.observation[:, :-1], batch.action), rtol=1e-5)
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


# --- the blend ---


@pytest.mark.parametrize(("matrix", "shares"), [
    (np.diag([1.0, 3.0]), [0.75, 0.25]),  # inversely to the variances
    (np.array([[1.0, 2.0], [2.0, 9.0]]), [1.0, 0.0]),  # the second only adds
    (np.array([[2.0, 1.0], [1.0, 2.0]]), [0.5, 0.5]),
    (np.diag([0.0, 1.0, 2.0]), [1.0, 0.0, 0.0]),
    (1e-12 * np.diag([1.0, 3.0]), [0.75, 0.25]),
    (1e20 * np.diag([1.0, 3.0]), [0.75, 0.25]),
    (np.array([[np.inf, np.inf, np.nan], [np.inf, 1.0, 0.0], [np.nan, 0.0, 3.0]]), [0.0, 0.75, 0.25]),
    (np.full((2, 2), np.nan), [np.nan, np.nan]),
])  # fmt: skip
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
    parts = jax.jit(functools.partial(magic.partial_estimates, gamma=0.9, lengths=[0, 1, 10]))(batch, log_ratios, q, v)
    estimate = estimates(batch, log_ratios, q, v)["weighted"]
    np.testing.assert_allclose(parts.value[0], v[:, 0].mean(), rtol=1e-5)
    np.testing.assert_allclose(parts.value[2], estimate.value, rtol=1e-5)
    np.testing.assert_allclose(importance.standard_error(parts.influence[2]), estimate.stderr, rtol=1e-3)
    weights = np.exp(log_ratios[:, 0])
    first = weights / weights.mean() * (batch.reward[:, 0] + 0.9 * batch.discount[:, 0] * v[:, 1] - q[:, 0])
    np.testing.assert_allclose(parts.value[1], (v[:, 0] + first).mean(), rtol=1e-4)


def test_the_blend_takes_exact_values_and_leaves_wrong_ones():
    problem, batch = logged(known.tabular, num_episodes=50_000, horizon=6)
    params = problem.target_params[3]
    log_ratios, values = ratios_of(problem.policy)(params, batch), exact(problem, params, batch)
    with_exact, with_wrong = (blended(batch, log_ratios, *of, (0, 1, 3, 6)) for of in (values, wrong(*values)))
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
    assert abs(estimates(batch, log_ratios, q, v)["plain"].value - problem.value(params)) > 0.1


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
        last = jax.jit(jax.vmap(functools.partial(doubly_robust.weighted_doubly_robust, gamma=0.9)))(*data)
        assert np.all(estimate.stderr >= 0.999 * last.stderr)  # which knows how fitted values would err
    alone = blended(*jax.tree.map(lambda leaf: leaf[7], data), (0, 2, 8))
    np.testing.assert_allclose(estimate.value[7], alone.value, rtol=1e-4)


def test_lengths_beyond_the_trajectories_are_refused_and_defaults_span_them():
    _, batch = logged(known.tabular, num_episodes=200)
    zeros = np.zeros((200, 11), np.float32)
    with pytest.raises(UsageError, match=r"lengths must be in 0 \.\. 10, the trajectories' steps, got \[0, 11\]"):
        magic.magic(batch, zeros[:, 1:], zeros[:, 1:], zeros, gamma=0.9, lengths=[0, 11])
    assert magic._lengths(None, 1000)[:3] == [0, 1, 2]
    assert magic._lengths(None, 1000)[-1] == 1000
    assert magic._lengths([2], 10) == [2, 10]
    assert len(magic._lengths(None, 1000)) <= magic.NUM_LENGTHS
