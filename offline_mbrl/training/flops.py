"""Floating point operations of matrix products and convolutions, counted from a program's jaxpr.

A compiler's own count leaves out what it hands to a library: on a GPU, convolutions and most
products. It also counts one turn of a loop. Here products and convolutions alone are counted, two
operations a multiplication with its addition; elementwise work, which no peak is stated in, is not.
"""

import itertools
import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from offline_mbrl.types import UsageError


def count(function: Callable, *arguments: Any) -> float:
    """FLOPs of one call.

    A scan counts all its turns, of a `cond` the branch with most counts, and of a convolution
    neither the multiplications with padding nor those with the zeros between dilated inputs, as
    XLA's count has it. As a compiler does, it counts once what is computed twice from the same
    values, and leaves out what no result depends on.

    Args:
      function: pure.
      *arguments: arrays or their shapes.

    Raises:
      UsageError: a loop whose number of turns the program does not say holds a product.
    """
    return float(of_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr))


def of_jaxpr(jaxpr: Any) -> int:
    """FLOPs of a jaxpr; see `count`."""
    program = _Program(values=itertools.count(), computed={}, sources={})
    inputs = (*jaxpr.constvars, *jaxpr.invars)
    variables: dict[Any, Hashable] = {variable: next(program.values) for variable in inputs}
    _number(program, jaxpr, variables)
    needed = {_value(program, variables, atom) for atom in jaxpr.outvars}
    pending = [*needed]
    total = 0
    counted = set()
    while pending:
        source = program.sources.get(pending.pop())
        if source is None or source in counted:
            continue
        counted.add(source)
        total += source.flops
        pending += [value for value in source.inputs if value not in needed]
        needed.update(source.inputs)
    return total


class _Source(NamedTuple):
    """What a value comes from."""

    number: int
    flops: int
    inputs: tuple[Hashable, ...]


class _Program(NamedTuple):
    """The values of a program; the fields are added to while it is read."""

    values: Iterator[int]
    computed: dict[Hashable, tuple[Hashable, ...]]  # operation and inputs -> results
    sources: dict[Hashable, _Source]  # value -> where it comes from


def _number(program: _Program, jaxpr: Any, variables: dict[Any, Hashable]) -> None:
    """Gives every variable its value: the same one where the same is computed from the same."""
    for equation in jaxpr.eqns:
        inputs = tuple(_value(program, variables, atom) for atom in equation.invars)
        called = _called(equation)
        if called is not None:
            inner = dict(zip(called.invars, inputs, strict=True))
            inner |= {variable: next(program.values) for variable in called.constvars}
            _number(program, called, inner)
            results = tuple(_value(program, inner, atom) for atom in called.outvars)
        else:
            results = _results(program, equation, inputs)
        variables.update(zip(equation.outvars, results, strict=True))


def _value(program: _Program, variables: dict[Any, Hashable], atom: Any) -> Hashable:
    if not hasattr(atom, "val"):  # not a literal
        return variables[atom]
    value = np.asarray(atom.val)
    return (value.tobytes(), str(value.dtype)) if value.ndim == 0 else next(program.values)


def _called(equation: Any) -> Any:
    """The jaxpr that an equation only calls, with its inputs and results; None for others."""
    if equation.primitive.name in ("scan", "cond", "while", *PRODUCTS):
        return None
    inner = [*subprograms(equation.params)]
    if len(inner) != 1 or len(inner[0].invars) != len(equation.invars):
        return None
    return inner[0] if len(inner[0].outvars) == len(equation.outvars) else None


def _results(
    program: _Program, equation: Any, inputs: tuple[Hashable, ...]
) -> tuple[Hashable, ...]:
    """The values of an equation's results, new ones but where it was computed before."""
    params = tuple(sorted((name, str(value)) for name, value in equation.params.items()))
    own = next(program.values) if any(True for _ in subprograms(equation.params)) else None
    key = (equation.primitive.name, params, inputs, own)  # loops and branches are never the same
    if key not in program.computed:
        results = tuple(next(program.values) for _ in equation.outvars)
        source = _Source(number=next(program.values), flops=_of_equation(equation), inputs=inputs)
        program.computed[key] = results
        program.sources.update(dict.fromkeys(results, source))
    return program.computed[key]


def _of_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name in PRODUCTS:
        return 2 * PRODUCTS[name](equation)
    inner = [of_jaxpr(jaxpr) for jaxpr in subprograms(params)]
    if name == "scan":
        return params["length"] * sum(inner)
    if name == "cond":
        return max(inner)
    if name == "while" and sum(inner):
        raise UsageError(
            "products inside a while loop cannot be counted, for how often it turns is not known: "
            "count a turn of its body"
        )
    return sum(inner)


def subprograms(params: Mapping[str, Any]) -> Iterator[Any]:
    """The jaxprs among an equation's parameters."""
    for value in params.values():
        for leaf in value if isinstance(value, tuple | list) else (value,):
            jaxpr = getattr(leaf, "jaxpr", leaf)
            if hasattr(jaxpr, "eqns"):
                yield jaxpr


# --- multiplications ---


def _of_product(equation: Any) -> int:
    """Of every entry of the result as many as there are contracted ones."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return math.prod(equation.outvars[0].aval.shape) * math.prod(shape[i] for i in contracted)


def _of_convolution(equation: Any) -> int:
    """Of every image and pair of channels one for each cell of the kernel that meets an entry."""
    image, kernel = (variable.aval.shape for variable in equation.invars)
    params = equation.params
    numbers = params["dimension_numbers"]
    batch, _, *image_axes = numbers.lhs_spec
    outputs, inputs, *kernel_axes = numbers.rhs_spec
    _, _, *result_axes = numbers.out_spec
    result = equation.outvars[0].aval.shape
    meetings = [
        _meetings(image[i], kernel[k], result[r], stride, padding[0], apart, spread)
        for i, k, r, stride, padding, apart, spread in zip(
            image_axes,
            kernel_axes,
            result_axes,
            params["window_strides"],
            params["padding"],
            params["lhs_dilation"],
            params["rhs_dilation"],
            strict=True,
        )
    ]
    images = image[batch] // params["batch_group_count"]
    return images * kernel[outputs] * kernel[inputs] * math.prod(meetings)


def _meetings(
    size: int, width: int, results: int, stride: int, padding: int, apart: int, spread: int
) -> int:
    """Pairs of a result and a cell of the kernel that meet an entry of the image, along an axis.

    Args:
      size: entries of the image.
      width: cells of the kernel.
      results: entries of the result.
      stride: of the kernel.
      padding: cells before the image.
      apart: distance of the image's entries.
      spread: distance of the kernel's cells.
    """
    place = stride * np.arange(results)[:, None] + spread * np.arange(width)[None] - padding
    return int(np.sum((place >= 0) & (place <= (size - 1) * apart) & (place % apart == 0)))


PRODUCTS: Mapping[str, Callable[[Any], int]] = {
    "dot_general": _of_product,
    "conv_general_dilated": _of_convolution,
}
