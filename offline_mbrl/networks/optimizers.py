"""The optimizer of the latent family: Adam with decoupled decay on kernels, a global-norm clip, and a schedule."""

from dataclasses import dataclass
from typing import Literal

import jax
import optax

from offline_mbrl.types import PyTree, UsageError


@dataclass(frozen=True)
class OptimizerConfig:
    """ROSMO's released values (`sail-sg/rosmo`, both suites)."""

    learning_rate: float = 7e-4  # peak
    schedule: Literal["staircase", "cosine"] = "staircase"  # cosine: MuZero Unplugged
    warmup_updates: int = 1_000  # linear from 0
    decay_updates: int = 100_000  # of one stair, or of the whole cosine to 0; counted from the end of the warm-up
    decay_rate: float = 0.1  # of one stair
    weight_decay: float = 1e-4  # decoupled, times the learning rate, on kernels only
    max_grad_norm: float = 5.0  # 0: gradients are not clipped


def schedule(config: OptimizerConfig) -> optax.Schedule:
    """Update count to learning rate.

    Raises:
      UsageError: an unknown schedule.
    """
    if config.schedule == "cosine":
        cosine = optax.cosine_decay_schedule(config.learning_rate, config.decay_updates)
        warmup = optax.linear_schedule(0.0, config.learning_rate, config.warmup_updates)
        return optax.join_schedules([warmup, cosine], [config.warmup_updates]) if config.warmup_updates else cosine
    if config.schedule != "staircase":
        raise UsageError(f"unknown schedule {config.schedule!r}: choose staircase or cosine")
    return optax.warmup_exponential_decay_schedule(
        0.0, config.learning_rate, config.warmup_updates, config.decay_updates, config.decay_rate, staircase=True
    )


def kernels(params: PyTree) -> PyTree:
    """True on weight matrices, false on biases and normalization parameters."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def make(config: OptimizerConfig) -> optax.GradientTransformation:
    """The optimizer as one optax transformation.

    Raises:
      UsageError: an unknown schedule, a negative norm, or a decay that takes no update.
    """
    if config.decay_updates < 1 or not config.max_grad_norm >= 0:
        raise UsageError("optimizer: decay_updates must be at least 1 and max_grad_norm at least 0")
    adam = optax.adamw(schedule(config), weight_decay=config.weight_decay, mask=kernels)
    return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), adam) if config.max_grad_norm else adam
