"""Policies of the sizes of cheetah run, for what is timed with them."""

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.types import Array, Policy, PyTree

STATE_SIZE, ACTION_SIZE = 17, 6


def policy() -> Policy:
    """Two hidden layers, tanh, and noise."""

    def mode(params: PyTree, observation: Array) -> Array:
        x = observation
        for kernel in params[:-1]:
            x = jnp.tanh(x @ kernel)
        return jnp.tanh(x @ params[-1])

    def sample(params: PyTree, observation: Array, key: Array) -> Array:
        return jnp.clip(mode(params, observation) + 0.1 * jax.random.normal(key, (ACTION_SIZE,)), -1.0, 1.0)

    return Policy(sample, mode)


def policies(count: int, hidden: int = 64) -> PyTree:
    """Random parameters of `count` of them."""
    rng, sizes = np.random.default_rng(1), (STATE_SIZE, hidden, hidden, ACTION_SIZE)
    return [jnp.asarray(rng.normal(size=(count, a, b)) / a**0.5, jnp.float32) for a, b in zip(sizes, sizes[1:])]  # noqa: B905, RUF007


def separate(actors: PyTree, count: int) -> list[PyTree]:
    """The parameters of each."""
    return [jax.tree.map(lambda leaf, i=i: leaf[i], actors) for i in range(count)]
