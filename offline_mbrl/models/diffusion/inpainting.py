"""Inpainting: denoisers of the entries that are not fixed, given those that are.

Known entries never carry noise, so a sampler need not see them: it draws the free ones as a vector.
That is what the released code of Diffuser (arXiv:2205.09991) does when it overwrites fixed entries
after every step.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from offline_mbrl.models.diffusion.denoisers import Denoiser
from offline_mbrl.models.diffusion.levels import Level
from offline_mbrl.types import Array


class Free(NamedTuple):
    """The entries of a window that a sampler draws, and how they become a whole window."""

    fixed: np.ndarray  # [w, D] bool
    take: Callable[[Array], Array]  # (window [w, D]) -> [n], row by row
    # (free entries [n], window [w, D] whose fixed entries count) -> [w, D]
    merge: Callable[[Array, Array], Array]


def free(fixed: np.ndarray) -> Free:
    """The entries that are not fixed, as vectors `[n]`.

    Args:
      fixed: `[w, D]` bool, on the host.
    """
    rows, columns = np.nonzero(~fixed)

    def take(window: Array) -> Array:
        return window[rows, columns]

    def merge(entries: Array, window: Array) -> Array:
        return jnp.asarray(window, entries.dtype).at[rows, columns].set(entries)

    return Free(fixed=fixed, take=take, merge=merge)


def inpainted(denoiser: Denoiser, entries: Free, window: Array) -> Denoiser:
    """A denoiser of the free entries `[n]` alone, given the others.

    The denoiser reads the fixed entries clean at every level. That is exact where it was trained so
    (arXiv:2205.09991, appendix C), and an approximation for entries that it never read clean.

    Args:
      denoiser: of windows `[w, D]`.
      entries: which are free.
      window: `[w, D]` whose fixed entries count.
    """

    def denoise(x: Array, level: Level) -> Array:
        return entries.take(denoiser(entries.merge(x, window), level))

    return denoise
