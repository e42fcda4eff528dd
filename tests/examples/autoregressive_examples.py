"""Small autoregressive densities with random weights, and a plain way to sample from them."""

import bisect
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from offline_mbrl.models import autoregressive
from offline_mbrl.models.densities.conditionals import ConditionalConfig
from offline_mbrl.models.densities.density import Density

STATE, ACTION = 4, 2
X, D = STATE + ACTION, STATE + 1
ORDER = (2, 0, 3, 1)
SHARED = {"hidden_layers": (16, 12), "dims_per_example": None}
MASKED = {"hidden_size": 13, "num_blocks": 2}
MIXTURE = ConditionalConfig(num_components=3)
UNEVEN = ConditionalConfig(log_std_min=-2.0, log_std_max=(-1.0, 1.0, 0.0, 0.5, -0.5))


def jitted(density):
    """The same, each of its functions compiled once for all tests that share it."""
    return Density(*map(jax.jit, density))


@functools.cache
def shared(**settings):
    return jitted(
        autoregressive.shared(autoregressive.SharedConfig(**{**SHARED, **settings}), STATE, ACTION)
    )


@functools.cache
def masked(**settings):
    return jitted(
        autoregressive.masked(autoregressive.MaskedConfig(**{**MASKED, **settings}), STATE, ACTION)
    )


DENSITIES = {
    "shared": shared(),
    "shared in another order": shared(order=ORDER, conditional=UNEVEN),
    "shared of mixtures": shared(order=ORDER, reward_first=True, conditional=MIXTURE),
    "masked": masked(),
    "masked in another order": masked(order=ORDER, conditional=UNEVEN),
    "masked of mixtures": masked(order=ORDER, reward_first=True, conditional=MIXTURE),
}
ORDERS = {
    name: (4, *ORDER)
    if "mixtures" in name
    else (*ORDER, 4)
    if "another" in name
    else (0, 1, 2, 3, 4)
    for name in DENSITIES
}


def random_params(density, seed=0, scale=0.5):
    """Parameters of which none is zero, masked ones included."""

    def draw():
        leaves, tree = jax.tree.flatten(density.init(jax.random.key(seed)))
        noise = jax.random.normal(jax.random.key(seed + 1), (sum(leaf.size for leaf in leaves),))
        parts = jnp.split(noise, np.cumsum([leaf.size for leaf in leaves])[:-1])
        return tree.unflatten(
            leaf + scale * more.reshape(leaf.shape)
            for leaf, more in zip(leaves, parts, strict=True)
        )

    return jax.jit(draw)()


def plain_sample(density, params, x, noise, order):
    """One whole evaluation of a Gaussian density per entry; noise in the order of prediction."""
    y = jnp.zeros(len(order))
    for i, at in enumerate(order):
        mean, std = density.moments(params, {}, x, y)
        y = y.at[at].set(mean[at] + std[at] * noise[i])
    return y


def products(function, *args):
    """Multiplications in all matrix products of a function; those in a scan count once a turn."""

    def count(jaxpr):
        total = 0
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                (contracted, _), _ = equation.params["dimension_numbers"]
                sizes = [equation.invars[0].aval.shape[axis] for axis in contracted]
                total += int(np.prod([*equation.outvars[0].aval.shape, *sizes]))
            inner = sum(
                count(getattr(part, "jaxpr", part))
                for part in core.jaxprs_in_params(equation.params)
            )
            total += inner * equation.params.get("length", 1)
        return total

    return count(jax.make_jaxpr(function)(*args).jaxpr)


def num_parameters(density):
    """Numbers that one member stores; a tenth of a masked network's are never read."""
    shapes = jax.eval_shape(density.init, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def matching_width(make, target):
    """The width with which `make(width)` has most nearly `target` parameters."""

    def count(width):
        return num_parameters(make(width))

    above = 1
    while count(above) < target:
        above *= 2
    above = bisect.bisect_left(range(1, above + 1), target, key=count) + 1
    return min(max(above - 1, 1), above, key=lambda width: abs(count(width) - target))
