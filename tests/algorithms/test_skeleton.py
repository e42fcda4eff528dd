"""The skeleton's own equations in closed form."""

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.algorithms import skeleton
from offline_mbrl.types import BoundedActions, EnvironmentSpec, Transition

SPEC = EnvironmentSpec(jax.ShapeDtypeStruct((3,), jnp.float32), BoundedActions((-1.0, -1.0), (1.0, 1.0)))
STEP = Transition(jnp.full(3, 0.5), jnp.array([0.5, -0.5]), jnp.float32(2.0), jnp.float32(1.0), jnp.full(3, 0.5))


def test_the_reward_loss_is_the_squared_error():
    np.testing.assert_allclose(skeleton.reward_loss(jnp.float32(0.5), STEP), 2.25)


def test_the_policy_loss_trades_the_models_reward_for_the_distance_to_the_data():
    loss = skeleton.policy_loss(jnp.float32(3.0), jnp.array([0.0, 0.5]), STEP, behavior_coef=0.1)
    np.testing.assert_allclose(loss, -3.0 + 0.1 * (0.25 + 1.0), rtol=1e-6)


def test_the_policy_climbs_the_reward_model_that_it_is_given():
    config = skeleton.Config(hidden_layers=(32,), behavior_coef=0.0, learning_rate=1e-2, batch_size=4)
    model = skeleton.pretrain(config, SPEC)["model"].init(jax.random.key(0), None, (), ()).params
    learner = skeleton.make(config, SPEC)
    state = learner.init(jax.random.key(1), None, (), {"model": model})
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), STEP)
    predicted = lambda state: skeleton.predict_reward(  # noqa: E731
        config, model, STEP.observation, learner.policy.mode(state.params, STEP.observation)
    )
    before, step = predicted(state), jax.jit(learner.step)
    for _ in range(50):
        state, _ = step(state, batch, jax.random.key(2))
    assert float(predicted(state)) > float(before) + 0.01
    jax.tree.map(np.testing.assert_array_equal, state.model, model)
