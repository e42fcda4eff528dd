"""MBPO offline (arXiv:1906.08253): soft actor-critic on short rollouts from states of the data.

The model is fitted once, to the data; nothing is collected. It is MOPO without a penalty, the
ablation that shows what the penalty is worth.

Departures: each elite member rolls its share of the starts alone, so that a step costs one member;
`spread` "jointly" draws another elite at every step, as the released code does. The horizon is
constant, where Hopper's grew from 1 to 15 in the course of collecting.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from offline_mbrl import settings
from offline_mbrl.algorithms.imagined import assembly
from offline_mbrl.learners import sac
from offline_mbrl.rollouts import shares
from offline_mbrl.rollouts.imagination import ImaginationConfig
from offline_mbrl.types import EnvironmentSpec, Learner

pretrain = assembly.pretrain

SPREADS: Mapping[str, shares.Spread] = {"by_member": shares.by_member, "jointly": shares.jointly}


@dataclass(frozen=True)
class Config(assembly.Config):
    """The rollouts of the released MOPO; those of MBPO are presets."""

    policy: sac.Config = field(default_factory=sac.Config)
    spread: Literal["by_member", "jointly"] = "by_member"  # of rollouts over elite members


def _released(task: str, *, horizon: int, updates_per_step: int, entropy: float) -> dict[str, Any]:
    """JannerM/mbpo, examples/config: 100,000 starts every 250 steps of the environment, the rows of
    1,000 steps kept. The released code makes `updates_per_step` updates at each."""
    rollouts = ImaginationConfig(
        num_starts=100_000, horizon=horizon, every=250 * updates_per_step, retain=4
    )
    return {
        "imagination": rollouts,
        "policy": sac.Config(target_entropy=entropy),
        "spread": "jointly",
        "termination": f"d4rl_mujoco_{task}",
    }


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "halfcheetah": _released("halfcheetah", horizon=1, updates_per_step=40, entropy=-3.0),
    "hopper": _released("hopper", horizon=15, updates_per_step=20, entropy=-1.0),
    "walker2d": _released("walker2d", horizon=1, updates_per_step=20, entropy=-3.0),
}


def make(config: Config, spec: EnvironmentSpec) -> Learner:
    """The learner.

    Raises:
      UsageError: the actions are discrete, a setting makes no learner, or no rule of termination
        has this name.
    """
    settings.require_valid(config, "mbpo", spec)
    learner = sac.make(replace(config.policy, num_updates=config.num_updates), spec)
    return assembly.beside_rollouts(learner, config, spec, spread=SPREADS[config.spread])
