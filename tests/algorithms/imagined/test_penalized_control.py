"""Penalties on a linear-quadratic problem, whose values and optima have closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from offline_mbrl.data.memory import Dataset
from offline_mbrl.learners import sac
from offline_mbrl.problems import linear_quadratic as lq
from offline_mbrl.rollouts import imagination, pessimism, unroll
from offline_mbrl.rollouts.imagination import ImaginationConfig
from offline_mbrl.rollouts.pessimism import Penalty
from offline_mbrl.training import fit
from offline_mbrl.types import BoundedActions, Context, DynamicsModel, EnvironmentSpec, Prediction

KEY = jax.random.key(0)
BEHAVIOR = lq.BEHAVIOR_GAIN * lq.optimal_gain()
GAIN = 0.6 * lq.optimal_gain()
COEFS = [0.0, 0.5, 2.0, 8.0, 100.0]


def known_model(step):
    """A model of `step(params, state, action) -> (following state, reward, discount)`."""

    def unused(*arguments):
        raise NotImplementedError

    def predict(params, state, action, key):
        following, reward, discount = step(params, state, action)
        return following, Prediction(following, reward, jnp.float32(discount))

    return DynamicsModel(
        init=unused,
        loss=unused,
        log_prob=unused,
        reset=lambda params, observation, key: observation,
        step=predict,
        member=unused,
    )


def control(params, state, action):
    reward = -jnp.sum(state**2) - jnp.sum(action**2)
    return params["A"] @ state + params["B"] @ action, reward, 1.0


PERFECT = {"A": jnp.asarray(lq.DYNAMICS, jnp.float32), "B": jnp.asarray(lq.DRIVE, jnp.float32)}
# Damps what the true dynamics do not: it promises too much.
OPTIMISTIC = PERFECT | {"A": 0.9 * PERFECT["A"]}


def distance_to_behavior(params, observation, action, prediction):
    return jnp.sum((action - jnp.asarray(BEHAVIOR, jnp.float32) @ observation) ** 2)


def value_in(model_params, penalty, coef, gain=GAIN, start=(0.5, -0.4)):
    """The penalized discounted return of a linear controller, by a rollout."""
    rollout = unroll.returns(
        known_model(control),
        lq.controller(),
        gamma=lq.GAMMA,
        horizon=300,
        adjust=pessimism.subtract(penalty, coef),
    )
    params = {"gain": jnp.asarray(gain, jnp.float32)}
    return rollout(model_params, params, jnp.asarray(start), KEY).value


values_in = jax.jit(
    jax.vmap(value_in, (None, None, 0, None, 0)),
    static_argnums=1,
)


def penalized_cost(gain, coef):
    """P of the penalized return `-s P s`: a discounted Lyapunov equation."""
    closed = lq.GAMMA**0.5 * (lq.DYNAMICS + lq.DRIVE @ gain)
    away = gain - BEHAVIOR
    stage = np.eye(2) + gain.T @ gain + coef * away.T @ away
    return scipy.linalg.solve_discrete_lyapunov(closed.T, stage)


def penalized_optimum(coef):
    """The best gain for `s^2 + a^2 + coef (a - K s)^2`, K the behavior's: a Riccati equation."""
    root = lq.GAMMA**0.5
    state_cost = np.eye(2) + coef * BEHAVIOR.T @ BEHAVIOR
    action_cost = np.array([[1.0 + coef]])
    cross = -coef * BEHAVIOR.T
    dynamics, drive = root * lq.DYNAMICS, root * lq.DRIVE
    cost = scipy.linalg.solve_discrete_are(dynamics, drive, state_cost, action_cost, s=cross)
    return -np.linalg.solve(
        action_cost + drive.T @ cost @ drive, drive.T @ cost @ dynamics + cross.T
    )


def test_the_penalized_value_has_its_closed_form_and_lies_below_the_true_one():
    penalty = Penalty(distance_to_behavior, needs_members=False)
    starts = np.tile(np.array([0.5, -0.4]), (len(COEFS), 1)).astype(np.float32)
    values = values_in(PERFECT, penalty, jnp.asarray(COEFS), GAIN, starts)
    expected = [-starts[0] @ penalized_cost(GAIN, coef) @ starts[0] for coef in COEFS]
    np.testing.assert_allclose(values, expected, rtol=1e-4)
    true = -starts[0] @ lq.cost_of(GAIN) @ starts[0]
    np.testing.assert_allclose(values[0], true, rtol=1e-4)
    assert np.all(np.diff(values) < 0)


def test_the_penalized_optimum_moves_to_the_data_as_the_weight_grows():
    penalty = Penalty(distance_to_behavior, needs_members=False)
    slope = jax.jit(jax.grad(lambda gain, coef: value_in(PERFECT, penalty, coef, gain)))
    distances = []
    for coef in COEFS:
        optimum = penalized_optimum(coef)
        distances.append(np.linalg.norm(optimum - BEHAVIOR))
        at_optimum, elsewhere = (
            np.abs(slope(jnp.asarray(gain, jnp.float32), coef)).max()
            for gain in (optimum, optimum + 0.05)
        )
        assert at_optimum < 1e-3 < 0.01 < elsewhere
    np.testing.assert_allclose(penalized_optimum(0.0), lq.optimal_gain(), rtol=1e-6)
    assert np.all(np.diff(distances) < 0)
    assert distances[-1] < 0.05 * distances[0]


# --- a wrong model: MOPO's lemma (arXiv:2005.13239, lemma 4.1) ---


def _gap(params, observation, action, prediction):
    """`V(predicted) - V(true next state)`, V the true value of the controller."""
    cost = jnp.asarray(lq.cost_of(GAIN), jnp.float32)
    true, _, _ = control(PERFECT, observation, action)
    following = prediction.observation
    return true @ cost @ true - following @ cost @ following


GAP = Penalty(_gap, needs_members=False)
ABSOLUTE_GAP = Penalty(lambda *step: jnp.abs(_gap(*step)), needs_members=False)


def test_a_wrong_models_value_minus_its_gaps_is_the_true_value():
    starts = lq.starts().astype(np.float32)
    coefs = jnp.full(len(starts), lq.GAMMA)
    values = values_in(OPTIMISTIC, GAP, coefs, GAIN, starts)
    true = -np.sum(starts @ lq.cost_of(GAIN) * starts, axis=1)
    np.testing.assert_allclose(values, true, rtol=1e-4, atol=1e-5)
    promised = values_in(OPTIMISTIC, GAP, 0 * coefs, GAIN, starts)
    assert np.mean(promised - true) > 0.1


@pytest.mark.parametrize("factor", [1.0, 2.0, 10.0])
def test_with_a_penalty_above_the_gaps_no_start_is_promised_too_much(factor):
    starts = lq.starts().astype(np.float32)
    true = -np.sum(starts @ lq.cost_of(GAIN) * starts, axis=1)
    coefs = jnp.full(len(starts), factor * lq.GAMMA)
    assert np.all(values_in(OPTIMISTIC, ABSOLUTE_GAP, coefs, GAIN, starts) <= true + 1e-5)


# --- learned ---


def target(params, state, action):
    """One step: the best action is the state itself."""
    return state, -jnp.sum((action - state) ** 2), 0.0


def near_zero(params, observation, action, prediction):
    return jnp.sum(action**2)


@functools.cache
def actions_near_zero():
    """Data that act around 0; their rewards say nothing of other actions."""
    generator = np.random.default_rng(0)
    return Dataset.from_arrays(
        {
            "observation": generator.uniform(-1, 1, (500, 1)),
            "action": 0.1 * generator.normal(size=(500, 1)),
            "reward": np.zeros(500),
            "is_terminal": np.ones(500, bool),
        }
    )


def test_a_learned_policy_ends_where_reward_and_penalty_balance():
    """`-(a - s)^2 - coef a^2` is largest at `s / (1 + coef)`; three weights are learned at once."""
    spec = EnvironmentSpec(jax.ShapeDtypeStruct((1,), jnp.float32), BoundedActions((-1.0,), (1.0,)))
    rates = {"actor_learning_rate": 1e-2, "critic_learning_rate": 1e-2}
    own = sac.make(
        sac.Config(
            batch_size=64,
            gamma=0.0,
            actor_layers=(16,),
            critic_layers=(32, 32),
            fixed_temperature=0.002,
            **rates,
        ),
        spec,
    )
    penalty = Penalty(near_zero, needs_members=False)
    imagine = imagination.by_rollout(
        known_model(target),
        own.policy,
        horizon=1,
        adjust=lambda context: pessimism.subtract(penalty, context.upstream["coef"]),
    )
    config = ImaginationConfig(num_starts=128, horizon=1, every=5, retain=20, real_fraction=0.0)
    learner = imagination.with_imagination(own, imagine, config)
    coefs = jnp.array([0.0, 1.0, 9.0])
    context = Context(upstream={"model": jnp.zeros(3), "coef": coefs})
    result = fit.fit(
        learner,
        actions_near_zero(),
        key=KEY,
        num_updates=1_000,
        seeds=[0, 1, 2],
        block_updates=1_000,
        context=context,
    )
    params = fit.policy_params(learner, result.state, context)
    states = np.linspace(-0.9, 0.9, 7, dtype=np.float32)[:, None]
    modes = jax.vmap(jax.vmap(own.policy.mode, (None, 0)), (0, None))(params, states)
    expected = states[:, 0] / (1 + np.asarray(coefs)[:, None])
    np.testing.assert_allclose(modes[..., 0], expected, atol=0.15)
    assert np.all(np.abs(modes[0, [0, -1], 0]) > 1.5 * np.abs(modes[1, [0, -1], 0]))
