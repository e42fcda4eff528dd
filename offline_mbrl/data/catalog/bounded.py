"""Bounds of actions that are stated beside a dataset's name: `data.hdf5?actions=-2:2`.

`?actions=-2,-1:2,1` states those of each entry, `?actions=measured` takes those of the data.
"""

import hashlib
import json
from collections.abc import Sequence

import numpy as np

from offline_mbrl.data import action_bounds, audit, specs
from offline_mbrl.data.action_bounds import Stated
from offline_mbrl.data.store import read as store
from offline_mbrl.types import BoundedActions, UsageError

QUERY = "?actions="


def split(name: str) -> tuple[str, str]:
    """A name without its stated bounds, and these, or ""."""
    place, _, stated = name.partition(QUERY)
    return place, stated


def joined(name: str, flags: Sequence[str]) -> str:
    """A name with the bounds that `--action-bounds` gives.

    Args:
      name: of a dataset.
      flags: "measured", or least and largest: of all entries, or of each with commas between.

    Raises:
      UsageError: there is another number of them, or the name states bounds already.
    """
    if not flags:
        return name
    if split(name)[1]:
        raise UsageError(f"{name} states bounds of its actions already: leave out --action-bounds")
    if len(flags) != 2 and tuple(flags) != (action_bounds.MEASURED,):
        raise UsageError(
            "--action-bounds takes the least and the largest action, for example -2 2, or "
            f"{action_bounds.MEASURED}; got {' '.join(flags)}"
        )
    stated = name + QUERY + ":".join(flags)
    parse(split(stated)[1])
    return stated


def parse(text: str) -> Stated:
    """What a name states.

    Raises:
      UsageError: it is not understood.
    """
    if text == action_bounds.MEASURED:
        return text
    try:
        low, high = (tuple(float(entry) for entry in bound.split(",")) for bound in text.split(":"))
    except ValueError:
        raise UsageError(
            f"bounds of actions {text!r} are not understood: write LOW:HIGH, for example -2:2, or "
            f"-2,-1:2,1 for two entries, or {action_bounds.MEASURED}"
        ) from None
    return _single(low), _single(high)


def _single(bound: tuple[float, ...]) -> float | tuple[float, ...]:
    """The bound of all entries, or that of each."""
    return bound[0] if len(bound) == 1 else bound


def with_bounds(opened: store.Store, text: str) -> store.Store:
    """The store with these bounds in the place of its own, and its actions checked against them.

    Args:
      opened: whose actions are in their source's units.
      text: as `parse` takes it; "" leaves the store as it is.

    Raises:
      UsageError: the bounds are not understood, or the actions are discrete.
    """
    if not text:
        return opened
    manifest = opened.manifest
    if not isinstance(specs.action_from_json(manifest["spec"]["action"]), BoundedActions):
        raise UsageError(f"{manifest['name']} has discrete actions, which have no bounds to state")
    parts = {name: store.aligned(opened, name) for name in opened.columns}
    actions = [
        np.asarray(part.columns["action"])[audit.steps_taken(part)]
        for part in parts.values()
        if part
    ]
    kind = action_bounds.resolve(parse(text), np.concatenate(actions))
    action = specs.action_to_json(kind)
    identity = hashlib.sha256((manifest["fingerprint"] + json.dumps(action)).encode())
    health = {
        name: {**manifest["health"][name], **audit.health_of_actions(part, kind)}
        for name, part in parts.items()
        if part
    }
    changed = {
        "spec": {**manifest["spec"], "action": action},
        "health": {**manifest["health"], **health},
        "fingerprint": identity.hexdigest()[: len(manifest["fingerprint"])],
    }
    return opened._replace(manifest={**manifest, **changed})
