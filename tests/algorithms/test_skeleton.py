"""The skeleton's own equations in closed form."""

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.algorithms import skeleton
from offline_mbrl.types import BoundedActions, Context, EnvironmentSpec, Transition

SPEC = EnvironmentSpec(
    observation=jax.ShapeDtypeStruct((3,), jnp.float32),
    action=BoundedActions((-1.0, -1.0), (1.0, 1.0)),
)
STEP = Transition(
    observation=jnp.full(3, 0.5),
    action=jnp.array([0.5, -0.5]),
    reward=jnp.float32(2.0),
    discount=jnp.float32(1.0),
    next_observation=jnp.full(3, 0.5),
)


def test_the_reward_loss_is_the_squared_error():
    np.testing.assert_allclose(skeleton.reward_loss(jnp.float32(0.5), STEP), 2.25)


def test_the_policy_loss_trades_the_models_reward_for_the_distance_to_the_data():
    loss = skeleton.policy_loss(jnp.float32(3.0), jnp.array([0.0, 0.5]), STEP, behavior_coef=0.1)
    np.testing.assert_allclose(loss, -3.0 + 0.1 * (0.25 + 1.0), rtol=1e-6)


def test_the_policy_climbs_the_reward_model_of_the_first_stage():
    config = skeleton.Config(
        hidden_layers=(32,), behavior_coef=0.0, learning_rate=1e-2, batch_size=4
    )
    stage = skeleton.pretrain(config, SPEC)["model"]
    model = stage.learner.init(jax.random.key(0), None, Context()).params
    context = Context(upstream={"model": model})
    learner = skeleton.make(config, SPEC)
    state = learner.init(jax.random.key(1), None, context)
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), STEP)

    def predicted(state):
        action = learner.policy.mode(state.params, STEP.observation)
        return float(skeleton.predict_reward(config, model, STEP.observation, action))

    before = predicted(state)
    step = jax.jit(learner.step)
    for _ in range(50):
        state, _ = step(state, context, batch, jax.random.key(2))
    assert predicted(state) > before + 0.01
