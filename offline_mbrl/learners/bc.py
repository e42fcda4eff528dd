"""Behavior cloning: maximum likelihood of the data's actions, with discrete actions.

Representation, prediction trunk and policy head have the sizes and the initialization of `models.muzero`, and the
optimizer is the latent family's, so that a comparison with its algorithms differs in the objective alone (BC on
the MuZero network without unroll, arXiv:2104.06294, table 2).
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from offline_mbrl.data import memory
from offline_mbrl.networks import distributions, heads, optimizers, residual, torsos
from offline_mbrl.types import Array, EnvironmentSpec, Learner, Metrics, PyTree, Transition, num_actions


@dataclass(frozen=True)
class Config:
    """The sizes and the optimizer of ROSMO's release."""

    num_updates: int = 200_000
    batch_size: int = 512  # transitions per update
    torso: residual.Torso = "auto"  # resnet for images, mlp for everything else
    encoder_layers: tuple[int, ...] = (64, 64, 32)  # mlp
    prediction_layers: tuple[int, ...] = (32,)  # mlp
    resnet: residual.ResNetConfig = field(default_factory=residual.ResNetConfig)
    optimizer: optimizers.OptimizerConfig = field(default_factory=optimizers.OptimizerConfig)


class State(NamedTuple):
    """Everything that changes while learning."""

    params: PyTree
    opt_state: optax.OptState


class PolicyNetwork(nn.Module):
    """Representation, prediction trunk and policy head of the latent model."""

    config: Config
    num_actions: int

    @nn.compact
    def __call__(self, observation: Array) -> Array:
        """A flat observation `[D]` to logits `[A]`."""
        embedding = torsos.MLP(self.config.encoder_layers, name="representation")(observation)
        x = torsos.MLP(self.config.prediction_layers, activate_final=True, name="trunk")(embedding)
        return heads.ZeroHead(self.num_actions, name="policy")(x)


class ResidualPolicyNetwork(nn.Module):
    """The same parts of the latent model of images."""

    config: Config
    num_actions: int

    @nn.compact
    def __call__(self, observation: PyTree) -> Array:
        """One image `[H, W, C]` to logits `[A]`."""
        resnet = self.config.resnet
        embedding = residual.Representation(resnet, name="representation")(observation)
        x = residual.Tower(resnet.blocks_prediction, resnet.channels, name="trunk")(embedding)
        return residual.Head(resnet, self.num_actions, name="policy")(x)


def negative_log_likelihood(logits: Array, action: Array) -> Array:
    """`-log pi(a|s)` `[]` from `[A]` logits."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, action)


def make(config: Config, spec: EnvironmentSpec) -> Learner:
    """The learner.

    Raises:
      UsageError: the actions are continuous, or the sizes make no network.
    """
    size = num_actions(spec, "bc")
    deep = residual.chosen(config.torso, config.resnet, spec.observation)
    network = (ResidualPolicyNetwork if deep else PolicyNetwork)(config, size)
    prepare = (lambda observation: observation) if deep else torsos.flat
    optimizer = optimizers.make(config.optimizer)

    def logits(params: PyTree, observation: PyTree) -> Array:
        return torsos.apply(network, params, prepare(observation))

    def init(key: Array, example: Transition, statistics: PyTree, given: PyTree) -> State:
        del example, statistics, given  # like the latent family, the encoder takes raw observations
        observation = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), spec.observation)
        params = torsos.init(network, key, prepare(observation))
        return State(params, optimizer.init(params))

    def batch_loss(params: PyTree, batch: Transition) -> Array:
        return jnp.mean(jax.vmap(negative_log_likelihood)(
            jax.vmap(logits, (None, 0))(params, batch.observation), batch.action))  # fmt: skip

    def step(state: State, batch: Transition, key: Array) -> tuple[State, Metrics]:
        del key  # deterministic
        value, gradient = jax.value_and_grad(batch_loss)(state.params, batch)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        metrics = {"loss/total": value, "gradient/norm": optax.tree.norm(gradient)}
        return State(optax.apply_updates(state.params, updates), opt_state), metrics

    return Learner(
        sample=memory.transitions(config.batch_size, frame_stack=spec.frame_stack), init=init, step=step,
        policy=distributions.as_policy(
            lambda params, observation: distributions.categorical(logits(params, observation))),
        policy_params=lambda state: state.params,
    )  # fmt: skip
