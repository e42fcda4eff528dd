"""The family's update and policies, and ROSMO's presets, against the specification's numbers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from latent_examples import CONFIG, KEY, SPEC, A, K, latent_model, method_of, records, window

from offline_mbrl.algorithms import latent_targets, rosmo
from offline_mbrl.models import unrolled
from offline_mbrl.training import checkpoint, fit
from offline_mbrl.types import Context, DiscreteActions, EnvironmentSpec, Plan, UsageError

# --- the loss ---


def batch_of(dataset, config=CONFIG, spec=SPEC, seed=0):
    learner = rosmo.make(config, spec)
    return learner, jax.jit(learner.sample)(dataset, (), jax.random.key(seed))


@pytest.mark.parametrize(("bins", "preset"), [(20, "released"), (21, "published")])
def test_the_first_loss_is_its_closed_form(bins, preset):
    config = rosmo.Config(batch_size=64, **rosmo.PRESETS[preset])
    learner, batch = batch_of(records(2_000, range(9, 2_000, 10)), config)
    state = learner.init(KEY, batch, Context())
    _, metrics = jax.jit(learner.step)(state, Context(), batch, KEY)
    entropy = np.log(bins) + 0.25 * np.log(bins) + np.log(A)
    expected = entropy + 0.2 * np.log(A) * metrics["target/cloned"]
    np.testing.assert_allclose(metrics["loss/total"], expected, rtol=1e-5)
    # All live steps are cloned: advantages start at 1.231 with 20 bins, and at exactly 0, where
    # H(0) = 1, with 21.
    np.testing.assert_allclose(metrics["target/cloned"], np.mean(batch.mask[:, : K + 1]), rtol=1e-6)


def test_the_released_atari_preset_begins_by_cloning_nothing():
    """601 bins are an odd number: advantages start at 0, where the released code has H(0) = 0."""
    preset = rosmo.PRESETS["released_atari"]
    learner, batch = batch_of(records(200, range(9, 200, 10)), rosmo.Config(batch_size=8, **preset))
    assert batch.reward.shape == (8, 5 + 5 + 1)
    state = learner.init(KEY, batch, Context())
    metrics = jax.jit(learner.validate)(state, Context(), batch, KEY)
    expected = np.log(601) + 0.25 * np.log(601) + np.log(A)
    np.testing.assert_allclose(metrics["loss/total"], expected, rtol=1e-5)
    assert metrics["target/cloned"] == 0


def test_the_released_atari_preset_has_the_network_of_the_release():
    config = rosmo.Config(**rosmo.PRESETS["released_atari"])
    frames = jax.ShapeDtypeStruct((84, 84, 4), jnp.uint8)
    spec = EnvironmentSpec(frames, DiscreteActions(3), frame_stack=4)
    params = jax.eval_shape(rosmo.make(config, spec).init, KEY, None, Context()).params
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == 3_021_493


def test_the_released_atari_preset_differs_from_the_released_one_in_its_sizes_alone():
    released, atari, sizes = (
        rosmo.Config(**rosmo.PRESETS[name]) for name in ("released", "released_atari", "atari")
    )
    differing = ("unroll_steps", "td_steps", "model")
    assert {name: getattr(sizes, name) for name in differing} == rosmo.PRESETS["atari"]
    expected = dataclasses.replace(released, **rosmo.PRESETS["atari"])
    assert atari == expected


# --- the update ---


@functools.cache
def fresh_learner():
    learner, batch = batch_of(records(200, range(9, 200, 10)))
    return learner, batch, learner.init(KEY, batch, Context())


def test_no_gradient_reaches_the_target_parameters():
    model, params = latent_model()
    method = method_of(model)
    trajectory = window(records(12, [11]), 0)
    batch = jax.tree.map(lambda leaf: leaf[None], trajectory)

    def total(params, target_params):
        targets = latent_targets.compute_targets(method, target_params, batch, KEY)
        targets = jax.tree.map(lambda leaf: leaf[0], targets)
        return unrolled.loss(model, CONFIG.loss, 0.2, params, trajectory, targets, KEY)[0]

    through_targets = jax.jit(jax.grad(total, argnums=1))(params, params)
    assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(through_targets))
    other = jax.tree.map(lambda leaf: leaf + 0.1, params)  # the targets do depend on them
    assert abs(float(total(params, other)) - float(total(params, params))) > 1e-4


def test_the_target_is_copied_at_every_period_and_not_between():
    optimizer = dataclasses.replace(CONFIG.optimizer, warmup_updates=1)
    config = dataclasses.replace(CONFIG, target_period=3, optimizer=optimizer)
    learner, batch = batch_of(records(200, range(9, 200, 10)), config)
    state = learner.init(KEY, batch, Context())
    step = jax.jit(learner.step)

    def same(a, b):
        pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        return all(np.array_equal(x, y) for x, y in pairs)

    history = [state.target_params]
    for update in range(1, 8):
        state, _ = step(state, Context(), batch, jax.random.key(update))
        history.append(state.target_params)
        # The first update has a learning rate of 0.
        assert same(state.target_params, state.params) == (update in (1, 3, 6))
        assert same(history[-1], history[-2]) == (update not in (3, 6))


def test_one_update_is_the_optimizer_on_the_mean_gradient():
    learner, batch, state = fresh_learner()
    step = jax.jit(learner.step)
    after, metrics = step(state, Context(), batch, KEY)
    assert int(after.step) == 1
    # The warm-up starts at a rate of 0.
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)
    again, _ = step(after, Context(), batch, KEY)
    moved = optax.tree.norm(jax.tree.map(jnp.subtract, again.params, after.params))
    num_params = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert 0 < float(moved) < 7e-7 * np.sqrt(num_params) * 1.2
    assert np.isfinite(metrics["gradient/norm"])


def test_huge_rewards_leave_everything_finite():
    learner, batch, state = fresh_learner()
    huge = batch._replace(reward=batch.reward * 1e6)
    _, metrics = jax.jit(learner.step)(state, Context(), huge, KEY)
    assert all(np.isfinite(value) for value in metrics.values())


def test_a_planner_can_be_put_in_the_place_of_the_lookahead():
    def always_first(params, embeddings, key):
        del params, key
        zeros = jnp.zeros((len(embeddings), A), jnp.float32)
        actions = jnp.broadcast_to(jnp.arange(A), zeros.shape)
        return Plan(
            action=actions[:, 0],
            actions=actions,
            weights=zeros.at[:, 0].set(1.0),
            qvalues=zeros,
            value=zeros[:, 0],
            improved_value=zeros[:, 0],
        )

    learner = rosmo.make(CONFIG, SPEC, planner=always_first)
    state = learner.init(KEY, None, Context())
    assert int(learner.policy.mode(state.params, jnp.zeros(4))) == 0
    assert int(learner.policy.sample(state.params, jnp.zeros(4), KEY)) == 0


def test_windows_start_on_final_records_only_in_the_released_preset():
    dataset = records(2_000, range(3, 2_000, 4))
    for preset, expected in (("published", 0.0), ("released", 0.25)):
        learner = rosmo.make(rosmo.Config(batch_size=2_000, **rosmo.PRESETS[preset]), SPEC)
        dead = 1.0 - learner.sample(dataset, (), KEY).mask[:, 0]
        np.testing.assert_allclose(jnp.mean(dead), expected, atol=0.05)


@pytest.mark.parametrize("name", ["unroll_steps", "td_steps", "batch_size", "target_period"])
def test_counts_below_one_are_refused(name):
    with pytest.raises(UsageError, match=name):
        rosmo.make(rosmo.Config(**{name: 0}), SPEC)


def test_held_out_losses_are_those_of_an_update():
    learner, batch, state = fresh_learner()
    _, metrics = jax.jit(learner.step)(state, Context(), batch, KEY)
    held_out = jax.jit(learner.validate)(state, Context(), batch, KEY)
    assert held_out.keys() == metrics.keys() - {"gradient/norm"}
    for name, value in held_out.items():
        np.testing.assert_allclose(value, metrics[name], rtol=1e-5)


def test_a_run_resumed_from_its_checkpoint_at_50_equals_the_whole_run_of_100(tmp_path):
    learner = rosmo.make(CONFIG, SPEC)
    dataset = records(200, range(9, 200, 10))
    train = functools.partial(fit.fit, learner, dataset, key=KEY, seeds=[0, 1], block_updates=25)
    whole, again = (train(num_updates=100).state for _ in range(2))
    half = train(num_updates=50).state
    checkpoint.save(tmp_path, 50, half, {})
    rest = train(num_updates=100, start=checkpoint.restore(tmp_path, half).state).state
    assert checkpoint.sha256(whole) == checkpoint.sha256(again) == checkpoint.sha256(rest)
