"""One-dimensional conditional densities whose parameters a network gives, and a density made of a chain of them.

    p(y | x) = prod_i p(y_i | x, y_1, ..., y_{i-1})

A `Conditional` is a Gaussian or a mixture of Gaussians with soft bounds on its log scale; a `Network` says how its
outputs depend on x and on the entries before. `chain` makes a `Density` of the two.

The bounds are those of PETS (arXiv:1805.12114, appendix A.1), fixed unless `learned_bounds`. On a deterministic
simulator the lower one is part of every negative log-likelihood: figures with different floors do not compare.

Where some outcomes are a thousand times harder to predict than others (a cart that hits the end of its rail), a
likelihood is best served by calling them noise early, and its gradient then never returns to them: after 8,000 updates
such steps were off by five standard deviations of a step's change on training data. `beta` is the remedy of Seitzer et
al., 2022 (arXiv:2203.09168, equation 5): the loss of each conditional is weighted with its variance to that power.
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
    beta: float = 0.0  # power of the variance that weights a conditional's loss; 0: likelihood, 1: means fit as squares


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


def soft_limits(config: ConditionalConfig, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Soft floor and ceiling `[D]` of the log scales of D = `size` entries.

    Raises:
      UsageError: they do not fit the entries, or leave no room.
    """
    found = []
    for name in ("log_std_min", "log_std_max"):
        values = np.asarray(getattr(config, name), np.float32)
        if values.shape not in ((), (1,), (size,)):
            raise UsageError(f"{name} has {values.size} values: give one, or one for each of the {size} entries")
        found.append(np.broadcast_to(values, (size,)))
    if not np.all(found[0] < found[1]):
        raise UsageError("log_std_min has to be below log_std_max for every entry")
    return found[0], found[1]


def chain(network: Network, config: ConditionalConfig, order: Sequence[int]) -> Density:
    """The density `prod_i p(y_i | x, y_<i)` of y, whose entry `order[i]` is the network's i-th.

    Args:
      network: gives the outputs of each conditional.
      config: turns them into densities; its bounds are those of y's entries.
      order: a permutation of y's entries.

    Raises:
      UsageError: no component, or bounds that do not fit the entries or leave no room.
    """
    conditional = make(config)
    low, high = (jnp.asarray(limit[list(order)]) for limit in soft_limits(config, len(order)))
    fixed = {} if config.learned_bounds else {"low": low, "high": high}

    def bounds(shared: PyTree) -> tuple[Array, Array]:
        known = fixed or shared
        return known["low"], known["high"]

    def loss(params: PyTree, shared: PyTree, x: Array, y: Array, weight: Array, key: Array) -> Array:
        positions, outputs = network.terms(params, x, y, key)
        limits = jax.tree.map(lambda bound: bound[positions], bounds(shared))
        found = jax.vmap(conditional.log_prob)(outputs, limits, y[positions])
        if config.beta:  # without a gradient of its own
            std = jax.vmap(conditional.moments)(outputs, limits)[1]
            found *= jax.lax.stop_gradient(std) ** (2 * config.beta)
        return -jnp.mean(weight[positions] * found)

    def penalty(params: PyTree, shared: PyTree) -> Array:
        del params
        return BOUND_COEF * jnp.sum(shared["high"] - shared["low"]) if shared else jnp.zeros(())

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

    own = Density(
        init=network.init, shared=lambda: {"low": low, "high": high} if config.learned_bounds else {}, loss=loss,
        penalty=penalty, log_prob=log_prob, sample=sample, mode=mode, moments=moments)  # fmt: skip
    return _in_order(own, order)


def _in_order(density: Density, order: Sequence[int]) -> Density:
    """The density of y whose entry `order[i]` is the i-th entry of the given density; all results are in y's order."""
    if list(order) == list(range(len(order))):
        return density
    forward = np.asarray(order)
    back = np.argsort(forward)
    return density._replace(
        loss=lambda params, shared, x, y, weight, key: density.loss(
            params, shared, x, y[forward], weight[forward], key),
        log_prob=lambda params, shared, x, y: density.log_prob(params, shared, x, y[forward])[back],
        sample=lambda params, shared, x, key: density.sample(params, shared, x, key)[back],
        mode=lambda params, shared, x: density.mode(params, shared, x)[back],
        moments=lambda params, shared, x, y: jax.tree.map(
            lambda moment: moment[back], density.moments(params, shared, x, y[forward])),
    )  # fmt: skip
