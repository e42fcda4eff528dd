"""Specs of problems: inferred from data, and converted from and to JSON."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from offline_mbrl.data import action_bounds, memory, trees
from offline_mbrl.types import BoundedActions, DiscreteActions, EnvironmentSpec, PyTree, UsageError


def spec_of(
    dataset: memory.Dataset,
    *,
    num_actions: int | None = None,
    gamma: float | None = None,
    horizon: int = 0,
    frame_stack: int = 1,
) -> EnvironmentSpec:
    """Infers the spec of a dataset, for example one from `Dataset.from_arrays`.

    Args:
      dataset: integer actions `[R]` are discrete; floating ones `[R, A]` are continuous and must
        lie in [-1, 1]. Their own units are those of its `action_bounds`, or else unknown.
      num_actions: number of discrete actions; None: the largest action of the data plus one.
      gamma: the problem's discount factor, if it has one.
      horizon: longest episode in steps; 0 when unknown.
      frame_stack: number of records that make one observation, joined along their last axis.

    Raises:
      UsageError: actions have a wrong shape or dtype, or lie outside their range.
    """
    action = np.asarray(dataset.action)
    starts = np.asarray(dataset.starts)
    if action.dtype.kind in "iu" and action.ndim == 1:
        largest = int(action[starts].max())
        kind = DiscreteActions(largest + 1 if num_actions is None else num_actions)
    elif action.dtype.kind == "f" and action.ndim == 2:
        if num_actions is not None:
            raise UsageError(
                f"num_actions={num_actions} was given, but the actions are {action.dtype}"
            )
        kind = _stated(dataset) or action_bounds.assumed(action.shape[1])
    else:
        raise UsageError(
            f"field 'action' has dtype {action.dtype} and shape {action.shape}: discrete actions "
            "must be integers [N], continuous ones floats [N, A]"
        )
    unit = action_bounds.assumed(kind.size) if isinstance(kind, BoundedActions) else kind
    outside = first_outside(unit, action, starts)
    if outside is not None:
        remedy = f"; {action_bounds.REMEDY}" if isinstance(kind, BoundedActions) else ""
        raise UsageError(
            f"field 'action', row {outside}: {action[outside]} is outside {describe_range(unit)}"
            f"{remedy}"
        )
    observation = stacked(observation_structure(dataset.observation), frame_stack)
    return EnvironmentSpec(
        observation=observation,
        action=kind,
        gamma=gamma,
        horizon=horizon,
        frame_stack=frame_stack,
    )


def _stated(dataset: memory.Dataset) -> BoundedActions | None:
    if dataset.action_bounds is None:
        return None
    low, high = np.asarray(dataset.action_bounds, float).tolist()
    return BoundedActions(tuple(low), tuple(high))


def first_outside(
    kind: DiscreteActions | BoundedActions, action: np.ndarray, rows: np.ndarray
) -> int | None:
    """The first row whose action lies outside the range, or None.

    Args:
      kind: the range.
      action: `[R]` or `[R, A]`. NaN counts as inside; other checks report it.
      rows: `[N]` rows to check.
    """
    action = action[rows]
    if isinstance(kind, DiscreteActions):
        outside = (action < 0) | (action >= kind.num_actions)
    else:
        low = np.asarray(kind.minimum, np.float32)
        high = np.asarray(kind.maximum, np.float32)
        slack = action_bounds.TOLERANCE * (high - low)
        outside = ((action < low - slack) | (action > high + slack)).any(axis=-1)
    return int(rows[np.argmax(outside)]) if outside.any() else None


def describe_range(kind: DiscreteActions | BoundedActions) -> str:
    """The range of actions in words."""
    if isinstance(kind, DiscreteActions):
        return f"0 .. {kind.num_actions - 1}"
    if len(set(kind.minimum)) == len(set(kind.maximum)) == 1:
        return f"[{kind.minimum[0]:g}, {kind.maximum[0]:g}]"
    return f"[{list(kind.minimum)}, {list(kind.maximum)}]"


def has_unit_bounds(kind: DiscreteActions | BoundedActions) -> bool:
    """Whether stored actions are in the units of learners: discrete, or in [-1, 1]."""
    return isinstance(kind, DiscreteActions) or (
        set(kind.minimum) == {-1.0} and set(kind.maximum) == {1.0}
    )


def observation_structure(observation: PyTree) -> PyTree:
    """Shapes and dtypes of one record of `[R, ...]` columns."""
    return jax.tree.map(
        lambda column: jax.ShapeDtypeStruct(column.shape[1:], column.dtype), observation
    )


def stacked(record: PyTree, frame_stack: int) -> PyTree:
    """What the policy sees `[..., C * frame_stack]` of records `[..., C]`, as structures."""
    return (
        _with_channels(record, lambda channels: channels * frame_stack)
        if frame_stack > 1
        else record
    )


def record_structure(spec: EnvironmentSpec) -> PyTree:
    """Shapes and dtypes of one record's observation: the inverse of `stacked`."""
    stack = spec.frame_stack
    return (
        _with_channels(spec.observation, lambda channels: channels // stack)
        if stack > 1
        else spec.observation
    )


def _with_channels(structure: PyTree, channels: Callable[[int], int]) -> PyTree:
    def resize(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*leaf.shape[:-1], channels(leaf.shape[-1])), leaf.dtype)

    return jax.tree.map(resize, structure)


# --- JSON ---


def to_json(spec: EnvironmentSpec) -> dict[str, Any]:
    """Converts a spec to plain JSON.

    `frame_stack` is left out where frames are not stacked, so that older manifests stay valid.
    """
    leaves = trees.flatten(spec.observation)
    observation = [
        [list(path), list(leaf.shape), np.dtype(leaf.dtype).name] for path, leaf in leaves.items()
    ]
    content = {
        "observation": observation,
        "action": action_to_json(spec.action),
        "gamma": spec.gamma,
        "horizon": spec.horizon,
    }
    return content | ({"frame_stack": spec.frame_stack} if spec.frame_stack > 1 else {})


def from_json(json: dict[str, Any]) -> EnvironmentSpec:
    """The inverse of `to_json`."""
    leaves = {
        tuple(path): jax.ShapeDtypeStruct(tuple(shape), np.dtype(dtype))
        for path, shape, dtype in json["observation"]
    }
    return EnvironmentSpec(
        observation=trees.unflatten(leaves),
        action=action_from_json(json["action"]),
        gamma=json["gamma"],
        horizon=json["horizon"],
        frame_stack=json.get("frame_stack", 1),
    )


def action_to_json(action: DiscreteActions | BoundedActions) -> dict[str, Any]:
    """The action part of `to_json`."""
    if isinstance(action, DiscreteActions):
        return {"num_actions": action.num_actions}
    bounds = {"minimum": list(action.minimum), "maximum": list(action.maximum)}
    return bounds | ({"assumed": True} if action.assumed else {})


def action_from_json(action: dict[str, Any]) -> DiscreteActions | BoundedActions:
    """The action part of `from_json`."""
    if "num_actions" in action:
        return DiscreteActions(action["num_actions"])
    return BoundedActions(
        tuple(action["minimum"]), tuple(action["maximum"]), action.get("assumed", False)
    )
