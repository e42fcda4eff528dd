"""Algorithms on a latent model."""

from typing import Any

from offline_mbrl.registry import problems
from offline_mbrl.registry.table import entry
from offline_mbrl.types import Algorithm, Case


def _latent_case(num_updates: int, **settings: Any) -> Case:
    """A case of the latent family.

    Its discount factor is the chain's own: at the default 0.988 actions differ by a hundredth.
    """
    from offline_mbrl.networks import optimizers

    fast = optimizers.OptimizerConfig(learning_rate=5e-3)
    return Case(
        problem=problems.chain,
        config={"batch_size": 16, **settings},
        score=0.99,
        learning={"batch_size": 32, "gamma": 0.9, "optimizer": fast},
        num_updates=num_updates,
    )


def _search_case(operator: str, num_simulations: int = 4) -> Case:
    """Few simulations. Tree searches waver between 500 and 1,000 updates.

    With four of them visits waver in some seeds for longer, with eight in few.
    """
    from offline_mbrl.algorithms import operators

    search = operators.SearchConfig(operator=operator, num_simulations=num_simulations)
    return _latent_case(num_updates=2_000, search=search)


# --- algorithms ---


@entry
def gumbel() -> Algorithm:
    """Gumbel MuZero: sequential halving at the root, completed action values."""
    from offline_mbrl.algorithms import muzero_unplugged

    return Algorithm(
        config=muzero_unplugged.GumbelConfig,
        make=muzero_unplugged.make,
        cases=(_search_case("gumbel"),),
    )


@entry
def latent_crr() -> Algorithm:
    """CRR on the latent model: the data's actions cloned by their advantage."""
    from offline_mbrl.algorithms import latent_crr

    return Algorithm(
        config=latent_crr.Config,
        make=latent_crr.make,
        presets=latent_crr.PRESETS,
        cases=(_latent_case(num_updates=1_000),),
    )


@entry
def muzero_unplugged() -> Algorithm:
    """MuZero Unplugged: the policy regresses to the visits of a tree search."""
    from offline_mbrl.algorithms import muzero_unplugged

    return Algorithm(
        config=muzero_unplugged.Config,
        make=muzero_unplugged.make,
        presets=muzero_unplugged.PRESETS,
        cases=(_search_case("muzero", num_simulations=16),),
    )


@entry
def mzu_q() -> Algorithm:
    """MZU-Q: MuZero Unplugged with the exponential of searched action values."""
    from offline_mbrl.algorithms import muzero_unplugged

    return Algorithm(
        config=muzero_unplugged.QConfig,
        make=muzero_unplugged.make,
        cases=(_search_case("muzero_q"),),
    )


@entry
def rosmo() -> Algorithm:
    """ROSMO: the policy regresses to a one-step lookahead, held near the data."""
    from offline_mbrl.algorithms import rosmo

    return Algorithm(
        config=rosmo.Config,
        make=rosmo.make,
        presets=rosmo.PRESETS,
        cases=(_latent_case(num_updates=1_000),),
    )
