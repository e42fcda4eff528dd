"""Floating point operations of matrix products and convolutions, counted from a program's jaxpr.

A compiler's own count leaves out what it hands to a library: on a GPU, convolutions and most
products. It also counts one turn of a loop. Here products and convolutions alone are counted, two
operations a multiplication with its addition; elementwise work, which no peak is stated in, is not.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from offline_mbrl.types import UsageError


def count(function: Callable, *arguments: Any) -> float:
    """FLOPs of one call.

    A scan counts all its turns, of a `cond` the branch with most counts, and of a convolution
    neither the multiplications with padding nor those with the zeros between dilated inputs, as
    XLA's count has it.

    Args:
      function: pure.
      *arguments: arrays or their shapes.

    Raises:
      UsageError: a loop whose number of turns the program does not say holds a product.
    """
    return float(of_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr))


def of_jaxpr(jaxpr: Any) -> int:
    """FLOPs of a jaxpr; see `count`."""
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


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
