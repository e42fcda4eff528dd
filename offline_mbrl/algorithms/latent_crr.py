"""CRR on the latent model: the data's actions cloned by their advantage.

Paper: "Critic Regularized Regression" (arXiv:2006.15134), as MuZero Unplugged's comparison runs it
on its own network (arXiv:2104.06294, table 2). Its equation, here: `-log pi(a | s) f(advantage)`
with f exponential or binary; nothing improves the policy beyond the data's own actions. Reward and
value train as in `latent`.

Departures: the advantage is that of the family's value head (`behavior_advantage`: with the logged
reward by default, or the model's), not a mean over a critic's samples.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from offline_mbrl import settings
from offline_mbrl.algorithms import advantages, latent, operators
from offline_mbrl.models import muzero, unrolled
from offline_mbrl.settings import Scope, above, at_least, read_if
from offline_mbrl.targets import weights
from offline_mbrl.types import (
    Array,
    EnvironmentSpec,
    Learner,
    Params,
    Plan,
    PyTree,
    Trajectory,
)
from offline_mbrl.types import num_actions as require_discrete


def _is_exponential(scope: Scope) -> bool:
    return scope.config.weight == "exponential"


if_exponential = read_if(_is_exponential, "weight exponential")


@dataclass(frozen=True)
class Config(latent.Config):
    """The family's settings, without a policy target, and the weights of the cloning term."""

    behavior_coef: Annotated[float, at_least(0)] = 1.0
    behavior_advantage: Literal["model", "encoded_next", "data_td"] = "data_td"
    weight: Literal["exponential", "binary"] = "exponential"  # CRR's f
    weight_temperature: Annotated[float, above(0), if_exponential] = 1.0  # CRR's beta
    weight_maximum: Annotated[float, above(0), if_exponential] = 20.0
    search: operators.SearchConfig = field(
        default_factory=lambda: operators.SearchConfig(operator="policy")
    )
    loss: unrolled.LossConfig = field(default_factory=lambda: unrolled.LossConfig(policy_coef=0.0))


PRESETS = {"exponential": {}, "binary": {"weight": "binary"}}


def make(config: Config, spec: EnvironmentSpec) -> Learner:
    """The learner.

    Raises:
      UsageError: continuous actions, or settings that contradict each other.
    """
    require_discrete(spec, "latent_crr")
    settings.require_valid(config, "latent_crr", spec)
    model = muzero.make(config.model, spec)
    advantage = advantages.make(config.behavior_advantage, model, config.gamma)

    def weigh(values: Array) -> Array:
        if config.weight == "binary":
            return weights.indicator(values)
        return weights.exponential(
            values, temperature=config.weight_temperature, maximum=config.weight_maximum
        )

    def clone(
        params: Params, embeddings: PyTree, trajectory: Trajectory, plan: Plan, values: Array
    ) -> Array:
        return weigh(advantage(params, embeddings, trajectory, plan, values))

    return latent.make(
        config, spec, caller="latent_crr", clone=clone, behavior_coef=config.behavior_coef
    )
