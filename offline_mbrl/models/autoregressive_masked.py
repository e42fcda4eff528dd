"""All conditionals in one pass: a residual network whose weights are masked (MADE, arXiv:1502.03509).

Each hidden unit has a degree k in 0 .. D - 1 and sees x and y_1 .. y_k alone; the i-th conditional (from 0) reads
units of degree at most i. Units are sorted by degree, so every masked matrix is block triangular.

Sampling needs no D passes. Units of degree k change only when y_k is known, so each group of units is computed once,
when its turn comes: all D entries together cost about one pass, as forward substitution does.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.models.conditionals import Network
from offline_mbrl.types import Array, PyTree


def degrees(hidden_size: int, output_size: int) -> np.ndarray:
    """`[hidden_size]` degrees in 0 .. output_size - 1, sorted, all about equally frequent."""
    return np.arange(hidden_size) * output_size // hidden_size


def network(
    input_size: int, output_size: int, num_outputs: int, *, hidden_size: int, num_blocks: int,
    activation: Callable[[Array], Array],
) -> Network:  # fmt: skip
    """The network of masked models.

    Args:
      input_size: X.
      output_size: D.
      num_outputs: P of the conditional.
      hidden_size: H units of every layer, at least D.
      num_blocks: residual blocks `h + W activation(h) + U x + b`.
      activation: elementwise.
    """
    degree = degrees(hidden_size, output_size)
    ends = np.searchsorted(degree, np.arange(output_size), side="right")  # units of degree at most i
    below = np.arange(output_size)[:, None] < degree[None, :]  # [D, H] y_j to a unit
    within = degree[:, None] <= degree[None, :]  # [H, H]
    read = np.repeat(degree[:, None] <= np.arange(output_size)[None, :], num_outputs, axis=1)  # [H, D P]
    skip = np.repeat(np.arange(output_size)[:, None] < np.arange(output_size)[None, :], num_outputs, axis=1)  # [D, D P]
    wide = output_size * num_outputs

    def init(key: Array) -> PyTree:
        keys = jax.random.split(key, num_blocks + 3)
        free = lambda rows, columns: np.ones((rows, columns))  # noqa: E731
        first = np.concatenate([free(input_size, hidden_size), below])
        kernel = _masked_normal(keys[0], first)
        params: dict[str, PyTree] = {
            "input": {"kernel": kernel[:input_size], "bias": jnp.zeros(hidden_size)},
            "prefix": {"kernel": kernel[input_size:]},
            "output": {"kernel": _masked_normal(keys[1], read), "bias": jnp.zeros(wide)},
            "skip_input": {"kernel": jnp.zeros((input_size, wide))},
            "skip_prefix": {"kernel": jnp.zeros((output_size, wide))},
        }
        for i in range(num_blocks):
            kernel = _masked_normal(keys[i + 2], np.concatenate([free(input_size, hidden_size), within]))
            params[f"block_{i}"] = {"kernel": kernel[input_size:]}
            params[f"input_{i}"] = {"kernel": kernel[:input_size], "bias": jnp.zeros(hidden_size)}
        return params

    def masked(params: PyTree) -> PyTree:
        mask = {"prefix": below, "output": read, "skip_prefix": skip,
                **{f"block_{i}": within for i in range(num_blocks)}}  # fmt: skip
        return {name: layer["kernel"] * mask[name] if name in mask else layer["kernel"]
                for name, layer in params.items()}  # fmt: skip

    def from_x(params: PyTree, x: Array) -> tuple[list[Array], Array]:
        layers = ["input", *(f"input_{i}" for i in range(num_blocks))]
        hidden = [x @ params[name]["kernel"] + params[name]["bias"] for name in layers]
        return hidden, x @ params["skip_input"]["kernel"] + params["output"]["bias"]

    def outputs(params: PyTree, x: Array, y: Array) -> Array:
        kernel, (added, out) = masked(params), from_x(params, x)
        h = added[0] + y @ kernel["prefix"]
        for i in range(num_blocks):
            h = h + activation(h) @ kernel[f"block_{i}"] + added[i + 1]
        return (activation(h) @ kernel["output"] + y @ kernel["skip_prefix"] + out).reshape(output_size, num_outputs)

    def terms(params: PyTree, x: Array, y: Array, key: Array) -> tuple[Array, Array]:
        del key  # all of them
        return jnp.arange(output_size), outputs(params, x, y)

    def generate(params: PyTree, x: Array, draw: Callable, noise: PyTree) -> Array:
        kernel, (added, out) = masked(params), from_x(params, x)
        active = [jnp.zeros(0)] * (num_blocks + 1)
        y, start = jnp.zeros(0), 0
        for i, stop in enumerate(ends):
            h = added[0][start:stop] + y @ kernel["prefix"][:i, start:stop]
            for j in range(num_blocks):
                active[j] = jnp.concatenate([active[j], activation(h)])
                h = h + added[j + 1][start:stop] + active[j] @ kernel[f"block_{j}"][:stop, start:stop]
            active[-1] = jnp.concatenate([active[-1], activation(h)])
            at = slice(i * num_outputs, (i + 1) * num_outputs)
            outputs = active[-1] @ kernel["output"][:stop, at] + y @ kernel["skip_prefix"][:i, at] + out[at]
            y = jnp.append(y, draw(i, outputs, jax.tree.map(lambda leaf, i=i: leaf[i], noise)))
            start = stop
        return y

    return Network(init, outputs, terms, generate)


def _masked_normal(key: Array, mask: np.ndarray) -> Array:
    """A kernel of cut normals with standard deviation `1 / sqrt(inputs that the column sees)`, zero elsewhere."""
    std = np.maximum(mask.sum(axis=0, keepdims=True), 1) ** -0.5
    return jax.random.truncated_normal(key, -2.0, 2.0, mask.shape) * (mask * std).astype(np.float32)
