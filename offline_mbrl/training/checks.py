"""What `fit` needs of its arguments and of a learner's functions, refused in words where it lacks.

The functions are checked while they are traced: nothing is traced a second time, and nothing is
left in the compiled program.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from offline_mbrl.types import Context, Learner, PyTree, UsageError

SIGNATURES = {  # functions of a learner -> their arguments
    "sample": ("dataset", "cache", "key"),
    "init": ("key", "example", "context"),
    "step": ("state", "context", "batch", "key"),
    "policy_params": ("state", "context"),
    "validate": ("state", "context", "batch", "key"),
    "refresh": ("state", "context", "dataset", "cache", "update", "key"),
    "init_cache": ("example",),
}
NOT_TRACEABLE = (
    jax.errors.ConcretizationTypeError,  # includes the conversions to bool and int
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


# --- arguments of `fit` ---


def require_arguments(
    learner: Any, dataset: Any, *, key: Any, num_updates: Any, seeds: Any, context: Any, hooks: Any
) -> None:
    """Refuses arguments of `fit` of the wrong kind.

    Raises:
      UsageError: the message names the argument and what to pass instead.
    """
    if not isinstance(learner, Learner):
        raise UsageError(
            f"fit: learner is {_kind(learner)}, not a Learner: pass what an algorithm's "
            "`make(config, spec)` returns"
        )
    if isinstance(dataset, str | Path):
        raise UsageError(
            f"fit: dataset is the name {str(dataset)!r}: load it first, "
            "`offline_mbrl.load_dataset(name).dataset`"
        )
    if hasattr(dataset, "dataset"):
        raise UsageError(
            f"fit: dataset is {_kind(dataset)}, which holds one: pass its field `.dataset`"
        )
    if not _is_key(key):
        raise UsageError(f"fit: key is {_kind(key)}: pass a random key, `jax.random.key(0)`")
    if isinstance(num_updates, bool) or not isinstance(num_updates, int) or num_updates < 1:
        raise UsageError(
            f"fit: num_updates must be a whole number of at least 1, got {num_updates}"
        )
    if isinstance(seeds, int):
        raise UsageError(
            f"fit: seeds is the number {seeds}: pass the seeds themselves, `range({seeds})`, or "
            "None for a single run without an axis of seeds"
        )
    if not isinstance(context, Context):
        raise UsageError(
            f"fit: context is {_kind(context)}: pass `Context(statistics=..., upstream={{...}})`"
        )
    if callable(hooks):
        raise UsageError("fit: hooks is a single function: pass a list of them, `hooks=[hook]`")


def require_seed_axis(context: Context, seeds: Sequence[int] | None) -> None:
    """Refuses an upstream without the axis of seeds.

    Raises:
      UsageError: an array of `context.upstream` has no leading axis [S] although seeds are given.
    """
    if seeds is None:
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(context.upstream):
        if jnp.shape(leaf)[:1] != (len(seeds),):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise UsageError(
                f"with {len(seeds)} seeds every array of `upstream` has a leading axis of that "
                f"length, one entry a seed, but {name} has shape {jnp.shape(leaf)}: stack it"
            )


def _is_key(key: Any) -> bool:
    dtype = getattr(key, "dtype", None)
    if dtype is None:
        return False
    return jnp.issubdtype(dtype, jax.dtypes.prng_key) or (dtype == jnp.uint32 and key.ndim >= 1)


# --- functions of a learner ---


def checked(learner: Learner) -> Learner:
    """The same learner, whose functions are held to `types.Learner` when they are traced.

    Raises:
      UsageError: now, a function takes other arguments; while tracing, it returns something else,
        or it cannot be traced.
    """
    for name, arguments in SIGNATURES.items():
        function = getattr(learner, name)
        if function is not None:
            _require_signature(name, function, arguments)
    fields = {
        name: _traceable(name, getattr(learner, name), checker)
        for name, checker in CHECKERS.items()
        if getattr(learner, name) is not None
    }
    return learner._replace(**fields)


def _require_signature(name: str, function: Callable, arguments: tuple[str, ...]) -> None:
    try:
        inspect.signature(function).bind(*arguments)
    except ValueError:  # a builtin without a signature
        return
    except TypeError as error:
        raise UsageError(
            f"learner.{name} takes ({', '.join(arguments)}), but it cannot be called so: {error}"
        ) from error


def _traceable(name: str, function: Callable, checker: Callable) -> Callable:
    @functools.wraps(function, updated=())
    def traced(*arguments):
        try:
            result = function(*arguments)
        except NOT_TRACEABLE as error:
            raise UsageError(
                f"learner.{name} cannot be compiled: it needs the value of an array while it is "
                "traced, as `if`, `int(...)`, `float(...)` and numpy do; use jnp, `jnp.where` or "
                f"`jax.lax.cond` instead ({_first_line(error)})"
            ) from error
        except AttributeError as error:
            if name == "sample" and isinstance(arguments[0], Mapping):
                raise UsageError(
                    "fit: dataset is a dict of arrays, but learner.sample draws from a Dataset: "
                    "pass `offline_mbrl.Dataset.from_arrays(arrays)`"
                ) from error
            raise
        checker(name, arguments, result)
        return result

    return traced


def _check_batch(name: str, arguments: tuple, batch: PyTree) -> None:
    del arguments
    if not jax.tree.leaves(batch):
        raise UsageError(f"learner.{name} returned {_kind(batch)} without arrays: return the batch")
    _require_arrays(f"learner.{name}", batch)


def _check_state(name: str, arguments: tuple, state: PyTree) -> None:
    del arguments
    _require_arrays(f"learner.{name}", state)


def _check_step(name: str, arguments: tuple, result: Any) -> None:
    if not isinstance(result, tuple) or len(result) != 2 or hasattr(result, "_fields"):
        raise UsageError(
            f"learner.{name} must return (state, metrics), but it returned {_kind(result)}"
        )
    state, metrics = result
    _require_same(f"learner.{name}", "state", arguments[0], state)
    _require_metrics(name, metrics)


def _check_refresh(name: str, arguments: tuple, result: Any) -> None:
    if not isinstance(result, tuple) or len(result) != 3 or hasattr(result, "_fields"):
        raise UsageError(
            f"learner.{name} must return (state, cache, metrics), but it returned {_kind(result)}"
        )
    state, cache, metrics = result
    _require_same(f"learner.{name}", "state", arguments[0], state)
    _require_same(f"learner.{name}", "cache", arguments[3], cache)
    _require_metrics(name, metrics)


def _check_metrics(name: str, arguments: tuple, metrics: Any) -> None:
    del arguments
    _require_metrics(name, metrics)


CHECKERS = {
    "sample": _check_batch,
    "init": _check_state,
    "step": _check_step,
    "refresh": _check_refresh,
    "validate": _check_metrics,
    "init_cache": _check_state,
}


# --- parts ---


def _require_arrays(function: str, tree: PyTree) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not hasattr(leaf, "dtype"):
            raise UsageError(
                f"{function} returned {_kind(leaf)} at {_name(path)}, where an array is needed: "
                "use jnp.asarray"
            )


def _require_same(function: str, argument: str, before: PyTree, after: PyTree) -> None:
    """The same structure, shapes and dtypes, so that updates can follow each other."""
    _require_arrays(function, after)
    shapes_before = _shapes(before)
    shapes_after = _shapes(after)
    for name in [*shapes_before, *shapes_after]:
        if shapes_before.get(name) != shapes_after.get(name):
            old = shapes_before.get(name, "absent")
            new = shapes_after.get(name, "absent")
            raise UsageError(
                f"{function} must return a {argument} of the same structure, shapes and dtypes, "
                f"but {argument}{name} was {old} and became {new}"
            )
    if jax.tree.structure(before) != jax.tree.structure(after):
        raise UsageError(
            f"{function} must return a {argument} of the same kind, but {_kind(before)} became "
            f"{_kind(after)}"
        )


def _require_metrics(name: str, metrics: Any) -> None:
    if not isinstance(metrics, Mapping):
        raise UsageError(
            f"learner.{name} must return its metrics as a dict of scalars by name, but it returned "
            f"{_kind(metrics)}"
        )
    for metric, value in metrics.items():
        if jnp.shape(value) != ():
            raise UsageError(
                f"learner.{name}: metric {metric!r} must be a scalar, but it has shape "
                f"{jnp.shape(value)}: take its mean"
            )


def _shapes(tree: PyTree) -> dict[str, str]:
    return {
        _name(path): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path)


def _kind(value: Any) -> str:
    """A value's type, in words."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = type(value).__name__
    if value is None:
        return "None"
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
