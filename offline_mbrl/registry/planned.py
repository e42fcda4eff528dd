"""Algorithms that plan in an explicit model to act."""

from typing import Any

from offline_mbrl.registry import problems
from offline_mbrl.registry.explicit import small_model
from offline_mbrl.registry.table import entry
from offline_mbrl.types import Algorithm, Case


@entry
def crr_planning() -> Algorithm:
    """CRR with planning: critic regularized regression, and a planner that acts by its critic."""
    from offline_mbrl.algorithms.planned import crr_planning
    from offline_mbrl.learners import crr
    from offline_mbrl.problems import linear_quadratic

    policy = crr.Config(
        batch_size=64,
        gamma=linear_quadratic.GAMMA,
        critic="squared",
        policy="normal",
        actor_layers=(16,),
        critic_layers=(32,),
        actor_learning_rate=3e-3,
        critic_learning_rate=3e-3,
        tau=0.05,
        target_period=1,
    )
    case = Case(
        problem=problems.linear_quadratic,
        config={"dynamics": small_model(), "policy": policy, "horizon": 1, "num_candidates": 16},
        score=0.85,
        num_updates=3_000,
    )
    return Algorithm(
        config=crr_planning.Config,
        make=crr_planning.make,
        pretrain=crr_planning.pretrain,
        presets=crr_planning.PRESETS,
        cases=(case,),
    )


def _clone() -> Any:
    """Behavior cloning for the small problems."""
    from offline_mbrl.learners import bc

    network = bc.ContinuousConfig(layers=(16,), learning_rate=3e-3)
    return bc.Config(batch_size=64, continuous=network)


@entry
def mbop() -> Algorithm:
    """MBOP: plans around a clone of the data, valued by the returns of the data."""
    from offline_mbrl.algorithms.planned import mbop
    from offline_mbrl.algorithms.planned.return_head import ReturnConfig
    from offline_mbrl.problems import linear_quadratic

    returns = ReturnConfig(
        num_steps=5,
        num_members=2,
        layers=(16,),
        learning_rate=3e-3,
        batch_size=64,
        num_updates=1_000,
    )
    planner = {"horizon": 3, "num_candidates": 32, "noise": 1.0, "kappa": 10.0}
    case = Case(
        problem=problems.linear_quadratic,
        config={
            "dynamics": small_model(),
            "policy": _clone(),
            "returns": returns,
            "gamma": linear_quadratic.GAMMA,
            **planner,
        },
        score=0.85,
    )
    return Algorithm(
        config=mbop.Config,
        make=mbop.make,
        pretrain=mbop.pretrain,
        presets=mbop.PRESETS,
        cases=(case,),
    )


@entry
def pets() -> Algorithm:
    """PETS on logged data: the cross-entropy method in a probabilistic ensemble."""
    from offline_mbrl.algorithms.planned import pets
    from offline_mbrl.problems import linear_quadratic

    planner = {"horizon": 4, "num_candidates": 36, "num_particles": 1, "num_iterations": 2}
    case = Case(
        problem=problems.linear_quadratic,
        config={
            "dynamics": small_model(),
            "policy": _clone(),
            "gamma": linear_quadratic.GAMMA,
            "elite_fraction": 0.2,
            **planner,
        },
        score=0.82,
    )
    return Algorithm(
        config=pets.Config,
        make=pets.make,
        pretrain=pets.pretrain,
        presets=pets.PRESETS,
        cases=(case,),
    )
