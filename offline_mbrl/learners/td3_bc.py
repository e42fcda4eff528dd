"""TD3+BC (arXiv:2106.06860): a deterministic actor that climbs its critic and stays near the data.

It is TD3 (arXiv:1802.09477) with two changes: the actor also descends its squared distance to the
data's action, beside a value scaled to a mean magnitude of `alpha`; observations are standardized.

Departures: all losses of an update are taken at the parameters before it (the release updates the
critics first); the critics' squared error carries a 1/2; weights start as those of `torsos.MLP`.
Of public code it does not take over time limits treated as terminals, nor statistics of
observations that are left behind when a policy is exported.
"""

from dataclasses import dataclass, field
from typing import Annotated

import chex
import jax
import jax.numpy as jnp

from offline_mbrl import settings
from offline_mbrl.data import memory
from offline_mbrl.learners.parts import actor_critic, td3
from offline_mbrl.learners.parts.actor_critic import Agent, Method, Networks
from offline_mbrl.learners.parts.preprocessing import InputConfig, with_inputs, without_density
from offline_mbrl.settings import at_least
from offline_mbrl.types import (
    Action,
    Array,
    EnvironmentSpec,
    Learner,
    Observation,
)


@dataclass(frozen=True)
class Config(td3.Config):
    """The paper's settings (table 3)."""

    alpha: Annotated[float, at_least(0)] = 2.5  # mean magnitude of values; 0: cloning
    inputs: InputConfig = field(default_factory=lambda: InputConfig(standardize_observations=True))


# --- the equations, one transition ---


def mean_distance(action: Action, logged: Action) -> Array:
    """`mean_j (pi(s)_j - a_j)^2`, `[]`, of the actor's and the data's action `[A]`.

    Source: arXiv:2106.06860, section 4, with the released code's mean over entries.
    """
    chex.assert_equal_shape([action, logged])
    return jnp.mean(jnp.square(action - logged))


# --- the parts of an update ---


def first_critic(networks: Networks) -> td3.Value:
    """The values `[B]` of the first critic, the only one that the actor of TD3 climbs."""

    def value(agent: Agent, observations: Observation, actions: Action) -> Array:
        params = jax.tree.map(lambda leaf: leaf[:1], agent.state.critic)
        return networks.critics(params, observations, actions)[0]

    return value


# --- assembly ---


def method(config: Config, spec: EnvironmentSpec) -> Method:
    """The method, whose parts others replace.

    Raises:
      UsageError: the actions are discrete, or a setting makes no learner.
    """
    settings.require_valid(config, "td3_bc", spec)
    networks = td3.networks(config, spec, "td3_bc")
    return td3.method(
        config,
        networks,
        backup=td3.smoothed_backup(config),
        objective=td3.scaled_objective(
            config.alpha, value=first_critic(networks), distance=mean_distance
        ),
    )


def make(config: Config, spec: EnvironmentSpec) -> Learner:
    """The learner. Its policy is deterministic and has no density.

    Raises:
      UsageError: the actions are discrete, or a setting makes no learner.
    """
    learner = actor_critic.make(method(config, spec), memory.Transitions(config.batch_size))
    return with_inputs(without_density(learner), config.inputs)
