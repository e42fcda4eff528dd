"""Flow matching: closed forms of its loss and of Euler's method, and what it learns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from offline_mbrl.networks import flow

KEY = jax.random.key(0)


def test_lines_run_from_noise_to_data():
    noise, data = jnp.array([1.0, -1.0]), jnp.array([3.0, 1.0])
    for time, expected in ((0.0, noise), (0.25, jnp.array([1.5, -0.5])), (1.0, data)):
        np.testing.assert_allclose(flow.between(noise, data, jnp.float32(time)), expected)


def test_the_loss_is_the_mean_squared_error_of_the_velocity():
    def velocity(point, time):
        return point + time

    noise, data = jnp.array([1.0, -1.0]), jnp.array([3.0, 1.0])
    # The point is (2, 0), the field there (2.5, 0.5), the velocity of the line (2, 2).
    value = flow.velocity_loss(velocity, data, noise, jnp.float32(0.5))
    np.testing.assert_allclose(value, (0.5**2 + 1.5**2) / 2.0)


def test_the_line_of_one_datum_is_followed_exactly_in_any_number_of_steps():
    datum = jnp.array([[0.3, -0.2], [0.5, 0.1]])  # points of any shape

    def velocity(point, time):
        return (datum - point) / (1.0 - time)

    noise = jax.random.normal(KEY, (2, 2))
    assert float(flow.velocity_loss(velocity, datum, noise, jnp.float32(0.4))) < 1e-10
    for num_steps in (1, 3, 10):
        np.testing.assert_allclose(flow.integrate(velocity, noise, num_steps), datum, atol=1e-6)


@pytest.mark.parametrize("num_steps", [1, 10])
def test_steps_are_those_of_eulers_method(num_steps):
    value = flow.integrate(lambda point, time: point, jnp.ones(1), num_steps)
    np.testing.assert_allclose(value, (1.0 + 1.0 / num_steps) ** num_steps, rtol=1e-5)
    # Of times 0, 1/N, ..., (N - 1)/N.
    value = flow.integrate(lambda point, time: 0.0 * point + time, jnp.zeros(1), num_steps)
    np.testing.assert_allclose(value, 0.5 * (1.0 - 1.0 / num_steps), atol=1e-6)


def test_it_learns_two_modes_given_a_condition():
    """Data are at the condition plus or minus one half; no sample is between."""
    head = flow.make(1, 1, (32, 32), activation=jax.nn.gelu)
    optimizer = optax.adam(5e-3)

    def batch_loss(params, key):
        def single(key):
            key_data, key_mode, key_noise, key_time = jax.random.split(key, 4)
            condition = jax.random.uniform(key_data, (1,), minval=-0.5, maxval=0.5)
            data = condition + jnp.where(jax.random.bernoulli(key_mode), 0.5, -0.5)
            noise = jax.random.normal(key_noise, (1,))
            time = jax.random.uniform(key_time)
            velocity = functools.partial(head.velocity, params, condition)
            return flow.velocity_loss(velocity, data, noise, time)

        return jnp.mean(jax.vmap(single)(jax.random.split(key, 128)))

    def update(carry, key):
        params, opt_state = carry
        updates, opt_state = optimizer.update(jax.grad(batch_loss)(params, key), opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    params = head.init(KEY)
    start = (params, optimizer.init(params))
    (params, _), _ = jax.jit(lambda start, keys: jax.lax.scan(update, start, keys))(
        start, jax.random.split(KEY, 1_000)
    )
    velocity = functools.partial(head.velocity, params, jnp.array([0.2]))
    noise = jax.random.normal(jax.random.key(3), (200, 1))
    samples = np.asarray(jax.vmap(lambda noise: flow.integrate(velocity, noise, 20))(noise))
    upper = samples > 0.2
    assert 0.4 < upper.mean() < 0.6
    distance = np.abs(samples - np.where(upper, 0.7, -0.3))
    assert np.mean(distance < 0.2) > 0.9
