"""What algorithms on imagined rows share: the model's stage, and a learner beside its rollouts."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

from offline_mbrl.algorithms import endings
from offline_mbrl.models import gaussian_ensemble, kinds
from offline_mbrl.rollouts import imagination, shares
from offline_mbrl.rollouts.adjust import Adjust
from offline_mbrl.rollouts.imagination import ImaginationConfig
from offline_mbrl.rollouts.step import Measure
from offline_mbrl.settings import at_least
from offline_mbrl.types import Context, DynamicsModel, EnvironmentSpec, Learner, Stage


@dataclass(frozen=True)
class Config:
    """The settings beside those of the policy's learner."""

    num_updates: Annotated[int, at_least(1)] = 1_000_000  # of the policy
    # How imagined episodes end: by the "learned" head of the model, "never", or by the rule of a
    # task's or a dataset's name (`environments.termination`).
    termination: str = "learned"
    dynamics: kinds.ModelConfig = field(default_factory=gaussian_ensemble.Config)
    imagination: ImaginationConfig = field(default_factory=ImaginationConfig)


def pretrain(config: Config, spec: EnvironmentSpec) -> dict[str, Stage]:
    """The stage "model".

    Raises:
      UsageError: no rule of termination has this name, or the spec is not one of vectors.
    """
    options = endings.model_options(config.termination, spec)
    return {"model": kinds.stage(config.dynamics, spec, **options)}


def dynamics(config: Config, spec: EnvironmentSpec) -> DynamicsModel:
    """The model whose parameters that stage hands on.

    Raises:
      UsageError: as `pretrain`.
    """
    return kinds.make(config.dynamics, spec, **endings.model_options(config.termination, spec))


def beside_rollouts(
    learner: Learner,
    config: Config,
    spec: EnvironmentSpec,
    *,
    adjust: Callable[[Context], Adjust] = imagination.unadjusted,
    spread: shares.Spread = shares.jointly,
    measure: Callable[[Context], Measure] = imagination.unmeasured,
) -> Learner:
    """The learner on rows of the data and of rollouts in the model.

    Args:
      learner: of the policy.
      config: of the model and the rollouts.
      spec: of the data.
      adjust: (context) -> what becomes of predictions.
      spread: of the rollouts over members.
      measure: (context) -> scalars of each step, reported as means.

    Raises:
      UsageError: as `pretrain`.
    """
    imagine = imagination.by_rollout(
        dynamics(config, spec),
        imagination.acting(config.imagination, learner, spec),
        horizon=config.imagination.horizon,
        adjust=adjust,
        spread=spread,
        measure=measure,
    )
    return imagination.with_imagination(learner, imagine, config.imagination)
