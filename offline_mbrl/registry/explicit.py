"""Algorithms on an explicit model of observations and rewards."""

from typing import Any

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


def small_model() -> Any:
    """A Gaussian ensemble for the small problems."""
    from offline_mbrl.models import fitting, gaussian_ensemble

    fit = fitting.Config(num_updates=1_000, batch_size=64, refresh_every=250, weight_decay=0.0)
    return gaussian_ensemble.Config(num_members=3, hidden_layers=(32,), decay=(), fit=fit)


def imagined_control(**settings: Any) -> Case:
    """The linear-quadratic problem, whose behavior scores 0.78, learned on a model's rollouts.

    Args:
      **settings: beside the model, the rollouts and the policy.
    """
    from offline_mbrl.learners import sac
    from offline_mbrl.problems import linear_quadratic
    from offline_mbrl.rollouts.imagination import ImaginationConfig

    rates = {f"{part}_learning_rate": 3e-3 for part in ("actor", "critic", "temperature")}
    sizes = {"batch_size": 64, "actor_layers": (16,), "critic_layers": (32,)}
    policy = sac.Config(gamma=linear_quadratic.GAMMA, target_entropy=-3.0, **rates, **sizes)
    rollouts = {"horizon": 3, "real_fraction": 0.25}
    config = {
        "dynamics": small_model(),
        "policy": policy,
        "imagination": ImaginationConfig(num_starts=16, every=2, retain=2, **rollouts),
    }
    learning = {"imagination": ImaginationConfig(num_starts=500, every=100, retain=10, **rollouts)}
    return Case(
        problem=problems.linear_quadratic,
        config={**config, **settings},
        score=0.9,
        learning=learning,
        num_updates=3_000,
    )


def _small_cql() -> Any:
    """CQL for that problem."""
    from offline_mbrl.learners import cql
    from offline_mbrl.learners.parts import conservative
    from offline_mbrl.problems import linear_quadratic

    return cql.Config(
        batch_size=64,
        gamma=linear_quadratic.GAMMA,
        target_entropy=-3.0,
        actor_layers=(16,),
        critic_layers=(32,),
        actor_learning_rate=3e-3,
        critic_learning_rate=3e-3,
        temperature_learning_rate=3e-3,
        gap=conservative.Config(coef=0.01, num_actions=3),
    )


@entry
def mbpo() -> Algorithm:
    """MBPO offline: soft actor-critic on short rollouts of a model."""
    from offline_mbrl.algorithms.imagined import mbpo

    return Algorithm(
        config=mbpo.Config,
        make=mbpo.make,
        pretrain=mbpo.pretrain,
        presets=mbpo.PRESETS,
        cases=(imagined_control(),),
    )


@entry
def mopo() -> Algorithm:
    """MOPO: rollouts of a model whose rewards pay for its uncertainty."""
    from offline_mbrl.algorithms.imagined import mopo

    return Algorithm(
        config=mopo.Config,
        make=mopo.make,
        pretrain=mopo.pretrain,
        presets=mopo.PRESETS,
        cases=(imagined_control(penalty_coef=0.1),),
    )


@entry
def morel() -> Algorithm:
    """MOReL: rollouts of a model that halt where its members disagree."""
    from offline_mbrl.algorithms.imagined import morel

    return Algorithm(
        config=morel.Config,
        make=morel.make,
        pretrain=morel.pretrain,
        presets=morel.PRESETS,
        cases=(imagined_control(num_judged=500, threshold="quantile", quantile=0.999, kappa=5.0),),
    )


@entry
def combo() -> Algorithm:
    """COMBO: conservative Q-learning that is pushed down on a model's rollouts."""
    from offline_mbrl.algorithms.imagined import combo

    return Algorithm(
        config=combo.Config,
        make=combo.make,
        pretrain=combo.pretrain,
        presets=combo.PRESETS,
        cases=(imagined_control(policy=_small_cql()),),
    )


@entry
def mobile() -> Algorithm:
    """MOBILE: rollouts of a model, and targets that pay for its members' disagreement."""
    from offline_mbrl.algorithms.imagined import mobile

    return Algorithm(
        config=mobile.Config,
        make=mobile.make,
        pretrain=mobile.pretrain,
        presets=mobile.PRESETS,
        cases=(imagined_control(penalty_coef=0.1, num_samples=2),),
    )


@entry
def rambo() -> Algorithm:
    """RAMBO: rollouts of a model that is trained to be the policy's adversary."""
    from offline_mbrl.algorithms.imagined import rambo

    opposed = {"adversary_updates": 5, "adversary_batch_size": 32}
    return Algorithm(
        config=rambo.Config,
        make=rambo.make,
        pretrain=rambo.pretrain,
        presets=rambo.PRESETS,
        cases=(imagined_control(**opposed),),
    )


def _imagined_once(policy: Any, **settings: Any) -> Case:
    """The linear-quadratic problem with rows that are imagined before the policy is learned."""
    from offline_mbrl.algorithms.imagined import proposals

    fitted = {"num_updates": 200, "batch_size": 32, "layers": (16,)}
    shared = {
        "termination": "never",
        "dynamics": small_model(),
        "proposal": proposals.ProposalConfig(**fitted),
        "horizon": 2,
        "num_starts": 32,
        "num_rows": 4_096,
        "imagined_fraction": 0.5,
        "policy": policy,
    }
    return Case(
        problem=problems.linear_quadratic,
        config={**shared, **settings},
        score=0.9,
        num_updates=1_500,
    )


def _small_bcq() -> Any:
    """BCQ for that problem, whose data act well already: it moves far from their actions."""
    from offline_mbrl.learners import bcq
    from offline_mbrl.problems import linear_quadratic

    return bcq.Config(
        batch_size=64,
        gamma=linear_quadratic.GAMMA,
        num_next_actions=3,
        num_candidates=10,
        perturbation=0.5,
        vae_layers=(16,),
        actor_layers=(16,),
        critic_layers=(32,),
        actor_learning_rate=3e-3,
        critic_learning_rate=3e-3,
    )


@entry
def romi_bcq() -> Algorithm:
    """ROMI with BCQ: imagined paths that lead to states of the data, by a reverse model."""
    from offline_mbrl.algorithms.imagined import romi

    return Algorithm(
        config=romi.Config,
        make=romi.make,
        pretrain=romi.pretrain,
        prepare=romi.prepare,
        presets=romi.PRESETS,
        cases=(_imagined_once(_small_bcq()),),
    )


@entry
def romi_cql() -> Algorithm:
    """ROMI with CQL."""
    from offline_mbrl.algorithms.imagined import romi

    return Algorithm(
        config=romi.CqlConfig,
        make=romi.make,
        pretrain=romi.pretrain,
        prepare=romi.prepare,
        presets=romi.PRESETS,
        cases=(_imagined_once(_small_cql(), terminals="extend"),),
    )


@entry
def fomi() -> Algorithm:
    """FOMI: as ROMI with BCQ, with time running forwards, its ablation."""
    from offline_mbrl.algorithms.imagined import romi

    return Algorithm(
        config=romi.ForwardConfig,
        make=romi.make,
        pretrain=romi.pretrain,
        prepare=romi.prepare,
        presets=romi.FORWARD_PRESETS,
        cases=(_imagined_once(_small_bcq()),),
    )
