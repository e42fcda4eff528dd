"""Policy learners without a model."""

from offline_mbrl.registry import problems
from offline_mbrl.registry.table import entry
from offline_mbrl.types import Algorithm, Case

# Settings of the cases, with which a learner compiles and learns in seconds.
SMALL = {"batch_size": 16, "actor_layers": (16,), "critic_layers": (16,)}


@entry
def bc() -> Algorithm:
    """Behavior cloning: maximum likelihood of the data's actions, discrete or continuous."""
    from offline_mbrl.learners import bc

    discrete = Case(
        problem=problems.chain,
        config={"batch_size": 16},
        score=0.99,
        learning={"batch_size": 32},
        num_updates=4_000,
    )
    density = bc.ContinuousConfig(layers=(16,), learning_rate=1e-3)
    continuous = Case(
        problem=problems.bandit_of_good_actions,
        config={"batch_size": 16, "continuous": density},
        score=0.95,
        learning={"batch_size": 32},
        num_updates=4_000,
    )
    return Algorithm(config=bc.Config, make=bc.make, cases=(discrete, continuous))


@entry
def sac() -> Algorithm:
    """Soft actor-critic with N critics, for continuous actions."""
    from offline_mbrl.learners import sac

    case = Case(
        problem=problems.bandit,
        config={
            **SMALL,
            "actor_learning_rate": 1e-3,
            "critic_learning_rate": 1e-3,
            "temperature_learning_rate": 1e-3,
        },
        score=0.95,
        learning={"batch_size": 32},
        num_updates=4_000,
    )
    return Algorithm(config=sac.Config, make=sac.make, cases=(case,))


@entry
def iql() -> Algorithm:
    """Implicit Q-learning: an expectile of the data's own actions, cloned by advantage."""
    from offline_mbrl.learners import iql

    case = Case(
        problem=problems.bandit,
        config={
            **SMALL,
            "actor_learning_rate": 3e-3,
            "actor_schedule": "constant",
            "critic_learning_rate": 3e-3,
        },
        score=0.9,
        learning={"batch_size": 64, "inverse_temperature": 30.0},
        num_updates=3_000,
    )
    return Algorithm(config=iql.Config, make=iql.make, presets=iql.PRESETS, cases=(case,))


@entry
def cql() -> Algorithm:
    """Conservative Q-learning, CQL(H), with a fixed or a learned weight."""
    from offline_mbrl.learners import cql
    from offline_mbrl.learners.parts import conservative

    config = {
        **SMALL,
        "actor_learning_rate": 1e-3,
        "critic_learning_rate": 3e-3,
        "temperature_learning_rate": 1e-3,
        "gap": conservative.Config(coef=0.1, num_actions=3),
    }
    fixed = Case(problem=problems.bandit, config=config, score=0.9, num_updates=3_000)
    lagrange = Case(
        problem=problems.bandit,
        config={
            **config,
            "gap": conservative.Config(coef=0.1, num_actions=3, minimum=-200.0, target_gap=5.0),
            "backup": "maximum",
            "cloning_updates": 100,
        },
        score=0.9,
        num_updates=3_000,
    )
    return Algorithm(config=cql.Config, make=cql.make, presets=cql.PRESETS, cases=(fixed, lagrange))


@entry
def crr() -> Algorithm:
    """Critic regularized regression: the data's actions cloned by their advantage; AWAC."""
    from offline_mbrl.learners import crr

    config = {
        "batch_size": 16,
        "num_atoms": 21,
        "value_range": (-4.0, 0.0),
        "num_components": 2,
        "actor_layers": (16,),
        "critic_layers": (16,),
        "actor_learning_rate": 3e-3,
        "critic_learning_rate": 3e-3,
    }
    exponential = Case(
        problem=problems.bandit,
        config=config,
        score=0.9,
        learning={"batch_size": 64, "temperature": 0.05},
        num_updates=2_500,
    )
    awac = Case(
        problem=problems.bandit,
        config={
            **crr.PRESETS["awac"],
            **SMALL,
            "actor_learning_rate": 3e-3,
            "critic_learning_rate": 3e-3,
        },
        score=0.9,
        learning={"batch_size": 64, "temperature": 0.05},
        num_updates=2_500,
    )
    return Algorithm(
        config=crr.Config, make=crr.make, presets=crr.PRESETS, cases=(exponential, awac)
    )


@entry
def td3_bc() -> Algorithm:
    """TD3+BC: a deterministic actor that climbs its critic and stays near the data."""
    from offline_mbrl.learners import td3_bc

    config = {
        **SMALL,
        "actor_learning_rate": 3e-3,
        "critic_learning_rate": 3e-3,
        "alpha": 10.0,
    }
    case = Case(problem=problems.bandit, config=config, score=0.9, num_updates=2_500)
    return Algorithm(config=td3_bc.Config, make=td3_bc.make, cases=(case,))


@entry
def rebrac() -> Algorithm:
    """ReBRAC: TD3+BC with a distance to the data in the actor and in the target."""
    from offline_mbrl.learners import rebrac

    config = {
        **SMALL,
        "actor_learning_rate": 3e-3,
        "critic_learning_rate": 3e-3,
    }
    case = Case(problem=problems.bandit, config=config, score=0.9, num_updates=2_500)
    return Algorithm(config=rebrac.Config, make=rebrac.make, presets=rebrac.PRESETS, cases=(case,))


@entry
def edac() -> Algorithm:
    """EDAC: soft actor-critic with N critics whose gradients are kept apart; SAC-N."""
    from offline_mbrl.learners import edac

    config = {
        **SMALL,
        "num_critics": 3,
        "actor_learning_rate": 1e-3,
        "critic_learning_rate": 1e-3,
        "temperature_learning_rate": 1e-3,
        "eta": 0.1,
    }
    case = Case(problem=problems.bandit, config=config, score=0.95, num_updates=4_000)
    return Algorithm(config=edac.Config, make=edac.make, presets=edac.PRESETS, cases=(case,))


@entry
def percentile_bc() -> Algorithm:
    """Percentile cloning: behavior cloning on the episodes with the highest returns."""
    from offline_mbrl.learners import bc, percentile_bc

    density = bc.ContinuousConfig(layers=(16,), learning_rate=3e-3)
    continuous = Case(
        problem=problems.bandit,
        config={"batch_size": 16, "continuous": density},
        score=0.95,
        num_updates=2_000,
    )
    discrete = Case(
        problem=problems.chain,
        config={"batch_size": 16, "fraction": 0.5},
        score=0.99,
        num_updates=3_000,
    )
    return Algorithm(
        config=percentile_bc.Config,
        make=percentile_bc.make,
        prepare=percentile_bc.prepare,
        cases=(continuous, discrete),
    )


@entry
def bail() -> Algorithm:
    """BAIL: cloning of the actions whose returns come close to an upper envelope."""
    from offline_mbrl.learners import bail

    case = Case(
        problem=problems.bandit,
        config={
            "batch_size": 16,
            "actor_layers": (16,),
            "learning_rate": 3e-3,
            "envelope": bail.EnvelopeConfig(num_updates=500, batch_size=16, layers=(16,)),
        },
        score=0.95,
        num_updates=2_000,
    )
    return Algorithm(config=bail.Config, make=bail.make, pretrain=bail.pretrain, cases=(case,))


@entry
def bcq() -> Algorithm:
    """BCQ: the best of an autoencoder's actions, which are perturbed a little."""
    from offline_mbrl.learners import bcq

    config = {
        **SMALL,
        "num_candidates": 10,
        "vae_layers": (16,),
        "actor_learning_rate": 3e-3,
        "critic_learning_rate": 3e-3,
    }
    case = Case(
        problem=problems.bandit,
        config=config,
        score=0.9,
        learning={"batch_size": 64, "perturbation": 0.5},
        num_updates=2_000,
    )
    return Algorithm(config=bcq.Config, make=bcq.make, cases=(case,))


@entry
def bear() -> Algorithm:
    """BEAR: few samples of the policy are held near those of an autoencoder of the data."""
    from offline_mbrl.learners.regularized import brac, configs

    config = {
        "batch_size": 16,
        "threshold": 0.2,
        "num_next_actions": 3,
        "num_candidates": 10,
        "constraint_updates": 50,
        "actor_layers": (16,),
        "critic_layers": (16,),
        "vae_layers": (16,),
        "actor_learning_rate": 1e-3,
        "critic_learning_rate": 3e-3,
        "behavior_learning_rate": 1e-3,
    }
    case = Case(problem=problems.bandit, config=config, score=0.9, num_updates=3_000)
    return Algorithm(
        config=configs.BearConfig,
        make=brac.make,
        presets=configs.BEAR_PRESETS,
        cases=(case,),
    )


@entry
def brac() -> Algorithm:
    """BRAC-p and BRAC-v: the policy pays for its divergence from a clone of the data's actions."""
    from offline_mbrl.learners.regularized import brac, configs

    config = {
        "batch_size": 16,
        "weight": 0.01,
        "penalize_values": True,
        "constraint_updates": 50,
        "actor_layers": (16,),
        "critic_layers": (16,),
        "actor_learning_rate": 1e-3,
        "critic_learning_rate": 3e-3,
        "behavior_learning_rate": 3e-3,
        "behavior_updates": 500,
    }
    case = Case(problem=problems.bandit, config=config, score=0.9, num_updates=3_000)
    return Algorithm(
        config=configs.Config,
        make=brac.make,
        pretrain=brac.pretrain,
        presets=configs.PRESETS,
        cases=(case,),
    )


@entry
def fql() -> Algorithm:
    """FQL: a one-step policy that is distilled from a flow of the data and climbs its critics."""
    from offline_mbrl.learners import fql

    config = {
        "batch_size": 16,
        "alpha": 0.1,
        "num_flow_steps": 3,
        "actor_layers": (16,),
        "critic_layers": (16,),
        "actor_learning_rate": 3e-3,
        "critic_learning_rate": 3e-3,
    }
    case = Case(
        problem=problems.bandit,
        config=config,
        score=0.9,
        learning={"batch_size": 64},
        num_updates=2_500,
    )
    return Algorithm(config=fql.Config, make=fql.make, presets=fql.PRESETS, cases=(case,))
