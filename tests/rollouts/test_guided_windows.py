"""Guided windows and the episodes stitched of them, with a linear system's perfect denoiser."""

import gaussian_windows as examples
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offline_mbrl.models.diffusion import inpainting, levels, windows
from offline_mbrl.models.diffusion.window_models import WindowModel, WindowParams
from offline_mbrl.models.diffusion.windows import Layout, Scale
from offline_mbrl.rollouts import denoise, guided_windows, guides, stitch, unroll
from offline_mbrl.rollouts.guided_windows import GuidedParams, RatioParams

KEY = jax.random.key(0)
LAYOUT = Layout(observation_size=1, action_size=1)
EXACT = -6.861565  # of the target policy
NUM_EPISODES = 500
PARAMS = GuidedParams(
    model=WindowParams(
        network=(),
        scale=Scale(mean=jnp.float32(examples.MEAN), std=jnp.float32(examples.STD)),
    ),
    guide=RatioParams(target=examples.TARGET, behavior=examples.BEHAVIOR),
)


def perfect_model(length):
    """A model of windows whose denoiser is exact."""
    law = examples.law(examples.BEHAVIOR, length)

    def denoiser(params, fixed):
        del params
        entries = inpainting.free(fixed)

        def denoise_window(x, level):
            clean = examples.denoiser(law, x[0, 0])(entries.take(x), level)
            return entries.merge(clean, x)

        return denoise_window

    return WindowModel(init=None, loss=None, denoiser=denoiser, layout=LAYOUT, length=length)


def whitened(params, observation, action):
    return (action - params.gain * observation - params.offset) / params.std


def episodes(length, solver, make_guide, num_episodes=NUM_EPISODES):
    rollout = stitch.stitched(
        guided_windows.from_observation(perfect_model(length), solver, make_guide=make_guide),
        horizon=examples.HORIZON,
        window_steps=length - 1,
        reward=lambda state, action, after: -(state[0] ** 2) - 0.1 * action[0] ** 2,
    )
    starts = examples.START_MEAN + examples.START_STD * jax.random.normal(KEY, (num_episodes, 1))
    keys = jax.random.split(jax.random.key(1), num_episodes)
    return jax.jit(jax.vmap(rollout, (None, 0, 0)))(PARAMS, starts, keys)


def values(data):
    return np.asarray(jax.vmap(unroll.discounted_return, (0, None))(data, examples.GAMMA))


def standardized(data):
    """Noises of the dynamics and of the target policy, which should be standard normal."""
    state, after = data.observation[:, :-1, 0], data.observation[:, 1:, 0]
    action = data.action[..., 0]
    noise = after - examples.A * state - examples.B * action
    return noise / examples.NOISE, whitened(examples.TARGET, state, action)


@pytest.mark.parametrize("length", [3, 6])
def test_stitched_windows_are_the_target_policys_episodes_whatever_their_length(length):
    solver = denoise.second_order(levels.thinned(levels.cosine(256), 3))
    guide = guided_windows.policy_ratio(LAYOUT, whitened, whitened)
    data = episodes(length, solver, guide)
    returns = values(data)
    assert abs(returns.mean() - EXACT) < 4.0 * returns.std() / np.sqrt(NUM_EPISODES)
    for standard in standardized(data):
        count = standard.size
        assert abs(float(jnp.mean(standard))) < 4.0 / np.sqrt(count)
        assert abs(float(jnp.mean(jnp.square(standard))) - 1.0) < 4.0 * np.sqrt(2.0 / count)


# --- published rules ---

FREE = 15  # of windows of 8
ACTIONS = jnp.float32(np.arange(FREE) % 2 == 0)


def unit_log_density(policy, view):
    """That of the published rules, which take the deviation of actions for 1."""

    def log_density(free):
        rows = view(free)
        residual = rows[:, 1] - policy.gain * rows[:, 0] - policy.offset
        return -0.5 * jnp.sum(jnp.square(residual))

    return log_density


def stitch_ope(params, view):
    return guides.stitched(
        unit_log_density(params.target, view),
        unit_log_density(params.behavior, view),
        ACTIONS,
        jnp.float32(examples.scale(8)[1][1:]),
        guides.clamped(0.5),
        alpha=0.5,
    )


def policy_guided(params, view):
    return guides.policy_guided(unit_log_density(params.target, view), ACTIONS, coefficient=0.3)


# solver, guide, then of 1000 and more episodes: value, dynamics, deviation of actions
RULES = {
    "STITCH-OPE": (denoise.ancestral(levels.cosine(256)), stitch_ope, -6.680, 3.7, 0.097),
    "PGD": (denoise.heun(levels.karras(128), churn=80.0), policy_guided, -7.482, 3.6, 0.096),
}


@pytest.mark.parametrize("name", RULES)
def test_published_rules_collapse_the_actions_and_break_the_dynamics(name):
    """Their values are near -6.862 all the same; 0.300 and 1 are right."""
    solver, guide, value, dynamics, std = RULES[name]
    data = episodes(8, solver, guide, num_episodes=150)
    returns = values(data)
    # The printed value has a standard error of 0.04 to 0.1 of its own.
    assert abs(returns.mean() - value) < 4.0 * np.hypot(returns.std() / np.sqrt(150), 0.07)
    noise, residual = standardized(data)
    np.testing.assert_allclose(float(jnp.mean(jnp.square(noise))), dynamics, rtol=0.1)
    np.testing.assert_allclose(0.3 * float(jnp.std(residual)), std, rtol=0.2)


def test_row_normalized_directions_have_a_norm_of_one_in_each_row():
    direction = guides.row_normalized(0.5, jnp.array([0, 0, 1, 1]), 2)
    target, behavior = jnp.array([3.0, 4.0, 0.0, 2.0]), jnp.array([0.0, 5.0, 0.0, 0.0])
    np.testing.assert_allclose(direction(target, behavior), [0.6, 0.3, 0.0, 1.0], rtol=1e-6)
    clamped = guides.clamped(0.5)(target, behavior)
    np.testing.assert_allclose(clamped, [1.0, 0.0, 0.0, 1.0], rtol=1e-6)


def test_goals_and_first_actions_stay_as_they_are_given():
    model = perfect_model(4)
    fixed = windows.first_observation(LAYOUT, 4) | windows.first_actions(LAYOUT, 4)

    def denoiser(params, fixed):
        del params
        law = examples.law(examples.BEHAVIOR, 4)
        entries = inpainting.free(windows.first_observation(LAYOUT, 4))

        def denoise_window(x, level):
            clean = examples.denoiser(law, x[0, 0])(entries.take(x), level)
            return jnp.where(fixed, x, entries.merge(clean, x))

        return denoise_window

    solver = denoise.ancestral(levels.cosine(8))
    draw = guided_windows.fill(model._replace(denoiser=denoiser), solver, fixed)
    window = jnp.zeros((4, 2)).at[0].set(jnp.array([0.7, -1.3]))
    filled = jax.jit(draw)(PARAMS, window, KEY)
    np.testing.assert_array_equal(filled[0], window[0])
    assert float(jnp.min(jnp.abs(filled[1:]))) > 0.0
