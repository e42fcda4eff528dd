"""The feedforward density: all entries at once, independent given observation and action, diagonal Gaussian.

`p(y | x) = prod_i N(y_i; mu_i(x), sigma_i(x)^2)`, one network that emits 2 D numbers. The bounds of the log deviation
are soft and fixed, not learned, since the lower one decides how good a likelihood a deterministic simulator allows.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from offline_mbrl.models.density import Density, gaussian_log_prob, soft_bounds
from offline_mbrl.networks import torsos
from offline_mbrl.types import Array, PyTree, UsageError


@dataclass(frozen=True)
class Config:
    """Our defaults; the size is between those that were compared for this family."""

    hidden_layers: tuple[int, ...] = (256, 256, 256)  # SiLU between them
    lowest_log_std: float = -7.0  # soft bound, in units where the target has deviation 1
    highest_log_std: float = 1.0


def make(config: Config, state_size: int, action_size: int) -> Density:
    """The density of D = state_size + 1 entries.

    Args:
      config: sizes and bounds.
      state_size: n, entries of the observation.
      action_size: entries of the action.

    Raises:
      UsageError: the bounds leave no room.
    """
    if not config.lowest_log_std < config.highest_log_std:
        raise UsageError(f"feedforward: lowest_log_std {config.lowest_log_std} must be below highest_log_std "
                         f"{config.highest_log_std}")  # fmt: skip
    num_entries = state_size + 1
    network = torsos.MLP((*config.hidden_layers, 2 * num_entries), activation=jax.nn.silu)

    def init(key: Array) -> PyTree:
        return torsos.init(network, key, jnp.zeros(state_size + action_size))

    def heads(params: PyTree, x: Array) -> tuple[Array, Array]:
        mean, scale = jnp.split(torsos.apply(network, params, x), 2)
        return mean, soft_bounds(scale, config.lowest_log_std, config.highest_log_std)

    def log_prob(params: PyTree, shared: PyTree, x: Array, y: Array) -> Array:
        del shared
        return gaussian_log_prob(y, *heads(params, x))

    def loss(params: PyTree, shared: PyTree, x: Array, y: Array, key: Array) -> Array:
        del key  # deterministic
        return -jnp.mean(log_prob(params, shared, x, y))

    def sample(params: PyTree, shared: PyTree, x: Array, key: Array) -> Array:
        mean, std = moments(params, shared, x, x)
        return mean + std * jax.random.normal(key, mean.shape)

    def mode(params: PyTree, shared: PyTree, x: Array) -> Array:
        return moments(params, shared, x, x)[0]

    def moments(params: PyTree, shared: PyTree, x: Array, y: Array) -> tuple[Array, Array]:
        del shared, y  # no entry depends on another
        mean, log_std = heads(params, x)
        return mean, jnp.exp(log_std)

    return Density(
        init=init, shared=dict, loss=loss, penalty=lambda params, shared: jnp.zeros(()), log_prob=log_prob,
        sample=sample, mode=mode, moments=moments)  # fmt: skip
