"""MOBILE: the disagreement of members' backups, and targets that pay for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rollout_models as linear
import transition_rows

from offline_mbrl.algorithms.imagined import mobile
from offline_mbrl.learners import sac
from offline_mbrl.learners.parts import actor_critic
from offline_mbrl.rollouts.imagination import ImaginationConfig
from offline_mbrl.types import Context, Transition

KEY = jax.random.key(0)
SPEC = transition_rows.SPEC
POLICY = sac.Config(batch_size=8, actor_layers=(8,), critic_layers=(8,), fixed_temperature=0.0)
CONFIG = mobile.Config(
    policy=POLICY, num_samples=2, imagination=ImaginationConfig(real_fraction=0.25)
)
METHOD = sac.method(POLICY, SPEC)
STATE = actor_critic.make(METHOD, None).init(KEY, None, Context())
AGENT = actor_critic.agent_of(METHOD.networks, STATE)


def rows(size=8, num_real=2):
    keys = jax.random.split(KEY, 3)
    return Transition(
        observation=jax.random.normal(keys[0], (size, 3)),
        action=jax.random.uniform(keys[1], (size, 2), minval=-1.0),
        reward=jnp.ones(size),
        discount=jnp.ones(size),
        next_observation=jax.random.normal(keys[2], (size, 3)),
        extras={"is_imagined": (jnp.arange(size) >= num_real).astype(jnp.float32)},
    )


def backup(config, params, batch):
    function = mobile.penalized_backup(config, linear.model())
    return function(AGENT, Context(upstream={"model": params}), batch, KEY)


def test_disagreement_is_the_unbiased_deviation_of_the_members_means():
    values = jnp.array([[1.0, 3.0], [4.0, 4.0], [6.0, 6.0]])
    np.testing.assert_allclose(mobile.disagreement(values), np.std([2, 4, 6], ddof=1), rtol=1e-6)
    assert mobile.disagreement(values[:1]) == 0


def test_the_order_of_the_members_changes_no_disagreement():
    values = jax.random.normal(KEY, (4, 5))
    shuffled = mobile.disagreement(values[jnp.array([2, 0, 3, 1])])
    np.testing.assert_allclose(shuffled, mobile.disagreement(values), rtol=1e-6)


def test_disagreement_scales_with_values():
    values = jax.random.normal(KEY, (4, 5))
    np.testing.assert_allclose(
        mobile.disagreement(7 * values), 7 * mobile.disagreement(values), rtol=1e-5
    )


@pytest.mark.parametrize(("floor", "expected"), [(None, -1.0 + 0.9 * 0.5), (0.0, 0.0)])
def test_a_target_pays_for_the_penalty_and_is_clipped_where_asked(floor, expected):
    step = jax.tree.map(lambda leaf: leaf[0], rows())
    value = mobile.target(
        step, jnp.array([0.5, 2.0]), jnp.float32(4.0), gamma=0.9, coef=0.5, floor=floor
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-7)


def test_members_that_agree_without_noise_cost_nothing_when_the_policy_has_none():
    agree = linear.params(3, spread=0.0, noise=0.0)
    quiet = AGENT._replace(policy=lambda observation: Fixed())
    judged = (rows().observation, rows().action)
    values = mobile.next_values(quiet, linear.model(), agree, judged, KEY, 2)
    assert values.shape == (3, 2, 8)
    np.testing.assert_allclose(jax.vmap(mobile.disagreement, 2)(values), 0, atol=1e-5)


def test_a_deterministic_model_gives_the_deviation_of_values_at_the_members_means():
    params = linear.params(3, spread=0.5, noise=0.0)
    quiet = AGENT._replace(policy=lambda observation: Fixed())
    judged = (rows().observation, rows().action)
    values = mobile.next_values(quiet, linear.model(), params, judged, KEY, 1)
    members = params.network["members"]
    after = jnp.stack(
        [
            jax.vmap(linear.mean, (None, 0, 0))(linear.take(members, e), *judged)[:, :-1]
            for e in range(3)
        ]
    )
    q = jnp.stack([jnp.min(AGENT.target_critics(s, jnp.zeros((8, 2))), axis=0) for s in after])
    expected = np.std(np.asarray(q), axis=0, ddof=1)
    np.testing.assert_allclose(jax.vmap(mobile.disagreement, 2)(values), expected, atol=1e-5)


def test_rows_of_the_data_are_not_penalized():
    params = linear.params(3, spread=1.0)
    free = backup(mobile.Config(**{**vars(CONFIG), "penalty_coef": 0.0}), params, rows())
    paid = backup(CONFIG, params, rows())
    np.testing.assert_allclose(paid[:2], free[:2], rtol=1e-6)
    assert (paid[2:] < free[2:]).all()


class Fixed:
    """The action 0."""

    def sample_and_log_prob(self, *, seed):
        del seed
        return jnp.zeros(2), jnp.zeros(())
