"""What a problem looks like, read off its data and kept as JSON."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from offline_mbrl.data import memory, trees
from offline_mbrl.types import BoundedActions, DiscreteActions, EnvironmentSpec, PyTree, UsageError

TOLERANCE = 1e-4  # float32 rounding of a squashed action may step over its bound


def spec_of(
    dataset: memory.Dataset,
    *,
    num_actions: int | None = None,
    gamma: float | None = None,
    horizon: int = 0,
    frame_stack: int = 1,
) -> EnvironmentSpec:
    """The spec of data that came without one, for example through `Dataset.from_arrays`.

    Args:
      dataset: integer actions `[R]` are discrete; floating ones `[R, A]` are continuous and must
        lie in [-1, 1].
      num_actions: of a discrete problem; left out, the largest action of the data plus one.
      gamma: the problem's discount factor, where it has one.
      horizon: longest episode in steps; 0 when unknown.
      frame_stack: how many records make what the policy sees, joined along their last axis
        (frames).

    Raises:
      UsageError: actions have a wrong shape or dtype, or lie outside their range.
    """
    action = np.asarray(dataset.action)
    taken = action[np.asarray(dataset.starts)]
    if action.dtype.kind in "iu" and action.ndim == 1:
        kind = DiscreteActions(int(taken.max()) + 1 if num_actions is None else num_actions)
    elif action.dtype.kind == "f" and action.ndim == 2:
        if num_actions is not None:
            raise UsageError(
                f"num_actions={num_actions} was given, but the actions are {action.dtype}"
            )
        kind = BoundedActions((-1.0,) * action.shape[1], (1.0,) * action.shape[1])
    else:
        raise UsageError(
            f"field 'action' has dtype {action.dtype} and shape {action.shape}: discrete actions "
            "must be integers [N], continuous ones floats [N, A]"
        )
    outside = first_outside(kind, action, np.asarray(dataset.starts))
    if outside is not None:
        raise UsageError(
            f"field 'action', row {outside}: {action[outside]} is outside {describe_range(kind)}"
        )
    observation = stacked(observation_structure(dataset.observation), frame_stack)
    return EnvironmentSpec(observation, kind, gamma, horizon, frame_stack)


def first_outside(
    kind: DiscreteActions | BoundedActions, action: np.ndarray, rows: np.ndarray
) -> int | None:
    """The first of `rows` whose action lies outside the range; NaN counts as inside (it is reported
    as NaN)."""
    taken = action[rows]
    if isinstance(kind, DiscreteActions):
        wrong = (taken < 0) | (taken >= kind.num_actions)
    else:
        low, high = np.asarray(kind.minimum, np.float32), np.asarray(kind.maximum, np.float32)
        slack = TOLERANCE * (high - low)
        wrong = ((taken < low - slack) | (taken > high + slack)).any(axis=-1)
    return int(rows[np.argmax(wrong)]) if wrong.any() else None


def describe_range(kind: DiscreteActions | BoundedActions) -> str:
    """The range of actions in words."""
    if isinstance(kind, DiscreteActions):
        return f"0 .. {kind.num_actions - 1}"
    if len(set(kind.minimum)) == len(set(kind.maximum)) == 1:
        return f"[{kind.minimum[0]:g}, {kind.maximum[0]:g}]"
    return f"[{list(kind.minimum)}, {list(kind.maximum)}]"


def has_unit_bounds(kind: DiscreteActions | BoundedActions) -> bool:
    """Whether learners can use the stored actions as they are."""
    return isinstance(kind, DiscreteActions) or (
        set(kind.minimum) == {-1.0} and set(kind.maximum) == {1.0}
    )


def to_unit_bounds(kind: BoundedActions, action: np.ndarray) -> np.ndarray:
    """Actions `[..., A]` in the simulator's units to [-1, 1]; an unbounded dimension stays as it
    is."""
    low, high = np.asarray(kind.minimum, np.float32), np.asarray(kind.maximum, np.float32)
    bounded = np.isfinite(low) & np.isfinite(high) & (high > low)
    low, high = np.where(bounded, low, -1), np.where(bounded, high, 1)
    return np.asarray((action - low) / (high - low) * 2 - 1, np.float32)


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
    resize = lambda leaf: jax.ShapeDtypeStruct(
        (*leaf.shape[:-1], channels(leaf.shape[-1])), leaf.dtype
    )  # noqa: E731
    return jax.tree.map(resize, structure)


# --- JSON ---


def to_json(spec: EnvironmentSpec) -> dict[str, Any]:
    """A spec as plain JSON; `frame_stack` only where frames are stacked, as in manifests from
    before there was one."""
    leaves = trees.flatten(spec.observation)
    observation = [
        [list(path), list(leaf.shape), np.dtype(leaf.dtype).name] for path, leaf in leaves.items()
    ]
    action = action_to_json(spec.action)
    told = {
        "observation": observation,
        "action": action,
        "gamma": spec.gamma,
        "horizon": spec.horizon,
    }
    return told | ({"frame_stack": spec.frame_stack} if spec.frame_stack > 1 else {})


def from_json(json: dict[str, Any]) -> EnvironmentSpec:
    """The spec that `to_json` wrote."""
    leaves = {
        tuple(p): jax.ShapeDtypeStruct(tuple(s), np.dtype(d)) for p, s, d in json["observation"]
    }
    return EnvironmentSpec(
        trees.unflatten(leaves),
        action_from_json(json["action"]),
        json["gamma"],
        json["horizon"],
        json.get("frame_stack", 1),
    )


def action_to_json(action: DiscreteActions | BoundedActions) -> dict[str, Any]:
    """The action part of `to_json`."""
    if isinstance(action, DiscreteActions):
        return {"num_actions": action.num_actions}
    return {"minimum": list(action.minimum), "maximum": list(action.maximum)}


def action_from_json(action: dict[str, Any]) -> DiscreteActions | BoundedActions:
    """The action part of `from_json`."""
    if "num_actions" in action:
        return DiscreteActions(action["num_actions"])
    return BoundedActions(tuple(action["minimum"]), tuple(action["maximum"]))
