"""All conditionals in one pass: a residual network whose weights are masked (MADE, arXiv:1502.03509).

Hidden units belong to entries, equally many to each and in order: those of entry i see x and the entries before i
alone, and the i-th conditional reads the units of entries up to i. So every weight matrix is block triangular.

Sampling needs no D passes. What belongs to entry i can be computed as soon as the entries before it are known, and
never changes again: all D entries together cost about one pass, as forward substitution costs about one product. As
in forward substitution, matrices are taken in parts, so that most of the work is products of full matrices.

Differences from the paper: a unit's degree is the same in every layer instead of random, layers are residual, x enters
each of them unmasked, and there is a masked linear map from (x, y) to the outputs.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.models.conditionals import Network
from offline_mbrl.types import Array, PyTree

MOST_PARTS, FEWEST_ENTRIES = 5, 3  # of a matrix and of a part: more parts skip more zeros, fewer are larger products


# --- block triangular matrices ---


class Triangular(NamedTuple):
    """A matrix from `rows` numbers an entry to `columns` numbers an entry; no entry sees a later one.

    It is stored in parts, the columns of a few consecutive entries each, with the rows of entries up to the last of
    them. So most of the zeros are neither stored nor multiplied.
    """

    parts: tuple[tuple[int, int], ...]  # first entry, and one past the last
    rows: int
    columns: int
    strict: bool  # whether an entry does not see itself either

    def mask(self, j: int) -> np.ndarray:
        """1 where a weight of part `j` is used, else 0."""
        start, stop = self.parts[j]
        seen = np.arange(stop)[:, None] + self.strict <= np.arange(start, stop)[None, :]
        return np.repeat(np.repeat(seen, self.rows, axis=0), self.columns, axis=1).astype(np.float32)

    def masks(self) -> list[np.ndarray]:
        """Those of all parts."""
        return [self.mask(j) for j in range(len(self.parts))]

    def fan_in(self) -> np.ndarray:
        """How many numbers each column sees."""
        return np.concatenate([mask.sum(axis=0) for mask in self.masks()])

    def init(self, key: Array, also: int) -> PyTree:
        """Weights, for columns that see `also` other numbers besides."""
        shape = self.rows * self.parts[-1][1], self.columns * self.parts[-1][1]
        whole = _cut_normal(key, shape, self.fan_in() + also)
        return {
            f"part_{j}": {"kernel": mask * whole[: len(mask), self.columns * start : self.columns * stop]}
            for j, (mask, (start, stop)) in enumerate(zip(self.masks(), self.parts, strict=True))
        }

    def weights(self, params: PyTree, j: int) -> Array:
        """Part `j`, zero where no weight is used."""
        return params[f"part_{j}"]["kernel"] * self.mask(j)

    def apply(self, params: PyTree, values: Array) -> Array:
        """All entries' numbers times the matrix."""
        products = [values[: self.rows * stop] @ self.weights(params, j) for j, (_, stop) in enumerate(self.parts)]
        return jnp.concatenate(products)

    def split(self, params: PyTree, j: int) -> tuple[Array, Array]:
        """Part `j` apart: rows of the entries before it, and of its own, `[entries, rows * entries, columns]`.

        The first axis of the latter says whose columns they are: entry i of the part gets `values @ own[i]`.
        """
        start, stop = self.parts[j]
        earlier, own = jnp.split(self.weights(params, j), [self.rows * start])
        return earlier, own.reshape(-1, stop - start, self.columns).transpose(1, 0, 2)


def parts_of(output_size: int) -> tuple[tuple[int, int], ...]:
    """The entries in at most `MOST_PARTS` runs of one length, at least `FEWEST_ENTRIES`; the last may be shorter."""
    length = max(-(-output_size // MOST_PARTS), FEWEST_ENTRIES)
    return tuple((start, min(start + length, output_size)) for start in range(0, output_size, length))


def _cut_normal(key: Array, shape: tuple[int, ...], fan_in: np.ndarray) -> Array:
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
        return [self.units * self.output_size] * (len(self.blocks) + 1) + [self.num_outputs * self.output_size]

    def from_x(self, params: PyTree, x: Array) -> list[Array]:
        """What x adds to each layer, and to the outputs."""
        return jnp.split(x @ params["input"]["kernel"] + params["input"]["bias"], list(np.cumsum(self.widths()[:-1])))


def network(
    input_size: int, output_size: int, num_outputs: int, *, hidden_size: int, num_blocks: int,
    activation: Callable[[Array], Array],
) -> Network:  # fmt: skip
    """The network of masked models.

    Args:
      input_size: X.
      output_size: D.
      num_outputs: P of the conditional.
      hidden_size: units of every layer, rounded up to a multiple of D.
      num_blocks: residual blocks `h + W activation(h) + U x + b`.
      activation: elementwise.
    """
    units, parts = -(-hidden_size // output_size), parts_of(output_size)
    blocks = tuple(f"block_{i}" for i in range(num_blocks))
    maps = {
        "prefix": Triangular(parts, 1, units, strict=True),
        **{name: Triangular(parts, units, units, strict=False) for name in blocks},
        "output": Triangular(parts, units, num_outputs, strict=False),
        "skip": Triangular(parts, 1, num_outputs, strict=True),
    }
    layout = Layout(input_size, output_size, num_outputs, units, blocks, maps, activation)
    outputs = functools.partial(_outputs, layout)

    def terms(params: PyTree, x: Array, y: Array, key: Array) -> tuple[Array, Array]:
        del key  # all of them
        return jnp.arange(output_size), outputs(params, x, y)

    def generate(params: PyTree, x: Array, draw: Callable, noise: PyTree) -> Array:
        added = [part.reshape(output_size, -1) for part in layout.from_x(params, x)]
        known = [jnp.zeros(0)] * (num_blocks + 2)  # y and every layer's activations, of the entries so far
        for j, (start, stop) in enumerate(parts):
            own, own_noise = jax.tree.map(lambda leaf, start=start, stop=stop: leaf[start:stop], (added, noise))
            known = _extend(layout, params, j, own, own_noise, known, draw)
        return known[0]

    return Network(functools.partial(_init, layout), outputs, terms, generate)


def _init(layout: Layout, key: Array) -> PyTree:
    key_input, *keys = jax.random.split(key, len(layout.maps) + 1)
    params = {name: matrix.init(one, layout.input_size * (name != "output"))
              for one, (name, matrix) in zip(keys, layout.maps.items(), strict=True)}  # fmt: skip
    fan_in = np.concatenate([layout.maps[name].fan_in() + layout.input_size for name in ("prefix", *layout.blocks)])
    *layers, out = layout.widths()
    kernel = _cut_normal(key_input, (layout.input_size, sum(layers)), fan_in)
    return params | {
        "input": {"kernel": jnp.pad(kernel, ((0, 0), (0, out))), "bias": jnp.zeros(sum(layers) + out)},
        "skip": jax.tree.map(jnp.zeros_like, params["skip"]),  # like x's own linear map to the outputs
    }


def _outputs(layout: Layout, params: PyTree, x: Array, y: Array) -> Array:
    """All outputs `[D, P]` in one pass."""
    apply = lambda name, values: layout.maps[name].apply(params[name], values)  # noqa: E731
    first, *added, out = layout.from_x(params, x)
    h = first + apply("prefix", y)
    for name, more in zip(layout.blocks, added, strict=True):
        h = h + apply(name, layout.activation(h)) + more
    out = out + apply("output", layout.activation(h)) + apply("skip", y)
    return out.reshape(layout.output_size, layout.num_outputs)


def _extend(
    layout: Layout, params: PyTree, j: int, added: list[Array], noise: PyTree, known: list[Array], draw: Callable
) -> list[Array]:
    """`known` with the entries of part `j`, whose rows of what x adds and of the noise are given."""
    (start, stop), units, blocks = layout.maps["prefix"].parts[j], layout.units, layout.blocks
    count, split = stop - start, {name: matrix.split(params[name], j) for name, matrix in layout.maps.items()}
    sums = {name: (values @ split[name][0]).reshape(count, -1)
            for name, values in zip(layout.maps, [*known, known[0]], strict=True)}  # fmt: skip
    sums["output"] += sums.pop("skip")
    base = [of_x + of_known for of_x, of_known in zip(added, sums.values(), strict=True)]

    def entry(fresh: list[Array], turn: PyTree) -> tuple[list[Array], None]:
        i, (first, *more, out), own, noise = turn
        y, *active = fresh  # of the entries of this part, zero where their turn has not come
        h = first + y @ own["prefix"]
        for layer, name in enumerate(blocks):
            active[layer] = jax.lax.dynamic_update_slice(active[layer], layout.activation(h), (i * units,))
            h = h + active[layer] @ own[name] + more[layer]
        active[-1] = jax.lax.dynamic_update_slice(active[-1], layout.activation(h), (i * units,))
        outputs = active[-1] @ own["output"] + y @ own["skip"] + out
        return [y.at[i].set(draw(start + i, outputs, noise)), *active], None

    fresh = [jnp.zeros(count), *[jnp.zeros(count * units)] * (len(blocks) + 1)]
    turns = (jnp.arange(count), base, {name: both[1] for name, both in split.items()}, noise)
    fresh, _ = jax.lax.scan(entry, fresh, turns)
    return [jnp.concatenate(pair) for pair in zip(known, fresh, strict=True)]
