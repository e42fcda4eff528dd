"""Settings of BRAC and of BEAR, which differ in nothing else."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from offline_mbrl.learners.parts.preprocessing import InputConfig
from offline_mbrl.settings import Scope, above, at_least, between, increasing, read_if, sizes


def _has_kernel(scope: Scope) -> bool:
    return scope.config.divergence in ("mmd_laplacian", "mmd_gaussian")


def _has_clone(scope: Scope) -> bool:
    return not _has_kernel(scope)


def _has_samples(scope: Scope) -> bool:
    return scope.config.divergence != "kl"


def _is_fixed(scope: Scope) -> bool:
    return scope.config.threshold is None


def _is_learned(scope: Scope) -> bool:
    return scope.config.threshold is not None


if_kernel = read_if(_has_kernel, "a divergence mmd")
if_clone = read_if(_has_clone, "a divergence kl")
if_sampled = read_if(_has_samples, "a divergence of samples")
if_fixed = read_if(_is_fixed, "a fixed weight")
if_learned = read_if(_is_learned, "a threshold")


@dataclass(frozen=True)
class Config:
    """BRAC-p in the settings of its released code."""

    num_updates: Annotated[int, at_least(1)] = 500_000
    batch_size: Annotated[int, at_least(1)] = 256  # transitions per update
    gamma: Annotated[float, between(0, 1)] = 0.99  # discount factor
    tau: Annotated[float, between(0, 1)] = 0.005  # of the new critic in the target, each update
    # kl: exact, of normals; kl_sampled: its estimate; mmd: of the autoencoder's samples
    divergence: Literal["kl", "kl_sampled", "mmd_laplacian", "mmd_gaussian"] = "kl_sampled"
    num_samples: Annotated[int, at_least(1), if_sampled] = 4  # of the policy and of the autoencoder
    kernel_width: Annotated[float, above(0), if_kernel] = 20.0  # sigma
    weight: Annotated[float, at_least(0), if_fixed] = 0.1  # alpha, of the divergence
    # The weight is learned until the divergence equals this; None: it is fixed.
    threshold: Annotated[float | None, at_least(0)] = None
    penalize_values: bool = False  # targets pay for the divergence too: BRAC-v
    minimum_weight: Annotated[float, between(0, 1)] = 1.0  # of the least critic in targets
    num_next_actions: Annotated[int, at_least(1)] = 1  # the best of them is the target
    num_candidates: Annotated[int, at_least(1)] = 1  # when acting; 1: the policy's mode
    constraint_updates: Annotated[int, at_least(0)] = 20_000  # first ones, without critics
    actor_layers: Annotated[tuple[int, ...], sizes()] = (200, 200)  # ReLU; the clone too
    critic_layers: Annotated[tuple[int, ...], sizes()] = (300, 300)  # ReLU
    vae_layers: Annotated[tuple[int, ...], sizes(), if_kernel] = (750, 750)  # ReLU; of either half
    num_critics: Annotated[int, at_least(1)] = 2
    # Before tanh; smooth: low + (high - low) (tanh + 1) / 2, as the clone's always
    log_std_bounds: Annotated[tuple[float, float], increasing()] = (-5.0, 0.0)
    log_std_limit: Literal["smooth", "clip"] = "smooth"
    actor_learning_rate: Annotated[float, at_least(0)] = 3e-4  # Adam
    critic_learning_rate: Annotated[float, at_least(0)] = 1e-3  # Adam
    behavior_learning_rate: Annotated[float, at_least(0)] = 5e-4  # Adam; autoencoder or clone
    weight_learning_rate: Annotated[float, at_least(0), if_learned] = 1e-3  # Adam
    behavior_updates: Annotated[int, at_least(1), if_clone] = 300_000  # of the clone, before all
    inputs: InputConfig = field(default_factory=InputConfig)


@dataclass(frozen=True)
class BearConfig(Config):
    """BEAR in the settings of its D4RL runs (the released benchmark code and its README)."""

    num_updates: Annotated[int, at_least(1)] = 3_000_000
    divergence: Literal["kl", "kl_sampled", "mmd_laplacian", "mmd_gaussian"] = "mmd_laplacian"
    threshold: Annotated[float | None, at_least(0)] = 0.05
    minimum_weight: Annotated[float, between(0, 1)] = 0.75  # of the least critic in targets
    num_next_actions: Annotated[int, at_least(1)] = 10  # the best of them is the target
    num_candidates: Annotated[int, at_least(1)] = 100  # when acting
    constraint_updates: Annotated[int, at_least(0)] = 40_000  # first ones, without critics
    actor_layers: Annotated[tuple[int, ...], sizes()] = (256, 256)  # ReLU
    critic_layers: Annotated[tuple[int, ...], sizes()] = (256, 256)  # ReLU
    log_std_bounds: Annotated[tuple[float, float], increasing()] = (-20.0, 2.0)
    log_std_limit: Literal["smooth", "clip"] = "clip"
    actor_learning_rate: Annotated[float, at_least(0)] = 1e-4  # Adam
    critic_learning_rate: Annotated[float, at_least(0)] = 3e-4  # Adam
    behavior_learning_rate: Annotated[float, at_least(0)] = 3e-4  # Adam


PRESETS = {
    "policy": {},  # BRAC-p
    "value": {"penalize_values": True},  # BRAC-v
    "d4rl": {"num_updates": 1_000_000, "weight": 1.0, "actor_learning_rate": 3e-5},
}
BEAR_PRESETS = {
    "hopper": {},  # and Walker2d
    "halfcheetah": {"divergence": "mmd_gaussian"},
}
