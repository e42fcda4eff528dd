"""One network for all conditionals: which entry it predicts, and the entries before it, are inputs.

Input `concat(x, prefix, one-hot)`: the prefix is y with the entry to predict and all later ones set
to zero, the one-hot names that entry. The first layer is split into the three parts, so that the
part of x is computed once for all entries, that of the one-hot is a row, and while sampling that of
the prefix grows by one row an entry. Rows of the one-hot start at unit size, as they are read
alone: with those of a wide layer, entries are distinguished late (on cheetah run 1,900 updates got
further than 3,100).
"""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from offline_mbrl.models.densities.conditionals import Network
from offline_mbrl.networks import torsos
from offline_mbrl.types import Array, Key, Params, PyTree


def network(
    input_size: int,
    output_size: int,
    num_outputs: int,
    *,
    hidden_layers: tuple[int, ...],
    activation: Callable[[Array], Array],
    dims_per_example: int | None,
) -> Network:
    """The network of one-entry-at-a-time models.

    Args:
      input_size: X.
      output_size: D.
      num_outputs: P of the conditional.
      hidden_layers: sizes, at least one.
      activation: elementwise.
      dims_per_example: K conditionals that an example trains, evenly spaced from a random first
        one; None for all.
    """
    sizes = (*hidden_layers, num_outputs)
    num_terms = dims_per_example or output_size

    def upper(params: Params, z: Array) -> Array:
        """First pre-activations `[..., H]` to outputs `[..., P]`; the last layer is linear."""
        for i in range(1, len(sizes)):
            z = activation(z) @ params[f"layer_{i}"]["kernel"] + _bias(params[f"layer_{i}"], z)
        return z

    def from_x(params: Params, x: Array) -> Array:
        return x @ params["input"]["kernel"] + params["input"]["bias"]

    def at(params: Params, x: Array, y: Array, positions: Array) -> Array:
        """Outputs `[K, P]` of the conditionals at `positions [K]`."""
        before = jnp.arange(output_size)[None, :] < positions[:, None]
        prefix = jnp.where(before, y[None, :], 0.0) @ params["prefix"]["kernel"]
        one_hot = params["dimension"]["kernel"][positions]
        return upper(params, from_x(params, x)[None, :] + prefix + one_hot)

    def outputs(params: Params, x: Array, y: Array) -> Array:
        return at(params, x, y, jnp.arange(output_size))

    def terms(params: Params, x: Array, y: Array, key: Key) -> tuple[Array, Array]:
        if num_terms == output_size:
            return jnp.arange(output_size), outputs(params, x, y)
        first = jax.random.randint(key, (), 0, output_size)
        positions = (first + jnp.arange(num_terms) * output_size // num_terms) % output_size
        return positions, at(params, x, y, positions)

    def generate(params: Params, x: Array, draw: Callable, noise: PyTree) -> Array:
        def entry(z: Array, scanned: PyTree) -> tuple[Array, Array]:
            i, row, prefix, noise = scanned
            y = draw(i, upper(params, z + row), noise)
            return z + y * prefix, y

        rows = (params["dimension"]["kernel"], params["prefix"]["kernel"])
        turns = (jnp.arange(output_size), *rows, noise)
        return jax.lax.scan(entry, from_x(params, x), turns)[1]

    return Network(
        init=functools.partial(_init, input_size, output_size, sizes),
        outputs=outputs,
        terms=terms,
        generate=generate,
    )


def _init(input_size: int, output_size: int, sizes: tuple[int, ...], key: Key) -> Params:
    key_first, key_dimension, *keys = jax.random.split(key, len(sizes) + 1)
    wide = input_size + output_size
    first = torsos.fan_in_normal(wide)(key_first, (wide, sizes[0]))
    params: dict[str, PyTree] = {
        "input": {"kernel": first[:input_size], "bias": jnp.zeros(sizes[0])},
        "prefix": {"kernel": first[input_size:]},
        "dimension": {"kernel": torsos.fan_in_normal(1)(key_dimension, (output_size, sizes[0]))},
    }
    for i, (fan_in, size) in enumerate(itertools.pairwise(sizes), 1):
        kernel = torsos.fan_in_normal(fan_in)(keys[i - 1], (fan_in, size))
        params[f"layer_{i}"] = {"kernel": kernel, "bias": jnp.zeros(size)}
    return params


def _bias(layer: Params, like: Array) -> Array:
    return jnp.broadcast_to(layer["bias"], (*like.shape[:-1], layer["bias"].size))
