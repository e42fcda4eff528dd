"""PETS on logged data (arXiv:1805.12114): planning in a probabilistic ensemble, nothing else.

The cross-entropy method looks for the actions of the largest mean return over particles, each of
which keeps one member of the ensemble for the whole plan (TS-infinity). A clone of the data acts
where the planner may spend no model step.

Nothing holds the plan near the data, so that it makes use of the model's errors: `penalty_coef`
subtracts a penalty of the members' disagreement from every reward, as MOPO does. With 0 it is PETS;
above 0 all members see every step, of which one that is drawn anew decides (TS1).

Departures: the data are given, not collected; rewards are the model's own, where PETS has
functions of the next state written by hand; nothing counts after a predicted end; the model is
`models.gaussian_ensemble`. `search` "icem" is iCEM (arXiv:2008.06389).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from offline_mbrl import policies, settings
from offline_mbrl.algorithms.planned import assembly
from offline_mbrl.learners import bc
from offline_mbrl.models import gaussian_ensemble, kinds
from offline_mbrl.planning import cross_entropy
from offline_mbrl.planning.shooting import Task
from offline_mbrl.rollouts import adjust, pessimism, shares
from offline_mbrl.settings import Scope, at_least, between, one_of, read_if
from offline_mbrl.types import Actor, Context, EnvironmentSpec, Learner, Params, PyTree

pretrain = assembly.pretrain


def _is_cem(scope: Scope) -> bool:
    return scope.config.search == "cem"


def _is_icem(scope: Scope) -> bool:
    return scope.config.search == "icem"


def _is_penalized(scope: Scope) -> bool:
    return scope.config.penalty_coef > 0


if_cem = read_if(_is_cem, "search cem")
if_icem = read_if(_is_icem, "search icem")


@dataclass(frozen=True)
class Config(assembly.Config):
    """The released settings of HalfCheetah."""

    num_updates: Annotated[int, at_least(1)] = 200_000  # of the clone
    dynamics: kinds.ModelConfig = field(default_factory=gaussian_ensemble.Config)
    policy: bc.Config = field(default_factory=bc.Config)  # the clone
    gamma: Annotated[float, between(0, 1)] = 1.0
    horizon: Annotated[int, at_least(1)] = 30  # H
    num_candidates: Annotated[int, at_least(1)] = 500  # N; of the first iteration, for iCEM
    num_particles: Annotated[int, at_least(1)] = 20  # of each candidate
    num_iterations: Annotated[int, at_least(1)] = 5
    inertia: Annotated[float, between(0, 1)] = 0.1  # of the old moments in the new ones
    search: Literal["cem", "icem"] = "cem"
    elite_fraction: Annotated[float, between(0, 1), if_cem] = 0.1
    min_variance: Annotated[float, at_least(0), if_cem] = 1e-3  # below it nothing changes
    num_elites: Annotated[int, at_least(1), if_icem] = 10
    kept_fraction: Annotated[float, between(0, 1), if_icem] = 0.3  # of the elites
    decay: Annotated[float, at_least(1), if_icem] = 1.25  # of the population
    exponent: Annotated[float, at_least(0), if_icem] = 2.0  # of the noise's spectrum
    # Pessimism
    penalty_coef: Annotated[float, at_least(0)] = 0.0
    penalty: Annotated[
        str, one_of(pessimism.PENALTIES), read_if(_is_penalized, "a penalty_coef above 0")
    ] = "max_pairwise_disagreement"


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "halfcheetah": {},
    "cartpole": {"num_candidates": 400, "horizon": 25},
    # Ours, for acting on a CPU
    "cpu": {"num_candidates": 64, "num_particles": 4, "horizon": 10, "num_iterations": 3},
    "icem": {"search": "icem", "num_candidates": 64, "num_particles": 4, "num_iterations": 3},
}


def planner(config: Config, task: Task) -> Actor:
    """The search that a config asks for.

    Raises:
      UsageError: a setting makes no planner.
    """
    common = {
        "num_candidates": config.num_candidates,
        "num_iterations": config.num_iterations,
        "inertia": config.inertia,
        "budget": config.budget,
    }
    if config.search == "cem":
        return cross_entropy.cem(
            task,
            elite_fraction=config.elite_fraction,
            min_variance=config.min_variance,
            **common,
        )
    return cross_entropy.icem(
        task,
        num_elites=config.num_elites,
        kept_fraction=config.kept_fraction,
        decay=config.decay,
        exponent=config.exponent,
        **common,
    )


def _penalized(config: Config, task: Task) -> Task:
    """The task whose rewards pay for disagreement."""
    subtract = pessimism.subtract(pessimism.PENALTIES[config.penalty], config.penalty_coef)
    return task._replace(adjust=adjust.chain(subtract, task.adjust), spread=shares.jointly)


def make(config: Config, spec: EnvironmentSpec) -> Learner:
    """The learner of the clone; its policy is the planner, an `Actor`.

    Raises:
      UsageError: the actions are discrete, a setting makes no learner, or no rule of termination
        has this name.
    """
    settings.require_valid(config, "pets", spec)
    learner = bc.make(replace(config.policy, num_updates=config.num_updates), spec)
    task = assembly.task(
        config,
        spec,
        policies.require_memoryless(learner.policy, "pets"),
        horizon=config.horizon,
        gamma=config.gamma,
        num_particles=config.num_particles,
    )
    actor = planner(config, _penalized(config, task) if config.penalty_coef else task)

    def policy_params(state: PyTree, context: Context) -> Params:
        return {"policy": learner.policy_params(state, context), "model": context.upstream["model"]}

    return learner._replace(policy=actor, policy_params=policy_params)
