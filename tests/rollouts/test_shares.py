import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rollout_models as linear

from offline_mbrl.rollouts import shares, unroll
from offline_mbrl.rollouts.adjust import Adjust
from offline_mbrl.types import UsageError

MODEL = linear.model()
POLICY = linear.policy()
ACTING = linear.policy_params()
RUN = unroll.unroll(MODEL, POLICY, horizon=4)
ALONE = jax.jit(RUN)
PARAMS = linear.params(4, spread=0.5)._replace(elites=jnp.array([3, 0, 2]))


def starts(num):
    observations = np.random.default_rng(0).normal(size=(num, 3)).astype(np.float32)
    return jnp.asarray(observations), jax.random.split(jax.random.key(2), num)


def spread_out(spread, run=RUN):
    return jax.jit(spread.apply(MODEL, run))


def assert_close(actual, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), actual, expected
    )


@pytest.mark.parametrize("num", [2, 6, 7])
def test_every_start_is_rolled_in_its_own_member_alone_and_comes_back_in_its_place(num):
    observations, keys = starts(num)
    rolled = spread_out(shares.by_member)(PARAMS, ACTING, observations, keys)
    for row in range(num):
        alone = MODEL.member(PARAMS, [3, 0, 2][row % 3])
        expected = ALONE(alone, ACTING, observations[row], keys[row])
        assert_close(linear.take(rolled, row), expected)
    np.testing.assert_array_equal(shares.member_of(num, 3), np.arange(num) % 3)


def test_jointly_leaves_the_choice_of_members_to_the_model():
    observations, keys = starts(5)
    rolled = spread_out(shares.jointly)(PARAMS, ACTING, observations, keys)
    assert_close(linear.take(rolled, 4), ALONE(PARAMS, ACTING, observations[4], keys[4]))


def test_with_one_member_all_spreads_are_the_same():
    params = linear.params(1)
    observations, keys = starts(4)
    expected = spread_out(shares.jointly)(params, ACTING, observations, keys)
    assert_close(spread_out(shares.by_member)(params, ACTING, observations, keys), expected)
    folded = jax.vmap(jax.random.fold_in, (0, None))(keys, 0)
    expected = spread_out(shares.jointly)(params, ACTING, observations, folded)
    every = spread_out(shares.all_members)(params, ACTING, observations, keys)
    assert_close(linear.take(every, 0), expected)


@pytest.mark.parametrize("num_particles", [2, 3, 7])
def test_a_particle_stays_in_its_member_from_start_to_end(num_particles):
    observations, keys = starts(2)
    spread = shares.by_particle(num_particles)
    rolled = spread_out(spread)(PARAMS, ACTING, observations, keys)
    assert rolled.reward.shape == (num_particles, 2, 4)
    for k in range(num_particles):
        alone = MODEL.member(PARAMS, [3, 0, 2][k % 3])
        expected = ALONE(alone, ACTING, observations[1], jax.random.fold_in(keys[1], k))
        assert_close(linear.take(rolled, (k, 1)), expected)


def test_all_members_roll_every_start():
    observations, keys = starts(5)
    every = spread_out(shares.all_members)(PARAMS, ACTING, observations, keys)
    assert every.reward.shape == (3, 5, 4)
    particles = spread_out(shares.by_particle(3))(PARAMS, ACTING, observations, keys)
    assert_close(every, particles)


def test_spreads_name_the_members_that_roll_separately():
    assert shares.jointly.num_members(PARAMS) == 1
    assert shares.by_member.num_members(PARAMS) == shares.all_members.num_members(PARAMS) == 3
    assert [shares.by_particle(num).num_members(PARAMS) for num in (2, 7)] == [2, 3]


@pytest.mark.parametrize(
    "spread", [shares.jointly, shares.by_member, shares.all_members, shares.by_particle(4)]
)
def test_first_actions_go_with_their_starts(spread):
    observations, keys = starts(3)
    first = jnp.array([[0.1, -0.2], [0.3, 0.4], [-0.5, 0.6]])
    rolled = spread_out(spread)(PARAMS, ACTING, observations, keys, first)
    expected = jnp.broadcast_to(first, rolled.action[..., 0, :].shape)
    np.testing.assert_array_equal(rolled.action[..., 0, :], expected)


# --- what compares members ---


def disagreement(prediction):
    return jnp.max(jnp.std(prediction.members.mean, axis=0))


def penalize(params, observation, action, prediction, key):
    return prediction._replace(reward=prediction.reward - disagreement(prediction))


PENALTY = Adjust(apply=penalize, changes_observation=False, needs_members=True)
MEASURE = unroll.Measure(
    apply=lambda params, observation, action, prediction: {"std": disagreement(prediction)},
    needs_members=True,
)


@pytest.mark.parametrize("settings", [{"adjust": PENALTY}, {"measure": MEASURE}])
@pytest.mark.parametrize("spread", [shares.by_member, shares.all_members, shares.by_particle(4)])
def test_what_compares_members_is_refused_where_each_rolls_alone(spread, settings):
    observations, keys = starts(3)
    run = unroll.returns(MODEL, POLICY, gamma=0.9, horizon=2, **settings)
    with pytest.raises(UsageError, match=r"compares members.*jointly"):
        spread.apply(MODEL, run)(PARAMS, ACTING, observations, keys)
    rolled = spread_out(shares.jointly, run)(PARAMS, ACTING, observations, keys)
    assert np.all(np.isfinite(rolled.value))
    if "measure" in settings:
        assert np.all(rolled.measured["std"] > 0.01)


def test_what_compares_members_is_refused_where_the_model_predicts_none():
    def step(params, state, action, key):
        state, prediction = MODEL.step(params, state, action, key)
        return state, prediction._replace(members=None)

    run = unroll.unroll(MODEL._replace(step=step), POLICY, horizon=2, adjust=PENALTY)
    with pytest.raises(UsageError, match="the model predicts none"):
        run(PARAMS, ACTING, jnp.zeros(3), jax.random.key(0))
