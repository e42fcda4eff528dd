"""Off-policy estimators by name, ready to run on logged data.

Estimators that share a fit are one group, which is one piece of work. A group learns what it can from the data alone,
once for any number of policies, then estimates.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from offline_mbrl.data import memory, normalize, splits
from offline_mbrl.ope import support
from offline_mbrl.ope.ratios import dice, vpm
from offline_mbrl.ope.values import fqe_distributional
from offline_mbrl.selection import fits, weighting
from offline_mbrl.selection.fits import Data, Estimates, Policies, Settings
from offline_mbrl.types import Array, EnvironmentSpec, UsageError

__all__ = ["GROUPS", "Data", "Estimates", "Group", "Policies", "Settings", "estimate", "learn", "prepare"]


def prepare(
    dataset: memory.Dataset, spec: EnvironmentSpec, *, gamma: float | None = None, horizon: int | None = None,
    seed: int = 0, limits: support.Limits = support.Limits(),
) -> Data:  # fmt: skip
    """Holds out a tenth of the transitions, at random over all episodes so that none is lost, and measures the others.

    Args:
      dataset: on the host; flat observations, continuous actions.
      spec: of it.
      gamma: discount factor; the spec's when absent.
      horizon: steps of an episode; the spec's when absent, or the longest logged one.
      seed: of what is held out.
      limits: beyond which support counts as low.

    Raises:
      UsageError: gamma is not inside [0, 1), or the horizon is not positive.
    """
    longest = int(np.max(np.asarray(dataset.episode_end) - np.arange(len(dataset.episode_end))))
    gamma = spec.gamma if gamma is None else gamma
    horizon = (spec.horizon or longest) if horizon is None else horizon
    if not 0 <= gamma < 1 or horizon < 1:
        raise UsageError(f"gamma must be inside [0, 1) and the horizon at least 1 step, got {gamma} and {horizon}")
    split = splits.hold_out(dataset, fraction=0.1, most=10_000, seed=seed)
    known = normalize.statistics(split)._replace(transitions=normalize.transition_statistics(split))
    return Data(split, known, spec, gamma, horizon, limits)


def learn(group: str, data: Data, settings: Settings, *, seed: int) -> Any:
    """What a group learns from the data alone; hand it to `estimate` for any policies."""
    return GROUPS[group].learn(data, settings, jax.random.fold_in(jax.random.key(7), seed))


def estimate(group: str, learned: Any, data: Data, policies: Policies, settings: Settings, *, seed: int) -> Estimates:
    """The estimates of one group for all policies.

    Raises:
      UsageError: the data or the policies are not what these estimators need.
    """
    key = jax.random.fold_in(jax.random.key(8), seed)
    return GROUPS[group].estimate(learned, data, policies, settings, key)


# --- the list ---


class Group(NamedTuple):
    """Estimators of one piece of work."""

    names: tuple[str, ...]
    estimate: Callable[[Any, Data, Policies, Settings, Array], Estimates]  # the first is what `learn` gave
    learn: Callable[[Data, Settings, Array], Any] = lambda data, settings, key: ()
    resamples: bool = False  # whether each seed sees its own resample of the episodes where settings.bootstrap is true


def _alone(name: str, make: Callable, config: Callable[[Settings, float], Any]) -> Group:
    return Group((name,), functools.partial(fits.fitted_alone, name, make, config), resamples=True)


def _model(name: str, learn: Callable[[Data, Settings, Array], Any]) -> Group:
    return Group((name,), functools.partial(fits.rolled_out, name), learn)


WEIGHTED = tuple(f"{name}_is_{kind}" for kind in weighting.DENSITIES for name in weighting.WEIGHTINGS)
GROUPS: Mapping[str, Group] = {
    "model_ff": _model("model_ff", fits.learn_feedforward),
    "model_ar": _model("model_ar", fits.learn_masked),
    "fqe": Group(("fqe", "doubly_robust", "weighted_doubly_robust", "magic"), fits.fqe_and_robust,
                 resamples=True),
    "fqe_distributional": _alone("fqe_distributional", fqe_distributional.make, fits.distributional),
    "importance": Group(WEIGHTED, weighting.importance_weights, weighting.clone),
    "best_dice": _alone("best_dice", dice.make, functools.partial(fits.dice_config, "best_dice")),
    "dual_dice": _alone("dual_dice", dice.make, functools.partial(fits.dice_config, "dual_dice")),
    "vpm": _alone("vpm", vpm.make, fits.vpm_config),
}  # fmt: skip
