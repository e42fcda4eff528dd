"""What algorithms that plan to act share: the model's stage, and what a planner reads."""

from dataclasses import dataclass, field
from typing import Annotated, Any

from offline_mbrl.algorithms import endings
from offline_mbrl.models import explicit, feedforward, kinds
from offline_mbrl.planning.shooting import Tail, Task, no_tail
from offline_mbrl.rollouts import adjust
from offline_mbrl.settings import at_least
from offline_mbrl.types import DynamicsModel, EnvironmentSpec, Policy, Stage, action_size


@dataclass(frozen=True)
class Config:
    """The model, and how far a planner looks in it."""

    num_updates: Annotated[int, at_least(1)] = 1_000_000  # of what is learned beside the model
    dynamics: kinds.ModelConfig = field(default_factory=feedforward.Config)
    # "learned", "never", or a task's or a dataset's name in `environments.termination`
    termination: str = "learned"
    clip_observations: bool = True  # predicted ones, to the range of the data
    # Model steps for each action, to which the number of candidates is reduced; 0: the proposal
    # policy acts without a planner; None: as many as the candidates take.
    budget: Annotated[int | None, at_least(0)] = None


def _options(config: Config, spec: EnvironmentSpec) -> dict[str, Any]:
    return endings.model_options(config.termination, spec)


def pretrain(config: Config, spec: EnvironmentSpec) -> dict[str, Stage]:
    """The stage "model".

    Raises:
      UsageError: no rule of termination has this name, or the spec is not one of vectors.
    """
    return {"model": kinds.stage(config.dynamics, spec, **_options(config, spec))}


def dynamics(
    config: Config, spec: EnvironmentSpec, draw: explicit.Draw = explicit.SAMPLE
) -> DynamicsModel:
    """The model whose parameters that stage hands on.

    Args:
      config: of the model.
      spec: of the data.
      draw: how a step chooses its outcome.

    Raises:
      UsageError: as `pretrain`.
    """
    return kinds.make(config.dynamics, spec, draw=draw, **_options(config, spec))


def task(
    config: Config,
    spec: EnvironmentSpec,
    policy: Policy,
    *,
    horizon: int,
    gamma: float,
    num_particles: int = 1,
    tail: Tail = no_tail,
    draw: explicit.Draw = explicit.SAMPLE,
) -> Task:
    """What is planned in that model.

    Args:
      config: the model.
      spec: of the data.
      policy: the proposal.
      horizon: H, model steps of a candidate.
      gamma: discount factor.
      num_particles: of each candidate.
      tail: the value at the end of the horizon.
      draw: how a step of the model chooses its outcome.

    Raises:
      UsageError: the actions are discrete, or as `pretrain`.
    """
    return Task(
        model=dynamics(config, spec, draw),
        policy=policy,
        action_size=action_size(spec, "planning"),
        horizon=horizon,
        gamma=gamma,
        tail=tail,
        num_particles=num_particles,
        adjust=adjust.clip_observation if config.clip_observations else adjust.identity,
    )
