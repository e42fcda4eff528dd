"""The core of actor-critic learning: its periods, its targets, and methods put together from it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from offline_mbrl.data import memory
from offline_mbrl.learners import sac
from offline_mbrl.learners.parts import actor_critic
from offline_mbrl.learners.parts.actor_critic import ActorLoss
from offline_mbrl.problems import toy
from offline_mbrl.training import fit
from offline_mbrl.types import BoundedActions, Context, EnvironmentSpec, Transition

SPEC = EnvironmentSpec(
    observation=jax.ShapeDtypeStruct((3,), jnp.float32),
    action=BoundedActions((-1.0,) * 2, (1.0,) * 2),
)
CONFIG = sac.Config(actor_layers=(8,), critic_layers=(8,), batch_size=6)
KEY = jax.random.key(0)


def example(size: int = 6) -> Transition:
    generator = np.random.default_rng(0)

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(generator.uniform(-1, 1, (size, *shape)), jnp.float32)

    return Transition(
        observation=draw(3),
        action=draw(2),
        reward=draw(),
        discount=jnp.ones(size),
        next_observation=draw(3),
    )


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def updates(method: actor_critic.Method, count: int) -> list[actor_critic.State]:
    """States before the first update and after each."""
    learner = actor_critic.make(method, memory.Transitions(6))
    batch = example()
    states = [learner.init(KEY, batch, Context())]
    step = jax.jit(learner.step)
    for index in range(count):
        states.append(step(states[-1], Context(), batch, jax.random.key(index))[0])
    return states


# --- equations ---


def test_each_critic_has_its_own_squared_error():
    value, gradient = jax.value_and_grad(actor_critic.critic_loss)(
        jnp.array([3.0, 0.0]), jnp.float32(1.0)
    )
    np.testing.assert_allclose(value, 0.5 * (4.0 + 1.0))
    np.testing.assert_allclose(gradient, [2.0, -1.0])


def test_critics_may_have_targets_of_their_own():
    loss = actor_critic.critic_loss(jnp.array([3.0, 0.0]), jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(loss, 0.5 * (4.0 + 4.0))


@pytest.mark.parametrize(("entropy", "sign"), [(1.5, 1.0), (2.5, -1.0)])
def test_the_temperature_falls_while_there_is_more_entropy_than_the_target(entropy, sign):
    loss = functools.partial(
        actor_critic.temperature_loss, log_prob=jnp.float32(-entropy), target_entropy=2.0
    )
    assert np.sign(jax.grad(loss)(jnp.float32(0.3))) == -sign


# --- targets and periods ---


def test_polyak_targets_take_tau_of_the_online_parameters_at_their_period():
    follow = actor_critic.polyak(0.25, period=2)
    np.testing.assert_allclose(follow(jnp.ones(1), jnp.zeros(1), jnp.int32(1)), 0.0)
    np.testing.assert_allclose(follow(jnp.ones(1), jnp.zeros(1), jnp.int32(2)), 0.25)
    np.testing.assert_allclose(
        actor_critic.polyak(0.25)(jnp.ones(1), jnp.zeros(1), jnp.int32(1)), 0.25
    )


def test_periodic_targets_are_copied_at_their_period():
    follow = actor_critic.periodic(3)
    copies = [float(follow(jnp.ones(()), jnp.zeros(()), jnp.int32(n))) for n in (1, 2, 3, 4, 6)]
    assert copies == [0.0, 0.0, 1.0, 0.0, 1.0]


def test_the_actor_and_its_temperature_rest_between_two_of_their_updates():
    method = sac.method(CONFIG, SPEC)._replace(actor_period=2)
    start, first, second = updates(method, 2)
    resting = ("actor", "actor_opt_state", "log_temperature", "temperature_opt_state")
    for name in resting:
        assert_equal(getattr(first, name), getattr(start, name))
    assert second.log_temperature != first.log_temperature
    kernel = [state.critic["layer_0"]["kernel"] for state in (start, first, second)]
    assert not np.array_equal(kernel[0], kernel[1])
    assert not np.array_equal(kernel[1], kernel[2])


def test_an_actor_whose_period_is_one_is_updated_by_the_same_losses():
    start, period_two = updates(sac.method(CONFIG, SPEC)._replace(actor_period=2), 1)
    _, period_one = updates(sac.method(CONFIG, SPEC), 1)
    assert_equal(period_one.critic, period_two.critic)
    assert not np.array_equal(period_one.log_temperature, start.log_temperature)


def test_held_out_losses_are_those_of_an_update_and_change_nothing():
    learner = sac.make(CONFIG, SPEC)
    batch = example()
    state = learner.init(KEY, batch, Context())
    _, metrics = jax.jit(learner.step)(state, Context(), batch, jax.random.key(3))
    held_out = jax.jit(learner.validate)(state, Context(), batch, jax.random.key(3))
    assert held_out.keys() == metrics.keys()
    for name, value in metrics.items():
        np.testing.assert_allclose(held_out[name], value, rtol=1e-5)


# --- other methods put together from the core ---


def td3_bc_objective(agent, context, batch, key):
    """The deterministic actor of TD3+BC, held near the data (arXiv:2106.06860, equation 5)."""
    action = jax.vmap(lambda observation: agent.policy(observation).mode())(batch.observation)
    q = agent.critics(batch.observation, action)[0]
    scale = 2.5 / jax.lax.stop_gradient(jnp.mean(jnp.abs(q)))
    distance = jnp.mean(jnp.sum(jnp.square(action - batch.action), axis=1))
    return ActorLoss(loss=distance - scale * jnp.mean(q), metrics={"distance": distance})


def td3_backup(agent, context, batch, key):
    """Clipped double Q at a smoothed action of the target actor."""
    action = jax.vmap(lambda observation: agent.target_policy(observation).mode())(
        batch.next_observation
    )
    noise = jnp.clip(0.2 * jax.random.normal(key, action.shape), -0.5, 0.5)
    next_q = agent.target_critics(batch.next_observation, jnp.clip(action + noise, -1.0, 1.0))
    return batch.reward + 0.9 * batch.discount * jnp.min(next_q, axis=0)


def conservatism(agent, context, batch, key):
    """CQL's term with actions of the policy alone: `log sum exp Q(s, .) - Q(s, a)`."""
    keys = jax.random.split(key, 4)
    sample = functools.partial(actor_critic.sample_actions, agent.policy, batch.observation)
    actions, log_probs = jax.vmap(sample)(keys)
    q = jax.vmap(agent.critics, (None, 0))(batch.observation, actions)  # [4, N, B]
    soft_maximum = jax.nn.logsumexp(q - log_probs[:, None], axis=0)
    gap = jnp.mean(soft_maximum - agent.critics(batch.observation, batch.action))
    return 5.0 * gap, {"gap": gap}


def test_td3_bc_is_an_objective_a_backup_and_two_periods():
    problem = toy.bandit(0)
    rates = {"actor_learning_rate": 1e-3, "critic_learning_rate": 1e-3}
    config = sac.Config(actor_layers=(16,), critic_layers=(16,), fixed_temperature=0.0, **rates)
    method = sac.method(config, problem.spec)._replace(
        backup=td3_backup,
        actor_objective=td3_bc_objective,
        actor_period=2,
        follow=actor_critic.polyak(0.005, period=2),
        follow_actor=actor_critic.polyak(0.005, period=2),
    )
    learner = actor_critic.make(method, memory.Transitions(32))
    result = fit.fit(learner, problem.dataset, key=KEY, num_updates=2_000, block_updates=1_000)
    state = result.state.learner
    assert int(state.num_updates) == 2_000
    assert problem.score(learner.policy, state.actor) > 0.8


def test_cql_is_a_regularizer_that_draws_actions_of_the_policy():
    plain = sac.method(CONFIG, SPEC)
    conservative = plain._replace(critic_regularizer=conservatism)
    batch = example()
    steps = [
        jax.jit(actor_critic.make(method, memory.Transitions(6)).step)
        for method in (plain, conservative)
    ]
    state = actor_critic.make(plain, memory.Transitions(6)).init(KEY, batch, Context())
    (after_plain, metrics), (after, more) = (step(state, Context(), batch, KEY) for step in steps)
    np.testing.assert_allclose(more["loss/regularizer"], 5.0 * more["gap"], rtol=1e-6)
    np.testing.assert_allclose(
        more["loss/critic"], metrics["loss/critic"] + more["loss/regularizer"], rtol=1e-6
    )
    other = steps[1](state, Context(), batch, jax.random.key(1))[1]
    assert other["gap"] != more["gap"]
    kernels = [x.critic["layer_0"]["kernel"] for x in (after_plain, after)]
    assert not np.array_equal(*kernels)
    assert_equal(after.actor, after_plain.actor)


def test_critics_with_a_second_optimizer_are_a_composition_of_transformations():
    """A value network among the critics' parameters can have a rate of its own."""
    method = sac.method(CONFIG, SPEC)
    labels = {"layer_0": "frozen", "layer_1": "learned"}
    optimizer = optax.multi_transform(
        {"frozen": optax.set_to_zero(), "learned": optax.adam(1e-3)}, labels
    )
    start, after = updates(method._replace(critic_optimizer=optimizer), 1)
    assert_equal(start.critic["layer_0"], after.critic["layer_0"])
    assert not np.array_equal(start.critic["layer_1"]["kernel"], after.critic["layer_1"]["kernel"])
