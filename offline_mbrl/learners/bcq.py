"""Batch-constrained Q-learning for continuous actions (arXiv:1812.02900).

A conditional autoencoder proposes actions such as the data's, a network perturbs them a little
towards higher values, and the best of several by the first critic acts.

Departures: all losses of an update are taken at the parameters before it (the released code updates
the autoencoder, critics, perturbation and targets one after the other); critics' squared errors
carry a 1/2; weights start as those of `torsos.MLP`. The greedy action chooses among candidates of
a fixed key, so that it is a function of the observation; the released code draws fresh ones.
"""

from dataclasses import dataclass, field
from typing import Annotated

import chex
import jax
import jax.numpy as jnp
import optax

from offline_mbrl import settings
from offline_mbrl.data import memory
from offline_mbrl.learners.parts import actor_critic, behavior, candidates
from offline_mbrl.learners.parts import networks as parts
from offline_mbrl.learners.parts.actor_critic import ActorLoss, Agent, Method, Networks
from offline_mbrl.learners.parts.preprocessing import InputConfig, with_inputs
from offline_mbrl.networks import conditional_vae, distributions, torsos
from offline_mbrl.networks.conditional_vae import ConditionalVAE
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


@dataclass(frozen=True)
class Config:
    """The released code's settings for MuJoCo."""

    num_updates: Annotated[int, at_least(1)] = 1_000_000
    batch_size: Annotated[int, at_least(1)] = 100  # transitions per update
    gamma: Annotated[float, between(0, 1)] = 0.99  # discount factor
    tau: Annotated[float, between(0, 1)] = 0.005  # of the new networks in the targets, each update
    minimum_weight: Annotated[float, between(0, 1)] = 0.75  # lambda: of the least critic in targets
    num_next_actions: Annotated[int, at_least(1)] = 10  # the best of them is the target
    num_candidates: Annotated[int, at_least(1)] = 100  # when acting
    perturbation: Annotated[float, at_least(0)] = 0.05  # Phi: the largest, of each entry
    vae_layers: Annotated[tuple[int, ...], sizes()] = (750, 750)  # ReLU; of either half
    actor_layers: Annotated[tuple[int, ...], sizes()] = (400, 300)  # ReLU; of the perturbation
    critic_layers: Annotated[tuple[int, ...], sizes()] = (400, 300)  # ReLU
    num_critics: Annotated[int, at_least(1)] = 2
    actor_learning_rate: Annotated[float, at_least(0)] = 1e-3  # Adam; the autoencoder too
    critic_learning_rate: Annotated[float, at_least(0)] = 1e-3  # Adam
    inputs: InputConfig = field(default_factory=InputConfig)


# --- the equation, one action ---


def perturbed(action: Action, raw: Array, *, largest: float) -> Action:
    """`clip(a + largest tanh(raw), -1, 1)`, `[A]`.

    Args:
      action: `[A]` of the autoencoder.
      raw: `[A]` outputs of the perturbation network.
      largest: Phi.

    Source: arXiv:1812.02900, equation 11 and released code.
    """
    chex.assert_equal_shape([action, raw])
    return jnp.clip(action + largest * jnp.tanh(raw), -1.0, 1.0)


# --- the parts of an update ---


def objective(vae: ConditionalVAE) -> actor_critic.ActorObjective:
    """The mean of `-Q_1` at one perturbed action a row, plus the loss of the autoencoder.

    No gradient of the critic reaches the autoencoder: actions are drawn without one.
    """

    def loss(agent: Agent, context: Context, batch: Transition, key: Key) -> ActorLoss:
        del context
        key_action, key_vae = jax.random.split(key)
        actions = candidates.sample(agent.policy, batch.observation, key_action, 1)[:, 0]
        climbing = -jnp.mean(agent.critics(batch.observation, actions)[0])
        cloning, metrics = behavior.vae_loss(
            vae, agent.state.actor["vae"], batch.observation, batch.action, key_vae
        )
        return ActorLoss(
            loss=climbing + cloning,
            metrics={"loss/perturbation": climbing, "loss/vae": cloning, **metrics},
        )

    return loss


def follow_perturbation(tau: float) -> actor_critic.Follow:
    """The perturbation network follows by Polyak averages; the autoencoder has no lagging copy."""
    polyak = actor_critic.polyak(tau)

    def follow(online: Params, target: Params, num_updates: Array) -> Params:
        moved = polyak(online["perturbation"], target["perturbation"], num_updates)
        return {"vae": online["vae"], "perturbation": moved}

    return follow


# --- assembly ---


def networks(config: Config, spec: EnvironmentSpec) -> tuple[Networks, ConditionalVAE]:
    """Autoencoder and perturbation network in the actor's parameters, and critics.

    Raises:
      UsageError: the actions are discrete.
    """
    size = action_size(spec, "bcq")
    vae = conditional_vae.make(torsos.flat_size(spec.observation), size, config.vae_layers)
    perturbation = parts.critic(spec, "bcq", config.actor_layers, size)
    critics = parts.critics(spec, "bcq", config.critic_layers, config.num_critics)

    def init_actor(key: Key) -> Params:
        key_vae, key_perturbation = jax.random.split(key)
        return {"vae": vae.init(key_vae), "perturbation": perturbation.init(key_perturbation)}

    def policy(params: Params, observation: Observation) -> distributions.Implicit:
        fixed = jax.lax.stop_gradient(params["vae"])

        def draw(key: Key) -> Action:
            outputs = conditional_vae.generate(vae, fixed, torsos.flat(observation), key)
            action = jnp.tanh(outputs)
            raw = perturbation.apply(params["perturbation"], observation, action)
            return perturbed(action, raw, largest=config.perturbation)

        return distributions.Implicit(draw=draw)

    nets = Networks(
        init_actor=init_actor,
        policy=policy,
        init_critics=critics.init,
        critics=critics.apply,
    )
    return nets, vae


def method(config: Config, spec: EnvironmentSpec) -> Method:
    """The method, whose parts others replace.

    Raises:
      UsageError: the actions are discrete, or a setting makes no learner.
    """
    settings.require_valid(config, "bcq", spec)
    nets, vae = networks(config, spec)
    return Method(
        networks=nets,
        backup=candidates.best_backup(
            config.gamma, config.num_next_actions, minimum_weight=config.minimum_weight
        ),
        actor_objective=objective(vae),
        actor_optimizer=optax.adam(config.actor_learning_rate),
        critic_optimizer=optax.adam(config.critic_learning_rate),
        follow=actor_critic.polyak(config.tau),
        follow_actor=follow_perturbation(config.tau),
    )


def make(config: Config, spec: EnvironmentSpec) -> Learner:
    """The learner. Its policy acts by the best candidate and has no density.

    Raises:
      UsageError: the actions are discrete, or a setting makes no learner.
    """
    update = method(config, spec)
    learner = actor_critic.make(update, memory.Transitions(config.batch_size))
    learner = candidates.acting_by_best(learner, update.networks, config.num_candidates)
    return with_inputs(learner, config.inputs)
