"""ReBRAC (arXiv:2305.09836): TD3+BC with a distance to the data in the actor and in the target.

The target pays for the squared distance of the next action to the logged next one. Critics have
layer normalization, networks are deeper and batches larger than TD3+BC's.

Departures: as `td3_bc`; no penalty is paid where no logged action follows, at an episode's end (the
released code pairs the last step with an action of the next episode). Weights of last layers start
as all others, rather than near 0.
"""

from dataclasses import dataclass, field
from typing import Annotated

import chex
import jax.numpy as jnp

from offline_mbrl import settings
from offline_mbrl.data import memory
from offline_mbrl.learners.parts import actor_critic, td3
from offline_mbrl.learners.parts.actor_critic import Agent, Method
from offline_mbrl.learners.parts.preprocessing import InputConfig, with_inputs, without_density
from offline_mbrl.settings import at_least, sizes
from offline_mbrl.types import (
    Action,
    Array,
    EnvironmentSpec,
    Learner,
    Observation,
    Transition,
)


@dataclass(frozen=True)
class Config(td3.Config):
    """The paper's settings for Gym locomotion; both coefficients are chosen for each dataset."""

    batch_size: Annotated[int, at_least(1)] = 1_024  # transitions per update
    actor_layers: Annotated[tuple[int, ...], sizes()] = (256, 256, 256)
    critic_layers: Annotated[tuple[int, ...], sizes()] = (256, 256, 256)
    normalize_critic_layers: bool = True  # after each activation
    actor_learning_rate: Annotated[float, at_least(0)] = 1e-3  # Adam
    critic_learning_rate: Annotated[float, at_least(0)] = 1e-3  # Adam
    actor_coef: Annotated[float, at_least(0)] = 0.01  # of the actor's distance
    critic_coef: Annotated[float, at_least(0)] = 0.01  # of the next action's, in the target
    inputs: InputConfig = field(default_factory=InputConfig)


# dataset: (actor_coef, critic_coef), of the released configs
COEFFICIENTS = {
    "halfcheetah_random": (0.001, 0.1),
    "halfcheetah_medium": (0.001, 0.01),
    "halfcheetah_medium_replay": (0.01, 0.001),
    "halfcheetah_medium_expert": (0.01, 0.1),
    "halfcheetah_expert": (0.01, 0.01),
    "halfcheetah_full_replay": (0.001, 0.1),
    "hopper_random": (0.001, 0.01),
    "hopper_medium": (0.01, 0.01),
    "hopper_medium_replay": (0.05, 0.5),
    "hopper_medium_expert": (0.1, 0.01),
    "hopper_expert": (0.1, 0.1),
    "hopper_full_replay": (0.01, 0.01),
    "walker2d_random": (0.01, 0.0),
    "walker2d_medium": (0.05, 0.1),
    "walker2d_medium_replay": (0.05, 0.01),
    "walker2d_medium_expert": (0.01, 0.01),
    "walker2d_expert": (0.01, 0.5),
    "walker2d_full_replay": (0.01, 0.01),
    "maze2d": (0.003, 0.001),
    "pen_human": (0.1, 0.5),
    "pen_cloned": (0.05, 0.5),
    "pen_expert": (0.01, 0.01),
}
PRESETS = {
    "gym": {},
    **{name: {"actor_coef": a, "critic_coef": c} for name, (a, c) in COEFFICIENTS.items()},
    "antmaze_medium_play": {
        "batch_size": 256,
        "gamma": 0.999,
        "actor_learning_rate": 3e-4,
        "critic_learning_rate": 5e-5,
        "actor_coef": 0.001,
        "critic_coef": 0.0005,
        "inputs": InputConfig(reward_scale=100.0),
    },
    "ogbench": {  # of the comparison in arXiv:2502.02538; coefficients are those of cube-single
        "batch_size": 256,
        "actor_layers": (512,) * 4,
        "critic_layers": (512,) * 4,
        "activation": "gelu",
        "actor_learning_rate": 3e-4,
        "critic_learning_rate": 3e-4,
        "actor_coef": 1.0,
        "critic_coef": 0.0,
    },
}


# --- the equations, one transition ---


def distance(action: Action, logged: Action) -> Array:
    """`sum_j (a_j - logged_j)^2`, `[]`, of two actions `[A]`."""
    chex.assert_rank([action, logged], 1)
    return jnp.sum(jnp.square(action - logged))


def next_action_penalty(transition: Transition, next_action: Action, *, coef: float) -> Array:
    """`coef |a' - logged next action|^2`, `[]`; 0 where no logged action follows.

    Args:
      transition: with `next_action` `[A]` and `has_next_action` `[]` in `extras`.
      next_action: `[A]` the smoothed one.
      coef: weight.

    Source: arXiv:2305.09836.
    """
    extras = transition.extras
    return coef * extras["has_next_action"] * distance(next_action, extras["next_action"])


# --- the parts of an update ---


def backup(config: Config) -> actor_critic.Backup:
    """TD3's backup with the penalty of a next action that is far from the logged one."""

    def penalty(transition: Transition, next_action: Action) -> Array:
        return next_action_penalty(transition, next_action, coef=config.critic_coef)

    return td3.smoothed_backup(config, penalty)


def least_critic(agent: Agent, observations: Observation, actions: Action) -> Array:
    """`min_i Q_i(s, a)`, `[B]`."""
    return jnp.min(agent.critics(observations, actions), axis=0)


def objective(coef: float) -> actor_critic.ActorObjective:
    """The mean of `coef |pi(s) - a|^2 - min_i Q_i(s, pi(s)) / mean |min_i Q_i|` over a batch.

    Source: arXiv:2305.09836, with the released code's scale of values.
    """

    def weighted(action: Action, logged: Action) -> Array:
        return coef * distance(action, logged)

    return td3.scaled_objective(1.0, value=least_critic, distance=weighted)


# --- assembly ---


def method(config: Config, spec: EnvironmentSpec) -> Method:
    """The method, whose parts others replace.

    Raises:
      UsageError: the actions are discrete, or a setting makes no learner.
    """
    settings.require_valid(config, "rebrac", spec)
    return td3.method(
        config,
        td3.networks(config, spec, "rebrac"),
        backup=backup(config),
        objective=objective(config.actor_coef),
    )


def make(config: Config, spec: EnvironmentSpec) -> Learner:
    """The learner. Its policy is deterministic and has no density.

    Raises:
      UsageError: the actions are discrete, or a setting makes no learner.
    """
    sample = memory.Transitions(config.batch_size, with_next_action=True)
    learner = actor_critic.make(method(config, spec), sample)
    return with_inputs(without_density(learner), config.inputs)
