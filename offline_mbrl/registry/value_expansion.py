"""Algorithms whose critics regress to values that a model expands."""

from offline_mbrl.registry import problems
from offline_mbrl.registry.explicit import small_model
from offline_mbrl.registry.table import entry
from offline_mbrl.types import Algorithm, Case


@entry
def cbop() -> Algorithm:
    """CBOP: a lower bound of the value from rollouts of every depth; MVE and STEVE as presets."""
    from offline_mbrl.algorithms import cbop
    from offline_mbrl.learners import sac
    from offline_mbrl.problems import linear_quadratic

    policy = sac.Config(
        batch_size=32,
        gamma=linear_quadratic.GAMMA,
        target_entropy=-3.0,
        actor_layers=(16,),
        critic_layers=(32,),
        num_critics=3,
        actor_learning_rate=3e-3,
        critic_learning_rate=3e-3,
        temperature_learning_rate=3e-3,
    )
    case = Case(
        problem=problems.linear_quadratic,
        config={
            "dynamics": small_model(),
            "policy": policy,
            "horizon": 2,
            "num_particles": 3,
            "psi": 1.0,
            "eta": 0.1,
        },
        score=0.9,
        num_updates=2_000,
    )
    return Algorithm(
        config=cbop.Config,
        make=cbop.make,
        pretrain=cbop.pretrain,
        presets=cbop.PRESETS,
        cases=(case,),
    )
