"""Offline Q-learning with discrete actions."""

from typing import Any

from offline_mbrl.registry import problems
from offline_mbrl.registry.table import entry
from offline_mbrl.types import Algorithm, Case


def _algorithm(name: str, **case_settings: Any) -> Algorithm:
    """A method of the family on the corridor.

    The discount factor is the corridor's own: at the default actions differ by a hundredth.
    """
    from offline_mbrl.learners.discrete import configs, q_learning

    shared = {"batch_size": 16, "layers": (16,), "target_period": 2, "adam_epsilon": 1e-8}
    case = Case(
        problem=problems.chain,
        config={**shared, **case_settings},
        score=0.99,
        learning={"batch_size": 32, "gamma": 0.9, "learning_rate": 3e-3, "target_period": 20},
        num_updates=1_500,
    )
    return Algorithm(
        config=configs.CONFIGS[name],
        make=q_learning.make,
        presets=configs.PRESETS[name],
        cases=(case,),
    )


@entry
def dqn() -> Algorithm:
    """Offline DQN, or double DQN."""
    return _algorithm("dqn")


@entry
def qr_dqn() -> Algorithm:
    """QR-DQN: quantiles of the return."""
    return _algorithm("qr_dqn", num_heads=8)


@entry
def rem() -> Algorithm:
    """REM: random mixtures of an ensemble of values, or Ensemble-DQN."""
    return _algorithm("rem", num_heads=8)


@entry
def bcq_discrete() -> Algorithm:
    """Discrete BCQ: Q-learning over the actions that a clone of the data finds likely."""
    return _algorithm("bcq_discrete")


@entry
def cql_discrete() -> Algorithm:
    """Discrete CQL: quantiles of the return, lowered where the data do not act."""
    return _algorithm("cql_discrete", num_heads=8, cql_alpha=0.1)
