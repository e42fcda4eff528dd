"""CRR on the latent model: the data's actions cloned by their advantage, on the unrolled network of the family.

Paper: "Critic Regularized Regression" (arXiv:2006.15134), as MuZero Unplugged's comparison runs it on its own network
(arXiv:2104.06294, table 2). Its equation, here: `-log pi(a | s) f(advantage)` with f exponential or binary; nothing
improves the policy beyond the data's own actions. Reward and value train as in `latent`.

Departures: the advantage is that of the family's value head (`behavior_advantage`: with the logged reward by default,
or the model's), not a mean over a critic's samples.
"""

from dataclasses import dataclass, field
from typing import Literal

from offline_mbrl.algorithms import advantages, latent, operators
from offline_mbrl.models import muzero, unrolled
from offline_mbrl.targets import weights
from offline_mbrl.types import Array, EnvironmentSpec, Learner, Plan, PyTree, Trajectory, UsageError


@dataclass(frozen=True)
class Config(latent.Config):
    """The family's settings, without a policy target, and the weights of the cloning term."""

    behavior_coef: float = 1.0
    behavior_advantage: Literal["model", "encoded_next", "data_td"] = "data_td"
    weight: Literal["exponential", "binary"] = "exponential"  # CRR's f
    weight_temperature: float = 1.0  # CRR's beta
    weight_maximum: float = 20.0
    search: operators.SearchConfig = field(default_factory=lambda: operators.SearchConfig(operator="policy"))
    loss: unrolled.LossConfig = field(default_factory=lambda: unrolled.LossConfig(policy_coef=0.0))


PRESETS = {"exponential": {}, "binary": {"weight": "binary"}}


def make(config: Config, spec: EnvironmentSpec) -> Learner:
    """The learner.

    Raises:
      UsageError: continuous actions, or settings that contradict each other.
    """
    if config.weight_temperature <= 0 or config.weight_maximum <= 0:
        raise UsageError("weight_temperature and weight_maximum must be positive")
    advantage = advantages.make(config.behavior_advantage, muzero.make(config.model, spec), config.gamma)
    choices = {
        "exponential": lambda found: weights.exponential(
            found, temperature=config.weight_temperature, maximum=config.weight_maximum),
        "binary": weights.indicator,
    }  # fmt: skip
    if (weigh := choices.get(config.weight)) is None:
        raise UsageError(f"weight {config.weight!r} is unknown: {', '.join(choices)}")

    def clone(params: PyTree, embeddings: PyTree, trajectory: Trajectory, plan: Plan, values: Array) -> Array:
        return weigh(advantage(params, embeddings, trajectory, plan, values))

    return latent.make(config, spec, who="latent_crr", clone=clone, behavior_coef=config.behavior_coef)
