"""One-dimensional conditional densities whose parameters a network gives, and a density made of a chain of them.

    p(y | x) = prod_i p(y_i | x, y_1, ..., y_{i-1})

A `Conditional` is a Gaussian or a mixture of Gaussians with soft bounds on its log scale; a `Network` says how its
outputs depend on x and on the entries before. `chain` makes a `Density` of the two, `in_order` gives it an order.

The bounds are those of PETS (arXiv:1805.12114, appendix A.1), fixed unless `learned_bounds`. On a deterministic
simulator the lower one is part of every negative log-likelihood: figures with different floors do not compare.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.models.density import Density, gaussian_log_prob, soft_bounds
from offline_mbrl.types import Array, PyTree, UsageError

BOUND_COEF = 0.01  # of learned bounds, in the loss (PETS)


@dataclass(frozen=True)
class ConditionalConfig:
    """The density of one entry given the ones before it; scales are in units of the normalized targets."""

    num_components: int = 1  # Gaussians mixed per conditional
    log_std_min: float | tuple[float, ...] = -7.0  # soft floor; one for all, or one per entry (reward last)
    log_std_max: float | tuple[float, ...] = 1.0  # soft ceiling
    learned_bounds: bool = False  # let members share and learn them, at the price of 0.01 times their distance


class Conditional(NamedTuple):
    """A density of one number; `outputs [P]` are what a network says, `bounds` the two soft bounds of its log scale."""

    size: int  # P
    log_prob: Callable[[Array, tuple[Array, Array], Array], Array]  # (outputs, bounds, y []) -> [] nats
    draw: Callable[[Array, tuple[Array, Array], PyTree], Array]  # (outputs, bounds, noise) -> y []
    moments: Callable[[Array, tuple[Array, Array]], tuple[Array, Array]]  # (outputs, bounds) -> mean [], std []
    noise: Callable[[Array, int], PyTree]  # (key, number of draws) -> what `draw` takes, a leading axis of draws


class Network(NamedTuple):
    """How the outputs of all conditionals depend on `x [X]` and on the entries of `y [D]` before each."""

    init: Callable[[Array], PyTree]  # (key) -> params
    outputs: Callable[[PyTree, Array, Array], Array]  # (params, x, y) -> [D, P]; row i sees y_1 .. y_{i-1} alone
    terms: Callable[[PyTree, Array, Array, Array], tuple[Array, Array]]
    # (params, x, y, key) -> [K] which conditionals to train on, each equally likely, and their outputs [K, P]
    generate: Callable[[PyTree, Array, Callable, PyTree], Array]
    # (params, x, draw, noise [D, ...]) -> y [D], with y_i = draw(i, outputs of i given y_1 .. y_{i-1}, noise[i])


def gaussian() -> Conditional:
    """Outputs are the mean and the raw log standard deviation."""

    def split(outputs: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        return outputs[0], soft_bounds(outputs[1], *bounds)

    def log_prob(outputs: Array, bounds: tuple[Array, Array], y: Array) -> Array:
        return gaussian_log_prob(y, *split(outputs, bounds))

    def moments(outputs: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        mean, log_std = split(outputs, bounds)
        return mean, jnp.exp(log_std)

    def draw(outputs: Array, bounds: tuple[Array, Array], noise: Array) -> Array:
        mean, std = moments(outputs, bounds)
        return mean + std * noise

    return Conditional(2, log_prob, draw, moments, lambda key, num: jax.random.normal(key, (num,)))


def mixture(num_components: int) -> Conditional:
    """Outputs are logits, means and raw log standard deviations of `num_components` Gaussians."""

    def split(outputs: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        logits, means, raw = jnp.split(outputs, 3)
        return jax.nn.log_softmax(logits), means, soft_bounds(raw, *(jnp.full_like(raw, bound) for bound in bounds))

    def log_prob(outputs: Array, bounds: tuple[Array, Array], y: Array) -> Array:
        log_weights, means, log_stds = split(outputs, bounds)
        return jax.nn.logsumexp(log_weights + gaussian_log_prob(jnp.full_like(means, y), means, log_stds))

    def moments(outputs: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        log_weights, means, log_stds = split(outputs, bounds)
        weights = jnp.exp(log_weights)
        mean = weights @ means
        return mean, jnp.sqrt(weights @ (jnp.square(means - mean) + jnp.exp(2 * log_stds)))

    def draw(outputs: Array, bounds: tuple[Array, Array], noise: tuple[Array, Array]) -> Array:
        log_weights, means, log_stds = split(outputs, bounds)
        below = jnp.cumsum(jnp.exp(log_weights))[:-1] <= noise[0]
        chosen = jax.nn.one_hot(jnp.sum(below), num_components)
        return chosen @ means + chosen @ jnp.exp(log_stds) * noise[1]

    def noise(key: Array, num: int) -> tuple[Array, Array]:
        key_component, key_value = jax.random.split(key)
        return jax.random.uniform(key_component, (num,)), jax.random.normal(key_value, (num,))

    return Conditional(3 * num_components, log_prob, draw, moments, noise)


def make(config: ConditionalConfig) -> Conditional:
    """The conditional of a config.

    Raises:
      UsageError: no component.
    """
    if config.num_components < 1:
        raise UsageError(f"num_components is {config.num_components}: a mixture needs at least 1")
    return gaussian() if config.num_components == 1 else mixture(config.num_components)


# --- from conditionals to a density ---


def chain(network: Network, conditional: Conditional, low: Array, high: Array, *, learned_bounds: bool) -> Density:
    """The density `prod_i p(y_i | x, y_<i)` in the network's own order.

    Args:
      network: gives the outputs of each conditional.
      conditional: turns them into densities.
      low: `[D]` soft floor of each log standard deviation.
      high: `[D]` soft ceiling.
      learned_bounds: whether the bounds are learned, shared by all members.
    """

    def bounds(shared: PyTree) -> tuple[Array, Array]:
        return (shared["low"], shared["high"]) if learned_bounds else (low, high)

    def loss(params: PyTree, shared: PyTree, x: Array, y: Array, key: Array) -> Array:
        positions, outputs = network.terms(params, x, y, key)
        below, above = bounds(shared)
        return -jnp.mean(jax.vmap(conditional.log_prob)(outputs, (below[positions], above[positions]), y[positions]))

    def penalty(params: PyTree, shared: PyTree) -> Array:
        del params
        return BOUND_COEF * jnp.sum(shared["high"] - shared["low"]) if learned_bounds else jnp.zeros(())

    def log_prob(params: PyTree, shared: PyTree, x: Array, y: Array) -> Array:
        return jax.vmap(conditional.log_prob)(network.outputs(params, x, y), bounds(shared), y)

    def moments(params: PyTree, shared: PyTree, x: Array, y: Array) -> tuple[Array, Array]:
        return jax.vmap(conditional.moments)(network.outputs(params, x, y), bounds(shared))

    def sample(params: PyTree, shared: PyTree, x: Array, key: Array) -> Array:
        below, above = bounds(shared)

        def draw(i: Array, outputs: Array, noise: PyTree) -> Array:
            return conditional.draw(outputs, (below[i], above[i]), noise)

        return network.generate(params, x, draw, conditional.noise(key, len(low)))

    def mode(params: PyTree, shared: PyTree, x: Array) -> Array:
        below, above = bounds(shared)

        def draw(i: Array, outputs: Array, noise: PyTree) -> Array:
            del noise
            return conditional.moments(outputs, (below[i], above[i]))[0]

        return network.generate(params, x, draw, jnp.zeros(len(low)))

    return Density(
        init=network.init, shared=lambda: {"low": low, "high": high} if learned_bounds else {}, loss=loss,
        penalty=penalty, log_prob=log_prob, sample=sample, mode=mode, moments=moments)  # fmt: skip


def in_order(density: Density, order: Sequence[int]) -> Density:
    """The density of y whose entry `order[i]` is the i-th entry of the given density; all results are in y's order."""
    if list(order) == list(range(len(order))):
        return density
    forward = np.asarray(order)
    back = np.argsort(forward)
    return density._replace(
        loss=lambda params, shared, x, y, key: density.loss(params, shared, x, y[forward], key),
        log_prob=lambda params, shared, x, y: density.log_prob(params, shared, x, y[forward])[back],
        sample=lambda params, shared, x, key: density.sample(params, shared, x, key)[back],
        mode=lambda params, shared, x: density.mode(params, shared, x)[back],
        moments=lambda params, shared, x, y: jax.tree.map(
            lambda moment: moment[back], density.moments(params, shared, x, y[forward])),
    )  # fmt: skip
