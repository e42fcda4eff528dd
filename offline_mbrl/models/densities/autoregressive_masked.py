"""All conditionals in one pass: a residual network with masked weights (MADE, arXiv:1502.03509).

Hidden units belong to entries, equally many to each and in order: those of entry i see x and the
entries before i alone, and the i-th conditional reads the units of entries up to i. So every weight
matrix is block triangular.

Sampling needs no D passes. The units of entry i can be computed as soon as the entries before it
are sampled, and never change again: all D entries together cost about one pass, as forward
substitution costs about one product. As in forward substitution, matrices are taken in parts, so
that most of the work is products of full matrices.

Differences from the paper: a unit's degree is the same in every layer instead of random, layers are
residual, x enters each of them unmasked, and there is a masked linear map from (x, y) to the
outputs.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.models.densities.conditionals import Network
from offline_mbrl.types import Array, Key, Params, PyTree

# More parts skip more zeros, fewer are larger products.
MOST_PARTS = 5  # of a matrix
FEWEST_ENTRIES = 3  # of a part


# --- block triangular matrices ---


class Triangular(NamedTuple):
    """A matrix from `rows` numbers an entry to `columns` numbers an entry; none sees a later one.

    It is stored in parts, the columns of a few consecutive entries each, with the rows of entries
    up to the last of them. So most of the zeros are neither stored nor multiplied.
    """

    parts: tuple[tuple[int, int], ...]  # first entry, and one past the last
    rows: int
    columns: int
    strict: bool  # whether an entry does not see itself either

    def mask(self, j: int) -> np.ndarray:
        """1 where a weight of part `j` is used, else 0."""
        start, stop = self.parts[j]
        visible = np.arange(stop)[:, None] + self.strict <= np.arange(start, stop)[None, :]
        by_row = np.repeat(visible, self.rows, axis=0)
        return np.repeat(by_row, self.columns, axis=1).astype(np.float32)

    def masks(self) -> list[np.ndarray]:
        """Those of all parts."""
        return [self.mask(j) for j in range(len(self.parts))]

    def fan_in(self) -> np.ndarray:
        """How many numbers each column sees."""
        return np.concatenate([mask.sum(axis=0) for mask in self.masks()])

    def init(self, key: Key, other_inputs: int) -> Params:
        """Weights, for columns that see as many other numbers besides."""
        size = self.parts[-1][1]
        shape = (self.rows * size, self.columns * size)
        whole = _cut_normal(key, shape, self.fan_in() + other_inputs)
        params = {}
        for j, (mask, (start, stop)) in enumerate(zip(self.masks(), self.parts, strict=True)):
            columns = whole[: len(mask), self.columns * start : self.columns * stop]
            params[f"part_{j}"] = {"kernel": mask * columns}
        return params

    def weights(self, params: Params, j: int) -> Array:
        """Part `j`, zero where no weight is used."""
        return params[f"part_{j}"]["kernel"] * self.mask(j)

    def apply(self, params: Params, values: Array) -> Array:
        """All entries' numbers times the matrix."""
        products = [
            values[: self.rows * stop] @ self.weights(params, j)
            for j, (_, stop) in enumerate(self.parts)
        ]
        return jnp.concatenate(products)

    def split(self, params: Params, j: int) -> tuple[Array, Array]:
        """Part `j` apart: rows of the entries before it, and of its own.

        The latter are `[entries, rows * entries, columns]`, their first axis that of the columns'
        entries: entry i of the part gets `values @ own[i]`.
        """
        start, stop = self.parts[j]
        earlier, own = jnp.split(self.weights(params, j), [self.rows * start])
        return earlier, own.reshape(-1, stop - start, self.columns).transpose(1, 0, 2)


def parts_of(output_size: int) -> tuple[tuple[int, int], ...]:
    """The entries in at most `MOST_PARTS` runs of one length, at least `FEWEST_ENTRIES`.

    The last may be shorter.
    """
    length = max(-(-output_size // MOST_PARTS), FEWEST_ENTRIES)
    return tuple(
        (start, min(start + length, output_size)) for start in range(0, output_size, length)
    )


def _cut_normal(key: Key, shape: tuple[int, ...], fan_in: np.ndarray) -> Array:
    """Normals cut at two sigma with deviation `1 / sqrt(fan_in)`, one `fan_in` a column."""
    std = np.maximum(fan_in, 1.0)[None, :] ** -0.5
    return jax.random.truncated_normal(key, -2.0, 2.0, shape) * std.astype(np.float32)


# --- the network ---


class Layout(NamedTuple):
    """Sizes of a network and its masked matrices, by name."""

    input_size: int  # X
    output_size: int  # D
    num_outputs: int  # P, of the conditional
    units: int  # of a layer, for each entry
    blocks: tuple[str, ...]  # names of the residual blocks
    maps: Mapping[str, Triangular]
    activation: Callable[[Array], Array]  # elementwise

    def widths(self) -> list[int]:
        """Sizes of what x adds to: each layer, then the outputs."""
        layers = [self.units * self.output_size] * (len(self.blocks) + 1)
        return [*layers, self.num_outputs * self.output_size]

    def from_x(self, params: Params, x: Array) -> list[Array]:
        """What x adds to each layer, and to the outputs."""
        added = x @ params["input"]["kernel"] + params["input"]["bias"]
        return jnp.split(added, list(np.cumsum(self.widths()[:-1])))


def network(
    input_size: int,
    output_size: int,
    num_outputs: int,
    *,
    hidden_size: int,
    num_blocks: int,
    activation: Callable[[Array], Array],
) -> Network:
    """The network of masked models.

    Args:
      input_size: X.
      output_size: D.
      num_outputs: P of the conditional.
      hidden_size: units of every layer, rounded up to a multiple of D.
      num_blocks: residual blocks `h + W activation(h) + U x + b`.
      activation: elementwise.
    """
    units = -(-hidden_size // output_size)
    parts = parts_of(output_size)
    blocks = tuple(f"block_{i}" for i in range(num_blocks))
    maps = {
        "prefix": Triangular(parts=parts, rows=1, columns=units, strict=True),
        **{
            name: Triangular(parts=parts, rows=units, columns=units, strict=False)
            for name in blocks
        },
        "output": Triangular(parts=parts, rows=units, columns=num_outputs, strict=False),
        "skip": Triangular(parts=parts, rows=1, columns=num_outputs, strict=True),
    }
    layout = Layout(
        input_size=input_size,
        output_size=output_size,
        num_outputs=num_outputs,
        units=units,
        blocks=blocks,
        maps=maps,
        activation=activation,
    )
    outputs = functools.partial(_outputs, layout)

    def terms(params: Params, x: Array, y: Array, key: Key) -> tuple[Array, Array]:
        del key  # every conditional is trained
        return jnp.arange(output_size), outputs(params, x, y)

    return Network(
        init=functools.partial(_init, layout),
        outputs=outputs,
        terms=terms,
        generate=functools.partial(_generate, layout),
    )


def _init(layout: Layout, key: Key) -> Params:
    key_input, *keys = jax.random.split(key, len(layout.maps) + 1)
    params = {
        name: matrix.init(key_map, layout.input_size * (name != "output"))
        for key_map, (name, matrix) in zip(keys, layout.maps.items(), strict=True)
    }
    fan_in = np.concatenate(
        [layout.maps[name].fan_in() + layout.input_size for name in ("prefix", *layout.blocks)]
    )
    *layers, out = layout.widths()
    kernel = _cut_normal(key_input, (layout.input_size, sum(layers)), fan_in)
    return params | {
        "input": {
            "kernel": jnp.pad(kernel, ((0, 0), (0, out))),
            "bias": jnp.zeros(sum(layers) + out),
        },
        # Like x's own linear map to the outputs.
        "skip": jax.tree.map(jnp.zeros_like, params["skip"]),
    }


def _outputs(layout: Layout, params: Params, x: Array, y: Array) -> Array:
    """All outputs `[D, P]` in one pass."""

    def apply(name: str, values: Array) -> Array:
        return layout.maps[name].apply(params[name], values)

    first, *added, out = layout.from_x(params, x)
    h = first + apply("prefix", y)
    for name, more in zip(layout.blocks, added, strict=True):
        h = h + apply(name, layout.activation(h)) + more
    out = out + apply("output", layout.activation(h)) + apply("skip", y)
    return out.reshape(layout.output_size, layout.num_outputs)


# --- sampling ---


def _generate(layout: Layout, params: Params, x: Array, draw: Callable, noise: PyTree) -> Array:
    """y `[D]`, part by part; see `Network.generate`."""
    added = [part.reshape(layout.output_size, -1) for part in layout.from_x(params, x)]
    # y and every layer's activations, of the entries sampled so far
    sampled = [jnp.zeros(0)] * (len(layout.blocks) + 2)
    for j, (start, stop) in enumerate(layout.maps["prefix"].parts):
        own_added, own_noise = jax.tree.map(
            lambda leaf, start=start, stop=stop: leaf[start:stop], (added, noise)
        )
        sampled = _extend(layout, params, j, own_added, own_noise, sampled, draw)
    return sampled[0]


def _extend(
    layout: Layout,
    params: Params,
    j: int,
    added: list[Array],
    noise: PyTree,
    sampled: list[Array],
    draw: Callable,
) -> list[Array]:
    """`sampled` with the entries of part `j`.

    Args:
      layout: of the network.
      params: its parameters.
      j: the part.
      added: what x adds to each layer, rows of the part's entries.
      noise: rows of the part's entries.
      sampled: y and every layer's activations, of the entries before the part.
      draw: (entry, outputs, noise) -> y_i.
    """
    start, stop = layout.maps["prefix"].parts[j]
    count = stop - start
    units = layout.units
    split = {name: matrix.split(params[name], j) for name, matrix in layout.maps.items()}
    sums = {
        name: (values @ split[name][0]).reshape(count, -1)
        for name, values in zip(layout.maps, [*sampled, sampled[0]], strict=True)
    }
    sums["output"] += sums.pop("skip")
    base = [from_x + earlier for from_x, earlier in zip(added, sums.values(), strict=True)]

    def entry(fresh: list[Array], turn: PyTree) -> tuple[list[Array], None]:
        i, (first, *more, out), own, own_noise = turn
        y, *active = fresh  # of the entries of this part, zero where their turn has not come
        h = first + y @ own["prefix"]
        for layer, name in enumerate(layout.blocks):
            activated = layout.activation(h)
            active[layer] = jax.lax.dynamic_update_slice(active[layer], activated, (i * units,))
            h = h + active[layer] @ own[name] + more[layer]
        active[-1] = jax.lax.dynamic_update_slice(active[-1], layout.activation(h), (i * units,))
        outputs = active[-1] @ own["output"] + y @ own["skip"] + out
        return [y.at[i].set(draw(start + i, outputs, own_noise)), *active], None

    fresh = [jnp.zeros(count), *[jnp.zeros(count * units)] * (len(layout.blocks) + 1)]
    own_rows = {name: rows for name, (_, rows) in split.items()}
    fresh, _ = jax.lax.scan(entry, fresh, (jnp.arange(count), base, own_rows, noise))
    return [jnp.concatenate(pair) for pair in zip(sampled, fresh, strict=True)]
