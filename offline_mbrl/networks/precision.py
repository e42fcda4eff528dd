"""Updates whose networks compute in bfloat16; everything else about them stays float32.

A network is a flax module with a field `dtype`, in which its hidden layers compute. Parameters are
float32 and are rounded where a layer reads them. A network's last layer reads its input in float32
unless its output is another hidden layer's input, and what leaves a network is float32 again: so
are losses, supports, targets, optimizers, and the statistics that data are normalized by. Layer
normalization takes its means and variances in float32 (flax).

How the precision gets from a run to its networks: not through every constructor in between, of
which none but the module has a use for it, but around the functions of the finished learner. While
one of them is traced, `flax.linen.intercept_methods` gives every module that is applied its
`dtype`. The scope begins and ends inside the traced function, so that the wrapped function is as
pure as the one it wraps, and what wraps a learner returns a learner. A learner whose functions jit
parts of themselves must not be traced in two precisions; none here does.

What trains computes in the precision: `step` and `refresh`. What judges or acts does not: held-out
losses, policies, exported ones too, and models that are read back from a run are float32, so that
a policy is the same wherever it acts, on whatever it was trained.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from offline_mbrl.settings import Precision
from offline_mbrl.types import Learner, PyTree, Stage, UsageError

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def learner_in(learner: Learner, precision: Precision) -> Learner:
    """The learner with `step` and `refresh` in a precision; float32 leaves it as it is.

    Args:
      learner: whose networks are flax modules.
      precision: of hidden layers.

    Raises:
      UsageError: while tracing: `step` applies no flax module, or one without a field `dtype`.
    """
    if precision == "float32":
        return learner
    return learner._replace(
        step=computing(learner.step, precision, at_least_once=True),
        refresh=computing(learner.refresh, precision),
    )


def stages_in(stages: Mapping[str, Stage], precision: Precision) -> dict[str, Stage]:
    """Stages by name whose learners are in a precision; see `learner_in`."""
    return {
        name: stage._replace(learner=learner_in(stage.learner, precision))
        for name, stage in stages.items()
    }


def computing(
    function: Callable[Arguments, Result], precision: Precision, *, at_least_once: bool = False
) -> Callable[Arguments, Result]:
    """A function with the flax modules that it applies computing in a precision.

    Args:
      function: pure; traced.
      precision: of hidden layers.
      at_least_once: refuse a function that applies no module.

    Raises:
      UsageError: while tracing: a module has no field `dtype`, or there is none.
    """

    @functools.wraps(function, updated=())
    def computed(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        applied: list[str] = []

        def intercept(call: Callable, inputs: tuple, options: dict, context: Any) -> Any:
            module = context.module
            if not _is_applied(module, context.method_name) or module.dtype is not None:
                return call(*inputs, **options)
            applied.append(type(module).__name__)
            copy = module.clone(parent=None, dtype=jnp.dtype(precision))
            method = context.method_name
            return _in_float32(copy.apply(module.variables, *inputs, method=method, **options))

        with nn.intercept_methods(intercept):
            result = function(*args, **kwargs)
        if at_least_once and not applied:
            raise UsageError(
                f"precision {precision} would change nothing: no network here is a flax module; "
                "train in float32"
            )
        return result

    return computed


def _is_applied(module: nn.Module, method: str) -> bool:
    """Whether this call applies a whole network: it is no part of another, and is not set up.

    Raises:
      UsageError: the network has no field `dtype`.
    """
    if method == "setup" or module.path or module.is_initializing():
        return False
    if not hasattr(module, "dtype"):
        raise UsageError(
            f"network {type(module).__name__} computes in float32 alone: give the module a field "
            "`dtype` for its layers, or train in float32"
        )
    return True


def _in_float32(outputs: PyTree) -> PyTree:
    """Floating-point leaves of fewer bits in float32."""

    def cast(leaf: jax.Array) -> jax.Array:
        return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) if _floats(leaf) else leaf

    return jax.tree.map(cast, outputs)


def _floats(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)
