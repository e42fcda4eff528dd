"""Behavior cloning: maximum likelihood of the data's actions.

Discrete actions: representation, prediction trunk and policy head have the sizes and the
initialization of `models.muzero`, and the optimizer is the latent family's, so that a comparison
with its algorithms differs in the objective alone (BC on the MuZero network without unroll,
arXiv:2104.06294, table 2).

Continuous actions: the behavior density of the reference importance sampling (`policy_eval` of
google-research), a tanh-squashed normal, or the mixture of normals of RL Unplugged's policies.
Differences: observations are not normalized, weights start as everywhere here rather than
orthogonal, and the decay is times the learning rate.

Cloning reproduces the behavior: of a noisy controller it reaches the return, not the optimum.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from offline_mbrl import settings
from offline_mbrl.data import memory
from offline_mbrl.networks import distributions, heads, optimizers, residual, torsos
from offline_mbrl.settings import Scope, at_least, increasing, read_if, sizes
from offline_mbrl.types import (
    Action,
    Array,
    BoundedActions,
    Context,
    EnvironmentSpec,
    Key,
    Learner,
    Metrics,
    Observation,
    Params,
    Transition,
    action_size,
    num_actions,
)

# --- settings ---


def _is_discrete(scope: Scope) -> bool:
    return not isinstance(scope.spec.action, BoundedActions)


def _is_continuous(scope: Scope) -> bool:
    return isinstance(scope.spec.action, BoundedActions)


def _is_squashed(scope: Scope) -> bool:
    return scope.config.head == "squashed_gaussian"


def _is_mixture(scope: Scope) -> bool:
    return scope.config.head == "mixture"


if_discrete = read_if(_is_discrete, "discrete actions")
if_continuous = read_if(_is_continuous, "continuous actions")


@dataclass(frozen=True)
class ContinuousConfig:
    """`policy_eval`'s behavior density; the mixture's settings are RL Unplugged's."""

    layers: Annotated[tuple[int, ...], sizes()] = (256, 256)  # ReLU
    head: Literal["squashed_gaussian", "mixture"] = "squashed_gaussian"
    # Before squashing: low + (high - low) (tanh + 1) / 2.
    log_std_bounds: Annotated[
        tuple[float, float], increasing(), read_if(_is_squashed, "head squashed_gaussian")
    ] = (-5.0, 2.0)
    num_components: Annotated[int, at_least(1), read_if(_is_mixture, "head mixture")] = 5
    learning_rate: Annotated[float, at_least(0)] = 3e-4  # AdamW
    weight_decay: Annotated[float, at_least(0)] = 1e-5  # all parameters, times the learning rate


@dataclass(frozen=True)
class Config:
    """The sizes and the optimizer of ROSMO's release, for discrete actions."""

    num_updates: Annotated[int, at_least(1)] = 200_000
    batch_size: Annotated[int, at_least(1)] = 512  # transitions per update
    # resnet for images, mlp for everything else
    torso: Annotated[residual.Torso, if_discrete] = "auto"
    encoder_layers: Annotated[tuple[int, ...], sizes(), if_discrete, residual.if_mlp] = (64, 64, 32)
    prediction_layers: Annotated[tuple[int, ...], sizes(), if_discrete, residual.if_mlp] = (32,)
    resnet: Annotated[residual.ResNetConfig, if_discrete, residual.if_resnet] = field(
        default_factory=residual.ResNetConfig
    )
    optimizer: Annotated[optimizers.OptimizerConfig, if_discrete] = field(
        default_factory=optimizers.OptimizerConfig
    )
    # The whole network and optimizer for continuous actions.
    continuous: Annotated[ContinuousConfig, if_continuous] = field(default_factory=ContinuousConfig)


# --- networks ---


class PolicyNetwork(nn.Module):
    """Representation, prediction trunk and policy head of the latent model."""

    config: Config
    num_actions: int
    dtype: Any = None  # of hidden layers; see `networks.precision`

    @nn.compact
    def __call__(self, observation: Array) -> Array:
        """A flat observation `[D]` to logits `[A]`."""
        mlp = functools.partial(torsos.MLP, dtype=self.dtype)
        embedding = mlp(self.config.encoder_layers, name="representation")(observation)
        trunk = mlp(self.config.prediction_layers, activate_final=True, name="trunk")
        return heads.ZeroHead(self.num_actions, name="policy")(trunk(embedding))


class ResidualPolicyNetwork(nn.Module):
    """The same parts of the latent model of images."""

    config: Config
    num_actions: int
    dtype: Any = None  # of hidden layers; see `networks.precision`

    @nn.compact
    def __call__(self, observation: Observation) -> Array:
        """One image `[H, W, C]` to logits `[A]`."""
        resnet = self.config.resnet
        dtype = self.dtype
        embedding = residual.Representation(resnet, dtype, name="representation")(observation)
        trunk = residual.Tower(resnet.blocks_prediction, resnet.channels, dtype, name="trunk")
        return residual.Head(resnet, self.num_actions, dtype, name="policy")(trunk(embedding))


def negative_log_likelihood(logits: Array, action: Action) -> Array:
    """`-log pi(a|s)` `[]` from `[A]` logits."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, action)


# --- assembly ---


class State(NamedTuple):
    """Everything that changes while learning."""

    params: Params
    opt_state: optax.OptState


class Density(NamedTuple):
    """A conditional density of actions, and how it is fitted."""

    init: Callable[[Key, Observation], Params]  # (key, an observation of zeros) -> params
    distribution: Callable[[Params, Observation], Any]  # one observation -> distribution
    loss: Callable[[Params, Transition], Array]  # one transition -> []
    optimizer: optax.GradientTransformation


def make(config: Config, spec: EnvironmentSpec) -> Learner:
    """The learner, for either kind of actions.

    Raises:
      UsageError: a setting makes no network, or these actions do not read it.
    """
    settings.require_valid(config, "bc", spec)
    is_continuous = isinstance(spec.action, BoundedActions)
    density = _continuous(config.continuous, spec) if is_continuous else _discrete(config, spec)
    return learner(density, spec, config.batch_size)


def _discrete(config: Config, spec: EnvironmentSpec) -> Density:
    size = num_actions(spec, "bc")
    is_residual = residual.chosen(config.torso, spec.observation)
    network = (ResidualPolicyNetwork if is_residual else PolicyNetwork)(config, size)

    def inputs(observation: Observation) -> Any:
        return observation if is_residual else torsos.flat(observation)

    def init(key: Key, observation: Observation) -> Params:
        return torsos.init(network, key, inputs(observation))

    def logits(params: Params, observation: Observation) -> Array:
        return torsos.apply(network, params, inputs(observation))

    def distribution(params: Params, observation: Observation) -> Any:
        return distributions.categorical(logits(params, observation))

    def loss(params: Params, transition: Transition) -> Array:
        return negative_log_likelihood(logits(params, transition.observation), transition.action)

    return Density(
        init=init,
        distribution=distribution,
        loss=loss,
        optimizer=optimizers.make(config.optimizer),
    )


def _continuous(config: ContinuousConfig, spec: EnvironmentSpec) -> Density:
    num_outputs, head = _head(config, action_size(spec, "bc"))
    network = torsos.MLP((*config.layers, num_outputs))

    def init(key: Key, observation: Observation) -> Params:
        return torsos.init(network, key, torsos.flat(observation))

    def distribution(params: Params, observation: Observation) -> Any:
        return head(torsos.apply(network, params, torsos.flat(observation)))

    def loss(params: Params, transition: Transition) -> Array:
        return -distribution(params, transition.observation).log_prob(transition.action)

    return Density(
        init=init,
        distribution=distribution,
        loss=loss,
        optimizer=optax.adamw(config.learning_rate, weight_decay=config.weight_decay),
    )


def _head(config: ContinuousConfig, size: int) -> tuple[int, Callable[[Array], Any]]:
    """How many outputs it takes, and how they become a distribution of actions `[size]`."""
    if config.head == "mixture":
        num_outputs = config.num_components * (1 + 2 * size)
        return num_outputs, lambda x: heads.normal_mixture(x, config.num_components)

    def bound(raw: Array) -> Array:
        return heads.between(raw, *config.log_std_bounds)

    return 2 * size, lambda x: heads.squashed_normal(x, bound)


def learner(density: Density, spec: EnvironmentSpec, batch_size: int) -> Learner:
    """Descends the mean of the density's loss over a batch.

    Args:
      density: the network, its loss and its optimizer.
      spec: of the problem.
      batch_size: transitions per update.
    """
    optimizer = density.optimizer

    def init(key: Key, example: Transition, context: Context) -> State:
        del example, context  # like the latent family, networks take raw observations
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), spec.observation)
        params = density.init(key, zeros)
        return State(params=params, opt_state=optimizer.init(params))

    def batch_loss(params: Params, batch: Transition) -> Array:
        return jnp.mean(jax.vmap(density.loss, (None, 0))(params, batch))

    def step(state: State, context: Context, batch: Transition, key: Key) -> tuple[State, Metrics]:
        del context, key  # deterministic
        value, gradient = jax.value_and_grad(batch_loss)(state.params, batch)
        params, opt_state = optimizers.descend(optimizer, gradient, state.opt_state, state.params)
        metrics = {"loss/total": value, "gradient/norm": optax.tree.norm(gradient)}
        return State(params=params, opt_state=opt_state), metrics

    def validate(state: State, context: Context, batch: Transition, key: Key) -> Metrics:
        del context, key  # deterministic
        return {"loss/total": batch_loss(state.params, batch)}

    def policy_params(state: State, context: Context) -> Params:
        del context
        return state.params

    return Learner(
        sample=memory.Transitions(batch_size, frame_stack=spec.frame_stack),
        init=init,
        step=step,
        validate=validate,
        policy=distributions.as_policy(density.distribution),
        policy_params=policy_params,
    )
