"""Parts of an ensemble's fit that treat members apart: bootstrap resamples, clips, weight decay."""

import jax
import jax.numpy as jnp
import optax

from offline_mbrl.types import Array, Params, PyTree


def own_parts(network: Params) -> Params:
    """What belongs to single members `[E, ...]`: not the parameters that they share."""
    return {name: part for name, part in network.items() if name != "shared"}


def select(mask: Array, chosen: Params, other: Params) -> Params:
    """`chosen` for the members `[E]` where the mask is true, else `other`; trees `[E, ...]`."""
    return jax.tree.map(
        lambda new, old: jnp.where(_along_members(mask, new), new, old), chosen, other
    )


def resampled(position: Array, size: int, seed: int) -> Array:
    """Positions in the members' bootstrap resamples as positions in what was resampled.

    Member e's resample is `size` draws with replacement, made once: its entry j is a function of
    (seed, e, j), so that nothing of size `[E, size]` is kept.

    Args:
      position: `[..., E]` in `[0, size)`.
      size: of the data, and of each resample.
      seed: of the resamples.
    """
    members = jnp.arange(position.shape[-1])
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), members)

    def entry(key: Array, j: Array) -> Array:
        return jax.random.randint(jax.random.fold_in(key, j), (), 0, size)

    rows = position.reshape(-1, position.shape[-1])
    return jax.vmap(jax.vmap(entry), (None, 0))(keys, rows).reshape(position.shape)


def matrices(network: Params) -> PyTree:
    """True on members' weight matrices `[E, in, out]`, false on biases and shared parameters."""
    shared = jax.tree.map(lambda _: False, network.get("shared", {}))
    return jax.tree.map(lambda leaf: leaf.ndim > 2, network) | {"shared": shared}


def clip_gradients(max_norm: float) -> optax.GradientTransformation:
    """Clips the norm of each member's gradient, so that no member's update depends on another.

    The gradients of shared parameters are left alone.
    """

    def clip(gradient: Params, params: Params) -> Params:
        del params
        own = own_parts(gradient)
        squares = [
            jnp.sum(jnp.square(leaf).reshape(leaf.shape[0], -1), axis=1)
            for leaf in jax.tree.leaves(own)
        ]
        norm = jnp.maximum(jnp.sqrt(sum(squares)), 1e-12)
        factor = jnp.minimum(1.0, max_norm / norm)
        return gradient | jax.tree.map(lambda leaf: leaf * _along_members(factor, leaf), own)

    return optax.stateless(clip)


def _along_members(values: Array, leaf: Array) -> Array:
    """`[E]` as `[E, 1, ...]`, to be combined with a leaf `[E, ...]`."""
    return values.reshape(-1, *[1] * (leaf.ndim - 1))
