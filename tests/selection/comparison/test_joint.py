"""Joint draws of policies' values: what they share, what families disagree by, what follows."""

import jax.numpy as jnp
import numpy as np
from selection_examples import estimate

from offline_mbrl.ope import errors
from offline_mbrl.selection.comparison import joint

LOGGED = {"models": estimate(0.0, stderr=0.0), "values": estimate(0.0, stderr=0.0)}


def by_family(**values):
    return {family: estimate(value, stderr=0.0) for family, value in values.items()}


def with_errors(value, **sources):
    vectors = {name: jnp.asarray(vector, jnp.float32) for name, vector in sources.items()}
    size = float(np.sqrt(sum(np.sum(np.square(vector)) for vector in vectors.values())))
    return estimate(value, stderr=size)._replace(errors=vectors)


def test_an_additive_table_gives_back_its_values_and_biases():
    cells = [(policy, family) for policy in "abc" for family in ("models", "values")][:-1]
    value = {"a": 1.0, "b": 4.0, "c": -2.0}
    bias = {"models": 0.5, "values": -0.5}
    centers = np.array([value[policy] + bias[family] for policy, family in cells])
    table = joint.additive(cells, "abc", ("models", "values"))
    np.testing.assert_allclose(table.values @ centers, [1.0, 4.0, -2.0], atol=1e-6)
    np.testing.assert_allclose(table.biases @ centers, [0.5, -0.5], atol=1e-6)
    np.testing.assert_allclose(table.residuals @ centers, 0.0, atol=1e-6)
    assert table.freedom == 5 - 3 - 1


def test_families_without_a_common_policy_are_not_adjusted_to_each_other():
    table = joint.additive([("a", "models"), ("b", "values")], "ab", ("models", "values"))
    np.testing.assert_allclose(table.values, np.eye(2), atol=1e-6)
    np.testing.assert_allclose(table.biases, 0.0, atol=1e-6)
    assert table.freedom == 0


def test_a_policy_that_one_family_leaves_out_is_not_favored_by_the_other_familys_bias():
    """Values are 10 too high for all; the model, without bias, does not vote on c."""
    votes = {
        "a": by_family(models=3.0, values=13.0),
        "b": by_family(models=2.0, values=12.0),
        "c": by_family(values=11.0),
    }
    np.testing.assert_allclose(joint.draw(votes, LOGGED).mean, [8.0, 7.0, 6.0], atol=1e-3)


def test_policies_that_share_their_noise_are_told_apart():
    shared = np.full(25, 1.0)  # five times as much as the difference of the two
    votes = {
        "a": {"models": with_errors(1.0, episodes=shared)},
        "b": {"models": with_errors(0.0, episodes=shared)},
    }
    first, second = joint.standings(joint.draw(votes, LOGGED))
    np.testing.assert_allclose(first.high - first.low, 2 * 1.96 * 5.0, rtol=0.05)
    assert (first.best, second.best) == (1.0, 0.0)
    assert first.regret == 0.0
    np.testing.assert_allclose(second.regret, 1.0, rtol=1e-5)
    apart = {name: {"models": estimate(value, stderr=5.0)} for name, value in (("a", 1), ("b", 0))}
    assert 0.5 < joint.standings(joint.draw(apart, LOGGED))[0].best < 0.65


def test_the_logged_episodes_noise_is_shared_with_the_behavior():
    episodes = {errors.EPISODES: np.full(25, 1.0)}
    votes = {"a": {"models": with_errors(1.0, **episodes)}}
    paired = joint.draw(votes, {"models": with_errors(0.0, **episodes)})
    assert joint.standings(paired)[0].better == 1.0
    own = joint.draw(votes, {"models": estimate(0.0, stderr=5.0)})
    assert 0.5 < joint.standings(own)[0].better < 0.65


def test_probabilities_are_those_of_two_independent_normals():
    votes = {
        "a": {"values": estimate(1.0, stderr=3.0)},
        "b": {"values": estimate(0.0, stderr=4.0)},
    }
    draws = joint.draw(votes, LOGGED, num_draws=40_000)
    first, second = joint.standings(draws)
    np.testing.assert_allclose(first.best, 0.5793, atol=0.01)  # Phi(1 / 5)
    np.testing.assert_allclose(joint.larger(draws, [0, 1]), [first.best])
    np.testing.assert_allclose(first.top, [first.best, 1.0])
    # E max(0, N(-1, 5^2)) = 5 phi(1/5) - 1 Phi(-1/5)
    np.testing.assert_allclose(first.regret, 5 * 0.39104 - 0.42074, atol=0.06)
    np.testing.assert_allclose(first.regret - second.regret, -1.0, atol=0.06)
    np.testing.assert_allclose(first.better, 0.6306, atol=0.01)  # Phi(1 / 3)
    np.testing.assert_allclose(first.least_gain, 1.0 - 1.6449 * 3.0, atol=0.15)


def test_disagreeing_families_widen_by_what_they_disagree_in():
    """Biases of +-1 move all alike; interactions of +-1 move each alone."""
    bias = {"a": by_family(models=3.0, values=1.0), "b": by_family(models=2.0, values=0.0)}
    draws = joint.draw(bias, LOGGED, num_draws=20_000)
    np.testing.assert_allclose(draws.policies[:, 0] - draws.policies[:, 1], 1.0, atol=1e-6)
    np.testing.assert_allclose(np.std(draws.policies[:, 0]), np.sqrt(2.0 * 1.5), rtol=0.03)
    crossed = {"a": by_family(models=2.0, values=0.0), "b": by_family(models=0.0, values=2.0)}
    draws = joint.draw(crossed, LOGGED, num_draws=20_000)
    expected = np.sqrt(4.0 * 1.5)  # four residuals of 1 over one degree of freedom
    np.testing.assert_allclose(np.std(draws.policies, axis=0), expected, rtol=0.03)
    assert abs(np.corrcoef(draws.policies.T)[0, 1]) < 0.03


def test_the_shortlist_is_the_fewest_that_hold_the_best():
    votes = {
        name: {"values": estimate(value, stderr=0.01)}
        for name, value in (("a", 1.0), ("b", 1.0), ("c", 0.0))
    }
    draws = joint.draw(votes, LOGGED)
    assert joint.shortlist(draws, [0, 1, 2], 0.8) == 2
    assert joint.shortlist(draws, [0, 1, 2], 0.4) == 1
    assert joint.shortlist(draws, [2, 0, 1], 0.4) == 2
