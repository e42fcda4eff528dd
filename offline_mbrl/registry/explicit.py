"""Algorithms on an explicit model of observations and rewards."""

from offline_mbrl.registry import problems
from offline_mbrl.registry.table import entry
from offline_mbrl.types import Algorithm, Case


@entry
def skeleton() -> Algorithm:
    """Skeleton, the file to copy: a policy climbs a reward model, held near the data."""
    from offline_mbrl.algorithms import skeleton

    case = Case(
        problem=problems.bandit,
        config={"batch_size": 16, "hidden_layers": (16,)},
        score=0.95,
        learning={"batch_size": 32, "hidden_layers": (64, 64)},
        num_updates=4_000,
    )
    return Algorithm(
        config=skeleton.Config, make=skeleton.make, pretrain=skeleton.pretrain, cases=(case,)
    )
