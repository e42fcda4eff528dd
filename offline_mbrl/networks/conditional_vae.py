"""A conditional variational autoencoder of actions (arXiv:1312.6114), given a vector.

BCQ and BEAR model the data's actions with it at an observation, reverse rollouts at the observation
that an action leads to.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from offline_mbrl.networks import torsos
from offline_mbrl.types import Action, Array, Key, Observation, Params, Policy

LOG_STD_BOUNDS = (-4.0, 15.0)  # of the encoder; BCQ's released code
LATENT_BOUND = 0.5  # of latents that actions are generated from; the same


class ConditionalVAE(NamedTuple):
    """Encoder and decoder as functions of their parameters, for one condition `[D]`."""

    init: Callable[[Key], Params]
    # (params, condition, action) -> mean [L] and log standard deviation [L] of the latent
    encode: Callable[[Params, Array, Action], tuple[Array, Array]]
    # (params, condition, latent [L]) -> [A], whose tanh is the action
    decode: Callable[[Params, Array, Array], Array]
    latent_size: int


class Loss(NamedTuple):
    """The negative evidence bound of one action, and its two parts."""

    total: Array  # []
    reconstruction: Array  # []   mean square over the action's entries
    divergence: Array  # []   of the latent


def make(condition_size: int, action_size: int, layers: tuple[int, ...]) -> ConditionalVAE:
    """An autoencoder whose encoder and decoder have the same hidden layers.

    The latent has twice the size of the action (BCQ, released code).

    Args:
      condition_size: D.
      action_size: A.
      layers: hidden sizes, ReLU.
    """
    latent_size = 2 * action_size
    encoder = torsos.MLP((*layers, 2 * latent_size))
    decoder = torsos.MLP((*layers, action_size))

    def init(key: Key) -> Params:
        key_encoder, key_decoder = jax.random.split(key)
        return {
            "encoder": torsos.init(encoder, key_encoder, jnp.zeros(condition_size + action_size)),
            "decoder": torsos.init(decoder, key_decoder, jnp.zeros(condition_size + latent_size)),
        }

    def encode(params: Params, condition: Array, action: Action) -> tuple[Array, Array]:
        outputs = torsos.apply(encoder, params["encoder"], jnp.concatenate([condition, action]))
        mean, log_std = jnp.split(outputs, 2)
        return mean, jnp.clip(log_std, *LOG_STD_BOUNDS)

    def decode(params: Params, condition: Array, latent: Array) -> Array:
        return torsos.apply(decoder, params["decoder"], jnp.concatenate([condition, latent]))

    return ConditionalVAE(init=init, encode=encode, decode=decode, latent_size=latent_size)


def divergence(mean: Array, log_std: Array) -> Array:
    """The Kullback-Leibler divergence of a normal to the standard one, averaged over entries; `[]`.

    `-mean_j (1 + log sigma_j^2 - mu_j^2 - sigma_j^2) / 2`.

    Args:
      mean: `[L]`.
      log_std: `[L]`.

    Source: arXiv:1812.02900, released code: a mean, where the bound itself has a sum.
    """
    chex.assert_rank([mean, log_std], 1)
    chex.assert_equal_shape([mean, log_std])
    return -0.5 * jnp.mean(1.0 + 2.0 * log_std - jnp.square(mean) - jnp.exp(2.0 * log_std))


def loss(
    vae: ConditionalVAE,
    params: Params,
    condition: Array,
    action: Action,
    key: Key,
    *,
    divergence_coef: float = 0.5,
) -> Loss:
    """`|tanh(decoder(condition, z)) - action|^2 / A + divergence_coef divergence`.

    Args:
      vae: the functions.
      params: of the encoder and the decoder.
      condition: `[D]`.
      action: `[A]` of the data.
      key: of the latent; consumed.
      divergence_coef: weight of the divergence.

    Source: arXiv:1812.02900, released code.
    """
    mean, log_std = vae.encode(params, condition, action)
    latent = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)
    error = jnp.tanh(vae.decode(params, condition, latent)) - action
    reconstruction = jnp.mean(jnp.square(error))
    kl = divergence(mean, log_std)
    return Loss(
        total=reconstruction + divergence_coef * kl, reconstruction=reconstruction, divergence=kl
    )


def generate(vae: ConditionalVAE, params: Params, condition: Array, key: Key) -> Array:
    """Outputs `[A]` of the decoder at a standard normal latent, clipped; their tanh is an action.

    Args:
      vae: the functions.
      params: of the decoder.
      condition: `[D]`.
      key: of the latent; consumed.

    Source: arXiv:1812.02900, released code.
    """
    latent = jax.random.normal(key, (vae.latent_size,))
    return vae.decode(params, condition, jnp.clip(latent, -LATENT_BOUND, LATENT_BOUND))


def as_policy(vae: ConditionalVAE) -> Policy:
    """The policy whose actions are `tanh` of `generate`; it has no density.

    The greedy action is that of the latent 0, the likeliest one. Its parameters are the
    autoencoder's.
    """

    def sample(params: Params, observation: Observation, key: Key) -> Action:
        return jnp.tanh(generate(vae, params, torsos.flat(observation), key))

    def mode(params: Params, observation: Observation) -> Action:
        return jnp.tanh(vae.decode(params, torsos.flat(observation), jnp.zeros(vae.latent_size)))

    return Policy(sample=sample, mode=mode)
