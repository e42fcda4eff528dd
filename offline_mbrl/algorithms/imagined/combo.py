"""COMBO (arXiv:2102.08363): conservative Q-learning on rows of the data and of a model.

Critics are pushed down at sampled actions of imagined states and up at the data's own actions;
nothing measures the model's uncertainty. The conservative term is CQL(H)'s, `conservative`, whose
soft maximum runs over all sampled actions of one state.

Departures: minibatches and evaluations of the model (`models.fitting`), and all losses of an update
at the parameters before it. Of public code it does not take over: a soft maximum over three groups
of actions rather than over a state's thirty, and values of imagined rows under a stopped gradient,
which never push anything down. The squared error carries a 1/2, as in the paper's equation; weights
of code without it stand halved.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from offline_mbrl import settings
from offline_mbrl.algorithms.imagined import assembly
from offline_mbrl.data import memory
from offline_mbrl.learners import cql
from offline_mbrl.learners.parts import actor_critic, conservative
from offline_mbrl.learners.parts.preprocessing import InputConfig, with_inputs
from offline_mbrl.rollouts import shares
from offline_mbrl.rollouts.imagination import ImaginationConfig
from offline_mbrl.types import Array, EnvironmentSpec, Learner, Transition

pretrain = assembly.pretrain

POLICY = cql.Config(
    actor_learning_rate=1e-4,
    temperature_learning_rate=1e-4,
    gap=conservative.Config(coef=0.5),
    inputs=InputConfig(),
)
ROLLOUTS = ImaginationConfig(real_fraction=0.5)


@dataclass(frozen=True)
class Config(assembly.Config):
    """The paper's sizes; horizon and weight of each data set are presets."""

    policy: cql.Config = field(default_factory=lambda: POLICY)
    imagination: ImaginationConfig = field(default_factory=lambda: ROLLOUTS)
    # The states whose sampled actions are pushed down: imagined ones, or those of the whole batch
    pushed_states: Literal["imagined", "all"] = "imagined"


# (horizon, weight) of yihaosun1124/OfflineRL-Kit, on v2 data
_KIT = {
    "halfcheetah_medium": (5, 0.5),
    "halfcheetah_medium_replay": (5, 0.5),
    "halfcheetah_medium_expert": (5, 5.0),
    "hopper_medium": (5, 5.0),
    "hopper_medium_replay": (5, 0.5),
    "hopper_medium_expert": (5, 5.0),
    "walker2d_medium": (1, 5.0),
    "walker2d_medium_replay": (1, 0.5),
    "walker2d_medium_expert": (1, 5.0),
}


def _of_kit(name: str, horizon: int, weight: float) -> dict[str, Any]:
    # Its squared error has no 1/2.
    policy = replace(POLICY, gap=conservative.Config(coef=weight / 2))
    return {
        "num_updates": 1_000_000,
        "termination": f"d4rl_mujoco_{name.partition('_')[0]}",
        "policy": policy,
        "imagination": replace(ROLLOUTS, horizon=horizon),
    }


PRESETS: Mapping[str, Mapping[str, Any]] = {
    name: _of_kit(name, *values) for name, values in _KIT.items()
}


# --- which rows count ---


def imagined_rows(batch: Transition) -> Array:
    """1 for the imagined rows of a batch, `[B]`."""
    return batch.extras["is_imagined"]


def real_rows(batch: Transition) -> Array:
    """1 for the rows of the data, `[B]`."""
    return 1.0 - batch.extras["is_imagined"]


STATES: Mapping[str, Callable[[Transition], Array]] = {
    "imagined": imagined_rows,
    "all": conservative.all_rows,
}


def make(config: Config, spec: EnvironmentSpec) -> Learner:
    """The learner.

    Raises:
      UsageError: the actions are discrete, a setting makes no learner, or no rule of termination
        has this name.
    """
    settings.require_valid(config, "combo", spec)
    policy = replace(config.policy, num_updates=config.num_updates)
    regularizer = conservative.regularizer(
        policy.gap, state_rows=STATES[config.pushed_states], data_rows=real_rows
    )
    method = cql.method(policy, spec)._replace(critic_regularizer=regularizer)
    learner = actor_critic.make(method, memory.Transitions(policy.batch_size))
    return assembly.beside_rollouts(
        with_inputs(learner, policy.inputs), config, spec, spread=shares.by_member
    )
