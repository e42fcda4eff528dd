"""The conditional autoencoder: closed forms, bounds of latents, and what it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from offline_mbrl.networks import conditional_vae

KEY = jax.random.key(0)


def test_the_divergence_is_the_mean_over_entries_of_the_latent():
    value = conditional_vae.divergence(jnp.array([0.5, -1.0]), jnp.log(jnp.array([1.0, 2.0])))
    np.testing.assert_allclose(value, 0.715926, rtol=1e-5)
    assert conditional_vae.divergence(jnp.zeros(3), jnp.zeros(3)) == 0.0


def test_the_latent_has_twice_the_size_of_the_action_and_a_bounded_deviation():
    vae = conditional_vae.make(3, 2, (8,))
    params = jax.tree.map(lambda leaf: 1e6 * leaf, vae.init(KEY))
    mean, log_std = vae.encode(params, jnp.ones(3), jnp.ones(2))
    assert vae.latent_size == 4
    assert mean.shape == log_std.shape == (4,)
    assert set(np.asarray(log_std).tolist()) == {-4.0, 15.0}


def test_actions_are_generated_from_latents_within_half():
    vae = conditional_vae.make(1, 1, (8,))
    vae = vae._replace(decode=lambda params, condition, latent: latent)
    keys = jax.random.split(KEY, 200)
    latents = jax.vmap(lambda key: conditional_vae.generate(vae, {}, jnp.zeros(1), key))(keys)
    assert float(jnp.max(jnp.abs(latents))) == 0.5
    assert 0.2 < float(jnp.mean(jnp.abs(latents) < 0.5)) < 0.6  # 0.383 of normal latents


def test_the_loss_is_the_error_of_the_action_and_half_the_divergence():
    vae = conditional_vae.make(2, 1, (8,))._replace(
        encode=lambda params, condition, action: (jnp.ones(2), jnp.full(2, -jnp.inf)),
        decode=lambda params, condition, latent: latent[:1],
    )
    result = conditional_vae.loss(vae, {}, jnp.zeros(2), jnp.array([0.5]), KEY)
    np.testing.assert_allclose(result.reconstruction, (np.tanh(1.0) - 0.5) ** 2, rtol=1e-6)
    wide = vae._replace(encode=lambda params, condition, action: (jnp.ones(2), jnp.zeros(2)))
    result = conditional_vae.loss(wide, {}, jnp.zeros(2), jnp.array([0.5]), KEY)
    np.testing.assert_allclose(result.divergence, 0.5, rtol=1e-6)
    np.testing.assert_allclose(result.total - result.reconstruction, 0.25, rtol=1e-5)


def test_it_learns_actions_that_depend_on_the_condition():
    vae = conditional_vae.make(1, 1, (16,))
    optimizer = optax.adam(1e-2)
    conditions = jnp.linspace(-1.0, 1.0, 16)[:, None]

    def batch_loss(params, key):
        def single(condition, key):
            return conditional_vae.loss(vae, params, condition, 0.8 * condition, key).total

        return jnp.mean(jax.vmap(single)(conditions, jax.random.split(key, 16)))

    def update(carry, key):
        params, opt_state = carry
        updates, opt_state = optimizer.update(jax.grad(batch_loss)(params, key), opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    params = vae.init(KEY)
    start = (params, optimizer.init(params))
    (params, _), _ = jax.jit(lambda start, keys: jax.lax.scan(update, start, keys))(
        start, jax.random.split(KEY, 500)
    )
    actions = jax.vmap(lambda condition: conditional_vae.generate(vae, params, condition, KEY))
    np.testing.assert_allclose(jnp.tanh(actions(conditions)), 0.8 * conditions, atol=0.1)
