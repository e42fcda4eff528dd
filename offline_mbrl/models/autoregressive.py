"""Autoregressive dynamics: the exact factorization over the entries of the next state and reward.

    p(s', r | s, a) = p(r | s, a, s') prod_i p(s'_i | s, a, s'_1, ..., s'_{i-1})

(Autoregressive dynamics models for offline policy evaluation and optimization, arXiv:2104.13877.)
Two networks with the same meaning: `shared` predicts one entry at a time, `masked` all of them in
one pass. Both are trained with the data's own entries before each (teacher forcing), and both
sample exactly from the density that they evaluate.

In a step of an ensemble of them (`explicit.make`) the moments in `Prediction.members` are
conditional on the outcome that was sampled: every member says how it would predict each entry given
the sampled entries before it. Their disagreement is about conditionals, not about marginals as in
an ensemble whose entries are independent.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import jax

from offline_mbrl.models import fitting
from offline_mbrl.models.densities import autoregressive_masked, autoregressive_shared, conditionals
from offline_mbrl.models.densities.conditionals import ConditionalConfig
from offline_mbrl.models.densities.density import Density
from offline_mbrl.settings import at_least
from offline_mbrl.types import UsageError

Activation = Literal["silu", "relu", "gelu", "tanh"]


@dataclass(frozen=True)
class SharedConfig:
    """One network for all entries; the sizes are the feedforward model's."""

    hidden_layers: tuple[int, ...] = (256, 256, 256)
    activation: Activation = "silu"
    # Entries that an example trains at an update, drawn anew each time; None: all.
    dims_per_example: int | None = 2
    # A permutation of the state's entries, first predicted first; (): as they come.
    order: tuple[int, ...] = ()
    reward_first: bool = False  # predict the reward before the state, not after it
    conditional: ConditionalConfig = field(default_factory=ConditionalConfig)
    num_members: Annotated[int, at_least(1)] = 4
    fit: fitting.Config = field(default_factory=fitting.Config)


@dataclass(frozen=True)
class MaskedConfig:
    """All entries in one pass of a masked residual network."""

    hidden_size: int = 512  # units of every layer, rounded up to equally many for each entry
    num_blocks: int = 2  # residual blocks of one layer each
    activation: Activation = "silu"
    # A permutation of the state's entries, first predicted first; (): as they come.
    order: tuple[int, ...] = ()
    reward_first: bool = False  # predict the reward before the state, not after it
    conditional: ConditionalConfig = field(default_factory=ConditionalConfig)
    num_members: Annotated[int, at_least(1)] = 4
    fit: fitting.Config = field(default_factory=fitting.Config)


def shared(config: SharedConfig, state_size: int, action_size: int) -> Density:
    """The density whose conditionals come from one network, an entry at a time.

    Args:
      config: sizes, order, conditionals.
      state_size: n, entries of the observation; D = n + 1, the reward is last.
      action_size: entries of the action.

    Raises:
      UsageError: no hidden layer, more entries per example than there are, or what `masked` raises.
    """
    if not config.hidden_layers or min(config.hidden_layers) < 1:
        raise UsageError(
            f"hidden_layers is {config.hidden_layers}: name at least one size, none below 1"
        )
    size = state_size + 1
    outputs_each = conditionals.make(config.conditional).size
    if config.dims_per_example is not None and not 1 <= config.dims_per_example <= size:
        raise UsageError(
            f"dims_per_example is {config.dims_per_example}: choose 1 to {size}, or None for all"
        )
    network = autoregressive_shared.network(
        state_size + action_size,
        size,
        outputs_each,
        hidden_layers=config.hidden_layers,
        activation=getattr(jax.nn, config.activation),
        dims_per_example=config.dims_per_example,
    )
    order = whole_order(config.order, size, reward_first=config.reward_first)
    return conditionals.chain(network, config.conditional, order)


def masked(config: MaskedConfig, state_size: int, action_size: int) -> Density:
    """The density whose conditionals come from one pass of a masked network.

    Args:
      config: sizes, order, conditionals.
      state_size: n, entries of the observation; D = n + 1, the reward is last.
      action_size: entries of the action.

    Raises:
      UsageError: no unit, an order that is no permutation, bounds that do not fit.
    """
    if config.hidden_size < 1 or config.num_blocks < 0:
        raise UsageError(
            f"hidden_size {config.hidden_size} has to be at least 1, num_blocks "
            f"{config.num_blocks} at least 0"
        )
    size = state_size + 1
    outputs_each = conditionals.make(config.conditional).size
    network = autoregressive_masked.network(
        state_size + action_size,
        size,
        outputs_each,
        hidden_size=config.hidden_size,
        num_blocks=config.num_blocks,
        activation=getattr(jax.nn, config.activation),
    )
    order = whole_order(config.order, size, reward_first=config.reward_first)
    return conditionals.chain(network, config.conditional, order)


def whole_order(order: Sequence[int], output_size: int, *, reward_first: bool) -> tuple[int, ...]:
    """The order of all entries, the reward (entry `output_size - 1`) among them.

    Args:
      order: permutation of the state's entries; empty for the order in which they come.
      output_size: D.
      reward_first: whether the reward comes first or last.

    Raises:
      UsageError: `order` is no permutation.
    """
    size = output_size - 1
    states = tuple(operator.index(entry) for entry in order) or tuple(range(size))
    if sorted(states) != list(range(size)):
        raise UsageError(
            f"order has to name each of 0 .. {size - 1} once, the state's entries, but is "
            f"{tuple(order)}"
        )
    return (size, *states) if reward_first else (*states, size)
