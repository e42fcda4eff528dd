"""One-dimensional conditional densities, and a density made of a chain of them.

    p(y | x) = prod_i p(y_i | x, y_1, ..., y_{i-1})

A `Conditional` is a Gaussian or a mixture of Gaussians with soft bounds on its log scale; a
`Network` defines how its outputs depend on x and on the entries before. `chain` makes a `Density`
of the two.

The bounds are those of PETS (arXiv:1805.12114, appendix A.1), fixed unless `learned_bounds`. On a
deterministic simulator the lower one is part of every negative log-likelihood: figures with
different floors do not compare.

Where some outcomes are a thousand times harder to predict than others (a cart that hits the end of
its rail), a likelihood is best served by treating them as noise early, and its gradient then never
returns to them: after 8,000 updates such steps were off by five standard deviations of a step's
change on training data. `beta` is the remedy of Seitzer et al., 2022 (arXiv:2203.09168, equation
5): the loss of each conditional is weighted with its variance to that power.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.models.densities.density import Density, gaussian_log_prob, soft_bounds
from offline_mbrl.types import Array, Key, Params, PyTree, UsageError

Bounds = tuple[Array, Array]  # soft floor and ceiling of a log scale

BOUND_COEF = 0.01  # of learned bounds, in the loss (PETS)


@dataclass(frozen=True)
class ConditionalConfig:
    """The density of one entry given the ones before it.

    Scales are in units of the normalized targets.
    """

    num_components: int = 1  # Gaussians mixed per conditional
    # Soft floor; one number for all entries, or one per entry (reward last).
    log_std_min: float | tuple[float, ...] = -7.0
    log_std_max: float | tuple[float, ...] = 1.0  # soft ceiling
    # Let members share and learn them, at the price of 0.01 times their distance.
    learned_bounds: bool = False
    # Power of the variance that weights a conditional's loss; 0: likelihood, 1: means are fitted as
    # by squared errors.
    beta: float = 0.0


class Conditional(NamedTuple):
    """A density of one number.

    `outputs [P]` come from a network, `bounds` are the two soft bounds of its log scale.
    """

    size: int  # P
    # (outputs, bounds, y []) -> [] nats
    log_prob: Callable[[Array, Bounds, Array], Array]
    # (outputs, bounds, noise) -> y []
    draw: Callable[[Array, Bounds, PyTree], Array]
    # (outputs, bounds) -> mean [], std []
    moments: Callable[[Array, Bounds], tuple[Array, Array]]
    # (key, number of draws) -> noise of as many draws, on a leading axis
    noise: Callable[[Key, int], PyTree]


class Network(NamedTuple):
    """How the outputs of all conditionals depend on `x [X]` and on the entries of `y [D]` before
    each.
    """

    # (key) -> params
    init: Callable[[Key], Params]
    # (params, x, y) -> [D, P]; row i sees y_1 .. y_{i-1} alone
    outputs: Callable[[Params, Array, Array], Array]
    # (params, x, y, key) -> [K] conditionals to train on, each equally likely, and outputs [K, P]
    terms: Callable[[Params, Array, Array, Key], tuple[Array, Array]]
    # (params, x, draw, noise [D, ...]) -> y [D], with
    # y_i = draw(i, outputs of i given y_1 .. y_{i-1}, noise[i])
    generate: Callable[[Params, Array, Callable, PyTree], Array]


def gaussian() -> Conditional:
    """Outputs are the mean and the raw log standard deviation."""

    def split(outputs: Array, bounds: Bounds) -> tuple[Array, Array]:
        return outputs[0], soft_bounds(outputs[1], *bounds)

    def log_prob(outputs: Array, bounds: Bounds, y: Array) -> Array:
        return gaussian_log_prob(y, *split(outputs, bounds))

    def moments(outputs: Array, bounds: Bounds) -> tuple[Array, Array]:
        mean, log_std = split(outputs, bounds)
        return mean, jnp.exp(log_std)

    def draw(outputs: Array, bounds: Bounds, noise: Array) -> Array:
        mean, std = moments(outputs, bounds)
        return mean + std * noise

    def noise(key: Key, num_draws: int) -> Array:
        return jax.random.normal(key, (num_draws,))

    return Conditional(size=2, log_prob=log_prob, draw=draw, moments=moments, noise=noise)


def mixture(num_components: int) -> Conditional:
    """Outputs are logits, means and raw log standard deviations of `num_components` Gaussians."""

    def split(outputs: Array, bounds: Bounds) -> tuple[Array, Array, Array]:
        logits, means, raw = jnp.split(outputs, 3)
        low, high = (jnp.full_like(raw, bound) for bound in bounds)
        return jax.nn.log_softmax(logits), means, soft_bounds(raw, low, high)

    def log_prob(outputs: Array, bounds: Bounds, y: Array) -> Array:
        log_weights, means, log_stds = split(outputs, bounds)
        log_probs = gaussian_log_prob(jnp.full_like(means, y), means, log_stds)
        return jax.nn.logsumexp(log_weights + log_probs)

    def moments(outputs: Array, bounds: Bounds) -> tuple[Array, Array]:
        log_weights, means, log_stds = split(outputs, bounds)
        weights = jnp.exp(log_weights)
        mean = weights @ means
        variance = weights @ (jnp.square(means - mean) + jnp.exp(2 * log_stds))
        return mean, jnp.sqrt(variance)

    def draw(outputs: Array, bounds: Bounds, noise: tuple[Array, Array]) -> Array:
        log_weights, means, log_stds = split(outputs, bounds)
        below = jnp.cumsum(jnp.exp(log_weights))[:-1] <= noise[0]
        chosen = jax.nn.one_hot(jnp.sum(below), num_components)
        return chosen @ means + chosen @ jnp.exp(log_stds) * noise[1]

    def noise(key: Key, num_draws: int) -> tuple[Array, Array]:
        key_component, key_value = jax.random.split(key)
        component = jax.random.uniform(key_component, (num_draws,))
        return component, jax.random.normal(key_value, (num_draws,))

    return Conditional(
        size=3 * num_components, log_prob=log_prob, draw=draw, moments=moments, noise=noise
    )


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
    limits = []
    for name in ("log_std_min", "log_std_max"):
        values = np.asarray(getattr(config, name), np.float32)
        if values.shape not in ((), (1,), (size,)):
            raise UsageError(
                f"{name} has {values.size} values: give one, or one for each of the {size} entries"
            )
        limits.append(np.broadcast_to(values, (size,)))
    floor, ceiling = limits
    if not np.all(floor < ceiling):
        raise UsageError("log_std_min has to be below log_std_max for every entry")
    return floor, ceiling


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

    def initial_shared() -> Params:
        return {"low": low, "high": high} if config.learned_bounds else {}

    def bounds(shared: Params) -> Bounds:
        current = fixed or shared
        return current["low"], current["high"]

    def loss(params: Params, shared: Params, x: Array, y: Array, weight: Array, key: Key) -> Array:
        positions, outputs = network.terms(params, x, y, key)
        limits = jax.tree.map(lambda bound: bound[positions], bounds(shared))
        log_probs = jax.vmap(conditional.log_prob)(outputs, limits, y[positions])
        if config.beta:  # without a gradient of its own
            std = jax.vmap(conditional.moments)(outputs, limits)[1]
            log_probs *= jax.lax.stop_gradient(std) ** (2 * config.beta)
        return -jnp.mean(weight[positions] * log_probs)

    def penalty(params: Params, shared: Params) -> Array:
        del params
        return BOUND_COEF * jnp.sum(shared["high"] - shared["low"]) if shared else jnp.zeros(())

    def log_prob(params: Params, shared: Params, x: Array, y: Array) -> Array:
        return jax.vmap(conditional.log_prob)(network.outputs(params, x, y), bounds(shared), y)

    def moments(params: Params, shared: Params, x: Array, y: Array) -> tuple[Array, Array]:
        return jax.vmap(conditional.moments)(network.outputs(params, x, y), bounds(shared))

    def sample(params: Params, shared: Params, x: Array, key: Key) -> Array:
        below, above = bounds(shared)

        def draw(i: Array, outputs: Array, noise: PyTree) -> Array:
            return conditional.draw(outputs, (below[i], above[i]), noise)

        return network.generate(params, x, draw, conditional.noise(key, len(low)))

    def mode(params: Params, shared: Params, x: Array) -> Array:
        below, above = bounds(shared)

        def draw(i: Array, outputs: Array, noise: PyTree) -> Array:
            del noise
            return conditional.moments(outputs, (below[i], above[i]))[0]

        return network.generate(params, x, draw, jnp.zeros(len(low)))

    in_network_order = Density(
        init=network.init,
        shared=initial_shared,
        loss=loss,
        penalty=penalty,
        log_prob=log_prob,
        sample=sample,
        mode=mode,
        moments=moments,
    )
    return _in_order(in_network_order, order)


def _in_order(density: Density, order: Sequence[int]) -> Density:
    """The density of y whose entry `order[i]` is the i-th of `density`.

    All results are in y's order.
    """
    if list(order) == list(range(len(order))):
        return density
    forward = np.asarray(order)
    back = np.argsort(forward)

    def loss(params: Params, shared: Params, x: Array, y: Array, weight: Array, key: Key) -> Array:
        return density.loss(params, shared, x, y[forward], weight[forward], key)

    def log_prob(params: Params, shared: Params, x: Array, y: Array) -> Array:
        return density.log_prob(params, shared, x, y[forward])[back]

    def sample(params: Params, shared: Params, x: Array, key: Key) -> Array:
        return density.sample(params, shared, x, key)[back]

    def mode(params: Params, shared: Params, x: Array) -> Array:
        return density.mode(params, shared, x)[back]

    def moments(params: Params, shared: Params, x: Array, y: Array) -> tuple[Array, Array]:
        mean, std = density.moments(params, shared, x, y[forward])
        return mean[back], std[back]

    return density._replace(loss=loss, log_prob=log_prob, sample=sample, mode=mode, moments=moments)
