"""Samplers with the perfect denoiser of a linear-Gaussian system: the exact laws that they sample.

Each step is affine there, so a sampler's own law follows from derivatives of its steps, in float64
and without a draw. The figures are those of the law, not of a run.
"""

import gaussian_windows as examples
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offline_mbrl.models.diffusion import levels
from offline_mbrl.models.diffusion.levels import Level
from offline_mbrl.networks import flow
from offline_mbrl.rollouts import denoise
from offline_mbrl.rollouts.guides import UNGUIDED

KEY = jax.random.key(0)
LENGTH = 8
SIZE = 2 * LENGTH - 1
BEHAVIOR = examples.law(examples.BEHAVIOR, LENGTH)
COSINE = levels.cosine(256)


def output_law(solver, guide=UNGUIDED):
    with jax.enable_x64(True):
        return examples.output_law(
            solver,
            lambda start: examples.denoiser(BEHAVIOR, start),
            lambda start: guide,
            SIZE,
        )


def thin(num_steps):
    return levels.thinned(COSINE, num_steps)


def upper(num_steps):
    return denoise.ancestral(thin(num_steps), variance=denoise.forward_variance)


def diagonal(num_steps):
    return denoise.ancestral(thin(num_steps), variance=denoise.diagonal_variance)


# value, divergence and dynamics, as printed in the note that these samplers were chosen by
LAWS = {
    "DDPM 16": (denoise.ancestral(levels.cosine(16)), "-9.318", "0.862", "0.500"),
    "DDPM 64": (denoise.ancestral(levels.cosine(64)), "-10.700", "0.123", "0.778"),
    "DDPM 256": (denoise.ancestral(COSINE), "-11.133", "0.0129", "0.923"),
    "upper 16": (upper(16), "-10.896", "0.57", "1.63"),
    "upper 64": (upper(64), "-11.186", "0.025", "1.11"),
    "diagonal 16": (diagonal(16), "-10.308", "0.15", "1.26"),
    "diagonal 64": (diagonal(64), "-11.026", "0.006", "1.04"),
    "DDIM 16": (denoise.ddim(thin(16)), "-9.816", "0.432", "0.624"),
    "DDIM 32": (denoise.ddim(thin(32)), "-10.541", "0.110", "0.794"),
    "Euler 16": (denoise.ddim(levels.karras(16)), "-8.791", "0.498", "0.645"),
    "Euler 64": (denoise.ddim(levels.karras(64)), "-10.577", "0.032", "0.901"),
    "Heun 8": (denoise.heun(levels.karras(8)), "-16.824", "2.27", "2.294"),
    "Heun 18": (denoise.heun(levels.karras(18)), "-11.965", "0.056", "1.158"),
    "Heun 32": (denoise.heun(levels.karras(32)), "-11.440", "0.0050", "1.043"),
    "churn 128": (denoise.heun(levels.karras(128), churn=80.0), "-11.489", "0.0030", "1.034"),
}


@pytest.mark.parametrize("name", LAWS)
def test_a_sampler_has_its_exact_law_to_the_printed_digits(name):
    solver, *figures = LAWS[name]
    law = output_law(solver)
    exact = examples.value(law), examples.divergence(law, BEHAVIOR), examples.dynamics(law)
    for figure, printed in zip(exact, figures, strict=True):
        assert examples.rounds_to(figure, printed)


@pytest.mark.parametrize("num_steps", [1, 2, 4, 16])
def test_second_order_steps_are_exact_in_any_number(num_steps):
    law = output_law(denoise.second_order(thin(num_steps)))
    assert abs(examples.divergence(law, BEHAVIOR)) < 1e-12
    np.testing.assert_allclose(examples.value(law), -11.292546, atol=1e-6)


@pytest.mark.parametrize(
    "schedule", [levels.karras(3), levels.linear(7), levels.continuous_linear(4)], ids=len
)
def test_second_order_steps_are_exact_on_any_levels(schedule):
    """Up to the data's share of the noisiest level, from which no sampler starts exactly."""
    law = output_law(denoise.second_order(schedule))
    share = (schedule.signal[0] / schedule.noise[0]) ** 2
    assert abs(examples.divergence(law, BEHAVIOR)) < 10.0 * share**2 + 1e-12


def laws_agree(first, second, tolerance):
    for leaf, other in zip(first, second, strict=True):
        np.testing.assert_allclose(leaf, other, atol=tolerance)


@pytest.mark.parametrize("num_steps", [5, 20])
def test_ddim_with_all_its_noise_is_ancestral(num_steps):
    schedule = levels.thinned(levels.cosine(20), num_steps)
    first = output_law(denoise.ddim(schedule, eta=1.0))
    laws_agree(first, output_law(denoise.ancestral(schedule)), 1e-9)


def test_eulers_steps_on_straight_lines_are_flow_matchings():
    """`ddim` follows `flow.integrate` with the velocity `(x_0 - x) / (1 - t)`."""
    denoiser = examples.denoiser(BEHAVIOR, 0.3)

    def velocity(point, time):
        level = Level(signal=time, noise=1.0 - time)
        return (denoiser(point, level) - point) / (1.0 - time)

    noise = jax.random.normal(KEY, (SIZE,))
    solver = denoise.ddim(levels.straight(10))
    carry = solver.init(noise)
    for i in range(10):
        entry = jax.tree.map(lambda leaf, i=i: jnp.asarray(leaf)[i], solver.schedule)
        carry = solver.step(denoiser, UNGUIDED, carry, jnp.zeros((1, SIZE)), entry)
    np.testing.assert_allclose(carry[0], flow.integrate(velocity, noise, 10), atol=1e-5)


def log_even(num_steps):
    """Levels that are even in the logarithm of signal over noise, then the data."""
    log_ratio = np.linspace(-5.0, 5.0, num_steps)
    noise = 1.0 / np.sqrt(1.0 + np.exp(2.0 * log_ratio))
    return Level(signal=np.append(np.sqrt(1.0 - noise**2), 1.0), noise=np.append(noise, 0.0))


@pytest.mark.parametrize(
    ("make", "order"), [(denoise.ddim, 1), (denoise.dpm_solver, 2), (denoise.heun, 2)]
)
def test_solvers_have_their_order(make, order):
    """Twice the steps leave `2^-order` of the error of the covariance."""
    laws = [output_law(make(log_even(num_steps + 1))).covariance for num_steps in (64, 128, 256)]
    coarse, fine = (np.max(np.abs(laws[i] - laws[i + 1])) for i in (0, 1))
    assert abs(np.log2(coarse / fine) - order) < 0.25


def test_one_draw_is_the_law_and_a_batch_is_a_vmap():
    """Samples in float32: mean and covariance within four standard errors of the exact law."""
    solver = denoise.second_order(thin(4))
    denoiser = examples.denoiser(BEHAVIOR, 0.3)
    keys = jax.random.split(KEY, 2_000)
    draw = jax.jit(jax.vmap(lambda key: denoise.sample(solver, denoiser, SIZE, key)))
    whitened = np.linalg.solve(
        np.linalg.cholesky(BEHAVIOR.covariance), (np.asarray(draw(keys)) - BEHAVIOR.mean(0.3)).T
    )
    assert np.max(np.abs(whitened.mean(axis=1))) < 4.5 / np.sqrt(2_000)
    covariance = whitened @ whitened.T / 2_000
    assert np.max(np.abs(covariance - np.eye(SIZE))) < 5.0 * np.sqrt(2.0 / 2_000)
    single = denoise.sample(solver, denoiser, SIZE, keys[0])
    np.testing.assert_allclose(single, draw(keys[:1])[0], atol=1e-4)


def test_temperature_scales_every_noise():
    """With none of it, samples are the data's mean."""
    solver = denoise.ancestral(levels.cosine(16))
    denoiser = examples.denoiser(BEHAVIOR, 0.3)
    cold = denoise.sample(solver, denoiser, SIZE, KEY, temperature=0.0)
    expected = output_law(solver).mean(0.3)
    np.testing.assert_allclose(cold, expected, atol=1e-4)
