"""Settings and policies that tests of the selection of policies share."""

import jax
import jax.numpy as jnp

from offline_mbrl.selection.records import Policies, Settings, stack
from offline_mbrl.types import Estimate

TINY = Settings(
    model_updates=20,
    model_members=2,
    model_layers=(16,),
    masked_units=16,
    fqe_updates=20,
    fqe_layers=(16,),
    distributional_updates=20,
    ratio_updates=20,
    ratio_layers=(16,),
    ratio_batch=16,
    clone_updates=20,
    clone_layers=(16,),
    side_by_side=2,
)


def targets(problem):
    """All target policies of a known problem."""
    return Policies(policy=problem.policy, params=stack(list(problem.target_params)))


def estimate(value, stderr=0.1, **diagnostics):
    """An estimate of one policy by hand."""
    return Estimate(
        value=jnp.float32(value),
        stderr=jnp.float32(stderr),
        per_episode=None,
        diagnostics=jax.tree.map(jnp.float32, diagnostics),
    )
