"""Behavior cloning: maximum likelihood of the data's actions.

Discrete actions: representation, prediction trunk and policy head have the sizes and the initialization of
`models.muzero`, and the optimizer is the latent family's, so that a comparison with its algorithms differs in the
objective alone (BC on the MuZero network without unroll, arXiv:2104.06294, table 2).

Continuous actions: the behavior density of the reference importance sampling (`policy_eval` of google-research), a
tanh-squashed normal, or the mixture of normals of RL Unplugged's policies. Differences: observations are not
normalized, weights start as everywhere here rather than orthogonal, and the decay is times the learning rate.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from offline_mbrl.data import memory
from offline_mbrl.networks import distributions, heads, optimizers, residual, torsos
from offline_mbrl.types import (
    Array,
    BoundedActions,
    Context,
    EnvironmentSpec,
    Learner,
    Metrics,
    PyTree,
    Transition,
    UsageError,
    action_size,
    num_actions,
)  # fmt: skip


@dataclass(frozen=True)
class ContinuousConfig:
    """`policy_eval`'s behavior density; the mixture's settings are of RL Unplugged's recurrent learners."""

    layers: tuple[int, ...] = (256, 256)  # ReLU
    head: Literal["squashed_gaussian", "mixture"] = "squashed_gaussian"
    log_std_bounds: tuple[float, float] = (-5.0, 2.0)  # squashed_gaussian: -5 + 3.5 (tanh + 1), before squashing
    num_components: int = 5  # mixture
    learning_rate: float = 3e-4  # AdamW
    weight_decay: float = 1e-5  # AdamW: of all parameters, times the learning rate


@dataclass(frozen=True)
class Config:
    """The sizes and the optimizer of ROSMO's release, for discrete actions; `continuous` for the others."""

    num_updates: int = 200_000
    batch_size: int = 512  # transitions per update
    torso: residual.Torso = "auto"  # resnet for images, mlp for everything else
    encoder_layers: tuple[int, ...] = (64, 64, 32)  # mlp
    prediction_layers: tuple[int, ...] = (32,)  # mlp
    resnet: residual.ResNetConfig = field(default_factory=residual.ResNetConfig)
    optimizer: optimizers.OptimizerConfig = field(default_factory=optimizers.OptimizerConfig)
    continuous: ContinuousConfig = field(default_factory=ContinuousConfig)


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
    """The learner, for either kind of actions.

    Raises:
      UsageError: a setting makes no network.
    """
    if isinstance(spec.action, BoundedActions):
        return _continuous(config.continuous, spec, config.batch_size)
    size = num_actions(spec, "bc")
    deep = residual.chosen(config.torso, config.resnet, spec.observation)
    network = (ResidualPolicyNetwork if deep else PolicyNetwork)(config, size)
    prepare = (lambda observation: observation) if deep else torsos.flat

    def logits(params: PyTree, observation: PyTree) -> Array:
        return torsos.apply(network, params, prepare(observation))

    return _learner(
        config.batch_size, spec, optimizers.make(config.optimizer),
        init=lambda key, observation: torsos.init(network, key, prepare(observation)),
        loss=lambda params, transition: negative_log_likelihood(
            logits(params, transition.observation), transition.action),
        distribution=lambda params, observation: distributions.categorical(logits(params, observation)),
    )  # fmt: skip


def _continuous(config: ContinuousConfig, spec: EnvironmentSpec, batch_size: int) -> Learner:
    num_outputs, head = _head(config, action_size(spec, "bc"))
    network = torsos.MLP((*config.layers, num_outputs))

    def distribution(params: PyTree, observation: PyTree) -> Any:
        return head(torsos.apply(network, params, torsos.flat(observation)))

    return _learner(
        batch_size, spec, optax.adamw(config.learning_rate, weight_decay=config.weight_decay),
        init=lambda key, observation: torsos.init(network, key, torsos.flat(observation)),
        loss=lambda params, transition: -distribution(params, transition.observation).log_prob(transition.action),
        distribution=distribution)  # fmt: skip


def _head(config: ContinuousConfig, size: int) -> tuple[int, Callable[[Array], Any]]:
    """How many outputs it takes, and how they become a distribution of actions `[size]`."""
    low, high = config.log_std_bounds
    if config.num_components < 1 or not low < high:
        raise UsageError(f"bc: give at least 1 component and increasing log_std_bounds, got {config.num_components} "
                         f"and {config.log_std_bounds}")  # fmt: skip
    if config.head == "squashed_gaussian":
        return 2 * size, lambda x: heads.squashed_normal(x, lambda raw: heads.between(raw, low, high))
    if config.head == "mixture":
        return config.num_components * (1 + 2 * size), lambda x: heads.normal_mixture(x, config.num_components)
    raise UsageError(f"bc: unknown head {config.head!r}: choose squashed_gaussian or mixture")


def _learner(
    batch_size: int, spec: EnvironmentSpec, optimizer: optax.GradientTransformation, *,
    init: Callable[[Array, PyTree], PyTree], loss: Callable[[PyTree, Transition], Array],
    distribution: Callable[[PyTree, PyTree], Any],
) -> Learner:  # fmt: skip
    """Descends the mean of `loss(params, transition)` over a batch; `init` gets an observation of zeros."""

    def first(key: Array, example: Transition, context: Context) -> State:
        del example, context  # like the latent family, networks take raw observations
        params = init(key, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), spec.observation))
        return State(params, optimizer.init(params))

    def batch_loss(params: PyTree, batch: Transition) -> Array:
        return jnp.mean(jax.vmap(loss, (None, 0))(params, batch))

    def step(state: State, context: Context, batch: Transition, key: Array) -> tuple[State, Metrics]:
        del context, key  # deterministic
        value, gradient = jax.value_and_grad(batch_loss)(state.params, batch)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        metrics = {"loss/total": value, "gradient/norm": optax.tree.norm(gradient)}
        return State(optax.apply_updates(state.params, updates), opt_state), metrics

    def validate(state: State, context: Context, batch: Transition, key: Array) -> Metrics:
        del context, key
        return {"loss/total": batch_loss(state.params, batch)}

    return Learner(
        sample=memory.Transitions(batch_size, frame_stack=spec.frame_stack), init=first, step=step, validate=validate,
        policy=distributions.as_policy(distribution), policy_params=lambda state, context: state.params,
    )  # fmt: skip
