"""Windows as points: what rows hold, what is fixed of them, and models of them."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offline_mbrl.models.diffusion import denoisers, inpainting, levels, window_models, windows
from offline_mbrl.models.diffusion.levels import Level
from offline_mbrl.models.diffusion.windows import Layout
from offline_mbrl.rollouts import denoise
from offline_mbrl.types import Trajectory, UsageError

KEY = jax.random.key(0)
LAYOUT = Layout(observation_size=2, action_size=1)
FULL = Layout(observation_size=2, action_size=1, reward=True, discount=True)
STATISTICS = SimpleNamespace(
    transitions=SimpleNamespace(
        observation_mean=np.array([1.0, -1.0]),
        observation_std=np.array([2.0, 0.5]),
        action_mean=np.array([0.1]),
        action_std=np.array([0.3]),
        reward_mean=np.array(5.0),
        reward_std=np.array(4.0),
    )
)


def trajectory(num_steps=4):
    """Any window of an episode that goes on."""
    keys = jax.random.split(KEY, 3)
    return Trajectory(
        observation=jax.random.normal(keys[0], (num_steps + 1, 2)),
        action=jax.random.normal(keys[1], (num_steps, 1)),
        reward=jax.random.normal(keys[2], (num_steps,)),
        discount=jnp.ones(num_steps),
        mask=jnp.ones(num_steps),
    )


def test_rows_are_standardized_and_come_back():
    data = trajectory()
    scale = windows.scale_of(FULL, STATISTICS)
    rows = windows.packed(FULL, scale, data)
    assert rows.shape == (4, FULL.size)
    np.testing.assert_allclose(rows[:, 0], (data.observation[:-1, 0] - 1.0) / 2.0, rtol=1e-5)
    np.testing.assert_allclose(rows[:, FULL.action], (data.action - 0.1) / 0.3, rtol=1e-5)
    np.testing.assert_allclose(rows[:, FULL.reward_entry], (data.reward - 5.0) / 4.0, rtol=1e-5)
    np.testing.assert_allclose(rows[:, -1], 1.0)
    again = windows.unpacked(FULL, scale, rows)
    np.testing.assert_allclose(again.observation, data.observation[:-1], atol=1e-6)
    np.testing.assert_allclose(again.action, data.action[:-1], atol=1e-6)
    np.testing.assert_allclose(again.reward, data.reward[:-1], atol=2e-6)
    np.testing.assert_array_equal(again.mask, 1.0)
    np.testing.assert_array_equal(again.discount, 1.0)


def test_without_reward_and_discount_nothing_ends():
    scale = windows.scale_of(LAYOUT, STATISTICS)
    again = windows.unpacked(LAYOUT, scale, windows.packed(LAYOUT, scale, trajectory()))
    np.testing.assert_array_equal(again.reward, 0.0)
    np.testing.assert_array_equal(again.discount, 1.0)
    assert again.observation.shape == (4, 2)


def test_a_discount_below_one_half_ends_the_episode():
    scale = windows.scale_of(FULL, STATISTICS)
    data = trajectory()._replace(discount=jnp.array([0.9, 0.4, 0.8, 1.0]))
    again = windows.unpacked(FULL, scale, windows.packed(FULL, scale, data))
    np.testing.assert_array_equal(again.discount, [1.0, 0.0, 0.0])
    np.testing.assert_array_equal(again.mask, [1.0, 1.0, 0.0])
    np.testing.assert_allclose(again.reward, data.reward[:3] * again.mask, atol=2e-6)
    np.testing.assert_allclose(again.observation[2:], data.observation[2][None].repeat(2, 0), 1e-5)


def test_the_absorbing_end_counts_and_what_follows_a_truncation_does_not():
    data = trajectory()._replace(mask=jnp.array([1.0, 1.0, 0.0, 0.0]))
    np.testing.assert_array_equal(windows.happened(data), [1.0, 1.0, 0.0, 0.0])
    ended = data._replace(discount=jnp.array([1.0, 0.0, 0.0, 0.0]))
    np.testing.assert_array_equal(windows.happened(ended), 1.0)


def test_entry_weights_decay_around_one_and_the_first_action_has_its_own():
    weights = windows.entry_weights(LAYOUT, 4, decay=0.5, first_action=10.0)
    rows = np.array([1.0, 0.5, 0.25, 0.125]) / (1.875 / 4)
    np.testing.assert_allclose(weights[:, 0], rows, rtol=1e-6)
    np.testing.assert_allclose(weights[:, 2], [10.0, *rows[1:]], rtol=1e-6)


def test_states_goals_and_actions_can_be_known():
    start = windows.first_observation(LAYOUT, 3)
    goal = windows.observation_at(LAYOUT, 3, -1, entries=(1,))
    action = windows.first_actions(LAYOUT, 3)
    np.testing.assert_array_equal(
        start | goal | action, [[True, True, True], [False] * 3, [False, True, False]]
    )


def test_inpainting_shows_known_entries_clean_and_denoises_the_others():
    fixed = windows.first_observation(LAYOUT, 3) | windows.first_actions(LAYOUT, 3, 2)
    entries = inpainting.free(fixed)
    window = jax.random.normal(KEY, (3, 3))
    level = Level(signal=jnp.float32(0.6), noise=jnp.float32(0.8))
    x = jnp.arange(5.0)

    def denoiser(x, level):
        np.testing.assert_array_equal(np.asarray(x)[fixed], np.asarray(window)[fixed])
        return x * level.signal + jnp.sum(x)

    total = jnp.sum(x) + np.sum(np.asarray(window)[fixed])
    clean = inpainting.inpainted(denoiser, entries, window)(x, level)
    np.testing.assert_allclose(clean, 0.6 * x + total, rtol=1e-5)
    np.testing.assert_array_equal(entries.take(entries.merge(x, window)), x)


# --- models ---


def network(scale=0.0):
    """Predicts the input times its only parameter."""
    return window_models.WindowNetwork(
        init=lambda key: {"gain": jnp.float32(scale)},
        apply=lambda params, window, condition: params["gain"] * window,
    )


def model(length=4, layout=LAYOUT, scale=0.0, **options):
    options = {
        "form": denoisers.CLEAN,
        "draw_level": denoisers.uniform(levels.cosine(8)),
        **options,
    }
    return window_models.make(network(scale), layout, length, **options)


def batch_of(data):
    return jax.tree.map(lambda leaf: leaf[None].repeat(3, 0), data)


def test_the_loss_counts_the_rows_that_happened_and_not_the_start():
    """A network that predicts 0 pays the mean square of the rows."""
    of = model()
    params = of.init(KEY, STATISTICS)
    data = trajectory()._replace(mask=jnp.array([1.0, 1.0, 1.0, 0.0]))
    rows = np.array(windows.packed(LAYOUT, params.scale, data))
    rows[0, :2] = 0.0
    rows[3] = 0.0
    value, metrics = jax.jit(of.loss)(params, batch_of(data), KEY)
    np.testing.assert_allclose(value, np.sum(rows**2) / (4 * 3 - 2), rtol=1e-5)
    np.testing.assert_array_equal(metrics["loss/denoising"], value)
    doubled = model(weights=np.full((4, 3), 2.0, np.float32))
    np.testing.assert_allclose(doubled.loss(params, batch_of(data), KEY)[0], 2.0 * value, rtol=1e-5)


def test_only_the_network_learns():
    of = model(form=denoisers.NOISE)
    params = of.init(KEY, STATISTICS)
    gradient = jax.grad(lambda params: of.loss(params, batch_of(trajectory()), KEY)[0])(params)
    assert float(gradient.network["gain"]) != 0.0
    np.testing.assert_array_equal(gradient.scale.std, 0.0)


def test_a_trajectory_model_samples_windows_that_start_where_they_are_asked_to():
    of = model()  # its clean point is the data's mean, everywhere
    params = of.init(KEY, STATISTICS)
    sampler = functools.partial(denoise.sample, denoise.ancestral(levels.cosine(8)))
    sample = jax.jit(window_models.trajectory_model(of, sampler).sample)
    start = jnp.array([3.0, -2.0])
    data = sample(params, start, KEY)
    np.testing.assert_allclose(data.observation[0], start, rtol=1e-6)
    # The last step gives the clean point without noise.
    np.testing.assert_allclose(data.observation[1:], jnp.array([[1.0, -1.0]]).repeat(3, 0), 1e-5)
    np.testing.assert_allclose(data.action, 0.1, rtol=1e-5)
    assert data.reward.shape == (3,)


def test_statistics_of_transitions_are_asked_for():
    with pytest.raises(UsageError, match="full_statistics"):
        model().init(KEY, SimpleNamespace(transitions=None))
