"""Policies of the sizes of cheetah run, for what is timed with them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.types import Action, Key, Observation, Params, Policy

STATE_SIZE = 17
ACTION_SIZE = 6


def policy() -> Policy:
    """Two hidden layers, tanh, and noise."""

    def mode(params: Params, observation: Observation) -> Action:
        x = observation
        for kernel in params[:-1]:
            x = jnp.tanh(x @ kernel)
        return jnp.tanh(x @ params[-1])

    def sample(params: Params, observation: Observation, key: Key) -> Action:
        noise = 0.1 * jax.random.normal(key, (ACTION_SIZE,))
        return jnp.clip(mode(params, observation) + noise, -1.0, 1.0)

    return Policy(sample=sample, mode=mode)


def policies(count: int, hidden: int = 64) -> Params:
    """Random parameters of `count` policies."""
    rng = np.random.default_rng(1)
    sizes = itertools.pairwise((STATE_SIZE, hidden, hidden, ACTION_SIZE))
    return [
        jnp.asarray(rng.normal(size=(count, inputs, outputs)) / inputs**0.5, jnp.float32)
        for inputs, outputs in sizes
    ]


def separate(params: Params, count: int) -> list[Params]:
    """The parameters of each policy."""
    return [jax.tree.map(lambda leaf, row=row: leaf[row], params) for row in range(count)]
