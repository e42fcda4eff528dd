import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rollout_models as linear

from offline_mbrl import policies
from offline_mbrl.ope import model_based, rollout_errors, support
from offline_mbrl.rollouts import adjust, shares, unroll
from offline_mbrl.types import Actor

MODEL, POLICY = linear.model(), linear.policy()
PARAMS = linear.params(3, spread=0.3)
ACTING = linear.policy_params()
KEY = jax.random.key(0)
STARTS = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)), jnp.float32)


def rollouts_of(policy=POLICY, *, gamma=0.9, horizon=8, **settings):
    return model_based.explicit_rollouts(
        MODEL, policy, gamma=gamma, horizon=horizon, bounds=None, **settings
    )


@functools.cache
def program(policies=False, chunk=None, num_rollouts=None, **settings):
    estimator = model_based.make(rollouts_of(**settings), num_rollouts=num_rollouts)
    return jax.jit(model_based.many(estimator, chunk=chunk) if policies else estimator)


def estimated(params=PARAMS, acting=ACTING, starts=STARTS, key=KEY, **settings):
    return program(**settings)(params, acting, starts, key)


def exact(params, acting, starts=STARTS, member=0):
    settings = {"gamma": 0.9, "horizon": 8, "member": member}
    return np.mean([linear.value(params, acting, start, **settings) for start in starts])


def test_estimate_is_the_closed_form_of_the_linear_gaussian_system_within_three_errors():
    params = linear.params(1)
    for seed in range(3):
        acting = linear.policy_params(seed)
        found = estimated(params, acting, num_rollouts=6000, key=jax.random.key(seed))
        # Of the rollouts from these very starts: no larger than `stderr`.
        error = np.std(found.per_episode) / np.sqrt(6000)
        assert abs(found.value - exact(params, acting)) < 3 * error
        assert error < 0.05


def test_each_member_gets_its_own_closed_form():
    params = linear.params(3, spread=0.3)
    params.network["members"]["bias"] = jnp.array([0.5, 0.0, 1.0])
    found = estimated(params, num_rollouts=6000)
    values = rollout_errors.member_values(found.per_episode, 3)
    wanted = [
        exact(params, ACTING, member=e) for e in range(3)
    ]  # every member comes to every start
    errors = [3 * np.std(found.per_episode[e::3]) / np.sqrt(2000) for e in range(3)]
    assert (np.abs(values - np.array(wanted)) < errors).all()
    assert np.ptp(wanted) > 4 * max(errors)


def test_horizon_one_is_the_mean_reward_of_the_starts():
    quiet = linear.params(1, noise=0.0)
    found = estimated(quiet, horizon=1)
    member = linear.take(quiet.network["members"], 0)
    rewards = [linear.mean(member, start, jnp.zeros(2))[-1] for start in STARTS]
    np.testing.assert_allclose(found.per_episode, np.resize(rewards, 100), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.value, np.mean(np.resize(rewards, 100)), rtol=1e-5)


def test_starts_are_used_in_turn_and_there_are_at_least_a_hundred_rollouts():
    quiet = linear.params(1, noise=0.0)
    found = estimated(quiet, {**ACTING, "std": jnp.array(0.0)})
    assert found.per_episode.shape == (100,)
    np.testing.assert_allclose(
        found.per_episode[6:], found.per_episode[:-6], rtol=1e-5
    )  # one member: no shift
    assert len(np.unique(np.round(found.per_episode[:6], 4))) == 6
    assert estimated(quiet, starts=jnp.tile(STARTS, (25, 1))).per_episode.shape == (150,)


def test_permuting_the_starts_permutes_the_rollouts():
    quiet, still = linear.params(1, noise=0.0), {**ACTING, "std": jnp.array(0.0)}
    order = jnp.array([3, 0, 5, 1, 4, 2])
    plain = estimated(quiet, still, num_rollouts=6)
    permuted = estimated(quiet, still, starts=STARTS[order], num_rollouts=6)
    np.testing.assert_allclose(permuted.per_episode, plain.per_episode[order], rtol=1e-5)
    np.testing.assert_allclose(permuted.value, plain.value, rtol=1e-5)


def assert_close(estimate, other):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), estimate, other
    )


def test_many_policies_are_one_program_and_meet_the_same_noise():
    acting = linear.stacked([linear.policy_params(seed) for seed in range(5)])
    together = program(policies=True)
    found = together(PARAMS, acting, STARTS, KEY)
    for index in range(5):
        alone = estimated(acting=linear.take(acting, index))
        assert_close(jax.tree.map(lambda leaf, row=index: leaf[row], found), alone)
    together(
        linear.params(3, seed=1), jax.tree.map(jnp.negative, acting), STARTS + 1, jax.random.key(1)
    )
    assert together._cache_size() == 1


@pytest.mark.parametrize("chunk", [1, 2])
def test_policies_in_chunks_are_the_same_estimates(chunk):
    acting = linear.stacked([linear.policy_params(seed) for seed in range(5)])
    whole = program(policies=True)(PARAMS, acting, STARTS, KEY)
    found = program(policies=True, chunk=chunk)(PARAMS, acting, STARTS, KEY)
    assert_close(found, whole)


def test_ranking_profits_from_common_noise():
    """Two policies that hardly differ: their difference is known better than either value."""
    first = linear.policy_params(0)
    second = {**first, "K": first["K"] + 0.01}
    params = linear.params(1)
    apart = estimated(params, first).per_episode - estimated(params, second).per_episode
    assert np.std(apart) < 0.2 * np.std(estimated(params, first).per_episode)


def test_the_terminating_reward_counts_and_the_ends_are_counted():
    ends = adjust.chain(
        adjust.terminate(lambda o, a, following: following[0] > -jnp.inf), adjust.clip_to_data
    )
    found = estimated(adjust=ends)
    np.testing.assert_allclose(found.value, estimated(horizon=1).value, rtol=1e-5)
    assert found.diagnostics["terminated_fraction"] == 1
    assert found.diagnostics["mean_length"] == 1
    assert found.diagnostics["truncation_bound"] == 0


def test_terminals_in_the_data_that_no_rollout_meets_lower_support():
    statistics = PARAMS.statistics._replace(terminates=jnp.array(True))
    endless = PARAMS._replace(statistics=statistics)
    found = estimated(endless)
    assert found.diagnostics["missing_ends"] == found.diagnostics["low_support"] == 1
    ends = adjust.chain(
        adjust.terminate(lambda o, a, following: following[0] > 0), adjust.clip_to_data
    )
    met = estimated(endless, adjust=ends)
    assert met.diagnostics["terminated_fraction"] > 0
    assert met.diagnostics["missing_ends"] == met.diagnostics["low_support"] == 0
    assert estimated().diagnostics["missing_ends"] == 0


def test_diverged_rollouts_are_counted_flagged_and_do_not_spoil_the_mean():
    members = {
        **PARAMS.network["members"],
        "A": PARAMS.network["members"]["A"].at[1].set(jnp.inf),
    }
    network = {"members": members, "shared": {}}
    found = estimated(PARAMS._replace(network=network), num_rollouts=300)
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
        [
            linear.value(quiet, still, start, gamma=0.9, horizon=400)
            for start in np.resize(STARTS, (100, 3))
        ]
    )
    assert abs(endless - found.value) <= found.diagnostics["truncation_bound"]


def test_predictions_are_clipped_to_the_data_by_default_and_what_was_outside_is_reported():
    bounded = linear.params(3, limit=0.5)
    found = estimated(bounded)
    free = estimated(bounded, adjust=adjust.identity)
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
    start = rollout_errors.start_of(num_starts * num_members * 2, num_starts, num_members)
    np.testing.assert_array_equal(
        np.sort(start.reshape(-1, num_starts), axis=1),
        np.tile(np.arange(num_starts), (2 * num_members, 1)),
    )
    np.testing.assert_array_equal(start[:num_starts], np.arange(num_starts))
    met = np.zeros((num_starts, num_members))
    np.add.at(met, (start, np.arange(len(start)) % num_members), 1)
    assert (met > 0).mean() > 0.9


def test_with_a_rollout_a_start_the_error_is_std_over_root_n():
    returns = jnp.asarray(np.random.default_rng(0).normal(size=50), jnp.float32)
    wanted = np.std(returns, ddof=1) / np.sqrt(50)
    np.testing.assert_allclose(
        rollout_errors.rollout_stderr(returns, np.arange(50)), wanted, rtol=1e-5
    )
    np.testing.assert_allclose(
        rollout_errors.rollout_stderr(returns, np.zeros(50, int)), wanted, rtol=1e-5
    )


def test_repeating_the_starts_does_not_make_the_error_smaller_than_their_spread():
    values = jnp.asarray(np.random.default_rng(0).normal(size=10), jnp.float32)
    once = rollout_errors.rollout_stderr(values, np.arange(10))
    repeated = rollout_errors.rollout_stderr(jnp.tile(values, 20), np.arange(200) % 10)
    np.testing.assert_allclose(repeated, once, rtol=1e-5)


@pytest.mark.parametrize("num_starts", [1, 8, 40, 4000])
def test_member_std_is_what_neither_starts_nor_noise_explain(num_starts):
    generator = np.random.default_rng(0)
    start = rollout_errors.start_of(4000, num_starts, 4)
    other = generator.normal(size=4000) + 2 * generator.normal(size=num_starts)[start]
    effect = np.array([0.0, 1.0, 2.0, 3.0])
    found = rollout_errors.member_std(jnp.asarray(other + effect[np.arange(4000) % 4]), start, 4)
    np.testing.assert_allclose(found, np.std(effect, ddof=1), rtol=0.2)
    assert rollout_errors.member_std(jnp.asarray(other), start, 4) < 0.2
    assert rollout_errors.member_std(jnp.asarray(other), start, 1) == 0


def test_member_variance_is_unbiased_even_where_each_member_has_starts_of_its_own():
    generator = np.random.default_rng(0)
    start = np.arange(60) % 12
    std = jax.jit(lambda returns: rollout_errors.member_std(returns, start, 4))
    variances = []
    for _ in range(400):
        returns = 2 * generator.normal(size=4)[np.arange(60) % 4]
        returns = returns + generator.normal(size=12)[start] + generator.normal(size=60)
        variances.append(std(jnp.asarray(returns)) ** 2)
    assert abs(np.mean(variances) - 4.0) < 3 * np.std(variances) / 20


@pytest.mark.parametrize("known_start", [False, True])
def test_intervals_of_fitted_ensembles_cover_the_truth(known_start):
    """Least squares on episodes drawn with replacement, one member a draw; 80 logs of 20 episodes.

    From a known start nearly all error is the models'; else most of it comes from having seen only
    20 starts.
    """
    truth = linear.params(1, noise=0.3)
    acting = linear.policy_params(1)
    system = jax.tree.map(np.asarray, linear.take(truth.network["members"], 0))
    generator = np.random.default_rng(0)
    value = linear.value(truth, acting, np.full(3, float(known_start)), gamma=0.9, horizon=8)
    value += 0.0 if known_start else _value_of_start_variance(truth, acting)
    covered = 0
    by_rollouts = 0
    for trial in range(80):
        starts, members = _fitted(system, generator, num_members=7)
        fitted = truth._replace(network={"members": members, "shared": {}}, elites=jnp.arange(7))
        starts = jnp.ones((1, 3)) if known_start else starts
        found = estimated(
            fitted, acting, starts=starts, num_rollouts=420, key=jax.random.key(trial)
        )
        covered += abs(found.value - value) < 1.96 * found.stderr
        by_rollouts += abs(found.value - value) < 1.96 * found.diagnostics["rollout_stderr"]
    assert covered / 80 >= 0.8  # 0.95 but for 80 trials, 20 episodes and 7 members
    assert not known_start or by_rollouts / 80 < 0.7


def _value_of_start_variance(params, acting):
    """What unit-variance starts add to the value from 0: the quadratic part, by differences."""

    def at(start):
        return linear.value(params, acting, start, gamma=0.9, horizon=8)

    return sum((at(e) + at(-e)) / 2 - at(0 * e) for e in np.eye(3))


def _logged(system, generator, *, episodes=20, steps=8):
    """(state, action, next state, reward) of random actions, `[episodes, steps, ...]`."""
    state = generator.normal(size=(episodes, 3))
    rows = []
    for _ in range(steps):
        action = generator.normal(size=(episodes, 2))
        noise = system["noise"] * generator.normal(size=state.shape)
        following = state @ system["A"].T + action @ system["B"].T + noise
        reward = system["bias"] + state @ system["c"] - system["cost"] * np.sum(state**2, 1)
        reward = reward + system["noise"] * generator.normal(size=episodes)
        rows.append((state, action, following, reward))
        state = following
    return tuple(np.stack(column, axis=1) for column in zip(*rows, strict=True))


def _least_squares(state, action, following, reward):
    """A member from rows `[N, ...]`."""
    inputs = np.concatenate([state, action], axis=1)
    dynamics = np.linalg.lstsq(inputs, following, rcond=None)[0].T
    features = np.column_stack([np.ones(len(state)), state, -np.sum(state**2, 1)])
    reward_weights = np.linalg.lstsq(features, reward, rcond=None)[0]
    return {
        "A": dynamics[:, :3],
        "B": dynamics[:, 3:],
        "noise": np.std(following - inputs @ dynamics.T),
        "cost": reward_weights[-1],
        "c": reward_weights[1:4],
        "bias": reward_weights[0],
    }


def _fitted(system, generator, *, num_members):
    """(starts, members) of one log, each member fitted to its own resample of the episodes."""
    columns = _logged(system, generator)
    episodes = len(columns[0])
    fits = []
    for _ in range(num_members):
        drawn = generator.integers(episodes, size=episodes)
        rows = [column[drawn].reshape(-1, *column.shape[2:]) for column in columns]
        fits.append(_least_squares(*rows))
    members = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves), jnp.float32), *fits)
    return jnp.asarray(columns[0][:, 0], jnp.float32), members


def test_any_pure_function_is_evaluated():
    policy = policies.as_policy(lambda params, observation, key: jnp.tanh(params @ observation))
    estimator = model_based.make(rollouts_of(policy, horizon=5))
    single = jax.jit(estimator)(PARAMS, jnp.eye(2, 3), STARTS, KEY)
    assert np.isfinite([single.value, single.stderr]).all()
    two = jnp.stack([jnp.eye(2, 3), -jnp.eye(2, 3)])
    both = jax.jit(model_based.many(estimator))(PARAMS, two, STARTS, KEY)
    np.testing.assert_allclose(both.value[0], single.value, rtol=1e-4)


def test_an_actor_without_a_carry_is_worth_what_its_policy_is():
    estimator = jax.jit(model_based.make(rollouts_of(policies.as_actor(POLICY))))
    np.testing.assert_array_equal(estimator(PARAMS, ACTING, STARTS, KEY).value, estimated().value)


def test_an_actor_that_counts_its_steps_acts_by_them():
    """It pushes at the first step alone."""

    def init(params, observation, key):
        return jnp.zeros((), jnp.int32)

    def act(params, carry, observation, key):
        push = jnp.where(carry == 0, 1.0, 0.0)
        return jnp.full(2, push) * params, carry + 1

    quiet = linear.params(1, noise=0.0)
    counting = model_based.make(rollouts_of(Actor(init, act), horizon=3))
    per_episode = jax.jit(counting)(quiet, jnp.array(1.0), STARTS, KEY).per_episode
    member = linear.take(quiet.network["members"], 0)
    for start, total in zip(STARTS, per_episode, strict=False):
        by_hand = 0.0
        state = start
        for t in range(3):
            outcome = linear.mean(member, state, jnp.full(2, float(t == 0)))
            by_hand += 0.9**t * outcome[-1]
            state = outcome[:-1]
        np.testing.assert_allclose(total, by_hand, rtol=1e-4)


def test_rollouts_of_any_kind_of_model_share_the_estimate():
    """Nothing but a function from starts to returns: here the sum of the start, times a weight."""

    def returns(model_params, policy_params, observation, key):
        zero = jnp.zeros(())
        return unroll.Return(
            value=model_params * policy_params * jnp.sum(observation),
            undiscounted=zero,
            length=zero + 1,
            continuation=zero,
            diverged=zero,
            largest_reward=zero,
            measured={},
        )

    apply = jax.vmap(returns, (None, None, 0, 0))
    estimator = model_based.make(model_based.Rollouts(apply=apply, tail=0.0), num_rollouts=6)
    estimate = estimator(jnp.array(2.0), jnp.array(3.0), STARTS, KEY)
    sums = 6.0 * STARTS.sum(axis=1)
    np.testing.assert_allclose(estimate.per_episode, sums, rtol=1e-5)
    np.testing.assert_allclose(estimate.stderr, np.std(sums, ddof=1) / np.sqrt(6), rtol=1e-5)
    assert estimate.diagnostics["low_support"] == 0
