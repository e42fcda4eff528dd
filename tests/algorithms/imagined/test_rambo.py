"""RAMBO: the adversary's gradient, and what it does to a model."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import rollout_models as linear
import transition_rows

from offline_mbrl.algorithms.imagined import rambo
from offline_mbrl.data import memory
from offline_mbrl.learners import sac
from offline_mbrl.learners.parts import actor_critic
from offline_mbrl.models import gaussian_ensemble
from offline_mbrl.rollouts.imagination import ImaginationConfig
from offline_mbrl.types import Context, Learner, ModelParams, Prediction

ADVANTAGE = jnp.array([1.0, -1.0, 3.0, -3.0])


def test_the_gradient_moves_the_mean_away_from_what_is_better_than_average():
    x = jnp.array([1.0, 2.0, 3.0, 4.0])
    std = 2.0

    def loss(mean):
        log_prob = -0.5 * ((x - mean) / std) ** 2
        return rambo.adversary_loss(ADVANTAGE, log_prob)

    scaled = ADVANTAGE / jnp.std(ADVANTAGE)
    expected = jnp.mean(scaled * (x - 0.5) / std**2)
    np.testing.assert_allclose(jax.grad(loss)(0.5), expected, rtol=1e-5)


def test_advantages_carry_no_gradient_and_no_scale():
    log_prob = jnp.array([0.1, 0.2, 0.3, 0.4])
    gradient = jax.grad(lambda advantage: rambo.adversary_loss(advantage, log_prob))(ADVANTAGE)
    np.testing.assert_array_equal(gradient, 0)
    np.testing.assert_allclose(
        rambo.adversary_loss(100 * ADVANTAGE + 7, log_prob),
        rambo.adversary_loss(ADVANTAGE, log_prob),
        rtol=1e-5,
    )


# --- a model of one number, `s' = m + STD eps`, and critics for which more of it is better ---

STD = 0.5
DATA_MEAN = 1.0
KEY = jax.random.key(0)


class Still(NamedTuple):
    """The action 0."""

    def mode(self):
        return jnp.zeros(1)

    def sample_and_log_prob(self, *, seed):
        del seed
        return jnp.zeros(1), jnp.zeros(())


def shifted():
    """The model; its loss pulls `m` to the mean of the data's next observations."""

    def step(params, state, action, key):
        del state, action
        following = params.network["mean"] + STD * jax.random.normal(key, (1,))
        return following, Prediction(
            observation=following, reward=jnp.zeros(()), discount=jnp.ones(())
        )

    def log_prob(params, observation, action, next_observation, reward):
        del observation, action, reward
        return -0.5 * ((next_observation - params.network["mean"]) / STD)[None] ** 2

    def loss(params, rows, key):
        del key
        return jnp.mean((rows.next_observation[..., 0] - params.network["mean"][0]) ** 2), {}

    return linear.model()._replace(step=step, log_prob=log_prob, loss=loss)


NETWORKS = actor_critic.Networks(
    init_actor=lambda key: jnp.zeros(1),
    policy=lambda params, state: Still(),
    init_critics=lambda key: jnp.zeros(2),
    critics=lambda params, states, actions: params[:, None] + states[None, :, 0],
)
FITTED = ModelParams(
    network={"mean": jnp.full(1, DATA_MEAN)},
    statistics=linear.statistics(1, 1, 1e9),
    elites=jnp.arange(1),
)


def rows(size=50):
    """Steps from 0 to `DATA_MEAN`."""
    return memory.Dataset.from_arrays(
        {
            "observation": np.zeros((size, 1)),
            "action": np.zeros((size, 1)),
            "reward": np.zeros(size),
            "next_observation": np.full((size, 1), DATA_MEAN),
            "is_terminal": np.zeros(size, bool),
            "is_truncated": np.ones(size, bool),
        }
    )


def adversary_of(coef):
    optimizer = optax.adam(0.02)
    config = rambo.Config(
        adversary_coef=coef,
        adversary_updates=400,
        policy=sac.Config(gamma=0.9),
        dynamics=gaussian_ensemble.Config(num_members=1),
        imagination=ImaginationConfig(horizon=1),
    )
    return rambo.Adversary(config=config, model=shifted(), networks=NETWORKS, optimizer=optimizer)


@functools.cache
def policy_state():
    method = actor_critic.Method(
        networks=NETWORKS,
        backup=lambda *_: None,
        actor_objective=lambda *_: None,
        actor_optimizer=optax.identity(),
        critic_optimizer=optax.identity(),
        follow=actor_critic.polyak(0.1),
        temperature=actor_critic.Temperature(initial=0.0),
    )
    return actor_critic.make(method, lambda *_: None).init(KEY, None, Context())


@pytest.mark.parametrize("coef", [0.0, 0.4])
def test_the_model_settles_where_its_fear_and_the_data_balance(coef):
    """A value that rises with `s'` has the standardized advantage eps, and `coef E[eps d log p/dm]`
    is `coef / STD`, against the slope `2 (m - DATA_MEAN)` of the loss on the data."""
    adversary = adversary_of(coef)
    state = rambo.State(
        learner=policy_state(),
        network=FITTED.network,
        opt_state=adversary.optimizer.init(FITTED.network),
    )
    run = jax.jit(functools.partial(rambo.oppose, adversary))
    after, metrics = run(state, FITTED, rows(), KEY)
    expected = DATA_MEAN - coef / (2 * STD)
    np.testing.assert_allclose(after.network["mean"], expected, atol=0.05)
    assert set(metrics) == {"adversary/loss", "adversary/model_loss"}
    jax.tree.map(np.testing.assert_array_equal, after.learner, state.learner)


def test_policies_are_refreshed_in_the_opposed_model_with_the_fitted_statistics():
    def refresh(state, context, dataset, cache, update, key):
        del dataset, cache, update, key
        return state, context.upstream["model"], {}

    plain = Learner(
        sample=lambda dataset, cache, key: dataset,
        init=lambda key, example, context: policy_state(),
        step=lambda state, context, batch, key: (state, {}),
        policy=None,
        policy_params=lambda state, context: state.actor,
        refresh=refresh,
    )
    learner = rambo.with_adversary(plain, adversary_of(0.4))
    context = Context(upstream={"model": FITTED})
    state = learner.init(KEY, None, context)
    np.testing.assert_array_equal(state.network["mean"], DATA_MEAN)
    run = jax.jit(learner.refresh)
    after, model, metrics = run(state, context, rows(), None, jnp.int32(0), KEY)
    assert "adversary/loss" in metrics
    np.testing.assert_array_equal(model.network["mean"], after.network["mean"])
    assert after.network["mean"] < DATA_MEAN - 0.3
    jax.tree.map(np.testing.assert_array_equal, model[1:], FITTED[1:])


def test_without_a_weight_there_is_no_adversary():
    learner = rambo.make(rambo.Config(adversary_coef=0.0), transition_rows.SPEC)
    example = transition_rows.batch()
    context = Context(upstream={"model": FITTED})
    state = jax.eval_shape(lambda key: learner.init(key, example, context), KEY)
    assert isinstance(state, actor_critic.State)
