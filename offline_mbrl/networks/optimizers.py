"""The optimizer of the latent family: AdamW on kernels, a global-norm clip, warm-up and staircase decay."""

from dataclasses import dataclass

import jax
import optax

from offline_mbrl.types import PyTree


@dataclass(frozen=True)
class OptimizerConfig:
    """ROSMO's released values (`sail-sg/rosmo`, both suites)."""

    learning_rate: float = 7e-4  # peak
    warmup_updates: int = 1_000  # linear from 0
    decay_updates: int = 100_000  # staircase, counted from the end of the warm-up
    decay_rate: float = 0.1
    weight_decay: float = 1e-4  # decoupled, on kernels only
    max_grad_norm: float = 5.0


def schedule(config: OptimizerConfig) -> optax.Schedule:
    """Update count to learning rate."""
    return optax.warmup_exponential_decay_schedule(
        0.0, config.learning_rate, config.warmup_updates, config.decay_updates, config.decay_rate, staircase=True
    )


def kernels(params: PyTree) -> PyTree:
    """True on weight matrices, false on biases and normalization parameters."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def make(config: OptimizerConfig) -> optax.GradientTransformation:
    """The optimizer as one optax transformation."""
    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.adamw(schedule(config), weight_decay=config.weight_decay, mask=kernels),
    )
