import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rollout_models as linear

from offline_mbrl import policies
from offline_mbrl.ope import support
from offline_mbrl.types import (
    Estimate,
    MemberPredictions,
    ModelParams,
    Policy,
    Prediction,
    UsageError,
)

SAFE = {
    "effective_sample_size": 40.0,
    "visited_share": 0.8,
    "unlikely_actions": 0.02,
    "log_ratio": 0.3,
    "disagreement": 0.1,
    "outside_fraction": 0.001,
    "diverged_fraction": 0.0,
    "missing_ends": 0.0,
    "cut_fraction": 0.01,
}
LOW = {
    "effective_sample_size": 3.0,
    "visited_share": 0.2,
    "unlikely_actions": 0.6,
    "log_ratio": 9.0,
    "disagreement": 2.0,
    "outside_fraction": 0.2,
    "diverged_fraction": 0.05,
    "missing_ends": 1.0,
    "cut_fraction": 0.3,
}


def normal(mean, std):
    """`a ~ N(mean + s, std^2)`."""

    def log_prob(params, observation, action):
        return jnp.sum(jax.scipy.stats.norm.logpdf(action, mean + observation, std))

    def mode(params, observation):
        return mean + observation

    def sample(params, observation, key):
        return mean + observation + std * jax.random.normal(key, observation.shape)

    return Policy(sample=sample, mode=mode, log_prob=log_prob)


def signs(policy, behavior=normal(0.0, 0.5), size=4000):
    observations = jnp.asarray(np.random.default_rng(0).normal(size=(size, 2)), jnp.float32)
    actions = jax.vmap(behavior.sample, (None, 0, 0))(
        (), observations, jax.random.split(jax.random.key(0), size)
    )
    return support.action_support(
        behavior, (), policy, (), observations, actions, jax.random.key(1)
    )


def test_a_policy_that_stays_near_the_data_passes():
    assert support.verdict(SAFE) == (False, ())
    assert support.low_support({name: jnp.asarray(value) for name, value in SAFE.items()}) == 0


@pytest.mark.parametrize("name", list(LOW))
def test_each_sign_alone_lowers_support_and_gives_its_reason(name):
    for value in (LOW[name], np.nan):
        found = support.verdict({**SAFE, name: value})
        assert found.low_support
        assert len(found.reasons) == 1
        assert support.low_support({name: jnp.asarray(value)}) == 1


def test_all_reasons_are_told():
    assert len(support.verdict(LOW).reasons) == len(LOW)


def test_reasons_are_sentences_with_the_figure_and_the_limit():
    assert support.verdict({"effective_sample_size": 3.2}).reasons == (
        "the importance weights leave 3.2 effective episodes (limit 10)",
    )
    assert support.verdict({"diverged_fraction": 0.25}).reasons == (
        "25.0% of its rollouts diverged (limit 1%)",
    )


def test_only_signs_that_are_there_are_judged_and_an_estimators_own_flag_counts():
    assert support.verdict({"mean_length": 3.0, "member_std": 99.0}) == (False, ())
    assert support.verdict({"low_support": 1.0}).low_support
    assert not support.verdict({"low_support": 0.0}).low_support
    assert support.low_support({}) == 0


def test_limits_are_arguments():
    strict = support.Limits(effective_sample_size=100.0, disagreement=0.01)
    assert len(support.verdict(SAFE, strict).reasons) == 2
    assert support.verdict({"disagreement": 3.0}, support.Limits(disagreement=5.0)) == (False, ())


def test_flags_of_many_policies_come_in_one_call():
    diagnostics = {
        "diverged_fraction": jnp.array([0.0, 0.5, 0.0]),
        "disagreement": jnp.array([0.1, 0.1, 0.9]),
    }
    np.testing.assert_array_equal(jax.jit(support.low_support)(diagnostics), [0, 1, 1])


# --- signs ---


def test_the_behavior_itself_is_unlikely_in_one_state_of_a_hundred_and_its_log_ratio_is_zero():
    found = signs(normal(0.0, 0.5))
    np.testing.assert_allclose(found["unlikely_actions"], 0.01, atol=0.007)
    assert found["log_ratio"] == 0
    assert not support.verdict(found).low_support


def test_log_ratio_is_the_divergence_per_action_entry():
    found = signs(normal(0.3, 0.2))
    divergence = np.log(0.5 / 0.2) + (0.2**2 + 0.3**2) / (2 * 0.5**2) - 0.5
    np.testing.assert_allclose(found["log_ratio"], divergence, atol=0.02)


def test_actions_far_from_the_data_are_unlikely():
    found = signs(normal(3.0, 0.1))
    assert found["unlikely_actions"] == 1
    assert len(support.verdict(found).reasons) == 2
    without = normal(3.0, 0.1)._replace(log_prob=None)
    assert signs(without).keys() == {"unlikely_actions"}


def test_a_narrow_policy_inside_the_data_is_supported():
    assert not support.verdict(signs(normal(0.0, 0.01))).low_support


def test_policies_with_a_memory_are_refused():
    with pytest.raises(UsageError, match="action_support needs a policy whose action depends on"):
        signs(policies.as_actor(normal(0.0, 1.0)))


def test_a_behavior_without_a_density_is_refused():
    with pytest.raises(UsageError, match="has a log_prob"):
        signs(normal(0.0, 1.0), behavior=normal(0.0, 1.0)._replace(log_prob=None))


def model_params(elites=(0, 1), **changes):
    """Statistics of changes with deviations 1 and 2, within [-1, 1]."""
    statistics = linear.statistics(2, 1, limit=1.0)._replace(delta_std=jnp.array([1.0, 2.0]))
    return ModelParams(
        network=(), statistics=statistics._replace(**changes), elites=jnp.array(elites)
    )


def disagreement(means, elites=(0, 1), **changes):
    means = jnp.asarray(means, jnp.float32)
    prediction = Prediction(
        observation=means[0, :-1],
        reward=means[0, -1],
        discount=jnp.ones(()),
        members=MemberPredictions(mean=means, std=jnp.zeros_like(means)),
    )
    params = model_params(elites, **changes)
    measured = support.disagreement.apply(params, jnp.zeros(2), jnp.zeros(1), prediction)
    return measured["disagreement"]


def test_disagreement_is_the_spread_of_next_states_in_units_of_a_typical_change():
    # std over members 1 and 2 (of a change of 1 and 2): 1 each; the reward (last) does not count
    np.testing.assert_allclose(disagreement([[0, 0, 0], [2, 4, 99]]), 1.0)
    np.testing.assert_allclose(disagreement([[0, 0, 0], [2, 0, 0]]), np.sqrt(0.5))
    assert disagreement([[1, 2, 3], [1, 2, 3]]) == 0


def test_disagreement_leaves_out_members_that_are_no_elites_and_entries_that_never_change():
    assert disagreement([[0, 0, 0], [0, 0, 0], [9, 9, 9]]) == 0
    found = disagreement([[0, 0, 0], [2, 4, 0]], varies=jnp.array([True, False, True]))
    np.testing.assert_allclose(found, 1.0)


def test_outside_fraction_is_the_share_of_entries_beyond_the_data():
    for state, share in (([0.5, 1.5], 0.5), ([-2.0, 3.0], 1.0), ([1.0, -1.0], 0.0)):
        prediction = Prediction(jnp.array(state), jnp.zeros(()), jnp.ones(()))
        measured = support.outside_range.apply(
            model_params(), jnp.zeros(2), jnp.zeros(1), prediction
        )
        assert measured["outside_fraction"] == share


def test_signs_join_an_estimate_and_raise_its_flag_but_never_lower_it():
    estimate = Estimate(
        value=jnp.ones(2),
        stderr=jnp.ones(2),
        per_episode=None,
        diagnostics={"low_support": jnp.array([0.0, 1.0]), "drift": jnp.zeros(2)},
    )
    found = support.with_signs(estimate, {"visited_share": jnp.array([0.1, 0.9])})
    assert set(found.diagnostics) == {"low_support", "drift", "visited_share"}
    np.testing.assert_array_equal(found.diagnostics["low_support"], [1.0, 1.0])
    unflagged = support.with_signs(
        estimate._replace(diagnostics={}), {"visited_share": jnp.array([0.1, 0.9])}
    )
    np.testing.assert_array_equal(unflagged.diagnostics["low_support"], [1.0, 0.0])
