"""Ensembles of one network: functions over one member's parameters, applied to all members."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from offline_mbrl.types import Key, Params


class Ensemble(NamedTuple):
    """All members at once; every leaf of the parameters has a leading axis [E]."""

    init: Callable[[Key], Params]
    apply: Callable[..., Any]  # (params, *inputs) -> outputs with a leading axis [E]


def make(init: Callable[[Key], Params], apply: Callable[..., Any], num_members: int) -> Ensemble:
    """An ensemble of independently initialized members that see the same inputs.

    Args:
      init: `(key) -> params` of one member.
      apply: `(params, *inputs) -> output` of one member.
      num_members: E.
    """

    def init_all(key: Key) -> Params:
        return jax.vmap(init)(jax.random.split(key, num_members))

    def apply_all(params: Params, *inputs: Any) -> Any:
        return jax.vmap(apply, (0, *[None] * len(inputs)))(params, *inputs)

    return Ensemble(init=init_all, apply=apply_all)
