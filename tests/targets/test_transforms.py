"""Signed hyperbolic scaling and two-hot encoding: values, round trips, order of decoding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offline_mbrl.targets import transforms


def test_scaling_has_the_published_values():
    x = jnp.array([1.0, 10.0, 84.0, 300.0, 1000.0])
    expected = [0.41521, 2.32662, 8.30354, 16.64935, 31.63858]
    np.testing.assert_allclose(transforms.signed_hyperbolic(x), expected, rtol=1e-5)


def test_the_inverse_undoes_scaling_over_the_whole_range():
    x = jnp.concatenate([-jnp.logspace(-3, 4.7, 50), jnp.zeros(1), jnp.logspace(-3, 4.7, 50)])
    back = transforms.signed_parabolic(transforms.signed_hyperbolic(x))
    np.testing.assert_allclose(back, x, rtol=1e-4, atol=2e-6)


def test_the_inverse_keeps_the_digits_that_the_published_form_loses():
    assert (
        abs(
            float(transforms.signed_parabolic(transforms.signed_hyperbolic(jnp.float32(84.0))))
            - 84.0
        )
        < 2e-4
    )


@pytest.mark.parametrize(("bins", "low", "high"), [(20, -9, 10), (21, -10, 10), (601, -300, 300)])
def test_the_support_is_integers_around_zero(bins, low, high):
    support = transforms.support(bins)
    assert (support[0], support[-1], support.shape) == (low, high, (bins,))


def test_two_hot_splits_between_neighbours_as_in_the_published_example():
    encoded = transforms.two_hot(transforms.signed_parabolic(jnp.float32(3.7)), 21)
    np.testing.assert_allclose(encoded[13:15], [0.3, 0.7], atol=1e-5)
    np.testing.assert_allclose(encoded.sum(), 1.0, rtol=1e-6)


def test_an_integer_puts_all_its_mass_on_its_own_atom():
    encoded = transforms.two_hot(jnp.float32(0.0), 20)
    np.testing.assert_allclose(encoded, jnp.eye(20)[9], atol=1e-7)


@pytest.mark.parametrize(("bins", "limit"), [(20, 9), (21, 10)])
def test_values_beyond_the_support_are_clipped_and_the_extra_atom_of_an_even_one_stays_empty(
    bins, limit
):
    high, low = (transforms.two_hot(jnp.float32(x), bins) for x in (1e6, -1e6))
    np.testing.assert_allclose(high, jnp.eye(bins)[limit + (bins - 1) // 2], atol=1e-6)
    np.testing.assert_allclose(low, jnp.eye(bins)[0], atol=1e-6)


def test_encoding_then_decoding_is_the_identity_inside_the_support():
    x = jnp.linspace(-80.0, 80.0, 33)
    probabilities = jax.vmap(lambda x: transforms.two_hot(x, 21))(x)
    back = jax.vmap(transforms.from_logits)(jnp.log(probabilities + 1e-12))
    np.testing.assert_allclose(back, x, rtol=1e-4, atol=1e-4)


def test_decoding_takes_the_expectation_before_the_inverse():
    logits = jnp.log(
        jnp.zeros(21).at[jnp.array([10, 20])].set(0.5) + 1e-12
    )  # atoms 0 and 10, half each
    decoded = float(transforms.from_logits(logits))
    np.testing.assert_allclose(
        decoded, float(transforms.signed_parabolic(jnp.float32(5.0))), rtol=1e-4
    )
    assert decoded < 0.5 * float(
        transforms.signed_parabolic(jnp.float32(10.0))
    )  # what the other order would give


@pytest.mark.parametrize("bins", [3, 11, 21, 41, 601])
def test_zero_logits_of_an_odd_support_decode_to_exactly_zero_however_they_are_compiled(bins):
    zeros = jnp.zeros((4, bins))
    assert float(transforms.from_logits(zeros[0])) == 0.0
    assert np.all(np.asarray(jax.jit(jax.vmap(transforms.from_logits))(zeros)) == 0.0)


@pytest.mark.parametrize(("bins", "value"), [(21, 0.0), (20, 1.246)])
def test_zero_logits_decode_to_the_mean_of_the_support(bins, value):
    np.testing.assert_allclose(transforms.from_logits(jnp.zeros(bins)), value, atol=1e-3)
