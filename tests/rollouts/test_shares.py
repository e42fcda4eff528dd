import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rollout_models as linear

from offline_mbrl.rollouts import shares, unroll

MODEL, POLICY, ACTING = linear.model(), linear.policy(), linear.policy_params()
RUN = unroll.unroll(MODEL, POLICY, horizon=4)
ALONE = jax.jit(RUN)


def starts(num):
    observations = np.random.default_rng(0).normal(size=(num, 3)).astype(np.float32)
    return jnp.asarray(observations), jax.random.split(jax.random.key(2), num)


@pytest.mark.parametrize("num", [2, 6, 7])
def test_every_start_is_rolled_in_its_own_member_alone_and_comes_back_in_its_place(num):
    params = {**linear.params(4, spread=0.5), "elites": jnp.array([3, 0, 2])}
    observations, keys = starts(num)
    found = jax.jit(shares.by_member(MODEL, RUN))(params, ACTING, observations, keys)
    for row in range(num):
        elite = [3, 0, 2][row % 3]
        wanted = ALONE(MODEL.member(params, elite), ACTING, observations[row], keys[row])
        jax.tree.map(lambda leaf, one, row=row: np.testing.assert_allclose(leaf[row], one, rtol=1e-4, atol=1e-5),
                     found, wanted)  # fmt: skip
    np.testing.assert_array_equal(shares.member_of(num, 3), np.arange(num) % 3)


def test_jointly_leaves_the_choice_of_members_to_the_model():
    params = linear.params(3, spread=0.5)
    observations, keys = starts(5)
    found = jax.jit(shares.jointly(MODEL, RUN))(params, ACTING, observations, keys)
    one = ALONE(params, ACTING, observations[4], keys[4])
    jax.tree.map(lambda leaf, row: np.testing.assert_allclose(leaf[4], row, rtol=1e-4, atol=1e-5), found, one)


def test_with_one_member_both_spreads_are_the_same():
    params = linear.params(1)
    observations, keys = starts(4)
    both = [jax.jit(spread(MODEL, RUN))(params, ACTING, observations, keys)
            for spread in (shares.by_member, shares.jointly)]  # fmt: skip
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *both)
