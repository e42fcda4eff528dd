"""Implicit Q-learning (arXiv:2110.06169): values learned from the data's own actions alone.

A value network regresses to an upper expectile of the target critics over the data's actions, the
critics back it up, and the policy clones the data's actions weighed by their advantage.

Departures: all losses of an update are taken at the parameters before it (the released code updates
values, policy, critics and targets one after the other); weights start as those of `torsos.MLP`
rather than orthogonal; the critics' squared error carries a 1/2; the policy has no dropout (0.1 in
the release's Adroit runs). Of public code it does not take over: a policy that samples at
evaluation (the mean acts), and time limits treated as terminals.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Literal

import chex
import jax
import jax.numpy as jnp
import optax

from offline_mbrl import settings
from offline_mbrl.data import memory
from offline_mbrl.learners.parts import actor_critic, candidates
from offline_mbrl.learners.parts import networks as parts
from offline_mbrl.learners.parts.actor_critic import ActorLoss, Agent, Method, Networks
from offline_mbrl.learners.parts.preprocessing import InputConfig, with_inputs, without_density
from offline_mbrl.settings import above, at_least, at_most, between, increasing, sizes
from offline_mbrl.targets import weights
from offline_mbrl.targets.expectile import expectile_loss
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
class Config:
    """The paper's settings for Gym locomotion (appendix B and the released code)."""

    num_updates: Annotated[int, at_least(1)] = 1_000_000
    batch_size: Annotated[int, at_least(1)] = 256  # transitions per update
    gamma: Annotated[float, between(0, 1)] = 0.99  # discount factor
    tau: Annotated[float, between(0, 1)] = 0.005  # of the new critic in the target, each update
    expectile: Annotated[float, above(0), at_most(1)] = 0.7  # 0.5: the mean
    inverse_temperature: Annotated[float, at_least(0)] = 3.0  # beta of advantages; 0: cloning
    maximum_weight: Annotated[float, above(0)] = 100.0  # of an action (released code)
    actor_layers: Annotated[tuple[int, ...], sizes()] = (256, 256)
    critic_layers: Annotated[tuple[int, ...], sizes()] = (256, 256)  # the value network's too
    num_critics: Annotated[int, at_least(1)] = 2  # the least counts
    activation: Literal["relu", "gelu"] = "relu"
    normalize_critic_layers: bool = False  # LayerNorm; in the value network too
    actor_learning_rate: Annotated[float, at_least(0)] = 3e-4  # Adam
    actor_schedule: Literal["cosine", "constant"] = "cosine"  # to 0 at the last update
    critic_learning_rate: Annotated[float, at_least(0)] = 3e-4  # Adam; the value network too
    log_std_bounds: Annotated[tuple[float, float], increasing()] = (-5.0, 2.0)  # released code
    inputs: InputConfig = field(default_factory=lambda: InputConfig(return_range=1_000.0))


PRESETS = {
    "gym": {},
    "antmaze": {
        "expectile": 0.9,
        "inverse_temperature": 10.0,
        "inputs": InputConfig(reward_shift=-1.0),
    },
    "adroit": {"inverse_temperature": 0.5, "inputs": InputConfig()},
    # Of the comparison in arXiv:2502.02538, whose actor has the standard deviation 1; the
    # temperature is that of cube-single.
    "ogbench": {
        "expectile": 0.9,
        "inverse_temperature": 1.0,
        "actor_layers": (512,) * 4,
        "critic_layers": (512,) * 4,
        "activation": "gelu",
        "normalize_critic_layers": True,
        "actor_schedule": "constant",
        "inputs": InputConfig(),
    },
}


# --- the equations, one transition ---


def target(transition: Transition, next_value: Array, *, gamma: float) -> Array:
    """What all critics regress to, `[]`: `r + gamma discount V(s')`.

    Args:
      transition: of the data.
      next_value: `[]` of the value network at the next observation.
      gamma: discount factor.

    Source: arXiv:2110.06169, equation 6.
    """
    chex.assert_rank([transition.reward, transition.discount, next_value], 0)
    return transition.reward + gamma * transition.discount * next_value


def value_loss(q: Array, value: Array, *, expectile: float) -> Array:
    """The expectile loss of `min_i Q_i(s, a) - V(s)`, `[]`.

    Args:
      q: `[N]` target critics at the data's action.
      value: `[]` of the value network.
      expectile: which one is learned.

    Source: arXiv:2110.06169, equation 5.
    """
    chex.assert_rank([q, value], [1, 0])
    return expectile_loss(jnp.min(q) - value, expectile)


def action_weight(q: Array, value: Array, *, inverse_temperature: float, maximum: float) -> Array:
    """`min(exp(inverse_temperature (min_i Q_i(s, a) - V(s))), maximum)`, `[]`.

    Args:
      q: `[N]` target critics at the data's action.
      value: `[]` of the value network.
      inverse_temperature: of the advantage.
      maximum: of the weight.

    Source: arXiv:2110.06169, equation 7.
    """
    chex.assert_rank([q, value], [1, 0])
    advantage = inverse_temperature * (jnp.min(q) - value)
    return weights.exponential(advantage, temperature=1.0, maximum=maximum)


# --- the parts of an update ---

# (agent, observations [B, ...]) -> [B]: the value network at the agent's parameters
Values = Callable[[Agent, Observation], Array]


def backup(values: Values, gamma: float) -> actor_critic.Backup:
    """`target` of every transition, `[B]`."""

    def targets(agent: Agent, context: Context, batch: Transition, key: Key) -> Array:
        del context, key  # deterministic
        next_values = values(agent, batch.next_observation)
        return jax.vmap(lambda step, value: target(step, value, gamma=gamma))(batch, next_values)

    return targets


def value_regression(values: Values, expectile: float) -> actor_critic.CriticRegularizer:
    """The mean of `value_loss` over a batch, a loss beside that of the critics."""

    def loss(agent: Agent, context: Context, batch: Transition, key: Key) -> tuple[Array, Metrics]:
        del context, key  # deterministic
        q = agent.target_critics(batch.observation, batch.action)
        value = values(agent, batch.observation)

        def per_transition(q: Array, value: Array) -> Array:
            return value_loss(q, value, expectile=expectile)

        return jnp.mean(jax.vmap(per_transition, (1, 0))(q, value)), {"value": jnp.mean(value)}

    return loss


def weighted_cloning(
    values: Values, *, inverse_temperature: float, maximum: float
) -> actor_critic.ActorObjective:
    """The mean of `-action_weight log pi(a|s)` over a batch.

    Args:
      values: of the value network.
      inverse_temperature: of the advantage.
      maximum: of a weight.
    """

    def objective(agent: Agent, context: Context, batch: Transition, key: Key) -> ActorLoss:
        del context, key  # deterministic
        q = agent.target_critics(batch.observation, batch.action)
        value = values(agent, batch.observation)

        def weigh(q: Array, value: Array) -> Array:
            return action_weight(q, value, inverse_temperature=inverse_temperature, maximum=maximum)

        return candidates.cloning_loss(agent.policy, batch, jax.vmap(weigh, (1, 0))(q, value))

    return objective


# --- assembly ---


def networks(config: Config, spec: EnvironmentSpec) -> tuple[Networks, Values]:
    """Actor and critics of these sizes, and the value network among the critics' parameters.

    Raises:
      UsageError: the actions are discrete.
    """
    options = {
        "activation": parts.ACTIVATIONS[config.activation],
        "normalize_layers": config.normalize_critic_layers,
    }
    actor = parts.clipped_normal_actor(
        spec,
        "iql",
        config.actor_layers,
        config.log_std_bounds,
        activation=parts.ACTIVATIONS[config.activation],
    )
    critics = parts.critics(spec, "iql", config.critic_layers, config.num_critics, **options)
    value = parts.value(spec, config.critic_layers, **options)

    def init_critics(key: Key) -> Params:
        key_q, key_value = jax.random.split(key)
        return {"q": critics.init(key_q), "value": value.init(key_value)}

    def q(params: Params, observations: Observation, actions: Action) -> Array:
        return critics.apply(params["q"], observations, actions)

    def values(agent: Agent, observations: Observation) -> Array:
        return jax.vmap(value.apply, (None, 0))(agent.state.critic["value"], observations)

    nets = Networks(init_actor=actor.init, policy=actor.apply, init_critics=init_critics, critics=q)
    return nets, values


def method(config: Config, spec: EnvironmentSpec) -> Method:
    """The method, whose parts others replace.

    Raises:
      UsageError: the actions are discrete, or a setting makes no learner.
    """
    settings.require_valid(config, "iql", spec)
    nets, values = networks(config, spec)
    rate = config.actor_learning_rate
    if config.actor_schedule == "cosine":
        rate = optax.cosine_decay_schedule(rate, config.num_updates)
    return Method(
        networks=nets,
        backup=backup(values, config.gamma),
        critic_regularizer=value_regression(values, config.expectile),
        actor_objective=weighted_cloning(
            values,
            inverse_temperature=config.inverse_temperature,
            maximum=config.maximum_weight,
        ),
        actor_optimizer=optax.adam(rate),
        critic_optimizer=optax.adam(config.critic_learning_rate),
        follow=actor_critic.polyak(config.tau),
    )


def make(config: Config, spec: EnvironmentSpec) -> Learner:
    """The learner. Its policy has no density: actions are clipped.

    Raises:
      UsageError: the actions are discrete, or a setting makes no learner.
    """
    learner = actor_critic.make(method(config, spec), memory.Transitions(config.batch_size))
    return with_inputs(without_density(learner), config.inputs)
