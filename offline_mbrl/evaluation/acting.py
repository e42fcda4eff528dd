"""Policies and actors for many slots and seeds at once, each slot with a key and a carry."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from offline_mbrl import policies
from offline_mbrl.types import Action, Actor, Array, Key, Observation, Params, Policy, PyTree

INIT = 0xFFFFFFFF  # folded into a slot's key of a step for the carry that an episode begins with


class Acting(NamedTuple):
    """An actor in W slots of S seeds; without seeds the axis S is absent everywhere.

    Both functions are compiled. The key of an action depends on the evaluation's key, the seed's
    place, the step t of the evaluation, and the slot.
    """

    # (params [S, ...], observation [S, W, ...], key, t) -> carry [S, W, ...]
    begin: Callable[[Params, Observation, Key, Array], PyTree]
    # (params, carry, observation, first [S, W], key, t) -> (action [S, W, ...], carry): carries are
    # made anew where the observation is the first of an episode
    act: Callable[..., tuple[Action, PyTree]]


def vectorize(policy: Policy | Actor, width: int, *, greedy: bool, over_seeds: bool) -> Acting:
    """The policy for all slots.

    Args:
      policy: with memory or without.
      width: W.
      greedy: whether it acts without exploration.
      over_seeds: whether params and everything else have the leading axis S.
    """
    actor = policies.as_actor(policy)
    choose = (actor.act_greedily or actor.act) if greedy else actor.act

    def init_slot(params: Params, observation: Observation, key: Key) -> PyTree:
        return actor.init(params, observation, jax.random.fold_in(key, jnp.uint32(INIT)))

    init_all = jax.vmap(init_slot, in_axes=(None, 0, 0))
    choose_all = jax.vmap(choose, in_axes=(None, 0, 0, 0))
    if over_seeds:
        init_all = jax.vmap(init_all)
        choose_all = jax.vmap(choose_all)

    def keys_of(key: Key, index: Array, t: Array) -> Key:
        key = jax.random.fold_in(jax.random.fold_in(key, index), t)
        return jax.vmap(lambda slot: jax.random.fold_in(key, slot))(jnp.arange(width))

    def keys_for(observation: Observation, key: Key, t: Array) -> Key:
        if not over_seeds:
            return keys_of(key, jnp.uint32(0), t)
        indices = jnp.arange(jax.tree.leaves(observation)[0].shape[0], dtype=jnp.uint32)
        return jax.vmap(keys_of, (None, 0, None))(key, indices, t)

    def begin(params: Params, observation: Observation, key: Key, t: Array) -> PyTree:
        return init_all(params, observation, keys_for(observation, key, t))

    def act(
        params: Params, carry: PyTree, observation: Observation, first: Array, key: Key, t: Array
    ) -> tuple[Action, PyTree]:
        keys = keys_for(observation, key, t)
        if jax.tree.leaves(carry):
            carry = jax.lax.cond(
                jnp.any(first),
                lambda: _where(first, init_all(params, observation, keys), carry),
                lambda: carry,
            )
        return choose_all(params, carry, observation, keys)

    return Acting(begin=jax.jit(begin), act=jax.jit(act))


def _where(first: Array, fresh: PyTree, carry: PyTree) -> PyTree:
    """Leaf by leaf, `fresh` where `first` `[S, W]`; leaves have further axes."""

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(first.reshape(first.shape + (1,) * (old.ndim - first.ndim)), new, old)

    return jax.tree.map(choose, fresh, carry)
