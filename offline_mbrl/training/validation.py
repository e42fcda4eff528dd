"""Losses on held-out data: real rows alone, the same batches each time and for each seed."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from offline_mbrl.training import feeding, programs, sharding
from offline_mbrl.training.blocks import validate
from offline_mbrl.training.programs import SEEDED_CONTEXT, FitState
from offline_mbrl.types import Context, Key, Learner, PyTree


def validation(
    learner: Learner,
    dataset: PyTree,
    *,
    key: Key,
    num_batches: int,
    context: Context = Context(),
    mesh: Mesh | None = None,
) -> Callable[[FitState], dict[str, np.ndarray]]:
    """`learner.validate` over all seeds, on the same held-out batches each time and for each seed.

    It is compiled on its first call. A learner without `validate` measures nothing: `{}`.

    Args:
      learner: the learner.
      dataset: held-out data, or a `Stream` of them.
      key: of the batches.
      num_batches: that are averaged over.
      context: as `fit` has it.
      mesh: devices to split every batch over.

    Returns:
      (state of the run) -> [S] (or []) float32 per metric, NaN for a frozen seed.
    """
    if learner.validate is None:
        return lambda state: {}
    learner, batches = feeding.held_out(learner, dataset, key, num_batches, mesh)
    split = sharding.split_batch(mesh)

    def measure_seed(state, context, dataset, keys):
        return validate(learner, state, context, dataset, keys, split=split)

    def program(state, alive, context, dataset, keys):
        axes = (0, SEEDED_CONTEXT, None, None)
        measure = jax.vmap(measure_seed, in_axes=axes) if alive.ndim else measure_seed
        return measure(state, context, dataset, keys)

    jitted = programs.jit(program, mesh)

    def measure(state: FitState) -> dict[str, np.ndarray]:
        measured = [
            jax.device_get(jitted(state.learner, state.alive, context, data, keys))
            for data, keys in batches()
        ]
        metrics = jax.tree.map(lambda *means: np.mean(means, axis=0, dtype=np.float32), *measured)
        return of_living(metrics, jax.device_get(state.alive))

    return measure


def of_living(values: Mapping[str, Any], alive: np.ndarray) -> dict[str, np.ndarray]:
    """Figures `[S]` (or `[]`) as float32, NaN for a frozen seed."""
    return {
        name: np.where(alive, np.asarray(value, np.float32), np.nan)
        for name, value in values.items()
    }
