"""ROSMO's losses, update and policy, against the specification's numbers and written-out references."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rosmo_examples import CONFIG, KEY, SPEC, A, K, latent_model, records, window

from offline_mbrl.algorithms import rosmo
from offline_mbrl.planning import one_step
from offline_mbrl.types import Plan, UsageError

# --- the loss ---


def batch_of(dataset, config=CONFIG, spec=SPEC, seed=0):
    learner = rosmo.make(config, spec)
    return learner, jax.jit(learner.sample)(dataset, jax.random.key(seed))


@pytest.mark.parametrize(("bins", "preset"), [(20, "released"), (21, "published")])
def test_the_first_loss_is_its_closed_form(bins, preset):
    config = rosmo.Config(batch_size=64, **rosmo.PRESETS[preset])
    learner, batch = batch_of(records(2_000, range(9, 2_000, 10)), config)
    state = learner.init(KEY, batch, (), ())
    _, metrics = jax.jit(learner.step)(state, batch, KEY)
    entropy = np.log(bins) + 0.25 * np.log(bins) + np.log(A)
    np.testing.assert_allclose(metrics["loss/total"], entropy + 0.2 * np.log(A) * metrics["target/cloned"], rtol=1e-5)
    # All live steps are cloned: advantages start at 1.231 with 20 bins, and at exactly 0, where H(0) = 1, with 21.
    np.testing.assert_allclose(metrics["target/cloned"], np.mean(batch.mask[:, : K + 1]), rtol=1e-6)


def random_targets():
    return rosmo.Targets(
        reward=jnp.array([0.5, -1.0, 0.0]), value=jnp.array([0.1, 2.0, -0.3, 0.0]),
        policy=jax.nn.softmax(jax.random.normal(jax.random.key(5), (K + 1, A))),
        behavior=jnp.array([1.0, 0.0, 1.0, 0.0]), known=jnp.ones(K + 1))  # fmt: skip


def test_the_loss_is_the_weighted_mean_of_cross_entropies_written_out():
    model, params = latent_model()
    trajectory, targets = window(records(12, [11]), 0), random_targets()
    loss = jax.jit(lambda params, targets: rosmo.loss(model, CONFIG, params, trajectory, targets, KEY))
    total, metrics = loss(params, targets)
    embedding = model.represent(params, trajectory.observation[0])
    heads = [model.predict(params, embedding)]
    for k in range(K):
        embedding = model.dynamics(params, embedding, trajectory.action[k])
        heads.append(model.predict(params, embedding))

    def two_hot(x):
        scaled = np.sign(x) * (np.sqrt(abs(x) + 1) - 1) + 1e-3 * x + 10
        low = int(np.floor(scaled))
        encoded = np.zeros(21)
        encoded[low], encoded[low + 1] = 1 - (scaled - low), scaled - low
        return encoded

    cross = lambda logits, p: -float(np.sum(np.asarray(p) * np.asarray(jax.nn.log_softmax(logits))))  # noqa: E731
    parts = {
        "reward": np.mean([cross(heads[k + 1].reward_logits, two_hot(float(targets.reward[k]))) for k in range(K)]),
        "value": np.mean([cross(heads[k].value_logits, two_hot(float(targets.value[k]))) for k in range(K + 1)]),
        "policy": np.mean([cross(heads[k].policy_logits, targets.policy[k]) for k in range(K + 1)]),
        "behavior": np.mean([
            float(targets.behavior[k]) * cross(heads[k].policy_logits, np.eye(A)[int(trajectory.action[k])])
            for k in range(K + 1)]),
    }  # fmt: skip
    for name, part in parts.items():
        np.testing.assert_allclose(metrics[f"loss/{name}"], part, rtol=1e-4)
    expected = parts["reward"] + 0.25 * parts["value"] + parts["policy"] + 0.2 * parts["behavior"]
    np.testing.assert_allclose(total, expected, rtol=1e-4)


def test_steps_after_a_truncation_carry_no_gradient():
    model, params = latent_model()
    trajectory = window(records(12, [2, 11], terminal=False), 0)
    targets = random_targets()._replace(known=jnp.array([1.0, 1.0, 0.0, 0.0]), behavior=jnp.zeros(K + 1))
    other = targets._replace(value=targets.value.at[2:].set(5.0), reward=targets.reward.at[1:].set(3.0))
    loss = lambda params, targets: rosmo.loss(model, CONFIG, params, trajectory, targets, KEY)[0]  # noqa: E731
    gradient = jax.jit(jax.grad(loss))
    jax.tree.map(np.testing.assert_array_equal, gradient(params, targets), gradient(params, other))


def test_actions_past_the_end_are_random_and_those_before_it_are_the_data():
    model, params = latent_model()
    seen = []
    spied = model._replace(dynamics=lambda params, embedding, action: (seen.append(action), embedding)[1])
    trajectory = window(records(12, [2, 11]), 0)
    for key in jax.random.split(KEY, 30):
        rosmo.loss(spied, CONFIG, params, trajectory, random_targets(), key)
    actions = np.array(seen).reshape(30, K)
    np.testing.assert_array_equal(actions[:, :2], np.tile(np.asarray(trajectory.action[:2]), (30, 1)))
    assert set(actions[:, 2]) == set(range(A))


def gradient_of_the_last(config):
    """Gradient of a loss on the last of two unrolled embeddings with respect to the first."""
    model, params = latent_model()
    identity = model._replace(represent=lambda params, observation: observation)
    start, actions = jax.random.normal(KEY, (32,)), jnp.array([0, 2])
    last = lambda start: jnp.sum(jnp.sin(rosmo.unroll(identity, config, params, start, actions)[2]))  # noqa: E731
    return jax.grad(last)(start), rosmo.unroll(identity, config, params, start, actions)


def test_two_model_steps_scale_the_gradient_of_the_last_loss_by_a_quarter():
    (scaled, _), (plain, _) = map(gradient_of_the_last, (CONFIG, dataclasses.replace(CONFIG, gradient_scale=1.0)))
    np.testing.assert_allclose(scaled, 0.25 * plain, rtol=1e-5)


def test_heads_that_read_the_unscaled_embedding_get_one_scaling_less_and_the_same_values():
    (scaled, embeddings), (once, same) = map(
        gradient_of_the_last, (CONFIG, dataclasses.replace(CONFIG, scale_before_heads=False)))  # fmt: skip
    np.testing.assert_allclose(scaled, 0.5 * once, rtol=1e-5)
    np.testing.assert_array_equal(embeddings, same)


# --- the update ---


@functools.cache
def fresh_learner():
    learner, batch = batch_of(records(200, range(9, 200, 10)))
    return learner, batch, learner.init(KEY, batch, (), ())


def test_no_gradient_reaches_the_target_parameters():
    model, params = latent_model()
    planner = one_step.exact(model, num_actions=A, gamma=CONFIG.gamma)
    trajectory = window(records(12, [11]), 0)

    def total(params, target_params):
        targets = rosmo.compute_targets(model, planner, rosmo.model_advantage, CONFIG, target_params, trajectory, KEY)
        return rosmo.loss(model, CONFIG, params, trajectory, targets, KEY)[0]

    through_targets = jax.jit(jax.grad(total, argnums=1))(params, params)
    assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(through_targets))
    other = jax.tree.map(lambda leaf: leaf + 0.1, params)  # the targets do depend on them
    assert abs(float(total(params, other)) - float(total(params, params))) > 1e-4


def test_the_target_is_copied_at_every_period_and_not_between():
    optimizer = dataclasses.replace(CONFIG.optimizer, warmup_updates=1)
    config = dataclasses.replace(CONFIG, target_period=3, optimizer=optimizer)
    learner, batch = batch_of(records(200, range(9, 200, 10)), config)
    state, step = learner.init(KEY, batch, (), ()), jax.jit(learner.step)
    same = lambda a, b: all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))  # noqa: E731
    history = [state.target_params]
    for update in range(1, 8):
        state, _ = step(state, batch, jax.random.key(update))
        history.append(state.target_params)
        assert same(state.target_params, state.params) == (update in (1, 3, 6))  # the first has a learning rate of 0
        assert same(history[-1], history[-2]) == (update not in (3, 6))


def test_one_update_is_the_optimizer_on_the_mean_gradient():
    learner, batch, state = fresh_learner()
    step = jax.jit(learner.step)
    after, metrics = step(state, batch, KEY)
    assert int(after.step) == 1
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)  # the warm-up starts at a rate of 0
    again, _ = step(after, batch, KEY)
    moved = optax.tree.norm(jax.tree.map(jnp.subtract, again.params, after.params))
    assert 0 < float(moved) < 7e-7 * np.sqrt(sum(x.size for x in jax.tree.leaves(state.params))) * 1.2
    assert np.isfinite(metrics["gradient/norm"])


def test_huge_rewards_leave_everything_finite():
    learner, batch, state = fresh_learner()
    _, metrics = jax.jit(learner.step)(state, batch._replace(reward=batch.reward * 1e6), KEY)
    assert all(np.isfinite(value) for value in metrics.values())


def test_a_planner_can_be_put_in_the_place_of_the_lookahead():
    def always_first(params, embedding, key):
        del params, embedding, key
        weights = jnp.eye(A)[0]
        return Plan(jnp.int32(0), jnp.arange(A), weights, jnp.zeros(A), jnp.zeros(()))

    learner = rosmo.make(CONFIG, SPEC, planner=always_first)
    state = learner.init(KEY, None, (), ())
    assert int(learner.policy.mode(state.params, jnp.zeros(4))) == 0
    assert int(learner.policy.sample(state.params, jnp.zeros(4), KEY)) == 0


def test_windows_start_on_final_records_only_in_the_released_preset():
    dataset = records(2_000, range(3, 2_000, 4))
    for preset, expected in (("published", 0.0), ("released", 0.25)):
        learner = rosmo.make(rosmo.Config(batch_size=2_000, **rosmo.PRESETS[preset]), SPEC)
        dead = 1.0 - learner.sample(dataset, KEY).mask[:, 0]
        np.testing.assert_allclose(jnp.mean(dead), expected, atol=0.05)


@pytest.mark.parametrize("name", ["unroll_steps", "td_steps", "batch_size", "target_period"])
def test_counts_below_one_are_refused(name):
    with pytest.raises(UsageError, match=name):
        rosmo.make(rosmo.Config(**{name: 0}), SPEC)
