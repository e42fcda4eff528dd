"""The feedforward density: all entries at once, independent given observation and action.

    p(y | x) = prod_i p(y_i | x)

One network emits the parameters of every conditional, a Gaussian each, or a mixture. It is a chain
of conditionals as the autoregressive densities are, with a network that sees no earlier entry.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

import jax
import jax.numpy as jnp

from offline_mbrl.models import fitting
from offline_mbrl.models.densities import conditionals
from offline_mbrl.models.densities.conditionals import ConditionalConfig
from offline_mbrl.models.densities.density import Density
from offline_mbrl.networks import torsos
from offline_mbrl.settings import at_least
from offline_mbrl.types import Array, Key, Params, PyTree


@dataclass(frozen=True)
class FeedforwardConfig:
    """Our defaults; the size is between those that were compared for this family."""

    hidden_layers: tuple[int, ...] = (256, 256, 256)  # SiLU between them
    conditional: ConditionalConfig = field(default_factory=ConditionalConfig)
    num_members: Annotated[int, at_least(1)] = 4
    fit: fitting.Config = field(default_factory=fitting.Config)


Config = FeedforwardConfig


def make(config: FeedforwardConfig, state_size: int, action_size: int) -> Density:
    """The density of D = state_size + 1 entries.

    Args:
      config: sizes and conditionals.
      state_size: n, entries of the observation.
      action_size: entries of the action.

    Raises:
      UsageError: no component, or bounds that do not fit the entries or leave no room.
    """
    size = state_size + 1
    outputs_each = conditionals.make(config.conditional).size
    module = torsos.MLP((*config.hidden_layers, size * outputs_each), activation=jax.nn.silu)
    network = _network(module, state_size + action_size, size, outputs_each)
    return conditionals.chain(network, config.conditional, range(size))


def _network(
    module: torsos.MLP, input_size: int, size: int, outputs_each: int
) -> conditionals.Network:
    """A network whose outputs for an entry depend on x alone."""

    def init(key: Key) -> Params:
        return torsos.init(module, key, jnp.zeros(input_size))

    def outputs(params: Params, x: Array, y: Array) -> Array:
        del y  # no entry depends on another
        return torsos.apply(module, params, x).reshape(size, outputs_each)

    def terms(params: Params, x: Array, y: Array, key: Key) -> tuple[Array, Array]:
        del key  # every conditional is trained
        return jnp.arange(size), outputs(params, x, y)

    def generate(params: Params, x: Array, draw: Callable, noise: PyTree) -> Array:
        return jax.vmap(draw)(jnp.arange(size), outputs(params, x, x), noise)

    return conditionals.Network(init=init, outputs=outputs, terms=terms, generate=generate)
