"""Ensembles of one network: a pair of functions over one member's parameters becomes a pair over all of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from offline_mbrl.types import Array, PyTree


class Ensemble(NamedTuple):
    """All members at once; every leaf of the parameters has a leading axis [E]."""

    init: Callable[[Array], PyTree]  # (key) -> params
    apply: Callable[..., Any]  # (params, *inputs) -> what each member says, with a leading axis [E]


def make(init: Callable[[Array], PyTree], apply: Callable[..., Any], num_members: int) -> Ensemble:
    """An ensemble of independently initialized members that see the same inputs.

    Args:
      init: `(key) -> params` of one member.
      apply: `(params, *inputs) -> output` of one member.
      num_members: E.
    """
    return Ensemble(
        init=lambda key: jax.vmap(init)(jax.random.split(key, num_members)),
        apply=lambda params, *inputs: jax.vmap(apply, (0, *[None] * len(inputs)))(params, *inputs),
    )
