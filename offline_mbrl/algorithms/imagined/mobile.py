"""MOBILE (Sun et al., ICML 2023): rollouts of a model whose targets pay for the disagreement of its
members' Bellman backups.

`U(s, a)` is the deviation, over elite members, of the mean value of the next observations that a
member expects. It is measured in units of value, so that its weight needs no units of the state.

Departures: minibatches and evaluations of the model (`models.fitting`), and all losses of an update
at the parameters before it. As in the released code, disagreement about the reward does not count,
the factor gamma of `Std(T_e Q)` is left to the weight, and next observations that end the episode
have a value like others; rows of the data are not judged, since their penalty would be 0. A target
is clipped from below (`value_floor`) only where asked for: 0 is right for returns that are never
negative, and wrong for Pendulum or rewards of -1.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import chex
import jax
import jax.numpy as jnp

from offline_mbrl import settings
from offline_mbrl.algorithms.imagined import assembly, mopo
from offline_mbrl.data import memory
from offline_mbrl.learners import sac
from offline_mbrl.learners.parts import actor_critic, candidates
from offline_mbrl.learners.parts.actor_critic import Agent
from offline_mbrl.rollouts import shares
from offline_mbrl.rollouts.imagination import ImaginationConfig
from offline_mbrl.settings import at_least
from offline_mbrl.types import (
    Action,
    Array,
    Context,
    DynamicsModel,
    EnvironmentSpec,
    Key,
    Learner,
    ModelParams,
    Observation,
    Transition,
)

pretrain = assembly.pretrain


@dataclass(frozen=True)
class Config(assembly.Config):
    """The released settings of most data sets; those of each are presets."""

    policy: sac.Config = field(default_factory=lambda: mopo.KIT_POLICY)
    penalty_coef: Annotated[float, at_least(0)] = 0.5  # c, without units
    num_samples: Annotated[int, at_least(1)] = 10  # next observations of each elite member
    value_floor: float | None = None  # targets are at least this; the release: 0


# (horizon, c) of the released configs, on v2 data
_RELEASED = {
    "halfcheetah_random": (5, 0.5),
    "halfcheetah_medium": (5, 0.5),
    "halfcheetah_medium_replay": (5, 0.1),
    "halfcheetah_medium_expert": (5, 1.0),
    "hopper_random": (5, 5.0),
    "hopper_medium": (5, 1.5),
    "hopper_medium_replay": (5, 0.1),
    "hopper_medium_expert": (5, 1.5),
    "walker2d_random": (5, 2.0),
    "walker2d_medium": (5, 0.5),
    "walker2d_medium_replay": (1, 0.5),
    "walker2d_medium_expert": (1, 1.5),
}
_REAL_FRACTION = {"halfcheetah_medium_expert": 0.5}
_FIXED_TEMPERATURE = ("hopper_medium", "hopper_medium_replay")
FIXED = sac.Config(actor_learning_rate=1e-4, actor_schedule="cosine", fixed_temperature=0.2)


def _released(name: str, horizon: int, coef: float) -> dict[str, Any]:
    real_fraction = _REAL_FRACTION.get(name, 0.05)
    return {
        "num_updates": 3_000_000,
        "termination": f"d4rl_mujoco_{name.partition('_')[0]}",
        "policy": FIXED if name in _FIXED_TEMPERATURE else mopo.KIT_POLICY,
        "imagination": ImaginationConfig(horizon=horizon, real_fraction=real_fraction),
        "penalty_coef": coef,
        "value_floor": 0.0,
    }


PRESETS: Mapping[str, Mapping[str, Any]] = {
    name: _released(name, *values) for name, values in _RELEASED.items()
}


# --- the equations ---


def disagreement(values: Array) -> Array:
    """The unbiased deviation over members of their mean values, `[]`.

    Args:
      values: `[E, N]` of N next observations of each member; 0 where E is 1.

    Source: MOBILE, equation 7.
    """
    chex.assert_rank(values, 2)
    if values.shape[0] == 1:
        return jnp.zeros(())
    return jnp.std(jnp.mean(values, axis=1), ddof=1)


def target(
    transition: Transition,
    next_q: Array,
    penalty: Array,
    *,
    gamma: float,
    coef: float,
    floor: float | None = None,
) -> Array:
    """`r - coef penalty + gamma discount min_i Q_i(s', a')`, at least `floor`; `[]`.

    Args:
      transition: of the data or imagined.
      next_q: `[N]` target critics at the next observation and a fresh action there.
      penalty: `[]`, 0 for a row of the data.
      gamma: discount factor.
      coef: weight of the penalty.
      floor: None: targets are not clipped.
    """
    penalized = transition._replace(reward=transition.reward - coef * penalty)
    value = candidates.best_target(penalized, next_q[:, None], gamma=gamma)
    return value if floor is None else jnp.maximum(value, floor)


# --- the parts of an update ---


def next_values(
    agent: Agent,
    model: DynamicsModel,
    params: ModelParams,
    judged: tuple[Observation, Action],
    key: Key,
    num_samples: int,
) -> Array:
    """Values `[E, N, B]` of what each elite member expects after the actions of a batch.

    Args:
      agent: whose policy and target critics give values, the least critic's.
      model: an ensemble.
      params: its parameters.
      judged: observations `[B, ...]` and actions `[B, A]`.
      key: consumed.
      num_samples: N.
    """
    observations, actions = judged

    def expected(alone: ModelParams, observation: Observation, action: Action, key: Key) -> Any:
        key_reset, key_step = jax.random.split(key)
        state = model.reset(alone, observation, key_reset)
        return model.step(alone, state, action, key_step)[1].observation

    def of_batch(alone: ModelParams, key: Key) -> Array:
        key_step, key_action = jax.random.split(key)
        keys = jax.random.split(key_step, actions.shape[0])
        after = jax.vmap(expected, (None, 0, 0, 0))(alone, observations, actions, keys)
        chosen, _ = actor_critic.sample_actions(agent.policy, after, key_action)
        return jnp.min(agent.target_critics(after, chosen), axis=0)

    num_members = params.elites.shape[0]
    alone = jax.vmap(model.member, (None, 0))(params, params.elites)
    keys = jax.random.split(key, (num_members, num_samples))
    return jax.vmap(jax.vmap(of_batch, (None, 0)))(alone, keys)


def penalized_backup(config: Config, model: DynamicsModel) -> actor_critic.Backup:
    """`target` with the members' `disagreement` in imagined rows, `[B]`.

    The rows before `int(B real_fraction)` are the data's and are not judged.
    """

    def backup(agent: Agent, context: Context, batch: Transition, key: Key) -> Array:
        key_action, key_members = jax.random.split(key)
        action, _ = actor_critic.sample_actions(agent.policy, batch.next_observation, key_action)
        next_q = agent.target_critics(batch.next_observation, action)
        num_real = int(batch.reward.shape[0] * config.imagination.real_fraction)
        judged = jax.tree.map(lambda leaf: leaf[num_real:], (batch.observation, batch.action))
        params = context.upstream["model"]
        values = next_values(agent, model, params, judged, key_members, config.num_samples)
        penalty = jnp.pad(jax.vmap(disagreement, 2)(values), (num_real, 0))
        penalty = penalty * batch.extras["is_imagined"]

        def per_transition(transition: Transition, next_q: Array, penalty: Array) -> Array:
            return target(
                transition,
                next_q,
                penalty,
                gamma=config.policy.gamma,
                coef=config.penalty_coef,
                floor=config.value_floor,
            )

        return jax.vmap(per_transition, (0, 1, 0))(batch, next_q, penalty)

    return backup


# --- assembly ---


def make(config: Config, spec: EnvironmentSpec) -> Learner:
    """The learner.

    Raises:
      UsageError: the actions are discrete, a setting makes no learner, or no rule of termination
        has this name.
    """
    settings.require_valid(config, "mobile", spec)
    policy = replace(config.policy, num_updates=config.num_updates)
    backup = penalized_backup(config, assembly.dynamics(config, spec))
    method = sac.method(policy, spec)._replace(backup=backup)
    learner = actor_critic.make(method, memory.Transitions(policy.batch_size))
    return assembly.beside_rollouts(learner, config, spec, spread=shares.by_member)
