"""MOPO (arXiv:2005.13239): soft actor-critic on short rollouts whose rewards pay for the model's
uncertainty.

The reward of an imagined row is `r - coef u(s, a)`; rows of the data keep theirs. No practical u is
shown to bound the model's error. Every penalty of `rollouts.pessimism` goes with every explicit
model.

Departures from the released code: minibatches and evaluations of the model (`models.fitting`), all
losses of a policy's update at the parameters before it, and a log standard deviation of the policy
within [-5, 2]. A row stays in the cache until `retain` refreshes have written as many valid ones.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from offline_mbrl import settings
from offline_mbrl.algorithms.imagined import assembly, data_points
from offline_mbrl.learners import sac
from offline_mbrl.models import gaussian_ensemble
from offline_mbrl.rollouts import pessimism, shares
from offline_mbrl.rollouts.adjust import Adjust
from offline_mbrl.rollouts.imagination import ImaginationConfig
from offline_mbrl.rollouts.pessimism import PENALTIES, Penalty
from offline_mbrl.rollouts.step import Measure
from offline_mbrl.settings import Scope, at_least, one_of, read_if
from offline_mbrl.types import Context, DynamicsModel, EnvironmentSpec, Learner, Stage

OWN_LIKELIHOOD = "own_likelihood"
NEAREST_DATA = "nearest_data"


def _compares_members(scope: Scope) -> bool:
    return compares_members(scope.config)


def _measures_distance(scope: Scope) -> bool:
    return scope.config.penalty == NEAREST_DATA


if_compared = read_if(_compares_members, "a penalty that compares members")
if_distance = read_if(_measures_distance, "penalty nearest_data")
POLICY = sac.Config(target_entropy=-3.0)  # in the released code, whatever the actions


@dataclass(frozen=True)
class Config(assembly.Config):
    """The released settings of most data sets; those of each are presets."""

    policy: sac.Config = field(default_factory=lambda: POLICY)
    penalty: Annotated[str, one_of([*PENALTIES, OWN_LIKELIHOOD, NEAREST_DATA])] = "max_aleatoric"
    penalty_coef: Annotated[float, at_least(0)] = 1.0  # the paper's lambda
    # "standardized": by the deviations of the data's observations and rewards.
    penalty_units: Annotated[Literal["raw", "standardized"], if_compared] = "raw"
    # Of the data's transitions, to which every imagined step is compared
    num_points: Annotated[int, at_least(1), if_distance] = 2_000


# --- presets ---

# (horizon, coef) of the released configs, which were run on D4RL's v0 data
_RELEASED = {
    "halfcheetah_random": (5, 0.5),
    "halfcheetah_medium": (1, 1.0),
    "halfcheetah_medium_replay": (5, 1.0),
    "halfcheetah_medium_expert": (5, 5.0),
    "hopper_random": (5, 1.0),
    "hopper_medium": (5, 5.0),
    "hopper_medium_replay": (5, 1.0),
    "hopper_medium_expert": (5, 1.0),
    "walker2d_random": (1, 1.0),
    "walker2d_medium": (5, 5.0),
    "walker2d_medium_replay": (1, 1.0),
    "walker2d_medium_expert": (1, 2.0),
}
# of yihaosun1124/OfflineRL-Kit, on v2 data
_KIT = {
    "halfcheetah_medium": (5, 0.5),
    "halfcheetah_medium_replay": (5, 0.5),
    "halfcheetah_medium_expert": (5, 2.5),
    "hopper_medium": (5, 5.0),
    "hopper_medium_replay": (5, 2.5),
    "hopper_medium_expert": (5, 5.0),
    "walker2d_medium": (5, 0.5),
    "walker2d_medium_replay": (1, 2.5),
    "walker2d_medium_expert": (1, 2.5),
}
KIT_POLICY = sac.Config(
    actor_learning_rate=1e-4,
    temperature_learning_rate=1e-4,
    actor_schedule="cosine",
    max_temperature=1.0,
)


def _of_data(name: str, horizon: int, coef: float) -> dict[str, Any]:
    """Released settings: 1,000 epochs of 1,000 updates on Hopper, 3,000 of them elsewhere."""
    task = name.partition("_")[0]
    return {
        "num_updates": 1_000_000 if task == "hopper" else 3_000_000,
        "termination": f"d4rl_mujoco_{task}",
        "imagination": ImaginationConfig(horizon=horizon),
        "penalty_coef": coef,
    }


def _of_kit(name: str, horizon: int, coef: float) -> dict[str, Any]:
    """The same rollouts; another actor's rate, temperature and patience of the model."""
    dynamics = gaussian_ensemble.Config(**gaussian_ensemble.PRESETS["offlinerl_kit"])
    own = {"num_updates": 3_000_000, "policy": KIT_POLICY, "dynamics": dynamics}
    return {**_of_data(name, horizon, coef), **own}


PRESETS: Mapping[str, Mapping[str, Any]] = {
    **{name: _of_data(name, *settings) for name, settings in _RELEASED.items()},
    # The paper's table and d3rlpy have another weight there than the released config.
    "halfcheetah_medium_expert_paper": _of_data("halfcheetah_medium_expert", 5, 1.0),
    **{f"kit_{name}": _of_kit(name, *settings) for name, settings in _KIT.items()},
    # EmptyJackson/unifloral, which searches coef in {1, 5} and the horizon in {1, 5}
    "unifloral": {
        "num_updates": 3_000_000,
        "dynamics": gaussian_ensemble.Config(**gaussian_ensemble.PRESETS["unifloral"]),
        "policy": sac.Config(
            actor_layers=(256, 256, 256),
            critic_layers=(256, 256, 256),
            num_critics=10,
            actor_learning_rate=1e-4,
            critic_learning_rate=1e-4,
            temperature_learning_rate=1e-4,
        ),
    },
}


# --- assembly ---


def compares_members(config: "Config") -> bool:
    """Whether the penalty is of all members at each step."""
    return config.penalty in PENALTIES


def penalty(config: Config, model: DynamicsModel) -> Callable[[Context], Penalty]:
    """What a config penalizes, given what earlier stages hand on."""
    if config.penalty == NEAREST_DATA:
        return data_points.distance
    chosen = pessimism.own_likelihood(model)
    if compares_members(config):
        chosen = PENALTIES[config.penalty]
    if config.penalty_units == "standardized":
        chosen = pessimism.standardized(chosen)
    return lambda context: chosen


def spread(config: Config) -> shares.Spread:
    """Members share rollouts where the penalty compares them; else each has starts of its own."""
    return shares.jointly if compares_members(config) else shares.by_member


def pretrain(config: Config, spec: EnvironmentSpec) -> dict[str, Stage]:
    """The stage "model", and "points" where distances to the data are asked for.

    Raises:
      UsageError: no rule of termination has this name, or the spec is not one of vectors.
    """
    stages = assembly.pretrain(config, spec)
    if config.penalty == NEAREST_DATA:
        stages[data_points.NAME] = data_points.stage(config.num_points)
    return stages


def make(config: Config, spec: EnvironmentSpec) -> Learner:
    """The learner.

    Raises:
      UsageError: the actions are discrete, a setting makes no learner, or no rule of termination
        has this name.
    """
    settings.require_valid(config, "mopo", spec)
    learner = sac.make(replace(config.policy, num_updates=config.num_updates), spec)
    uncertainty = penalty(config, assembly.dynamics(config, spec))

    def adjust(context: Context) -> Adjust:
        return pessimism.subtract(uncertainty(context), config.penalty_coef)

    def measure(context: Context) -> Measure:
        return pessimism.measure(uncertainty(context))

    return assembly.beside_rollouts(
        learner, config, spec, adjust=adjust, spread=spread(config), measure=measure
    )
