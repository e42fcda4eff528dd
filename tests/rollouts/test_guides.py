"""Guides with the perfect denoiser of a linear-Gaussian system: the exact laws that they sample.

As for the samplers, figures are those of a law, to the printed digits. The target policy's return
is -6.862 and its actions have a deviation of 0.300.
"""

import gaussian_windows as examples
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

from offline_mbrl.models.diffusion import levels
from offline_mbrl.rollouts import denoise, guides, posteriors
from offline_mbrl.rollouts.guides import UNGUIDED, Guide

LENGTH = 8
SIZE = 2 * LENGTH - 1
COSINE = levels.cosine(256)
HEUN = denoise.heun(levels.karras(32))
ACTIONS = np.where(np.arange(SIZE) % 2 == 0, 1.0, 0.0)
BEHAVIOR = examples.law(examples.BEHAVIOR, LENGTH)
TARGET = examples.law(examples.TARGET, LENGTH)
KEY = jax.random.key(0)


def output_law(solver, make_guide):
    with jax.enable_x64(True):
        return examples.output_law(
            solver, lambda start: examples.denoiser(BEHAVIOR, start), make_guide, SIZE
        )


def exact_rule(alpha=1.0, lambda_=1.0, target=examples.TARGET):
    def make(start):
        return Guide(
            tilt=guides.log_ratio_tilt(
                examples.residuals(target, LENGTH, start),
                examples.residuals(examples.BEHAVIOR, LENGTH, start),
                alpha=alpha,
                lambda_=lambda_,
            )
        )

    return make


def log_ratio(start, target=examples.TARGET):
    target = examples.log_density(target, LENGTH, start)
    behavior = examples.log_density(examples.BEHAVIOR, LENGTH, start)
    return lambda free: target(free) - behavior(free)


def at_mean(start):
    return guides.at_mean(log_ratio(start))


def at_mean_by_actions(start):
    return guides.at_mean(log_ratio(start), scale=jnp.asarray(ACTIONS))


def through_denoiser(start):
    return guides.through_denoiser(log_ratio(start))


def ddpm(num_levels):
    return denoise.ancestral(levels.cosine(num_levels))


# solver, guide, then as printed: value, divergence, dynamics, deviation of actions
LAWS = {
    "at mean, 64": (ddpm(64), at_mean, "-6.520", "0.85", "0.98", "0.293"),
    "at mean, 256": (ddpm(256), at_mean, "-6.588", "0.89", "1.17", "0.296"),
    "by actions, 64": (ddpm(64), at_mean_by_actions, "-7.537", "0.98", "1.01", "0.307"),
    "by actions, 256": (ddpm(256), at_mean_by_actions, "-7.759", "0.96", "1.18", "0.309"),
    "through, 256": (ddpm(256), through_denoiser, "-6.835", "0.28", "0.91", "0.259"),
    "through, Heun": (HEUN, through_denoiser, "-7.433", "1.90", "1.02", "0.222"),
    "exact, Heun 18": (
        denoise.heun(levels.karras(18)),
        exact_rule(),
        *("-7.095", "0.061", "1.16", "0.315"),
    ),
    "exact, Heun 32": (HEUN, exact_rule(), "-6.896", "0.0054", "1.04", "0.304"),
    "exact, Heun 64": (
        denoise.heun(levels.karras(64)),
        exact_rule(),
        *("-6.837", "0.0007", "1.01", "0.301"),
    ),
    "exact, 256": (ddpm(256), exact_rule(), "-6.794", "0.014", "0.92", "0.296"),
}


@pytest.mark.parametrize("name", LAWS)
def test_a_guided_sampler_has_its_exact_law_to_the_printed_digits(name):
    solver, guide, *figures = LAWS[name]
    law = output_law(solver, guide)
    exact = (
        examples.value(law),
        examples.divergence(law, TARGET),
        examples.dynamics(law),
        examples.action_std(law),
    )
    for figure, printed in zip(exact, figures, strict=True):
        assert examples.rounds_to(figure, printed)


def test_the_exact_rule_is_within_a_hundredth_of_the_target_policys_return():
    law = output_law(HEUN, exact_rule())
    assert abs(examples.value(law) / -6.861565 - 1.0) < 0.01
    assert abs(examples.action_std(law) - 0.3) < 0.01
    assert abs(examples.dynamics(law) - 1.0) < 0.06


@pytest.mark.parametrize(
    ("alpha", "lambda_", "value"),
    [(1.0, 1.0, -6.861565), (1.0, 0.5, -6.468421), (1.0, 0.0, -6.166097)],
)
@pytest.mark.parametrize("num_steps", [1, 4, 8])
def test_second_order_steps_are_exact_under_the_exact_rule(num_steps, alpha, lambda_, value):
    """The tilted law in closed form: its precision and information add."""
    solver = denoise.second_order(levels.thinned(COSINE, num_steps))
    law = output_law(solver, exact_rule(alpha, lambda_))
    assert abs(examples.divergence(law, examples.tilted(LENGTH, alpha, lambda_))) < 1e-12
    np.testing.assert_allclose(examples.value(law), value, atol=1e-6)


def test_the_tilt_of_any_density_is_that_of_its_residuals():
    """`log_ratio_tilt` by Gauss and Newton and `tilt` by the Hessian agree for linear policies."""
    clean = jax.random.normal(KEY, (SIZE,))
    first = jax.jit(guides.tilt(log_ratio(0.3)))(clean)
    second = jax.jit(exact_rule()(0.3).tilt)(clean)
    for leaf, other in zip(first, second, strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        exact_rule(target=examples.BEHAVIOR),
        lambda start: guides.at_mean(log_ratio(start, examples.BEHAVIOR)),
        lambda start: guides.through_denoiser(log_ratio(start, examples.BEHAVIOR)),
        lambda start: guides.through_denoiser(lambda free: jnp.zeros((), free.dtype)),
    ],
    ids=["tilt", "at mean", "through denoiser", "constant"],
)
@pytest.mark.parametrize(
    "solver", [ddpm(8), denoise.second_order(levels.thinned(COSINE, 3))], ids=["ddpm", "second"]
)
def test_the_behavior_policy_as_target_changes_nothing(make, solver):
    guided = output_law(solver, make)
    plain = output_law(solver, lambda start: UNGUIDED)
    for leaf, other in zip(guided, plain, strict=True):
        np.testing.assert_allclose(leaf, other, atol=1e-12)


# --- a system of matrices: a double integrator with correlated noise ---

MOTION = np.array([[1.0, 0.1], [0.0, 0.95]])
DRIVE = np.array([[0.005], [0.1]])
FACTOR = np.array([[0.05, 0.0], [0.03, 0.08]])  # of the noise's covariance
START = np.array([0.5, -0.3])
ROWS = 5  # of (position, velocity, action)


def integrator_law(gain, offset, std):
    """The law of the 3 ROWS - 2 free entries after START, raw."""
    size = 1 + 3 * ROWS  # 1, then noises of action and state in each row
    rows = []
    state = np.zeros((2, size))
    state[:, 0] = START
    for t in range(ROWS):
        action = gain @ state
        action[0, 0] += offset
        action[0, 1 + 3 * t] += std
        rows += [state, action]
        state = MOTION @ state + DRIVE @ action
        state[:, 2 + 3 * t : 4 + 3 * t] += FACTOR
    free = np.concatenate(rows)[2:]
    covariance = free[:, 1:] @ free[:, 1:].T
    return examples.Law(gain=0.0 * free[:, 0], offset=free[:, 0], covariance=covariance)


def test_second_order_steps_are_exact_for_matrices_too():
    behavior = np.array([[-0.5, -0.5]]), 0.0, 0.6
    target = np.array([[-1.0, -1.2]]), 0.1, 0.4
    before, after = integrator_law(*behavior), integrator_law(*target)

    def residuals(gain, offset, std):
        def of_free(free):
            window = jnp.concatenate([jnp.asarray(START, free.dtype), free]).reshape(ROWS, 3)
            return (window[:, 2] - window[:, :2] @ jnp.asarray(gain[0]) - offset) / std

        return of_free

    guide = Guide(tilt=guides.log_ratio_tilt(residuals(*target), residuals(*behavior)))
    solver = denoise.second_order(levels.thinned(COSINE, 3))
    with jax.enable_x64(True):
        law = examples.output_law(
            solver,
            lambda start: examples.denoiser(before, start),
            lambda start: guide,
            3 * ROWS - 2,
        )
    np.testing.assert_allclose(law.offset, after.offset, atol=1e-6)
    np.testing.assert_allclose(law.covariance, after.covariance, atol=1e-6)


# --- the Gaussian around a clean point ---


def test_a_tilt_is_that_of_a_gaussian_by_a_quadratic():
    """`(C^-1 + Q)^-1` and the mean that moves by it times g."""
    matrix = np.random.default_rng(0).normal(size=(3, 4, 4))
    covariance, curvature = matrix[0] @ matrix[0].T, 0.1 * matrix[1] @ matrix[1].T
    gradient, mean = matrix[2, 0], matrix[2, 1]
    with jax.enable_x64(True):
        before = posteriors.Posterior(
            mean=jnp.asarray(mean), root=jnp.linalg.cholesky(jnp.asarray(covariance))
        )
        after = posteriors.tilted(before, jnp.asarray(gradient), jnp.asarray(curvature))
    expected = np.linalg.inv(np.linalg.inv(covariance) + curvature)
    root = np.asarray(after.root)
    np.testing.assert_allclose(root @ root.T, expected, rtol=1e-8)
    np.testing.assert_allclose(after.mean, mean + expected @ gradient, rtol=1e-8)


def test_a_tilt_widens_the_law_no_further_than_its_bound():
    before = posteriors.Posterior(mean=jnp.zeros(1), root=jnp.ones((1, 1)))
    after = posteriors.tilted(before, jnp.ones(1), jnp.full((1, 1), -3.0), delta=0.5)
    np.testing.assert_allclose(after.root**2, 2.0, rtol=1e-6)
    np.testing.assert_allclose(after.mean, 2.0, rtol=1e-6)


def test_wild_jacobians_are_held_between_bounds():
    level = levels.Level(signal=jnp.float32(1.0), noise=jnp.float32(10.0))
    wild = posteriors.posterior(lambda x, level: jnp.array([5.0, -1.0]) * x, jnp.ones(2), level)
    values = np.sort(np.linalg.eigvalsh(wild.root @ wild.root.T))
    np.testing.assert_allclose(values, [posteriors.SMALLEST, posteriors.LARGEST], rtol=1e-5)


# --- two modes ---


@pytest.mark.parametrize("name", ["second order", "heun"])
def test_a_target_on_one_mode_of_two_is_followed(name):
    """Data are half at -1 and half at 1, with deviation 1/5; the target policy is the second."""
    std = 0.2
    modes = jnp.array([-1.0, 1.0])

    def denoiser(x, level):
        variance = (level.signal * std) ** 2 + level.noise**2
        weights = jax.nn.softmax(-0.5 * jnp.square(x - level.signal * modes) / variance)
        gain = level.signal * std**2 / variance
        return jnp.sum(weights * (modes + gain * (x - level.signal * modes)), keepdims=True)

    def log_density(x):
        both = jax.nn.logsumexp(norm.logpdf(x, modes, std)) - jnp.log(2.0)
        return norm.logpdf(x[0], 1.0, std) - both

    schedule = levels.thinned(COSINE, 16)
    solver = {"second order": denoise.second_order(schedule), "heun": HEUN}[name]
    guide = Guide(tilt=guides.tilt(log_density))
    keys = jax.random.split(KEY, 2_000)
    draw = jax.vmap(lambda key: denoise.sample(solver, denoiser, 1, key, guide=guide))
    plain = jax.vmap(lambda key: denoise.sample(solver, denoiser, 1, key))
    assert abs(float(jnp.mean(jax.jit(plain)(keys) > 0.0)) - 0.5) < 4.0 * 0.5 / np.sqrt(2_000)
    assert float(jnp.mean(jax.jit(draw)(keys) > 0.0)) > 0.95


# --- guides by values ---


def test_diffusers_value_guide_moves_the_noisy_point():
    """For normal data and a linear value the mean follows a scalar recursion."""
    schedule = levels.cosine(12)
    slope, scale = 3.0, 0.1
    guide = guides.value_gradient(
        lambda x, level: slope * jnp.sum(x), scale=scale, repeats=2, stop_below=3
    )

    def denoiser(x, level):
        return level.signal * x  # of N(0, 1) at VP levels

    steps = levels.steps(schedule)
    mean = 0.0
    for i in range(12):
        if steps.left[i] >= 3:
            mean += 2 * scale * slope * steps.variance[i]
        mean = (steps.clean[i] * schedule.signal[i] + steps.noisy[i]) * mean
    solver = denoise.ancestral(schedule)
    cold = denoise.sample(solver, denoiser, 2, KEY, guide=guide, temperature=0.0)
    np.testing.assert_allclose(cold, mean, rtol=1e-4)
