"""Settings of offline Q-learning with discrete actions: one config a method, and their presets."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax

from offline_mbrl.networks import nature
from offline_mbrl.settings import Scope, at_least, between, read_if, sizes
from offline_mbrl.types import EnvironmentSpec


def is_image(spec: EnvironmentSpec) -> bool:
    """Whether observations are one image `[H, W, C]`."""
    leaves = jax.tree.leaves(spec.observation)
    return len(leaves) == 1 and len(leaves[0].shape) == 3


def _has_heads(scope: Scope) -> bool:
    return scope.config.head != "scalar"


def _is_ensemble(scope: Scope) -> bool:
    return scope.config.head == "ensemble"


def _is_filtered(scope: Scope) -> bool:
    return scope.config.target_action == "filtered"


def _is_image(scope: Scope) -> bool:
    return is_image(scope.spec)


def _is_vector(scope: Scope) -> bool:
    return not is_image(scope.spec)


if_filtered = read_if(_is_filtered, "target_action filtered")

Head = Literal["scalar", "quantile", "ensemble"]
TargetAction = Literal["max", "double", "filtered"]
Mix = Annotated[Literal["none", "mean", "random_simplex"], read_if(_is_ensemble, "head ensemble")]
Padding = Annotated[nature.Padding, read_if(_is_image, "images")]
Count = Annotated[int, at_least(1)]
Heads = Annotated[int, at_least(1), read_if(_has_heads, "head quantile or ensemble")]
Layers = Annotated[tuple[int, ...], sizes(), read_if(_is_vector, "vectors")]
Share = Annotated[float, between(0, 1)]
Weight = Annotated[float, at_least(0)]


@dataclass(frozen=True)
class Config:
    """DQN, with the Atari settings of batch_rl (arXiv:1907.04543) unless said otherwise."""

    num_updates: Count = 12_500_000
    batch_size: Count = 32  # transitions per update
    gamma: Share = 0.99  # discount factor
    # What the outputs of an action are: its value, quantiles, or values of an ensemble.
    head: Head = "scalar"
    num_heads: Heads = 200
    # Who chooses the next action: the target network, the online one, or that where a clone agrees.
    target_action: TargetAction = "max"
    # Of an ensemble: heads that learn apart, their mean, or REM's random sums.
    mix: Mix = "none"
    # Allowed is more than this share of the likeliest action's probability. BCQ's release.
    threshold: Annotated[float, between(0, 1), if_filtered] = 0.3
    imitation_weight: Annotated[float, at_least(0), if_filtered] = 1.0  # of the clone's loss
    logit_penalty: Annotated[float, at_least(0), if_filtered] = 0.01  # BCQ's release
    cql_alpha: Weight = 0.0  # of the conservative loss
    layers: Layers = (64, 64)  # ReLU
    padding: Padding = "SAME"  # of the convolutions
    learning_rate: Weight = 5e-5  # Adam
    adam_epsilon: Weight = 3.125e-4
    target_period: Count = 2_000  # updates between moves of the target; 8000 steps of the agent
    tau: Share = 1.0  # of the online network in the target at each move
    epsilon: Share = 0.001  # probability of a uniform action when sampling


@dataclass(frozen=True)
class QuantileConfig(Config):
    """QR-DQN: quantiles of the return."""

    head: Head = "quantile"


@dataclass(frozen=True)
class EnsembleConfig(Config):
    """REM: random mixtures of an ensemble."""

    head: Head = "ensemble"
    mix: Mix = "random_simplex"


@dataclass(frozen=True)
class FilteredConfig(Config):
    """Discrete BCQ, with the Atari settings of its release."""

    target_action: TargetAction = "filtered"
    padding: Padding = "VALID"
    learning_rate: Weight = 6.25e-5
    adam_epsilon: Weight = 1.5e-4
    target_period: Count = 8_000


@dataclass(frozen=True)
class ConservativeConfig(QuantileConfig):
    """Discrete CQL on QR-DQN; the weight is the paper's for 500 thousand transitions a game."""

    cql_alpha: Weight = 4.0


CONFIGS = {
    "dqn": Config,
    "qr_dqn": QuantileConfig,
    "rem": EnsembleConfig,
    "bcq_discrete": FilteredConfig,
    "cql_discrete": ConservativeConfig,
}

# Vectors: the settings of BCQ's release for small tasks, in smaller networks.
SMALL: dict[str, Any] = {
    "num_updates": 100_000,
    "batch_size": 64,
    "learning_rate": 3e-4,
    "adam_epsilon": 1e-8,
    "target_period": 1,
    "tau": 0.005,
}
SMALL_HEADS: dict[str, Any] = {**SMALL, "num_heads": 32}
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "dqn": {"published": {}, "double": {"target_action": "double"}, "small": SMALL},
    "qr_dqn": {"published": {}, "small": SMALL_HEADS},
    "rem": {"published": {}, "ensemble_dqn": {"mix": "none"}, "small": SMALL_HEADS},
    "bcq_discrete": {"published": {}, "small": SMALL},
    "cql_discrete": {
        "500k": {},  # transitions a game: "1 %" of the replay data
        "5m": {"cql_alpha": 1.0},  # "10 %"
        "small": {**SMALL_HEADS, "cql_alpha": 1.0},
    },
}


def name_of(config: Config) -> str:
    """The method of a config, for messages: the most special one."""
    return [name for name, kind in CONFIGS.items() if isinstance(config, kind)][-1]
