"""The latent model of the MuZero family: representation, dynamics, prediction.

MuZero (arXiv:1911.08265), as in ROSMO's release. Categorical reward and value heads; the reward of
a transition is read from the embedding it leads to; heads start at zero and embeddings are not
rescaled. Vectors go through ReLU layers of ROSMO's BSuite sizes, without normalization or residual
link; images through its residual network (`networks.residual`), whose embedding is an image too.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from offline_mbrl import settings
from offline_mbrl.networks import heads, residual, torsos
from offline_mbrl.settings import at_least, sizes
from offline_mbrl.targets import transforms
from offline_mbrl.types import (
    Action,
    Array,
    EnvironmentSpec,
    Key,
    LatentModel,
    LatentPrediction,
    Observation,
    Params,
    UsageError,
    num_actions,
)


@dataclass(frozen=True)
class ModelConfig:
    """ROSMO's networks.

    `num_bins` is 20 in its BSuite release, whose support -9..10 starts every value at 1.246, and
    601 in its Atari release, for rewards of any size: with rewards clipped to [-1, 1] no target
    lies beyond the 21 atoms -10..10.
    """

    num_bins: Annotated[int, at_least(2)] = 21  # atoms of the scaled reward and value
    torso: residual.Torso = "auto"  # resnet for images, mlp for everything else
    # The last is the embedding size.
    encoder_layers: Annotated[tuple[int, ...], sizes(), residual.if_mlp] = (64, 64, 32)
    dynamics_layers: Annotated[tuple[int, ...], sizes(), residual.if_mlp] = (32, 32)
    prediction_layers: Annotated[tuple[int, ...], sizes(), residual.if_mlp] = (32,)
    resnet: Annotated[residual.ResNetConfig, residual.if_resnet] = field(
        default_factory=residual.ResNetConfig
    )


class PredictionNetwork(nn.Module):
    """A shared trunk and three heads."""

    config: ModelConfig
    num_actions: int
    dtype: Any = None  # of hidden layers; see `networks.precision`

    def setup(self) -> None:
        """Names the parts, so that other algorithms can find them."""
        self.trunk = torsos.MLP(
            self.config.prediction_layers, activate_final=True, dtype=self.dtype
        )
        self.policy = heads.ZeroHead(self.num_actions)
        self.reward = heads.ZeroHead(self.config.num_bins)
        self.value = heads.ZeroHead(self.config.num_bins)

    def __call__(self, embedding: Array) -> LatentPrediction:
        """One embedding `[D]` to logits."""
        x = self.trunk(embedding)
        return LatentPrediction(
            policy_logits=self.policy(x), reward_logits=self.reward(x), value_logits=self.value(x)
        )


class ResidualPredictionNetwork(nn.Module):
    """A trunk that policy and value share; the reward's head reads the embedding itself."""

    config: ModelConfig
    num_actions: int
    dtype: Any = None  # of hidden layers; see `networks.precision`

    def setup(self) -> None:
        """Names the parts as `PredictionNetwork` does."""
        resnet = self.config.resnet
        self.trunk = residual.Tower(resnet.blocks_prediction, resnet.channels, self.dtype)
        self.policy = residual.Head(resnet, self.num_actions, self.dtype)
        self.reward = residual.Head(resnet, self.config.num_bins, self.dtype)
        self.value = residual.Head(resnet, self.config.num_bins, self.dtype)

    def __call__(self, embedding: Array) -> LatentPrediction:
        """One embedding `[H, W, C]` to logits."""
        x = self.trunk(embedding)
        return LatentPrediction(
            policy_logits=self.policy(x),
            reward_logits=self.reward(embedding),
            value_logits=self.value(x),
        )


class Parts(NamedTuple):
    """The networks of a latent model, as flax modules over one observation or embedding."""

    representation: nn.Module
    dynamics: nn.Module
    prediction: nn.Module
    prepare: Callable[[Observation], Observation]  # to what the representation takes


def make(config: ModelConfig, spec: EnvironmentSpec) -> LatentModel:
    """Builds the model for discrete actions.

    Raises:
      UsageError: the actions are continuous, or the sizes or the number of bins make no model.
    """
    size = num_actions(spec, "the latent model")
    settings.require_valid(config, "the latent model", spec)
    is_residual = residual.chosen(config.torso, spec.observation)
    parts = _residual(config, size) if is_residual else _mlp(config, size)

    def init(key: Key) -> Params:
        keys = jax.random.split(key, 3)
        observation = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), spec.observation)
        inputs = parts.prepare(observation)
        params = {"representation": torsos.init(parts.representation, keys[0], inputs)}
        embedding = jnp.zeros(jax.eval_shape(represent, params, observation).shape)
        return params | {
            "dynamics": torsos.init(parts.dynamics, keys[1], embedding, jnp.zeros((), jnp.int32)),
            "prediction": torsos.init(parts.prediction, keys[2], embedding),
        }

    def represent(params: Params, observation: Observation) -> Array:
        inputs = parts.prepare(observation)
        return torsos.apply(parts.representation, params["representation"], inputs)

    def step(params: Params, embedding: Array, action: Action) -> Array:
        return torsos.apply(parts.dynamics, params["dynamics"], embedding, action)

    def predict(params: Params, embedding: Array) -> LatentPrediction:
        return torsos.apply(parts.prediction, params["prediction"], embedding)

    return LatentModel(
        init=init,
        represent=represent,
        dynamics=step,
        predict=predict,
        scalar=transforms.from_logits,
    )


def _residual(config: ModelConfig, num_actions: int) -> Parts:
    return Parts(
        representation=residual.Representation(config.resnet),
        dynamics=residual.Dynamics(config.resnet, num_actions),
        prediction=ResidualPredictionNetwork(config, num_actions),
        prepare=lambda observation: observation,
    )


def _mlp(config: ModelConfig, num_actions: int) -> Parts:
    if config.dynamics_layers[-1] != config.encoder_layers[-1]:
        raise UsageError(
            f"dynamics_layers ends in {config.dynamics_layers[-1]} and encoder_layers in "
            f"{config.encoder_layers[-1]}: both are the embedding size and must be equal"
        )
    return Parts(
        representation=torsos.MLP(config.encoder_layers),
        dynamics=torsos.ActionConditioned(config.dynamics_layers, num_actions),
        prediction=PredictionNetwork(config, num_actions),
        prepare=torsos.flat,
    )
