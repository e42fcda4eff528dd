"""Windows of experience as points of a diffusion model.

Row t of a window holds one step's observation, action, reward and discount, standardized. A
window of w rows is w - 1 transitions: the action of the last row leads out of it, so the next
window of a longer rollout starts there.

Departure from Diffuser (arXiv:2205.09991): rewards and discounts can be modelled, and what lies
past the end of an episode counts as `Trajectory` says: absorbing after a true terminal, nothing
after a truncation.
"""

from typing import NamedTuple

import chex
import jax.numpy as jnp
import numpy as np

from offline_mbrl.types import Array, PyTree, Trajectory, UsageError

ABSORBED = 0.5  # discounts below it are ends


class Layout(NamedTuple):
    """The entries of a row: observation, action, then reward and discount where they are modelled.

    D is the number of entries.
    """

    observation_size: int
    action_size: int
    reward: bool = False
    discount: bool = False  # as 1 and -1; for data in which episodes terminate

    @property
    def size(self) -> int:
        """D."""
        return self.observation_size + self.action_size + self.reward + self.discount

    @property
    def observation(self) -> slice:
        """The entries of the observation."""
        return slice(0, self.observation_size)

    @property
    def action(self) -> slice:
        """The entries of the action."""
        return slice(self.observation_size, self.observation_size + self.action_size)

    @property
    def reward_entry(self) -> int:
        """The entry of the reward."""
        return self.observation_size + self.action_size


class Scale(NamedTuple):
    """Shift and scale of a row's entries: `standardized = (raw - mean) / std`."""

    mean: Array  # [D]
    std: Array  # [D]


# --- rows ---


def scale_of(layout: Layout, statistics: PyTree) -> Scale:
    """Means and deviations of a layout's entries.

    Args:
      layout: the entries.
      statistics: `data.normalize.Statistics`.

    Raises:
      UsageError: there are no statistics of transitions.
    """
    transitions = getattr(statistics, "transitions", None)
    if transitions is None:
        raise UsageError(
            "models of windows are normalized by statistics of transitions, but "
            "`statistics.transitions` is empty: pass data.normalize.full_statistics(dataset)"
        )

    def column(name: str) -> Array:
        parts = [
            getattr(transitions, f"observation_{name}"),
            getattr(transitions, f"action_{name}"),
        ]
        if layout.reward:
            parts.append(jnp.reshape(getattr(transitions, f"reward_{name}"), 1))
        if layout.discount:
            parts.append(jnp.full(1, 0.5))  # 1 and -1 for 1 and 0
        return jnp.concatenate([jnp.asarray(part, jnp.float32) for part in parts])

    return Scale(mean=column("mean"), std=column("std"))


def packed(layout: Layout, scale: Scale, trajectory: Trajectory) -> Array:
    """The T rows `[T, D]` of one trajectory with flat observations; the last one is left out."""
    columns = [trajectory.observation[:-1], trajectory.action]
    if layout.reward:
        columns.append(trajectory.reward[:, None])
    if layout.discount:
        columns.append(trajectory.discount[:, None])
    rows = jnp.concatenate(columns, axis=1)
    chex.assert_axis_dimension(rows, 1, layout.size)
    return (rows - scale.mean[None]) / scale.std[None]


def raw(scale: Scale, window: Array) -> Array:
    """Rows `[w, D]` in the units of the data."""
    return window * scale.std[None] + scale.mean[None]


def unpacked(layout: Layout, scale: Scale, window: Array) -> Trajectory:
    """The w - 1 transitions of w rows. Entries that are not modelled are 0, discounts 1.

    The step whose discount is below one half ends the episode: afterwards the mask and all rewards
    are 0, and the observation repeats.

    Args:
      layout: the entries.
      scale: of the entries.
      window: `[w, D]`.
    """
    rows = raw(scale, window)
    steps = rows[:-1]
    entry = layout.reward_entry
    reward = steps[:, entry] if layout.reward else jnp.zeros(len(steps))
    continues = steps[:, -1] >= ABSORBED if layout.discount else jnp.ones(len(steps), bool)
    discount = jnp.cumprod(continues.astype(rows.dtype))
    mask = jnp.concatenate([jnp.ones(1, rows.dtype), discount[:-1]])
    last = jnp.sum(mask).astype(int)  # the row of the last observation
    return Trajectory(
        observation=rows[jnp.minimum(jnp.arange(len(rows)), last), layout.observation],
        action=steps[:, layout.action],
        reward=mask * reward,
        discount=discount,
        mask=mask,
    )


def entry_weights(
    layout: Layout, length: int, *, decay: float = 1.0, first_action: float = 1.0
) -> np.ndarray:
    """Weights `[w, D]` of the entries in the loss: Diffuser's.

    `decay^t`, divided by its mean over the rows; the first action's entries have their own.

    Args:
      layout: the entries.
      length: w.
      decay: of the weight, from row to row.
      first_action: the weight of the first action's entries; Diffuser's is 10 for locomotion.

    Source: the released code of arXiv:2205.09991.
    """
    rows = decay ** np.arange(length)
    weights = np.tile((rows / rows.mean())[:, None], (1, layout.size)).astype(np.float32)
    weights[0, layout.action] = first_action
    return weights


def happened(trajectory: Trajectory) -> Array:
    """1 for the rows `[T]` that count: steps of the episode, and those of its absorbing end."""
    return jnp.where(trajectory.discount == 0, 1.0, trajectory.mask)


# --- entries that a sampler is given ---


def first_observation(layout: Layout, length: int) -> np.ndarray:
    """The entries `[w, D]` of the observation that a window starts at."""
    return observation_at(layout, length, 0)


def observation_at(
    layout: Layout, length: int, row: int, entries: tuple[int, ...] | None = None
) -> np.ndarray:
    """Entries `[w, D]` of the observation in a row.

    Args:
      layout: the entries of a row.
      length: w.
      row: -1 is the last one, a goal's.
      entries: of the observation, such as a position; None: all of them.
    """
    fixed = np.zeros((length, layout.size), bool)
    columns = np.arange(layout.observation_size)
    fixed[row, columns if entries is None else columns[list(entries)]] = True
    return fixed


def first_actions(layout: Layout, length: int, num_actions: int = 1) -> np.ndarray:
    """The entries `[w, D]` of the first actions."""
    fixed = np.zeros((length, layout.size), bool)
    fixed[:num_actions, layout.action] = True
    return fixed
