"""The coupled density: a feedforward model whose entries are correlated given (s, a).

    p(s' - s | s, a) = N(mu, L S^2 L^T)        p(r | s, a, s') = N(m, sigma^2)

It costs little more than a feedforward model and says what an autoregressive one can say linearly;
the reward's conditional bends with the next state. `densities.coupled` has the equations.

As with autoregressive densities, moments in `Prediction.members` are conditional on the outcome
that was sampled, and training conditions on the data's own entries.
"""

from dataclasses import dataclass, field
from typing import Annotated

import jax

from offline_mbrl.models import fitting
from offline_mbrl.models.autoregressive import Activation, whole_order
from offline_mbrl.models.densities import conditionals, coupled
from offline_mbrl.models.densities.conditionals import ConditionalConfig
from offline_mbrl.models.densities.density import Density
from offline_mbrl.settings import at_least, require_valid, sizes
from offline_mbrl.types import UsageError


@dataclass(frozen=True)
class CoupledConfig:
    """The feedforward model's sizes, and a small network for the reward."""

    hidden_layers: Annotated[tuple[int, ...], sizes()] = (256, 256, 256)
    reward_layers: Annotated[tuple[int, ...], sizes()] = (64, 64)  # of (s, a, s')
    activation: Activation = "silu"
    # A permutation of the state's entries, first predicted first; (): as they come.
    order: tuple[int, ...] = ()
    conditional: ConditionalConfig = field(default_factory=ConditionalConfig)
    num_members: Annotated[int, at_least(1)] = 4
    fit: fitting.Config = field(default_factory=fitting.Config)


def make(config: CoupledConfig, state_size: int, action_size: int) -> Density:
    """The density of D = state_size + 1 entries, the reward last.

    Args:
      config: sizes, order, conditionals.
      state_size: n, entries of the observation.
      action_size: entries of the action.

    Raises:
      UsageError: a setting is out of its bounds, a conditional is not one Gaussian, an order is no
        permutation, bounds of deviations that do not fit the entries or leave no room.
    """
    require_valid(config, "coupled")
    if config.conditional.num_components != 1:
        raise UsageError(
            f"coupled: conditional.num_components is {config.conditional.num_components}, but "
            "entries that are coupled are of one Gaussian: set it to 1, or use an autoregressive "
            "model"
        )
    size = state_size + 1
    network = coupled.network(
        state_size + action_size,
        size,
        hidden_layers=config.hidden_layers,
        last_layers=config.reward_layers,
        activation=getattr(jax.nn, config.activation),
    )
    order = whole_order(config.order, size, reward_first=False)
    return conditionals.chain(network, config.conditional, order)
