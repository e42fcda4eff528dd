"""Entries coupled linearly given x: a Gaussian whose whole covariance depends on x.

    mean_i | x, y_<i  =  mu_i(x) + sum_{j<i} c_ij(x) (y_j - mu_j(x))

With the couplings as a strictly lower triangular C and the conditional deviations as a diagonal S,
`y ~ N(mu, L S^2 L^T)` where `L = (I - C)^-1` is unit lower triangular. One pass of a feedforward
trunk emits mu, the raw log deviations and C, to which a linear map of x adds. The density then
costs a product with C, a sample forward substitution: D dot products.

The last entry, the reward, is no linear function of the others: a small network of x and of all
entries before it adds to its conditional mean and raw log deviation. Of the other entries the joint
density remains that Gaussian.

Couplings, the linear map and what the small network adds are 0 at first: entries start independent.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.models.densities.conditionals import Network
from offline_mbrl.networks import torsos
from offline_mbrl.types import Array, Key, Params, PyTree

NUM_OUTPUTS = 2  # of a Gaussian conditional: mean and raw log deviation


class Layout(NamedTuple):
    """Sizes of a network, and its modules."""

    input_size: int  # X
    size: int  # D
    trunk: torsos.MLP  # x -> means, raw log deviations, couplings
    last: torsos.MLP  # (x, y but its last) -> what is added to the last conditional's outputs


class Heads(NamedTuple):
    """What x tells of all entries."""

    mean: Array  # [D] mu
    raw: Array  # [D] log deviations before their bounds
    couplings: Array  # [D (D - 1) / 2] C, row by row


def network(
    input_size: int,
    size: int,
    *,
    hidden_layers: tuple[int, ...],
    last_layers: tuple[int, ...],
    activation: Callable[[Array], Array],
) -> Network:
    """The network of coupled models.

    Args:
      input_size: X.
      size: D, at least 2.
      hidden_layers: sizes of the trunk.
      last_layers: sizes of the last entry's own network.
      activation: elementwise.
    """
    num_outputs = NUM_OUTPUTS * size + len(pairs(size)[0])
    layout = Layout(
        input_size=input_size,
        size=size,
        trunk=torsos.MLP((*hidden_layers, num_outputs), activation=activation),
        last=torsos.MLP((*last_layers, NUM_OUTPUTS), activation=activation),
    )
    outputs = functools.partial(_outputs, layout)

    def terms(params: Params, x: Array, y: Array, key: Key) -> tuple[Array, Array]:
        del key  # every conditional is trained
        return jnp.arange(size), outputs(params, x, y)

    return Network(
        init=functools.partial(_init, layout),
        outputs=outputs,
        terms=terms,
        generate=functools.partial(_generate, layout),
    )


def pairs(size: int) -> tuple[np.ndarray, np.ndarray]:
    """(i, j) of all couplings `c_ij`, j < i, row by row."""
    return np.tril_indices(size, -1)


def _init(layout: Layout, key: Key) -> Params:
    key_trunk, key_last = jax.random.split(key)
    trunk = torsos.init(layout.trunk, key_trunk, jnp.zeros(layout.input_size))
    last = torsos.init(layout.last, key_last, jnp.zeros(layout.input_size + layout.size - 1))
    num_outputs = layout.trunk.sizes[-1]
    is_uncoupled = np.arange(num_outputs) < NUM_OUTPUTS * layout.size
    return {
        "trunk": _output_scaled(trunk, is_uncoupled.astype(np.float32)),
        "skip": {"kernel": jnp.zeros((layout.input_size, num_outputs))},
        "last": _output_scaled(last, np.zeros(NUM_OUTPUTS, np.float32)),
    }


def _output_scaled(params: Params, factors: np.ndarray) -> Params:
    """Parameters of a `torsos.MLP` with its outputs times `factors`."""
    name = f"layer_{len(params) - 1}"
    return params | {
        name: jax.tree.map(lambda leaf: leaf * np.broadcast_to(factors, leaf.shape), params[name])
    }


def _heads(layout: Layout, params: Params, x: Array) -> Heads:
    emitted = torsos.apply(layout.trunk, params["trunk"], x) + x @ params["skip"]["kernel"]
    return Heads(*jnp.split(emitted, [layout.size, NUM_OUTPUTS * layout.size]))


def _shifts(layout: Layout, couplings: Array, residuals: Array) -> Array:
    """`C (y - mu)`, `[D]`.

    Both sides of the packed couplings are products with matrices of 0 and 1, which training on a
    CPU does faster than gathers and scatters; they are exact, hence the precision.
    """
    rows, columns = (np.eye(layout.size, dtype=np.float32)[index] for index in pairs(layout.size))
    exact = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    return exact(couplings * exact(columns, residuals), rows)


def _last(layout: Layout, params: Params, x: Array, y: Array) -> Array:
    """What is added to the last conditional's outputs; y may lack its last entry."""
    return torsos.apply(layout.last, params["last"], jnp.append(x, y[: layout.size - 1]))


def _outputs(layout: Layout, params: Params, x: Array, y: Array) -> Array:
    """Means and raw log deviations `[D, 2]` of all conditionals, in one pass."""
    heads = _heads(layout, params, x)
    means = heads.mean + _shifts(layout, heads.couplings, y - heads.mean)
    return jnp.stack([means, heads.raw], axis=1).at[-1].add(_last(layout, params, x, y))


# --- sampling ---


def _generate(layout: Layout, params: Params, x: Array, draw: Callable, noise: PyTree) -> Array:
    """y `[D]` by forward substitution; see `Network.generate`."""
    size = layout.size
    heads = _heads(layout, params, x)
    coupling = jnp.zeros((size, size)).at[pairs(size)].set(heads.couplings)
    before, (mean, raw, row, own_noise) = _but_last((heads.mean, heads.raw, coupling, noise))

    def entry(residuals: Array, turn: PyTree) -> tuple[Array, Array]:
        i, mean, raw, row, noise = turn
        y = draw(i, jnp.stack([mean + row @ residuals, raw]), noise)
        return residuals.at[i].set(y - mean), y

    residuals, earlier = jax.lax.scan(entry, jnp.zeros(size), (jnp.arange(size - 1), *before))
    outputs = jnp.stack([mean + row @ residuals, raw]) + _last(layout, params, x, earlier)
    return jnp.append(earlier, draw(jnp.asarray(size - 1), outputs, own_noise))


def _but_last(tree: PyTree) -> tuple[PyTree, PyTree]:
    """All rows but the last, and the last."""
    return jax.tree.map(lambda leaf: leaf[:-1], tree), jax.tree.map(lambda leaf: leaf[-1], tree)
