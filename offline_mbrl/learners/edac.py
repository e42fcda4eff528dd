"""EDAC (arXiv:2110.01548): soft actor-critic with N critics whose gradients are kept apart.

The least of many critics is a pessimistic value. A diversity term lowers the cosine between the
gradients of critics by the action, so that fewer suffice; without it (`eta` 0) this is SAC-N.

Departures: the critics' squared error carries a 1/2 here and so does the term, which leaves `eta`
as published; all losses of an update are taken at the parameters before it; weights start as those
of `torsos.MLP` (the release has biases of 0.1 and last layers near 0); the log standard deviation
is clipped to [-5, 2]. The release's further settings for Adroit are left out: standardized rewards
and the best of ten next actions.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

import chex
import jax
import jax.numpy as jnp
import optax

from offline_mbrl import settings
from offline_mbrl.data import memory
from offline_mbrl.learners import sac
from offline_mbrl.learners.parts import actor_critic
from offline_mbrl.learners.parts.actor_critic import Agent, Method
from offline_mbrl.learners.parts.preprocessing import InputConfig, with_inputs
from offline_mbrl.settings import at_least, sizes
from offline_mbrl.types import (
    Action,
    Array,
    Context,
    EnvironmentSpec,
    Key,
    Learner,
    Metrics,
    Observation,
    Params,
    Transition,
)


@dataclass(frozen=True)
class Config(sac.Config):
    """SAC's settings with those of the paper for Gym locomotion (its appendix)."""

    num_updates: Annotated[int, at_least(1)] = 3_000_000
    actor_layers: Annotated[tuple[int, ...], sizes()] = (256, 256, 256)  # ReLU
    critic_layers: Annotated[tuple[int, ...], sizes()] = (256, 256, 256)  # ReLU
    num_critics: Annotated[int, at_least(1)] = 10  # N; targets and the actor take the least
    eta: Annotated[float, at_least(0)] = 1.0  # weight of diversity; 0: SAC-N
    inputs: InputConfig = field(default_factory=InputConfig)


PRESETS = {
    "gym": {},  # HalfCheetah and Walker2d
    "medium_expert": {"eta": 5.0},  # of HalfCheetah and Walker2d
    "hopper": {"num_critics": 50},
    "maze2d": {"eta": 0.1},
    "sac_n": {"eta": 0.0},  # HalfCheetah
    "sac_n_walker2d": {"eta": 0.0, "num_critics": 20},
    "sac_n_hopper": {"eta": 0.0, "num_critics": 200},
    "sac_n_hopper_medium": {"eta": 0.0, "num_critics": 500},
    "sac_n_maze": {"eta": 0.0, "num_critics": 25},
    "sac_n_pen": {"eta": 0.0, "num_critics": 100},
}


# --- the equation, one transition ---


def diversity_loss(gradients: Array) -> Array:
    """`sum_{i != j} <g_i, g_j> / (N - 1)` of gradients scaled to length 1, `[]`.

    Args:
      gradients: `[N, A]` of each critic by the action. A gradient of 0 counts as 0.

    Source: arXiv:2110.01548, algorithm 1.
    """
    chex.assert_rank(gradients, 2)
    num_critics = gradients.shape[0]
    lengths = jax.vmap(lambda gradient: optax.safe_norm(gradient, 1e-10))(gradients)
    directions = gradients / lengths[:, None]
    cosines = directions @ directions.T
    apart = 1.0 - jnp.eye(num_critics)
    return jnp.sum(apart * cosines) / (num_critics - 1)


# --- the parts of an update ---


def action_gradients(
    critics: Callable[[Params, Observation, Action], Array],
    params: Params,
    observations: Observation,
    actions: Action,
) -> Array:
    """The gradient of each critic by the action, `[N, B, A]`, one backward pass for each.

    Args:
      critics: `(params, observations [B, ...], actions [B, A])` to `[N, B]`.
      params: leaves `[N, ...]`.
      observations: `[B, ...]`.
      actions: `[B, A]`.
    """

    def gradients(member: Params) -> Array:
        single = jax.tree.map(lambda leaf: leaf[None], member)
        return jax.grad(lambda actions: jnp.sum(critics(single, observations, actions)))(actions)

    return jax.vmap(gradients)(params)


def diversity(
    critics: Callable[[Params, Observation, Action], Array], eta: float
) -> actor_critic.CriticRegularizer:
    """`eta / 2` times the mean of `diversity_loss` at the data's actions."""

    def regularizer(
        agent: Agent, context: Context, batch: Transition, key: Key
    ) -> tuple[Array, Metrics]:
        del context, key  # deterministic
        gradients = action_gradients(critics, agent.state.critic, batch.observation, batch.action)
        similarity = jnp.mean(jax.vmap(diversity_loss, 1)(gradients))
        return 0.5 * eta * similarity, {"diversity": similarity}

    return regularizer


# --- assembly ---


def method(config: Config, spec: EnvironmentSpec) -> Method:
    """The method, whose parts others replace.

    Raises:
      UsageError: the actions are discrete, or a setting makes no learner.
    """
    settings.require_valid(config, "edac", spec)
    base = sac.method(config, spec)
    if config.eta == 0.0 or config.num_critics == 1:
        return base
    return base._replace(critic_regularizer=diversity(base.networks.critics, config.eta))


def make(config: Config, spec: EnvironmentSpec) -> Learner:
    """The learner.

    Raises:
      UsageError: the actions are discrete, or a setting makes no learner.
    """
    learner = actor_critic.make(method(config, spec), memory.Transitions(config.batch_size))
    return with_inputs(learner, config.inputs)
