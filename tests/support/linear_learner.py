"""A learner small enough to reason about: linear regression of the reward on the observation, by Adam."""

import contextlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from offline_mbrl.data import memory
from offline_mbrl.types import Learner

OPTIMIZER = optax.adam(1e-2)
UNTIL_NEVER = 10**9


class State(NamedTuple):
    params: Any
    opt_state: Any
    count: jax.Array  # [] updates done
    explode_at: jax.Array  # [] the update at which the loss is NaN
    refreshed: jax.Array  # [8] the updates at which refresh was called
    best: jax.Array  # [] an infinity on purpose


def dataset(size: int = 64) -> memory.Dataset:
    generator = np.random.default_rng(0)
    observation = generator.normal(size=(size, 3))
    return memory.Dataset.from_arrays(
        {
            "observation": observation,
            "action": np.zeros((size, 1)),
            "reward": observation @ np.array([1.0, -2.0, 0.5]),
            "is_terminal": np.arange(size) % 8 == 7,
        }
    )


def init(key, example, statistics, given) -> State:
    del statistics
    params = {"w": jax.random.normal(key, example.observation.shape[-1:]), "b": jnp.zeros(())}
    params = given.get("params", params) if given else params
    explode_at = given.get("explode_at", UNTIL_NEVER) if given else UNTIL_NEVER
    zero = jnp.zeros((), jnp.int32)
    return State(
        params, OPTIMIZER.init(params), zero, jnp.asarray(explode_at, jnp.int32), jnp.full(8, -1), jnp.asarray(jnp.inf)
    )


def loss(params, batch, key):
    noise = 0.1 * jax.random.normal(key, batch.reward.shape)
    return jnp.mean((batch.observation @ params["w"] + params["b"] - batch.reward - noise) ** 2)


def step(state: State, batch, key):
    value, grads = jax.value_and_grad(loss)(state.params, batch, key)
    updates, opt_state = OPTIMIZER.update(grads, state.opt_state)
    bad = jnp.where(state.count == state.explode_at, jnp.nan, 0.0)
    params = jax.tree.map(lambda leaf: leaf + bad, optax.apply_updates(state.params, updates))
    metrics = {"count": state.count, "loss/value": value + bad}
    return state._replace(params=params, opt_state=opt_state, count=state.count + 1), metrics


def refresh(state: State, data, key) -> State:
    del data
    place = jnp.sum(state.refreshed >= 0)
    noise = 0.01 * jax.random.normal(key, state.params["w"].shape)
    return state._replace(
        refreshed=state.refreshed.at[place].set(state.count),
        params={**state.params, "w": state.params["w"] + noise},
    )


def make(batch_size: int = 16, **fields) -> Learner:
    return Learner(memory.transitions(batch_size), init, step, None, lambda state: state.params)._replace(**fields)


@contextlib.contextmanager
def compilation_cache(directory):
    """JAX's persistent cache for everything that compiles inside."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in zip(names, (str(directory), 0.0), strict=True):
        jax.config.update(name, value)
    jax_cache.reset_cache()  # the decision to use a cache is taken once
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    jax_cache.reset_cache()
