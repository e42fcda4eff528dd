"""Off-policy estimators by name, ready to run on logged data.

Estimators that share a fit are one group, which is one piece of work. A group learns what it can
from the data alone, once for any number of policies, then estimates. Another estimator is one entry
of `GROUPS`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from offline_mbrl.data import memory, normalize, splits
from offline_mbrl.ope import support
from offline_mbrl.ope.ratios import dice, vpm
from offline_mbrl.ope.values import fqe_distributional
from offline_mbrl.selection import configs, fits, weighting
from offline_mbrl.selection.records import (
    Data,
    EstimateFn,
    Estimates,
    LearnFn,
    Policies,
    Settings,
)
from offline_mbrl.types import EnvironmentSpec, Key, UsageError

__all__ = [
    "GROUPS",
    "Data",
    "Estimates",
    "Group",
    "Policies",
    "Settings",
    "estimate",
    "learn",
    "lookup",
    "prepare",
]


def _learn_nothing(data: Data, settings: Settings, key: Key) -> Any:
    del data, settings, key
    return None


class Group(NamedTuple):
    """Estimators of one piece of work."""

    names: tuple[str, ...]
    estimate: EstimateFn
    learn: LearnFn = _learn_nothing  # its result is the first argument of `estimate`
    # Whether each seed sees its own resample of the episodes where settings.bootstrap is true.
    resamples: bool = False
    needs_density: bool = False  # whether policies need a log_prob
    takes_actors: bool = False  # whether policies may have a memory


GROUPS: Mapping[str, Group] = {
    "model_ff": Group(
        names=("model_ff",),
        estimate=fits.rolled_out("model_ff"),
        learn=fits.learn_feedforward,
        takes_actors=True,
    ),
    "model_ar": Group(
        names=("model_ar",),
        estimate=fits.rolled_out("model_ar"),
        learn=fits.learn_masked,
        takes_actors=True,
    ),
    "model_coupled": Group(
        names=("model_coupled",),
        estimate=fits.rolled_out("model_coupled"),
        learn=fits.learn_coupled,
        takes_actors=True,
    ),
    "fqe": Group(
        names=("fqe", "doubly_robust", "weighted_doubly_robust", "magic"),
        estimate=fits.fqe_and_robust,
        resamples=True,
    ),
    "fqe_distributional": Group(
        names=("fqe_distributional",),
        estimate=fits.fitted_alone(
            "fqe_distributional", fqe_distributional.make, configs.distributional_config
        ),
        resamples=True,
    ),
    "importance": Group(
        names=weighting.NAMES,
        estimate=weighting.importance_weights,
        learn=weighting.clone,
        needs_density=True,
    ),
    "best_dice": Group(
        names=("best_dice",),
        estimate=fits.fitted_alone("best_dice", dice.make, configs.best_dice_config),
        resamples=True,
    ),
    "dual_dice": Group(
        names=("dual_dice",),
        estimate=fits.fitted_alone("dual_dice", dice.make, configs.dual_dice_config),
        resamples=True,
    ),
    "vpm": Group(
        names=("vpm",),
        estimate=fits.fitted_alone("vpm", vpm.make, configs.vpm_config),
        resamples=True,
    ),
}


def lookup(name: str) -> Group:
    """The group of this name.

    Raises:
      UsageError: it is unknown.
    """
    if name not in GROUPS:
        raise UsageError(f"unknown estimator {name!r}: choose from {', '.join(GROUPS)}")
    return GROUPS[name]


def prepare(
    dataset: memory.Dataset,
    spec: EnvironmentSpec,
    *,
    gamma: float | None = None,
    horizon: int | None = None,
    seed: int = 0,
    limits: support.Limits = support.Limits(),
) -> Data:
    """Holds out a tenth of the transitions and measures the others.

    They are drawn over all episodes, so that no episode is lost.

    Args:
      dataset: on the host; flat observations. Models need continuous actions, the other estimators
        take discrete ones too.
      spec: of it.
      gamma: discount factor; None: the spec's.
      horizon: steps of an episode; None: the spec's, or the longest logged one.
      seed: of the choice of held-out transitions.
      limits: beyond which support counts as low.

    Raises:
      UsageError: there is no gamma or it is not inside [0, 1), or the horizon is not positive.
    """
    gamma = spec.gamma if gamma is None else gamma
    if gamma is None:
        raise UsageError(
            "the discount factor of the returns is unknown: these data name none; pass gamma, for "
            "example 0.99"
        )
    if horizon is None:
        ends = np.asarray(dataset.episode_end)
        horizon = spec.horizon or int(np.max(ends - np.arange(len(ends))))
    if not 0 <= gamma < 1 or horizon < 1:
        raise UsageError(
            "gamma must be inside [0, 1) and the horizon at least 1 step, got "
            f"{gamma} and {horizon}"
        )
    split = splits.hold_out(dataset, fraction=0.1, most=10_000, seed=seed)
    return Data(
        dataset=split,
        statistics=normalize.full_statistics(split),
        spec=spec,
        gamma=gamma,
        horizon=horizon,
        limits=limits,
    )


def learn(group: str, data: Data, settings: Settings, *, seed: int) -> Any:
    """What a group learns from the data alone; `estimate` takes it for any policies.

    Args:
      group: name in `GROUPS`.
      data: of `prepare`.
      settings: how much is fitted.
      seed: of the fit.

    Raises:
      UsageError: a fit failed.
    """
    return GROUPS[group].learn(data, settings, jax.random.fold_in(jax.random.key(7), seed))


def estimate(
    group: str, learned: Any, data: Data, policies: Policies, settings: Settings, *, seed: int
) -> Estimates:
    """The estimates of one group for all policies.

    Args:
      group: name in `GROUPS`.
      learned: what `learn` returned.
      data: of `prepare`.
      policies: P of one kind.
      settings: how much is fitted.
      seed: of the fit.

    Raises:
      UsageError: the data or the policies are not what these estimators need.
    """
    key = jax.random.fold_in(jax.random.key(8), seed)
    return GROUPS[group].estimate(learned, data, policies, settings, key)
