"""The optimizer of the latent family, and the descent by any optimizer.

The family's is Adam with decoupled decay on kernels, a global-norm clip, and a schedule.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import optax

from offline_mbrl.settings import Scope, at_least, read_if
from offline_mbrl.types import Params, PyTree, UsageError


def _is_staircase(scope: Scope) -> bool:
    return scope.config.schedule == "staircase"


@dataclass(frozen=True)
class OptimizerConfig:
    """ROSMO's released values (`sail-sg/rosmo`, both suites)."""

    learning_rate: Annotated[float, at_least(0)] = 7e-4  # peak
    schedule: Literal["staircase", "cosine"] = "staircase"  # cosine: MuZero Unplugged
    warmup_updates: Annotated[int, at_least(0)] = 1_000  # linear from 0
    # One stair, or the whole cosine to 0; counted from the end of the warm-up.
    decay_updates: Annotated[int, at_least(1)] = 100_000
    decay_rate: Annotated[float, at_least(0), read_if(_is_staircase, "schedule staircase")] = 0.1
    weight_decay: Annotated[float, at_least(0)] = 1e-4  # times the learning rate, kernels only
    max_grad_norm: Annotated[float, at_least(0)] = 5.0  # 0: gradients are not clipped


def schedule(config: OptimizerConfig) -> optax.Schedule:
    """Update count to learning rate.

    Raises:
      UsageError: an unknown schedule.
    """
    rate = config.learning_rate
    if config.schedule == "cosine":
        cosine = optax.cosine_decay_schedule(rate, config.decay_updates)
        if not config.warmup_updates:
            return cosine
        warmup = optax.linear_schedule(0.0, rate, config.warmup_updates)
        return optax.join_schedules([warmup, cosine], [config.warmup_updates])
    if config.schedule != "staircase":
        raise UsageError(f"unknown schedule {config.schedule!r}: choose staircase or cosine")
    return optax.warmup_exponential_decay_schedule(
        init_value=0.0,
        peak_value=rate,
        warmup_steps=config.warmup_updates,
        transition_steps=config.decay_updates,
        decay_rate=config.decay_rate,
        staircase=True,
    )


def kernels(params: Params) -> PyTree:
    """True on weight matrices, false on biases and normalization parameters."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def make(config: OptimizerConfig) -> optax.GradientTransformation:
    """The optimizer as one optax transformation.

    Raises:
      UsageError: an unknown schedule.
    """
    adam = optax.adamw(schedule(config), weight_decay=config.weight_decay, mask=kernels)
    if not config.max_grad_norm:
        return adam
    return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), adam)


def by_name(
    transformations: Mapping[str, optax.GradientTransformation],
) -> optax.GradientTransformation:
    """A transformation for each top-level name of a dict of parameters.

    Args:
      transformations: by name; names that the parameters lack are not read.
    """

    def labels(params: Mapping[str, Params]) -> dict[str, str]:
        return {name: name for name in params}

    return optax.partition({**transformations}, labels)


def bounded(
    optimizer: optax.GradientTransformation, low: float, high: float
) -> optax.GradientTransformation:
    """The optimizer whose parameters stay within bounds, from where they can return.

    Args:
      optimizer: the transformation of gradients.
      low: least value of any parameter.
      high: largest value.
    """

    def bound(updates: Params, params: Params | None) -> Params:
        return jax.tree.map(lambda u, p: jnp.clip(p + u, low, high) - p, updates, params)

    return optax.chain(optimizer, optax.stateless(bound))


def descend(
    optimizer: optax.GradientTransformation,
    gradient: Params,
    opt_state: optax.OptState,
    params: Params,
) -> tuple[Params, optax.OptState]:
    """One update of parameters.

    Args:
      optimizer: the transformation of gradients.
      gradient: of the loss.
      opt_state: the optimizer's state before the update.
      params: parameters before the update.

    Returns:
      (params, opt_state) after it.
    """
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), opt_state
