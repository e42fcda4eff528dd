"""Log ratios of logged actions, and what estimators of whole episodes refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from logged_examples import batch_of, logged, ratios_of

from offline_mbrl.ope.weights import checks, doubly_robust, importance, magic
from offline_mbrl.problems import known
from offline_mbrl.types import Policy, UsageError


@functools.partial(jax.jit, static_argnames="gamma")
def estimates(batch, log_ratios, gamma=0.9):
    return {
        "weighted_per_decision": importance.weighted_per_decision(batch, log_ratios, gamma=gamma)
    }


def test_log_ratios_are_differences_of_densities_and_zero_past_the_end():
    problem, batch = logged(known.tabular, num_episodes=200, terminal=True)
    params = problem.target_params[0]
    state, tables = batch.observation[:, :-1].argmax(axis=-1), (params, problem.behavior_params)
    target, behavior = (
        scipy.special.log_softmax(table["logits"], axis=1)[state, batch.action] for table in tables
    )
    log_ratios = ratios_of(problem.policy)(params, batch)
    np.testing.assert_allclose(log_ratios, batch.mask * (target - behavior), atol=1e-5)
    assert (np.asarray(log_ratios)[batch.mask == 0] == 0).all()


def test_a_cloned_behavior_takes_the_place_of_logged_densities():
    problem, batch = logged(known.linear_gaussian, num_episodes=200, horizon=10)
    cloned = jax.jit(functools.partial(importance.log_probs, problem.policy))(
        problem.behavior_params, batch
    )
    np.testing.assert_allclose(cloned, batch.extras["behavior_log_prob"], atol=1e-4)
    params = problem.target_params[0]
    np.testing.assert_allclose(
        importance.log_ratios(problem.policy, params, batch, cloned),
        ratios_of(problem.policy)(params, batch),
        atol=1e-4,
    )


def test_many_policies_are_one_call():
    problem, batch = logged(known.tabular, num_episodes=200)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *problem.target_params)
    log_ratios = jax.jit(
        jax.vmap(
            lambda params: importance.log_ratios(
                problem.policy, params, batch, batch.extras["behavior_log_prob"]
            )
        )
    )(stacked)
    together = jax.jit(
        jax.vmap(functools.partial(importance.weighted_per_decision, batch, gamma=0.9))
    )(log_ratios)
    apart = [estimates(batch, one)["weighted_per_decision"].value for one in log_ratios]
    np.testing.assert_allclose(together.value, apart, rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_undefined_log_ratios_are_refused_where_they_count(bad):
    batch = batch_of(np.ones((3, 2)), mask=[[1, 1], [1, 0], [1, 1]])
    log_ratios = np.zeros((3, 2), np.float32)
    log_ratios[1, 1] = bad  # past the end
    assert checks.checked_log_ratios(log_ratios, batch)[1, 1] == 0
    log_ratios[2, 1] = bad
    with pytest.raises(UsageError, match=f"episode 2, step 1 is {bad}"):
        importance.weighted(batch, log_ratios, gamma=0.9)


def test_wrong_shapes_single_episodes_and_policies_without_a_density_are_refused():
    batch = batch_of(np.ones((3, 2)))
    with pytest.raises(
        UsageError, match=r"log_ratios has shape \(3, 3\), but the trajectories' rewards \(3, 2\)"
    ):
        importance.weighted(batch, np.zeros((3, 3)), gamma=0.9)
    with pytest.raises(UsageError, match="at least 2 episodes, got 1"):
        importance.weighted(jax.tree.map(lambda leaf: leaf[:1], batch), np.zeros((1, 2)), gamma=0.9)
    with pytest.raises(UsageError, match=r"policy\.log_prob is None"):
        importance.log_probs(Policy(lambda *_: 0, lambda *_: 0), (), batch)
    problem, batch = logged(known.tabular, num_episodes=200)
    with pytest.raises(UsageError, match="behavior_log_prob has shape"):
        importance.log_ratios(problem.policy, problem.behavior_params, batch, np.zeros(3))


@pytest.mark.parametrize(
    ("log_prob", "message"),
    [
        (
            lambda params, observation, action: action,
            r"log_prob has shape \(1,\) for one action.*sum it",
        ),
        (
            lambda params, observation, action: action @ jnp.ones(3),
            r"log_prob fails on one observation and action of",
        ),
    ],
)
def test_a_density_that_is_not_one_number_is_refused(log_prob, message):
    problem, batch = logged(known.linear_gaussian, num_episodes=20, horizon=10)
    with pytest.raises(UsageError, match=message):
        importance.log_probs(problem.policy._replace(log_prob=log_prob), (), batch)


def test_a_trajectory_without_an_axis_of_episodes_is_refused():
    problem, batch = logged(known.tabular, num_episodes=200)
    one = jax.tree.map(lambda leaf: leaf[0], batch)
    with pytest.raises(
        UsageError, match=r"several episodes \[N, T, \.\.\.\], but their rewards have shape \(10,\)"
    ):
        importance.log_ratios(
            problem.policy, problem.behavior_params, one, one.extras["behavior_log_prob"]
        )
    with pytest.raises(UsageError, match="several episodes"):
        importance.weighted(one, np.zeros(10), gamma=0.9)


@pytest.mark.parametrize("gamma", [-0.5, 1.5])
def test_discount_factors_that_make_no_sense_are_refused(gamma):
    batch, zeros = batch_of(np.ones((3, 2))), np.zeros((3, 2))
    for estimate in (importance.weighted, importance.ordinary):
        with pytest.raises(UsageError, match=r"gamma must be in \[0, 1\]"):
            estimate(batch, zeros, gamma=gamma)
    for estimate in (doubly_robust.doubly_robust, magic.magic):
        with pytest.raises(UsageError, match=r"gamma must be in \[0, 1\]"):
            estimate(batch, zeros, zeros, np.zeros((3, 3)), gamma=gamma)
