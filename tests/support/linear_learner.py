"""A learner small enough to reason about: linear regression of the reward on the observation, by
Adam."""

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


def init(key, example, context) -> State:
    upstream = context.upstream
    params = {"w": jax.random.normal(key, example.observation.shape[-1:]), "b": jnp.zeros(())}
    params = upstream.get("params", params)
    explode_at = upstream.get("explode_at", UNTIL_NEVER)
    zero = jnp.zeros((), jnp.int32)
    return State(
        params,
        OPTIMIZER.init(params),
        zero,
        jnp.asarray(explode_at, jnp.int32),
        jnp.full(8, -1),
        jnp.asarray(jnp.inf),
    )


def loss(params, batch, key):
    noise = 0.1 * jax.random.normal(key, batch.reward.shape)
    return jnp.mean((batch.observation @ params["w"] + params["b"] - batch.reward - noise) ** 2)


def step(state: State, context, batch, key):
    del context
    value, grads = jax.value_and_grad(loss)(state.params, batch, key)
    updates, opt_state = OPTIMIZER.update(grads, state.opt_state)
    bad = jnp.where(state.count == state.explode_at, jnp.nan, 0.0)
    params = jax.tree.map(lambda leaf: leaf + bad, optax.apply_updates(state.params, updates))
    metrics = {"count": state.count, "loss/value": value + bad}
    return state._replace(params=params, opt_state=opt_state, count=state.count + 1), metrics


def validate(state: State, context, batch, key):
    del context
    return {"count": state.count, "loss/value": loss(state.params, batch, key)}


def refresh(state: State, context, data, cache, update, key):
    del context, data
    place = jnp.sum(state.refreshed >= 0)
    noise = 0.01 * jax.random.normal(key, state.params["w"].shape)
    state = state._replace(
        refreshed=state.refreshed.at[place].set(update),
        params={**state.params, "w": state.params["w"] + noise},
    )
    return state, cache, {}


def make(batch_size: int = 16, **fields) -> Learner:
    learner = Learner(
        sample=memory.Transitions(batch_size),
        init=init,
        step=step,
        policy=None,
        policy_params=lambda state, context: state.params,
        validate=validate,
    )
    return learner._replace(**fields)


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
