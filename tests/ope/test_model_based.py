import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rollout_models as linear

from offline_mbrl.ope import model_based, support
from offline_mbrl.rollouts import adjust, shares

MODEL, POLICY = linear.model(), linear.policy()
PARAMS, ACTING = linear.params(3, spread=0.3), linear.policy_params()
KEY = jax.random.key(0)
STARTS = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)), jnp.float32)
SETTINGS = {"gamma": 0.9, "horizon": 8, "bounds": None}


@functools.cache
def program(model=MODEL, policies=False, chunk=None, **settings):
    estimator = model_based.make(model, POLICY, **{**SETTINGS, **settings})
    return jax.jit(model_based.many(estimator, chunk=chunk) if policies else estimator)


def estimated(params=PARAMS, acting=ACTING, starts=STARTS, key=KEY, **settings):
    return program(**settings)(params, acting, starts, key)


def exact(params, acting, starts=STARTS, member=0):
    return np.mean([linear.value(params, acting, start, gamma=0.9, horizon=8, member=member) for start in starts])


def test_estimate_is_the_closed_form_of_the_linear_gaussian_system_within_three_errors():
    params = linear.params(1)
    for seed in range(3):
        acting = linear.policy_params(seed)
        found = estimated(params, acting, num_rollouts=6000, key=jax.random.key(seed))
        error = np.std(found.per_episode) / np.sqrt(6000)  # of the rollouts from these very starts: no larger
        assert abs(found.value - exact(params, acting)) < 3 * error
        assert error < 0.05


def test_each_member_gets_its_own_closed_form():
    params = linear.params(3, spread=0.3)
    params["network"]["members"]["bias"] = jnp.array([0.5, 0.0, 1.0])
    found = estimated(params, num_rollouts=6000)
    values = model_based.member_values(found.per_episode, 3)
    wanted = [exact(params, ACTING, member=e) for e in range(3)]  # every member comes to every start
    errors = [3 * np.std(found.per_episode[e::3]) / np.sqrt(2000) for e in range(3)]
    assert (np.abs(values - np.array(wanted)) < errors).all()
    assert np.ptp(wanted) > 4 * max(errors)


def test_horizon_one_is_the_mean_reward_of_the_starts():
    quiet = linear.params(1, noise=0.0)
    found = estimated(quiet, horizon=1)
    member = linear.take(quiet["network"]["members"], 0)
    rewards = [linear.mean(member, start, jnp.zeros(2))[-1] for start in STARTS]
    np.testing.assert_allclose(found.per_episode, np.resize(rewards, 100), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.value, np.mean(np.resize(rewards, 100)), rtol=1e-5)


def test_starts_are_used_in_turn_and_there_are_at_least_a_hundred_rollouts():
    quiet = linear.params(1, noise=0.0)
    found = estimated(quiet, {**ACTING, "std": jnp.array(0.0)})
    assert found.per_episode.shape == (100,)
    np.testing.assert_allclose(found.per_episode[6:], found.per_episode[:-6], rtol=1e-5)  # one member: no shift
    assert len(np.unique(np.round(found.per_episode[:6], 4))) == 6
    assert estimated(quiet, starts=jnp.tile(STARTS, (25, 1))).per_episode.shape == (150,)


def test_permuting_the_starts_permutes_the_rollouts():
    quiet, still = linear.params(1, noise=0.0), {**ACTING, "std": jnp.array(0.0)}
    order = jnp.array([3, 0, 5, 1, 4, 2])
    plain = estimated(quiet, still, num_rollouts=6)
    permuted = estimated(quiet, still, starts=STARTS[order], num_rollouts=6)
    np.testing.assert_allclose(permuted.per_episode, plain.per_episode[order], rtol=1e-5)
    np.testing.assert_allclose(permuted.value, plain.value, rtol=1e-5)


def test_many_policies_are_one_program_and_meet_the_same_noise():
    acting = linear.stacked([linear.policy_params(seed) for seed in range(5)])
    together = program(policies=True)
    found = together(PARAMS, acting, STARTS, KEY)
    for index in range(5):
        one = estimated(acting=linear.take(acting, index))
        jax.tree.map(lambda leaf, alone, i=index: np.testing.assert_allclose(leaf[i], alone, rtol=1e-3, atol=1e-4),
                     found, one)  # fmt: skip
    together(linear.params(3, seed=1), jax.tree.map(jnp.negative, acting), STARTS + 1, jax.random.key(1))
    assert together._cache_size() == 1


@pytest.mark.parametrize("chunk", [1, 2])
def test_policies_in_chunks_are_the_same_estimates(chunk):
    acting = linear.stacked([linear.policy_params(seed) for seed in range(5)])
    whole = program(policies=True)(PARAMS, acting, STARTS, KEY)
    found = program(policies=True, chunk=chunk)(PARAMS, acting, STARTS, KEY)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), found, whole)


def test_ranking_profits_from_common_noise():
    """Two policies that hardly differ: their difference is known better than either value."""
    first = linear.policy_params(0)
    second = {**first, "K": first["K"] + 0.01}
    params = linear.params(1)
    apart = estimated(params, first).per_episode - estimated(params, second).per_episode
    assert np.std(apart) < 0.2 * np.std(estimated(params, first).per_episode)


def test_the_terminating_reward_counts_and_the_ends_are_counted():
    ends = adjust.chain(adjust.terminate(lambda o, a, following: following[0] > -jnp.inf), adjust.clip_to_data)
    found, one = estimated(adjust=ends), estimated(horizon=1)
    np.testing.assert_allclose(found.value, one.value, rtol=1e-5)
    assert found.diagnostics["terminated_fraction"] == 1
    assert found.diagnostics["mean_length"] == 1
    assert found.diagnostics["truncation_bound"] == 0


def test_terminals_in_the_data_that_no_rollout_meets_lower_support():
    endless = {**PARAMS, "statistics": {**PARAMS["statistics"], "terminates": jnp.array(True)}}
    found = estimated(endless)
    assert found.diagnostics["missing_ends"] == found.diagnostics["low_support"] == 1
    ends = adjust.chain(adjust.terminate(lambda o, a, following: following[0] > 0), adjust.clip_to_data)
    met = estimated(endless, adjust=ends)
    assert met.diagnostics["terminated_fraction"] > 0
    assert met.diagnostics["missing_ends"] == met.diagnostics["low_support"] == 0
    assert estimated().diagnostics["missing_ends"] == 0


def test_diverged_rollouts_are_counted_flagged_and_do_not_spoil_the_mean():
    members = {**PARAMS["network"]["members"], "A": PARAMS["network"]["members"]["A"].at[1].set(jnp.inf)}
    found = estimated({**PARAMS, "network": {"members": members, "shared": {}}}, num_rollouts=300)
    np.testing.assert_allclose(found.diagnostics["diverged_fraction"], 1 / 3, rtol=1e-5)
    assert found.diagnostics["low_support"] == 1
    assert np.isfinite(found.per_episode).all()
    assert (found.per_episode[1::3] == 0).all()
    assert estimated().diagnostics["low_support"] == 0


def test_truncation_bound_covers_an_endless_task():
    quiet = linear.params(1, noise=0.0)
    still = {**ACTING, "std": jnp.array(0.0)}
    found = estimated(quiet, still)
    endless = np.mean(
        [linear.value(quiet, still, start, gamma=0.9, horizon=400) for start in np.resize(STARTS, (100, 3))]
    )
    assert abs(endless - found.value) <= found.diagnostics["truncation_bound"]


def test_predictions_are_clipped_to_the_data_by_default_and_what_was_outside_is_reported():
    bounded = linear.params(3, limit=0.5)
    found, free = estimated(bounded), estimated(bounded, adjust=adjust.identity)
    assert np.abs(found.per_episode).max() <= 0.5 * (1 - 0.9**8) / 0.1 + 1e-5
    assert np.abs(free.per_episode).max() > 0.5 * (1 - 0.9**8) / 0.1
    assert found.diagnostics["outside_fraction"] > 0.05
    assert found.diagnostics["low_support"] == 1


def test_disagreement_is_measured_with_the_whole_ensemble():
    settings = {"spread": shares.jointly, "measure": support.disagreement, "num_rollouts": 16}
    apart = estimated(linear.params(4, spread=1.0), **settings).diagnostics
    close = estimated(linear.params(4, spread=0.01), **settings).diagnostics
    assert apart["disagreement"] > 20 * close["disagreement"] > 0
    assert apart["member_std"] == 0


# --- errors ---


@pytest.mark.parametrize(("num_starts", "num_members"), [(6, 3), (7, 3), (20, 5), (1, 4), (3, 7)])
def test_all_starts_are_used_before_any_again_and_meet_every_member(num_starts, num_members):
    start = model_based.start_of(num_starts * num_members * 2, num_starts, num_members)
    np.testing.assert_array_equal(
        np.sort(start.reshape(-1, num_starts), axis=1), np.tile(np.arange(num_starts), (2 * num_members, 1))
    )
    np.testing.assert_array_equal(start[:num_starts], np.arange(num_starts))
    met = np.zeros((num_starts, num_members))
    np.add.at(met, (start, np.arange(len(start)) % num_members), 1)
    assert (met > 0).mean() > 0.9


def test_with_a_rollout_a_start_the_error_is_std_over_root_n():
    returns = jnp.asarray(np.random.default_rng(0).normal(size=50), jnp.float32)
    wanted = np.std(returns, ddof=1) / np.sqrt(50)
    np.testing.assert_allclose(model_based.rollout_stderr(returns, np.arange(50)), wanted, rtol=1e-5)
    np.testing.assert_allclose(model_based.rollout_stderr(returns, np.zeros(50, int)), wanted, rtol=1e-5)


def test_repeating_the_starts_does_not_make_the_error_smaller_than_their_spread():
    values = jnp.asarray(np.random.default_rng(0).normal(size=10), jnp.float32)
    once = model_based.rollout_stderr(values, np.arange(10))
    repeated = model_based.rollout_stderr(jnp.tile(values, 20), np.arange(200) % 10)
    np.testing.assert_allclose(repeated, once, rtol=1e-5)


@pytest.mark.parametrize("num_starts", [1, 8, 40, 4000])
def test_member_std_is_what_neither_starts_nor_noise_explain(num_starts):
    generator = np.random.default_rng(0)
    start = model_based.start_of(4000, num_starts, 4)
    other = generator.normal(size=4000) + 2 * generator.normal(size=num_starts)[start]
    effect = np.array([0.0, 1.0, 2.0, 3.0])
    found = model_based.member_std(jnp.asarray(other + effect[np.arange(4000) % 4]), start, 4)
    np.testing.assert_allclose(found, np.std(effect, ddof=1), rtol=0.2)
    assert model_based.member_std(jnp.asarray(other), start, 4) < 0.2
    assert model_based.member_std(jnp.asarray(other), start, 1) == 0


def test_member_variance_is_unbiased_even_where_each_member_has_starts_of_its_own():
    generator, start = np.random.default_rng(0), np.arange(60) % 12
    std = jax.jit(lambda returns: model_based.member_std(returns, start, 4))
    found = [std(jnp.asarray(2 * generator.normal(size=4)[np.arange(60) % 4] + generator.normal(size=12)[start]
                             + generator.normal(size=60))) ** 2 for _ in range(400)]  # fmt: skip
    assert abs(np.mean(found) - 4.0) < 3 * np.std(found) / 20


@pytest.mark.parametrize("known_start", [False, True])
def test_intervals_of_fitted_ensembles_cover_the_truth(known_start):
    """Least squares on episodes drawn with replacement, one member a draw; 80 data sets of 20 short episodes.

    From a known start nearly all error is the models'; else most of it comes from having seen only 20 starts.
    """
    truth, acting = linear.params(1, noise=0.3), linear.policy_params(1)
    one = jax.tree.map(np.asarray, linear.take(truth["network"]["members"], 0))
    generator = np.random.default_rng(0)
    value = linear.value(truth, acting, np.full(3, float(known_start)), gamma=0.9, horizon=8)
    value += 0.0 if known_start else _of_start_variance(truth, acting)
    covered, by_rollouts = 0, 0
    for trial in range(80):
        starts, members = _fitted(one, generator, num_members=7)
        fitted = {**truth, "network": {"members": members, "shared": {}}, "elites": jnp.arange(7)}
        starts = jnp.ones((1, 3)) if known_start else starts
        found = estimated(fitted, acting, starts=starts, num_rollouts=420, key=jax.random.key(trial))
        covered += abs(found.value - value) < 1.96 * found.stderr
        by_rollouts += abs(found.value - value) < 1.96 * found.diagnostics["rollout_stderr"]
    assert covered / 80 >= 0.8  # 0.95 but for 80 trials, 20 episodes and 7 members
    assert not known_start or by_rollouts / 80 < 0.7


def _of_start_variance(params, acting):
    """What unit-variance starts add to the value from 0: the quadratic part, by differences."""
    at = lambda x: linear.value(params, acting, x, gamma=0.9, horizon=8)  # noqa: E731
    return sum((at(e) + at(-e)) / 2 - at(0 * e) for e in np.eye(3))


def _fitted(one, generator, *, num_members, episodes=20, steps=8):
    state = starts = generator.normal(size=(episodes, 3))
    rows = []
    for _ in range(steps):
        action = generator.normal(size=(episodes, 2))
        following = state @ one["A"].T + action @ one["B"].T + one["noise"] * generator.normal(size=state.shape)
        reward = one["bias"] + state @ one["c"] - one["cost"] * np.sum(state**2, 1)
        reward = reward + one["noise"] * generator.normal(size=episodes)
        rows.append((state, action, following, reward))
        state = following
    state, action, following, reward = (np.stack(column, axis=1) for column in zip(*rows, strict=True))
    fits = []
    for _ in range(num_members):
        drawn = generator.integers(episodes, size=episodes)
        s, a, f, r = (column[drawn].reshape(-1, *column.shape[2:]) for column in (state, action, following, reward))
        linear_part = np.linalg.lstsq(np.concatenate([s, a], axis=1), f, rcond=None)[0].T
        of_reward = np.linalg.lstsq(np.column_stack([np.ones(len(s)), s, -np.sum(s**2, 1)]), r, rcond=None)[0]
        noise = np.std(f - np.concatenate([s, a], axis=1) @ linear_part.T)
        fits.append({"A": linear_part[:, :3], "B": linear_part[:, 3:], "noise": noise, "cost": of_reward[-1],
                     "c": of_reward[1:4], "bias": of_reward[0]})  # fmt: skip
    return jnp.asarray(starts, jnp.float32), jax.tree.map(lambda *x: jnp.asarray(np.stack(x), jnp.float32), *fits)


def test_five_lines_evaluate_any_pure_function():
    from offline_mbrl import policies

    policy = policies.as_policy(lambda params, observation, key: jnp.tanh(params @ observation))
    found = model_based.estimate(MODEL, PARAMS, policy, jnp.eye(2, 3), STARTS, KEY, gamma=0.9, horizon=5)
    assert np.isfinite([found.value, found.stderr]).all()
    two = jnp.stack([jnp.eye(2, 3), -jnp.eye(2, 3)])
    both = model_based.estimate_many(MODEL, PARAMS, policy, two, STARTS, KEY, gamma=0.9, horizon=5)
    np.testing.assert_allclose(both.value[0], found.value, rtol=1e-4)
