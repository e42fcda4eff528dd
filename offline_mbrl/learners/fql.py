"""Flow Q-learning (arXiv:2502.02538): a one-step policy beside a flow that models the data.

A flow clones the data's actions. The acting policy maps noise to an action in one step: it is
distilled from the flow's paths and climbs the critics, which no gradient follows through the flow.

Departures: targets follow the updated critics (the released code's follow those before the update);
weights start as those of `torsos.MLP`; observations are vectors. The greedy action is that of a
fixed noise, so that it is a function of the observation: the released code draws noise at each step
of an evaluation.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import chex
import jax
import jax.numpy as jnp
import optax

from offline_mbrl import settings
from offline_mbrl.data import memory
from offline_mbrl.learners.parts import actor_critic, candidates, td3
from offline_mbrl.learners.parts import networks as parts
from offline_mbrl.learners.parts.actor_critic import ActorLoss, Agent, Method, Networks
from offline_mbrl.learners.parts.preprocessing import InputConfig, with_inputs
from offline_mbrl.networks import distributions, flow, torsos
from offline_mbrl.networks.flow import Flow
from offline_mbrl.settings import at_least, between, sizes
from offline_mbrl.types import (
    Action,
    Array,
    Context,
    EnvironmentSpec,
    Key,
    Learner,
    Observation,
    Params,
    Transition,
    action_size,
)

NUM_CRITICS = 2
MINIMUM_WEIGHTS = {"mean": 0.5, "min": 1.0}  # of the lesser of two critics


@dataclass(frozen=True)
class Config:
    """The settings of the released code; `alpha` is chosen for each task."""

    num_updates: Annotated[int, at_least(1)] = 1_000_000
    batch_size: Annotated[int, at_least(1)] = 256  # transitions per update
    gamma: Annotated[float, between(0, 1)] = 0.99  # discount factor
    tau: Annotated[float, between(0, 1)] = 0.005  # of the new critic in the target, each update
    alpha: Annotated[float, at_least(0)] = 10.0  # of the distance to the flow's action
    num_flow_steps: Annotated[int, at_least(1)] = 10  # of Euler's method
    aggregation: Literal["mean", "min"] = "mean"  # of the two critics in targets
    normalize_values: bool = False  # climb the value over its mean magnitude (normalize_q_loss)
    num_candidates: Annotated[int, at_least(1)] = 1  # noises when acting; the first critic chooses
    actor_layers: Annotated[tuple[int, ...], sizes()] = (512,) * 4  # GELU; of flow and policy
    critic_layers: Annotated[tuple[int, ...], sizes()] = (512,) * 4  # GELU
    normalize_actor_layers: bool = False  # after each activation
    normalize_critic_layers: bool = True
    actor_learning_rate: Annotated[float, at_least(0)] = 3e-4  # Adam; the flow too
    critic_learning_rate: Annotated[float, at_least(0)] = 3e-4  # Adam
    inputs: InputConfig = field(default_factory=InputConfig)


def _antmaze(alpha: float) -> dict[str, Any]:
    return {"num_updates": 500_000, "alpha": alpha, "inputs": InputConfig(reward_shift=-1.0)}


def _adroit(alpha: float) -> dict[str, Any]:
    return {"num_updates": 500_000, "alpha": alpha, "aggregation": "min"}


# Of the released README; OGBench's first, then D4RL's.
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "antmaze_large": {"aggregation": "min"},
    "antmaze_giant": {"aggregation": "min", "gamma": 0.995},
    "humanoidmaze": {"gamma": 0.995, "alpha": 30.0},
    "antsoccer": {"gamma": 0.995},
    "cube": {"alpha": 300.0},
    "scene": {"alpha": 300.0},
    "puzzle": {"alpha": 1_000.0},
    "d4rl_antmaze": _antmaze(10.0),
    "d4rl_antmaze_large": _antmaze(3.0),
    "pen_human": _adroit(10_000.0),
    "pen_cloned": _adroit(10_000.0),
    "pen_expert": _adroit(3_000.0),
    "door": _adroit(30_000.0),
    "hammer": _adroit(30_000.0),
    "hammer_cloned": _adroit(10_000.0),
    "relocate": _adroit(30_000.0),
    "relocate_human": _adroit(10_000.0),
}


# --- the equations, one transition ---


def distillation_loss(action: Action, flow_action: Action) -> Array:
    """`|mu(s, z) - flow(s, z)|^2`, a mean over entries, `[]`; the flow gets no gradient.

    Args:
      action: `[A]` of the one-step policy, not clipped.
      flow_action: `[A]` at the end of the flow's path from the same noise, clipped.

    Source: arXiv:2502.02538, equation 6.
    """
    chex.assert_equal_shape([action, flow_action])
    return jnp.mean(jnp.square(action - jax.lax.stop_gradient(flow_action)))


def actor_loss(flow_loss: Array, distillation: Array, q: Array, *, alpha: float) -> Array:
    """`flow_loss + alpha distillation - mean_i Q_i(s, mu(s, z))`, `[]`.

    Args:
      flow_loss: `[]` of the velocity field at the data's action.
      distillation: `[]` of the one-step policy.
      q: `[N]` critics at the clipped action of the one-step policy, scaled.
      alpha: weight of the distillation.

    Source: arXiv:2502.02538, equations 5 and 8.
    """
    chex.assert_rank([flow_loss, distillation, q], [0, 0, 1])
    return flow_loss + alpha * distillation - jnp.mean(q)


# --- the parts of an update ---


def objective(
    velocities: Flow,
    one_step: parts.Network,
    *,
    alpha: float,
    num_steps: int,
    normalize_values: bool,
) -> actor_critic.ActorObjective:
    """The mean of `actor_loss` over a batch.

    Args:
      velocities: the field; its parameters are the actor's `"flow"`.
      one_step: (params, observation, noise) to an action; its parameters are `"one_step"`.
      alpha: weight of the distillation.
      num_steps: of Euler's method.
      normalize_values: whether values are divided by their mean magnitude.
    """

    def loss(agent: Agent, context: Context, batch: Transition, key: Key) -> ActorLoss:
        del context
        actor = agent.state.actor

        def cloning(observation: Observation, action: Action, key: Key) -> Array:
            key_noise, key_time = jax.random.split(key)

            def velocity(point: Array, time: Array) -> Array:
                return velocities.velocity(actor["flow"], torsos.flat(observation), point, time)

            noise = jax.random.normal(key_noise, action.shape)
            return flow.velocity_loss(velocity, action, noise, jax.random.uniform(key_time))

        def distilling(observation: Observation, key: Key) -> tuple[Array, Action]:
            fixed = jax.lax.stop_gradient(actor["flow"])

            def velocity(point: Array, time: Array) -> Array:
                return velocities.velocity(fixed, torsos.flat(observation), point, time)

            noise = jax.random.normal(key, batch.action.shape[1:])
            end = jnp.clip(flow.integrate(velocity, noise, num_steps), -1.0, 1.0)
            action = one_step.apply(actor["one_step"], observation, noise)
            return distillation_loss(action, end), jnp.clip(action, -1.0, 1.0)

        key_cloning, key_distilling = jax.random.split(key)
        size = batch.reward.shape[0]
        keys = jax.random.split(key_cloning, size)
        flow_loss = jax.vmap(cloning)(batch.observation, batch.action, keys)
        keys = jax.random.split(key_distilling, size)
        distillation, actions = jax.vmap(distilling)(batch.observation, keys)
        q = agent.critics(batch.observation, actions)
        if normalize_values:
            q = td3.value_scale(jnp.mean(q, axis=0), alpha=1.0) * q
        losses = jax.vmap(lambda *row: actor_loss(*row, alpha=alpha), (0, 0, 1))
        return ActorLoss(
            loss=jnp.mean(losses(flow_loss, distillation, q)),
            metrics={
                "loss/flow": jnp.mean(flow_loss),
                "loss/distillation": jnp.mean(distillation),
            },
        )

    return loss


# --- assembly ---


def method(config: Config, spec: EnvironmentSpec) -> Method:
    """The method, whose parts others replace.

    Raises:
      UsageError: the actions are discrete, or a setting makes no learner.
    """
    settings.require_valid(config, "fql", spec)
    size = action_size(spec, "fql")
    actor = {"activation": jax.nn.gelu, "normalize_layers": config.normalize_actor_layers}
    critic = {"activation": jax.nn.gelu, "normalize_layers": config.normalize_critic_layers}
    velocities = flow.make(torsos.flat_size(spec.observation), size, config.actor_layers, **actor)
    one_step = parts.critic(spec, "fql", config.actor_layers, size, **actor)
    critics = parts.critics(spec, "fql", config.critic_layers, NUM_CRITICS, **critic)

    def init_actor(key: Key) -> Params:
        key_flow, key_one_step = jax.random.split(key)
        return {"flow": velocities.init(key_flow), "one_step": one_step.init(key_one_step)}

    def policy(params: Params, observation: Observation) -> distributions.Implicit:
        def draw(key: Key) -> Action:
            noise = jax.random.normal(key, (size,))
            return jnp.clip(one_step.apply(params["one_step"], observation, noise), -1.0, 1.0)

        return distributions.Implicit(draw=draw)

    return Method(
        networks=Networks(
            init_actor=init_actor,
            policy=policy,
            init_critics=critics.init,
            critics=critics.apply,
        ),
        backup=candidates.best_backup(
            config.gamma, 1, minimum_weight=MINIMUM_WEIGHTS[config.aggregation]
        ),
        actor_objective=objective(
            velocities,
            one_step,
            alpha=config.alpha,
            num_steps=config.num_flow_steps,
            normalize_values=config.normalize_values,
        ),
        actor_optimizer=optax.adam(config.actor_learning_rate),
        critic_optimizer=optax.adam(config.critic_learning_rate),
        follow=actor_critic.polyak(config.tau),
    )


def make(config: Config, spec: EnvironmentSpec) -> Learner:
    """The learner. Its policy acts in one step from noise and has no density.

    Raises:
      UsageError: the actions are discrete, or a setting makes no learner.
    """
    update = method(config, spec)
    learner = actor_critic.make(update, memory.Transitions(config.batch_size))
    acting = candidates.acting_by_best(
        learner, update.networks, config.num_candidates, select=one_step_alone
    )
    return with_inputs(acting, config.inputs)


def one_step_alone(actor: Params) -> Params:
    """The actor's parameters without the flow's, which does not act."""
    return {"one_step": actor["one_step"]}
