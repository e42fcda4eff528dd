"""Importance sampling: unbiased, consistent, covered by its intervals, finite, and alert."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from logged_examples import batch_of, logged, ratios_of

from offline_mbrl.data import episodes
from offline_mbrl.ope.weights import diagnostics, importance
from offline_mbrl.problems import known

UNBIASED = {
    "ordinary": importance.ordinary,
    "ordinary_per_decision": importance.ordinary_per_decision,
}
CONSISTENT = {
    "weighted": importance.weighted,
    "weighted_per_decision": importance.weighted_per_decision,
}
TRUNCATED = functools.partial(
    importance.importance_sampling,
    weighting=importance.truncated(importance.per_decision, most=2.0),
)
BIASED = {"clipped_per_decision": importance.clipped_per_decision, "truncated": TRUNCATED}
DROPPING = functools.partial(
    importance.importance_sampling, normalizer=importance.self_normalized_alive
)
ALL = UNBIASED | CONSISTENT | BIASED


@jax.jit
def estimates(batch, log_ratios, gamma=0.9):
    """All of them at once: they share most of what is compiled."""
    return {name: estimate(batch, log_ratios, gamma=gamma) for name, estimate in ALL.items()}


@jax.jit
def of_many(batches, log_ratios):
    """Those with intervals, over a leading axis of datasets."""
    return {
        name: jax.vmap(functools.partial(estimate, gamma=0.9))(batches, log_ratios)
        for name, estimate in (UNBIASED | CONSISTENT).items()
    }


def many(make, repeats, **sizes):
    """The episodes of one long log as `repeats` datasets `[repeats, N, ...]`."""
    size = sizes.pop("num_episodes")
    problem, batch = logged(make, num_episodes=repeats * size, **sizes)
    return problem, jax.tree.map(lambda leaf: leaf.reshape(repeats, size, *leaf.shape[1:]), batch)


def flat_ratios(problem, params, batches):
    flat = jax.tree.map(np.concatenate, batches)
    return ratios_of(problem.policy)(params, flat).reshape(batches.reward.shape)


# --- values ---


@pytest.mark.parametrize("terminal", [False, True])
def test_unnormalized_forms_are_unbiased_over_ten_thousand_datasets(terminal):
    problem, batch = many(known.tabular, 10_000, num_episodes=10, horizon=6, terminal=terminal)
    params = problem.target_params[3]
    found = of_many(batch, flat_ratios(problem, params, batch))
    for name in UNBIASED:
        values = np.asarray(found[name].value, np.float64)
        assert abs(values.mean() - problem.value(params)) < 3.5 * values.std() / 100, name
        behavior = problem.value(problem.behavior_params)
        assert (
            abs(behavior - problem.value(params)) > 20 * values.std() / 100
        )  # the test could have failed


@pytest.mark.parametrize("terminal", [False, True])
def test_self_normalized_forms_are_consistent(terminal):
    problem, batch = logged(known.tabular, num_episodes=50_000, horizon=6, terminal=terminal)
    for params in problem.target_params[:4]:
        found = estimates(batch, ratios_of(problem.policy)(params, batch))
        for name in CONSISTENT:
            assert abs(found[name].value - problem.value(params)) < 4 * found[name].stderr
            assert found[name].stderr < 0.02


def test_dropping_ended_episodes_is_biased_where_lengths_differ_and_the_same_where_they_do_not():
    dropping = jax.jit(functools.partial(DROPPING, gamma=0.9))
    problem, batch = logged(known.tabular, num_episodes=50_000, horizon=6, terminal=True)
    params = problem.target_params[4]
    estimate = dropping(batch, ratios_of(problem.policy)(params, batch))
    assert abs(estimate.value - problem.value(params)) > 10 * estimate.stderr
    problem, batch = logged(known.tabular, num_episodes=50_000, horizon=6)
    log_ratios = ratios_of(problem.policy)(params, batch)
    carried = estimates(batch, log_ratios)["weighted_per_decision"]
    np.testing.assert_allclose(dropping(batch, log_ratios).value, carried.value, rtol=1e-5)


@pytest.mark.parametrize("make", [known.tabular, known.linear_gaussian])
def test_the_behavior_policy_s_estimate_is_the_mean_return(make):
    problem, batch = logged(make, num_episodes=200, horizon=10)
    found = estimates(batch, ratios_of(problem.policy)(problem.behavior_params, batch))
    returns = (batch.reward * 0.9 ** np.arange(10)).sum(axis=1)
    for estimate in found.values():
        np.testing.assert_allclose(estimate.value, returns.mean(), rtol=1e-4)
        np.testing.assert_allclose(estimate.per_episode, returns, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(estimate.stderr, returns.std(ddof=1) / np.sqrt(200), rtol=0.05)
        assert estimate.diagnostics["low_support"] == 0
        np.testing.assert_allclose(
            estimate.diagnostics["effective_sample_size_min"], 200, rtol=1e-4
        )


def test_the_reference_s_formula_written_out():
    """The clipped, self-normalized per-decision form with the mask on the weights, by episode."""
    rng = np.random.default_rng(0)
    lengths, log_ratios, reward = (
        rng.integers(3, 11, 200),
        rng.normal(size=(200, 10)) * 4,
        rng.normal(size=(200, 10)),
    )
    mask = (np.arange(10)[None] < lengths[:, None]).astype(np.float32)
    batch = batch_of(reward * mask, mask)
    total = 0.0
    for step in range(10):
        cumulated = [np.clip(log_ratios[i, : step + 1], -6, 2).sum() for i in range(200)]
        rho = [np.exp(c - max(cumulated)) * mask[i, step] for i, c in enumerate(cumulated)]
        scale = sum(rho) / mask[:, step].sum()
        total += (
            sum(0.9**step * mask[i, step] * rho[i] / scale * reward[i, step] for i in range(200))
            / 200
        )
    np.testing.assert_allclose(
        estimates(batch, log_ratios)["clipped_per_decision"].value, total, rtol=1e-4
    )


def test_weights_of_each_form_by_hand():
    log_ratios = np.log([[2.0, 3.0], [1.0, 0.5]])
    reward = [[1.0, 10.0], [2.0, 20.0]]
    value = {
        name: estimate.value
        for name, estimate in estimates(batch_of(reward), log_ratios, 0.5).items()
    }
    np.testing.assert_allclose(value["ordinary"], (6 * 6 + 0.5 * 12) / 2, rtol=1e-6)
    np.testing.assert_allclose(value["weighted"], (6 * 6 + 0.5 * 12) / 6.5, rtol=1e-6)
    np.testing.assert_allclose(
        value["ordinary_per_decision"], (2 + 6 * 5 + 2 + 0.5 * 10) / 2, rtol=1e-6
    )
    np.testing.assert_allclose(
        value["weighted_per_decision"], (2 + 2) / 3 + (6 * 5 + 0.5 * 10) / 6.5, rtol=1e-6
    )


def test_truncated_weights_are_at_most_that_large():
    weights = importance.truncated(importance.per_decision, most=2.0)(
        jnp.log(jnp.array([4.0, 0.25, 0.5]))
    )
    np.testing.assert_allclose(jnp.exp(weights), [2.0, 1.0, 0.5], rtol=1e-6)


def test_an_ended_episode_keeps_its_weight():
    """Two episodes, one ends after a step: later steps divide by both weights, not by one."""
    batch = batch_of([[1.0, 1.0], [1.0, 0.0]], mask=[[1, 1], [1, 0]])
    log_ratios = np.log([[3.0, 2.0], [1.0, 77.0]])  # what stands past the end does not count
    estimate = estimates(batch, log_ratios, 1.0)["weighted_per_decision"]
    np.testing.assert_allclose(estimate.value, 1 + 6 / 7, rtol=1e-6)


# --- standard errors ---


def test_the_influence_of_a_ratio_is_the_delta_method_s():
    rng = np.random.default_rng(0)
    log_ratios, reward = 0.3 * rng.normal(size=(200, 10)), rng.normal(size=(200, 10))
    estimate = estimates(batch_of(reward), log_ratios)["weighted"]
    weights = np.exp(log_ratios.sum(axis=1))
    returns = (reward * 0.9 ** np.arange(10)).sum(axis=1)
    spread = weights / weights.mean() * (returns - estimate.value)
    by_influence = np.sqrt((spread**2).sum() / (200 * 199))
    by_size = returns.std(ddof=1) * np.sqrt((weights**2).sum()) / weights.sum()
    np.testing.assert_allclose(estimate.stderr, max(by_influence, by_size), rtol=1e-4)


@pytest.mark.parametrize("name", ["weighted", "weighted_per_decision", "clipped_per_decision"])
def test_an_estimate_on_one_episode_is_as_uncertain_as_one_episode(name):
    rng = np.random.default_rng(0)
    reward = rng.normal(size=(60, 10))
    log_ratios = np.zeros((60, 10))
    log_ratios[0] = 2.0  # this episode has all the weight in the end
    estimate = estimates(batch_of(reward), 10 * log_ratios)[name]
    returns = (reward * 0.9 ** np.arange(10)).sum(axis=1)
    deviation = returns.std(ddof=1)
    assert 0.8 * deviation < estimate.stderr < 1.05 * deviation


@pytest.mark.parametrize("strength", [0, 1, 3, 5])
def test_intervals_cover_the_truth_or_support_is_flagged(strength):
    problem, batch = many(known.linear_gaussian, 50, num_episodes=200, horizon=20)
    params = problem.target_params[strength]
    for name, estimate in of_many(batch, flat_ratios(problem, params, batch)).items():
        covered = np.abs(estimate.value - problem.value(params)) < 1.96 * estimate.stderr
        flagged = estimate.diagnostics["low_support"] == 1
        assert np.mean(covered | flagged) >= 0.9, name
        if strength in (0, 5) and "per_decision" not in name:
            assert flagged.all()  # such weights collapse
        if strength == 3 and "per_decision" in name:
            assert flagged.mean() < 0.5


# --- support ---


def test_actions_that_the_data_never_hold_are_flagged_although_the_weights_are_equal():
    problem, batch = logged(known.unsupported, num_episodes=200)
    own = estimates(batch, ratios_of(problem.policy)(problem.behavior_params, batch))["weighted"]
    assert own.diagnostics["low_support"] == 0
    for params in problem.target_params:
        estimate = estimates(batch, ratios_of(problem.policy)(params, batch))["weighted"]
        assert estimate.diagnostics["effective_sample_size"] > 199
        assert estimate.diagnostics["mean_weight"] < 0.7
        assert estimate.diagnostics["low_support"] == 1
        assert (
            abs(estimate.value - problem.value(params)) > 3 * estimate.stderr
        )  # it is no use indeed


def test_clipping_and_truncation_do_not_hide_low_support():
    problem, batch = logged(known.linear_gaussian, num_episodes=200, horizon=10)
    found = estimates(batch, 2 * ratios_of(problem.policy)(problem.target_params[-1], batch))
    for name in BIASED:
        assert found[name].diagnostics["low_support"] == 1


@pytest.mark.parametrize(
    ("log_weights", "size"),
    [
        ([0.0] * 8, 8),
        ([0.0] + [-np.inf] * 7, 1),
        ([-np.inf] * 8, 0),
        ([900.0] * 4 + [-900.0] * 4, 4),
    ],
)
def test_effective_sample_size_of_known_weights(log_weights, size):
    np.testing.assert_allclose(
        diagnostics.effective_sample_size(jnp.array(log_weights)), size, rtol=1e-6
    )


def test_diagnostics_of_two_weights_by_hand():
    log_ratios = np.log([[3.0, 1.0], [1.0, 1.0]])
    figures = estimates(batch_of(np.ones((2, 2))), log_ratios)["weighted"].diagnostics
    np.testing.assert_allclose(figures["effective_sample_size"], 16 / 10, rtol=1e-6)
    np.testing.assert_allclose(figures["largest_weight"], 0.75, rtol=1e-6)
    np.testing.assert_allclose(figures["mean_weight"], 2.0, rtol=1e-6)
    np.testing.assert_allclose(figures["mean_log_ratio"], np.log(3) / 4, rtol=1e-6)


# --- long and degenerate episodes ---


@pytest.mark.parametrize("scale", [0.1, 3.0, 100.0])
def test_a_thousand_steps_stay_finite(scale):
    rng = np.random.default_rng(0)
    log_ratios = scale * rng.normal(size=(40, 1000)).astype(np.float32)
    batch = batch_of(rng.normal(size=(40, 1000)))
    found = estimates(batch, log_ratios, 0.995)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    if scale > 1:
        assert all(estimate.diagnostics["low_support"] == 1 for estimate in found.values())


def test_a_policy_that_never_acts_like_the_data_is_flagged_and_finite():
    found = estimates(batch_of(np.ones((200, 10))), np.full((200, 10), -np.inf))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    for name, estimate in found.items():
        assert estimate.diagnostics["low_support"] == 1
        assert name == "clipped_per_decision" or estimate.value == 0


def test_padding_changes_nothing():
    problem, batch = logged(known.tabular, num_episodes=200, terminal=True)
    longer = episodes.trajectories(problem.dataset, 17)
    params = problem.target_params[2]
    short, padded = (estimates(b, ratios_of(problem.policy)(params, b)) for b in (batch, longer))
    for name in ALL:
        np.testing.assert_allclose(short[name].value, padded[name].value, rtol=1e-5)
        np.testing.assert_allclose(short[name].stderr, padded[name].stderr, rtol=1e-4)


# --- traps ---


def test_a_reward_is_weighted_with_its_own_action_s_ratio():
    """Reward 1 for action 1 alone: that of the next step would be paid before its weight."""
    rng = np.random.default_rng(0)
    action, first = rng.integers(0, 2, (50_000, 6)), np.arange(6)[None] < 3
    batch, log_ratios = (
        batch_of(action * first),
        np.where(first, np.log(np.array([0.1, 0.9])[action] / 0.5), 0.0),
    )
    estimate = estimates(batch, log_ratios, 1.0)["ordinary_per_decision"]
    assert abs(estimate.value - 2.7) < 4 * estimate.stderr
    shifted = batch._replace(reward=np.roll(batch.reward, -1, axis=1))
    wrong = estimates(shifted, log_ratios, 1.0)["ordinary_per_decision"]
    assert abs(wrong.value - 2.7) > 8 * wrong.stderr


def test_what_a_time_limit_cut_off_counts_as_nothing_and_is_told_where_a_true_end_is_not():
    mask, log_ratios = np.ones((40, 4), np.float32), np.zeros((40, 4), np.float32)
    mask[:10, 2:] = 0
    of = {
        ended: batch_of(np.ones((40, 4)), mask, np.where(mask == 0, 1.0 - ended, 1.0))
        for ended in (True, False)
    }
    for ended, batch in of.items():
        for name, one in estimates(batch, log_ratios, 1.0).items():
            np.testing.assert_allclose(one.value, 0.75 * 4 + 0.25 * 2, err_msg=name)
            assert one.diagnostics["cut_fraction"] == (0.0 if ended else 0.25)
            assert one.diagnostics["low_support"] == (0.0 if ended else 1.0)
    problem, batch = logged(
        known.tabular, num_episodes=200
    )  # whole episodes, which only the horizon ends
    found = estimates(batch, ratios_of(problem.policy)(problem.target_params[2], batch))
    assert all(one.diagnostics["cut_fraction"] == 0 for one in found.values())


def test_discounted_and_undiscounted_values_are_each_estimated_as_such():
    problem, batch = logged(known.tabular, num_episodes=200)
    undiscounted, params = known.tabular(0, num_episodes=1, gamma=1.0), problem.target_params[2]
    log_ratios = ratios_of(problem.policy)(params, batch)
    for gamma, truth, other in ((0.9, problem, undiscounted), (1.0, undiscounted, problem)):
        estimate = estimates(batch, log_ratios, gamma)["weighted_per_decision"]
        assert (
            abs(estimate.value - truth.value(params))
            < 3 * estimate.stderr
            < abs(estimate.value - other.value(params))
        )
