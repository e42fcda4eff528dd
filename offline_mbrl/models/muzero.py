"""The latent model of the MuZero family: representation, dynamics, prediction (arXiv:1911.08265; ROSMO's release).

Categorical reward and value heads; the reward of a transition is read from the embedding it leads to. BSuite sizes
are the defaults: ReLU between layers, no normalization, no residual link, no rescaling of the embedding, heads that
start at zero.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from offline_mbrl.networks import heads, torsos
from offline_mbrl.targets import transforms
from offline_mbrl.types import (
    Array,
    EnvironmentSpec,
    LatentModel,
    LatentPrediction,
    PyTree,
    UsageError,
    num_actions,
)


@dataclass(frozen=True)
class ModelConfig:
    """ROSMO's BSuite networks; `num_bins` is 20 in the release, whose support -9..10 starts every value at 1.246."""

    encoder_layers: tuple[int, ...] = (64, 64, 32)  # the last is the embedding size
    dynamics_layers: tuple[int, ...] = (32, 32)
    prediction_layers: tuple[int, ...] = (32,)
    num_bins: int = 21  # atoms -10..10 of the scaled reward and value


class Prediction(nn.Module):
    """A shared trunk and three heads."""

    config: ModelConfig
    num_actions: int

    def setup(self) -> None:
        """Names the parts, so that other algorithms can find them."""
        self.trunk = torsos.MLP(self.config.prediction_layers, activate_final=True)
        self.policy = heads.ZeroHead(self.num_actions)
        self.reward = heads.ZeroHead(self.config.num_bins)
        self.value = heads.ZeroHead(self.config.num_bins)

    def __call__(self, embedding: Array) -> LatentPrediction:
        """One embedding `[D]` to logits."""
        x = self.trunk(embedding)
        return LatentPrediction(self.policy(x), self.reward(x), self.value(x))


def make(config: ModelConfig, spec: EnvironmentSpec) -> LatentModel:
    """Builds the model for discrete actions.

    Raises:
      UsageError: the actions are continuous, or the layer sizes or the number of bins make no model.
    """
    size = num_actions(spec, "the latent model")
    layers = (config.encoder_layers, config.dynamics_layers, config.prediction_layers)
    if min(map(len, layers)) < 1 or config.num_bins < 2:
        raise UsageError("the latent model needs at least one layer in each part, and at least two bins")
    if config.dynamics_layers[-1] != config.encoder_layers[-1]:
        raise UsageError(
            f"dynamics_layers ends in {config.dynamics_layers[-1]} and encoder_layers in {config.encoder_layers[-1]}: "
            "both are the embedding size and must be equal"
        )
    representation = torsos.MLP(config.encoder_layers)
    dynamics = torsos.ActionConditioned(config.dynamics_layers, size)
    prediction = Prediction(config, size)

    def init(key: Array) -> PyTree:
        keys = jax.random.split(key, 3)
        observation = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), spec.observation)
        embedding = jnp.zeros(config.encoder_layers[-1])
        return {
            "representation": torsos.init(representation, keys[0], torsos.flat(observation)),
            "dynamics": torsos.init(dynamics, keys[1], embedding, jnp.zeros((), jnp.int32)),
            "prediction": torsos.init(prediction, keys[2], embedding),
        }

    def represent(params: PyTree, observation: PyTree) -> Array:
        return torsos.apply(representation, params["representation"], torsos.flat(observation))

    def step(params: PyTree, embedding: Array, action: Array) -> Array:
        return torsos.apply(dynamics, params["dynamics"], embedding, action)

    def predict(params: PyTree, embedding: Array) -> LatentPrediction:
        return torsos.apply(prediction, params["prediction"], embedding)

    return LatentModel(init=init, represent=represent, dynamics=step, predict=predict, scalar=transforms.from_logits)
