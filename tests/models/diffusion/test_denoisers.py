"""What denoisers predict and learn from: exact conversions and losses in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offline_mbrl.models.diffusion import denoisers, levels
from offline_mbrl.models.diffusion.levels import Level

KEY = jax.random.key(0)
FORMS = {
    "clean": denoisers.CLEAN,
    "noise": denoisers.NOISE,
    "v": denoisers.V,
    "velocity": denoisers.VELOCITY,
    "edm": denoisers.preconditioned(),
    "edm of images": denoisers.preconditioned(0.5),
}
LEVELS = {
    "vp": Level(signal=jnp.float32(0.8), noise=jnp.float32(0.6)),
    "edm": Level(signal=jnp.float32(1.0), noise=jnp.float32(3.0)),
    "flow": Level(signal=jnp.float32(0.3), noise=jnp.float32(0.7)),
}
CLEAN, NOISE = jax.random.normal(KEY, (2, 3, 2))
NOTHING = np.zeros((3, 2), bool)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("level", LEVELS)
def test_a_form_gives_back_the_clean_point_of_its_target(form, level):
    level = LEVELS[level]
    target = FORMS[form].target(CLEAN, NOISE, level)
    x = denoisers.noised(CLEAN, NOISE, level)
    clean = FORMS[form].clean(x, target, level)
    np.testing.assert_allclose(clean, CLEAN, atol=2e-6)
    np.testing.assert_allclose(denoisers.noise_of(x, clean, level), NOISE, atol=2e-6)


def test_targets_are_the_papers():
    level = LEVELS["vp"]
    v = denoisers.V.target(CLEAN, NOISE, level)
    np.testing.assert_allclose(v, 0.8 * NOISE - 0.6 * CLEAN, rtol=1e-5)
    velocity = denoisers.VELOCITY.target(CLEAN, NOISE, LEVELS["flow"])
    np.testing.assert_allclose(velocity, CLEAN - NOISE)
    # EDM's coefficients at sigma 3 of data with deviation 1/2
    x = CLEAN + 3.0 * NOISE
    edm = FORMS["edm of images"].clean(x, NOISE, LEVELS["edm"])
    c_skip, c_out = 0.25 / 9.25, 3.0 * 0.5 / np.sqrt(9.25)
    np.testing.assert_allclose(edm, c_skip * x + c_out * NOISE, rtol=1e-5)


@pytest.mark.parametrize("level", LEVELS)
def test_edms_form_of_unit_data_is_v_with_the_opposite_sign(level):
    level = LEVELS[level]
    v = denoisers.V.target(CLEAN, NOISE, level)
    edm = FORMS["edm"].target(CLEAN, NOISE, level)
    np.testing.assert_allclose(edm, -v, atol=2e-6)


def test_forms_are_finite_at_pure_noise():
    level = Level(signal=jnp.float32(0.0), noise=jnp.float32(1.0))
    for name in ("clean", "v", "velocity", "edm"):
        target = FORMS[name].target(CLEAN, NOISE, level)
        np.testing.assert_allclose(FORMS[name].clean(NOISE, target, level), CLEAN, atol=2e-6)
    assert np.isfinite(denoisers.condition(level))


def test_the_condition_is_edms_and_the_input_has_unit_variance():
    level = LEVELS["edm"]
    np.testing.assert_allclose(denoisers.condition(level), np.log(3.0) / 4.0, rtol=1e-6)
    np.testing.assert_allclose(denoisers.scaled(CLEAN, level), CLEAN / np.sqrt(10.0), rtol=1e-6)
    np.testing.assert_allclose(denoisers.scaled(CLEAN, LEVELS["vp"]), CLEAN, rtol=1e-6)


def test_edm_and_vp_levels_of_one_ratio_are_the_same_to_a_network():
    """`x_sigma = x_k / signal`: a network denoises both to the same point."""

    def network(x, condition):
        return jnp.sin(x) + condition

    vp = LEVELS["vp"]
    edm = Level(signal=jnp.float32(1.0), noise=vp.noise / vp.signal)
    denoise = denoisers.denoiser(network, FORMS["edm"], NOTHING)
    x = denoisers.noised(CLEAN, NOISE, vp)
    np.testing.assert_allclose(denoise(x, vp), denoise(x / vp.signal, edm), atol=1e-6)


def test_the_score_of_normal_data_is_that_of_the_noisy_law():
    level = LEVELS["vp"]
    variance = 2.0  # of x_0; the noisy variance is 0.64 * 2 + 0.36
    x = NOISE
    clean = level.signal * variance / (level.signal**2 * variance + level.noise**2) * x
    np.testing.assert_allclose(denoisers.score_of(x, clean, level), -x / 1.64, rtol=1e-5)


def constant(value):
    return lambda x, condition: jnp.full(x.shape, value)


def loss(form, network, level, *, weights=None, fixed=NOTHING):
    weights = jnp.ones((3, 2)) if weights is None else weights
    return denoisers.loss(network, form, CLEAN, NOISE, level, weights=weights, fixed=fixed)


def test_losses_are_mean_squares_of_the_targets():
    level = LEVELS["vp"]
    for form in FORMS.values():
        target = form.target(CLEAN, NOISE, level)
        expected = np.mean((0.5 - np.asarray(target)) ** 2)
        np.testing.assert_allclose(loss(form, constant(0.5), level), expected, rtol=1e-5)


def test_edms_loss_is_its_weighted_error_of_the_clean_point():
    """`(sigma^2 + sigma_d^2) / (sigma sigma_d)^2 |D - x_0|^2`."""
    level = LEVELS["edm"]
    form = FORMS["edm of images"]
    denoise = denoisers.denoiser(constant(0.5), form, NOTHING, sigma_data=0.5)
    error = denoise(denoisers.noised(CLEAN, NOISE, level), level) - CLEAN
    expected = (9.0 + 0.25) / (9.0 * 0.25) * np.mean(np.square(error))
    np.testing.assert_allclose(loss(form, constant(0.5), level), expected, rtol=1e-5)


def test_the_noises_loss_is_the_clean_points_times_signal_to_noise():
    level = LEVELS["vp"]
    x = denoisers.noised(CLEAN, NOISE, level)
    clean = denoisers.NOISE.clean(x, jnp.full((3, 2), 0.5), level)
    of_clean = loss(denoisers.CLEAN, lambda x, condition: clean, level)
    weight = denoisers.signal_to_noise(level)
    np.testing.assert_allclose(weight, 0.64 / 0.36, rtol=1e-5)
    of_noise = loss(denoisers.NOISE, constant(0.5), level)
    np.testing.assert_allclose(of_noise, weight * of_clean, rtol=1e-5)


def test_known_entries_are_read_clean_and_do_not_count():
    fixed = NOTHING.copy()
    fixed[0] = True
    level = LEVELS["edm"]

    def network(x, condition):
        np.testing.assert_array_equal(x[0], CLEAN[0])
        np.testing.assert_allclose(x[1:], (CLEAN + 3.0 * NOISE)[1:] / np.sqrt(10.0), rtol=1e-5)
        return jnp.zeros_like(x).at[0].set(1e6)

    weights = jnp.array([[9.0, 9.0], [1.0, 2.0], [0.0, 1.0]])
    expected = np.sum(weights[1:] * np.square(CLEAN[1:])) / 4.0
    value = loss(denoisers.CLEAN, network, level, weights=weights, fixed=fixed)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    x = jnp.where(fixed, CLEAN, CLEAN + 3.0 * NOISE)
    clean = denoisers.denoiser(network, denoisers.CLEAN, fixed)(x, level)
    np.testing.assert_array_equal(clean[0], CLEAN[0])


def test_a_clipped_denoiser_stays_within_its_bounds():
    low = jnp.full((3, 2), -0.1)
    clean = denoisers.clipped(lambda x, level: x, low, 0.2)(CLEAN, LEVELS["vp"])
    np.testing.assert_allclose(clean, np.clip(CLEAN, -0.1, 0.2), rtol=1e-6)
    assert float(jnp.max(jnp.abs(clean - CLEAN))) > 0.1


def test_levels_are_drawn_from_their_laws():
    keys = jax.random.split(KEY, 4_000)
    schedule = levels.cosine(4)
    drawn = jax.vmap(denoisers.uniform(schedule))(keys)
    noises, counts = np.unique(np.asarray(drawn.noise), return_counts=True)
    np.testing.assert_allclose(noises, np.sort(schedule.noise)[1:], rtol=1e-6)
    # Four standard errors of a share of 1/4
    assert np.all(np.abs(counts / 4_000 - 0.25) < 4.0 * np.sqrt(0.25 * 0.75 / 4_000))
    drawn = jax.vmap(denoisers.log_normal())(keys)
    log_noise = np.log(drawn.noise)
    assert abs(log_noise.mean() + 1.2) < 4.0 * 1.2 / np.sqrt(4_000)
    assert abs(log_noise.std() - 1.2) < 4.0 * 1.2 / np.sqrt(8_000)
    np.testing.assert_array_equal(drawn.signal, 1.0)
    drawn = jax.vmap(denoisers.uniform_time)(keys)
    np.testing.assert_allclose(drawn.signal + drawn.noise, 1.0, rtol=1e-6)
    assert abs(drawn.signal.mean() - 0.5) < 4.0 / np.sqrt(12 * 4_000)


def test_the_average_of_parameters_copies_then_decays_then_waits():
    def moved(update, **options):
        average = denoisers.moving_average(
            {"w": jnp.float32(2.0)}, {"w": jnp.float32(6.0)}, update, decay=0.75, **options
        )
        return float(average["w"])

    assert moved(0) == 0.75 * 2.0 + 0.25 * 6.0
    assert moved(9, start=10) == 6.0
    assert moved(10, start=10) == 3.0
    assert [moved(update, period=10) for update in (8, 9, 10)] == [2.0, 3.0, 2.0]
