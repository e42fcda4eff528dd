"""Flow Q-learning: closed forms of its losses, and which part each of them moves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transition_rows import SIZES, SPEC, batch, differs

from offline_mbrl.learners import fql
from offline_mbrl.learners.parts import actor_critic
from offline_mbrl.learners.parts.networks import Network
from offline_mbrl.networks.flow import Flow
from offline_mbrl.types import Context, DiscreteActions, UsageError

KEY = jax.random.key(1)
CONFIG = fql.Config(**SIZES, num_flow_steps=2, alpha=3.0)


@functools.cache
def started():
    """A method, its learner, and its first state."""
    learner = fql.make(CONFIG, SPEC)
    return fql.method(CONFIG, SPEC), learner, learner.init(jax.random.key(0), None, Context())


def gradient(state, **changes):
    """The gradient of the actor's objective by the flow's and the one-step policy's parameters."""
    method = fql.method(fql.Config(**SIZES, num_flow_steps=2, **{"alpha": 3.0, **changes}), SPEC)

    @jax.jit
    def compute(state):
        def loss(actor):
            agent = actor_critic.agent_of(method.networks, state._replace(actor=actor))
            return method.actor_objective(agent, Context(), batch(), KEY).loss

        return jax.grad(loss)(state.actor)

    return compute(state)


def test_the_actors_loss_is_the_sum_of_its_three_parts():
    loss = fql.actor_loss(jnp.float32(0.5), jnp.float32(0.2), jnp.array([1.0, 3.0]), alpha=10.0)
    np.testing.assert_allclose(loss, 0.5 + 10.0 * 0.2 - 2.0)


def test_distillation_moves_the_one_step_policy_alone():
    action = jnp.array([0.5, -0.5])
    end = jnp.array([0.1, 0.3])
    np.testing.assert_allclose(fql.distillation_loss(action, end), (0.16 + 0.64) / 2.0, rtol=1e-6)
    by_action, by_end = jax.grad(fql.distillation_loss, (0, 1))(action, end)
    np.testing.assert_allclose(by_action, action - end, rtol=1e-6)
    np.testing.assert_array_equal(by_end, jnp.zeros(2))


def test_the_flow_learns_from_the_data_alone():
    """Neither the critics nor the distillation reach it."""
    _, _, state = started()
    usual = gradient(state)
    larger = state._replace(critic=jax.tree.map(lambda leaf: 10.0 * leaf, state.critic))
    changed = gradient(larger)
    distilled = gradient(state, alpha=30.0)
    for other in (changed, distilled):
        assert not differs(usual["flow"], other["flow"])
        assert differs(usual["one_step"], other["one_step"])


def objective_of(one_step, *, factor=0.1):
    """The objective for a field whose single step scales the noise by a factor."""

    def velocity(params, condition, point, time):
        return (factor - 1.0) * point

    return fql.objective(
        Flow(init=lambda key: {}, velocity=velocity),
        Network(init=lambda key: {}, apply=one_step),
        alpha=1.0,
        num_steps=1,
        normalize_values=False,
    )


@pytest.mark.parametrize("factor", [0.1, 20.0])
def test_the_one_step_policy_is_held_to_the_clipped_action_of_the_same_noise(factor):
    def one_step(params, observation, noise):
        return jnp.clip(factor * noise, -1.0, 1.0)

    method, _, state = started()
    agent = actor_critic.agent_of(method.networks, state)
    loss = objective_of(one_step, factor=factor)(agent, Context(), batch(), KEY)
    np.testing.assert_allclose(loss.metrics["loss/distillation"], 0.0, atol=1e-10)


def test_critics_see_clipped_actions_and_the_distillation_does_not():
    method, _, state = started()

    def largest(observations, actions):
        return jnp.max(jnp.abs(actions), axis=1)[None]

    agent = actor_critic.agent_of(method.networks, state)._replace(critics=largest)
    objective = objective_of(lambda params, observation, noise: 0.0 * noise + 5.0)
    loss = objective(agent, Context(), batch(), KEY)
    parts = loss.metrics["loss/flow"] + loss.metrics["loss/distillation"]
    np.testing.assert_allclose(parts - loss.loss, 1.0, rtol=1e-4)
    assert float(loss.metrics["loss/distillation"]) > 4.0**2


def test_normalized_values_do_not_depend_on_the_scale_of_the_critics():
    _, _, state = started()

    def scaled(factor):
        def scale(path, leaf):
            return factor * leaf if "layer_1" in jax.tree_util.keystr(path) else leaf

        return state._replace(critic=jax.tree_util.tree_map_with_path(scale, state.critic))

    usual = gradient(scaled(1.0), normalize_values=True, alpha=0.0)["one_step"]
    larger = gradient(scaled(7.0), normalize_values=True, alpha=0.0)["one_step"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), usual, larger)
    plain = gradient(scaled(7.0), alpha=0.0)["one_step"]
    assert differs(usual, plain)


@pytest.mark.parametrize("aggregation", ["mean", "min"])
def test_targets_take_the_mean_or_the_minimum_of_two_critics(aggregation):
    config = fql.Config(**SIZES, aggregation=aggregation)
    method = fql.method(config, SPEC)
    _, _, state = started()
    agent = actor_critic.agent_of(method.networks, state)
    constants = jnp.stack([jnp.full(6, 1.0), jnp.full(6, 3.0)])
    agent = agent._replace(target_critics=lambda observations, actions: constants)
    targets = method.backup(agent, Context(), batch(), KEY)
    value = {"mean": 2.0, "min": 1.0}[aggregation]
    rows = batch()
    np.testing.assert_allclose(targets, rows.reward + 0.99 * rows.discount * value, rtol=1e-5)


def test_the_policy_holds_no_flow_and_its_greedy_action_is_a_function_of_the_observation():
    _, learner, state = started()
    params = learner.policy_params(state, Context())
    assert "flow" not in jax.tree_util.tree_structure(params).__repr__()
    observation = jnp.array([0.1, -0.4, 0.7])
    first = learner.policy.mode(params, observation)
    np.testing.assert_array_equal(first, learner.policy.mode(params, observation))
    draws = jax.vmap(learner.policy.sample, (None, None, 0))(
        params, observation, jax.random.split(KEY, 8)
    )
    assert np.std(np.asarray(draws), axis=0).min() > 0.0
    assert np.abs(np.asarray(draws)).max() <= 1.0


def test_discrete_actions_are_refused():
    with pytest.raises(UsageError, match="fql needs continuous actions"):
        fql.make(CONFIG, SPEC.__class__(observation=SPEC.observation, action=DiscreteActions(2)))
