"""Configurations of the learned estimators: the published ones, but for fits that are shorter.

A fit with fewer updates than the published one keeps neither its step sizes nor its lags, for then
values would not travel over the effective horizon `1 / (1 - gamma)`: lags are such that they travel
over several, and the learning rate is larger.
"""

import math
from typing import Any

from offline_mbrl.ope import convergence
from offline_mbrl.ope.ratios import dice, vpm
from offline_mbrl.ope.values import fqe, fqe_distributional
from offline_mbrl.selection.records import Settings

LEARNING_RATE = 1e-3  # of Adam, in fits that are shorter than the published ones
# Effective horizons that a fit of values has backups for: exp(-8) of where it began is left.
BACKUP_HORIZONS = 8.0
# Updates of a power step: below 25 steps are not finished on the corridor of `vpm`'s tests.
POWER_PERIODS = (10, 50)


def fqe_config(settings: Settings, gamma: float) -> fqe.Config:
    """Settings of fitted values."""
    published = fqe.Config()
    num_updates = settings.fqe_updates
    tau = _backups(gamma) / num_updates
    return fqe.Config(
        **_values(settings, num_updates, gamma),
        tau=min(max(published.tau, tau), 1.0),
        learning_rate=_learning_rate(published.learning_rate, num_updates, published.num_updates),
    )


def distributional_config(settings: Settings, gamma: float) -> fqe_distributional.Config:
    """Settings of distributional fitted values."""
    published = fqe_distributional.Config()
    num_updates = settings.distributional_updates
    period = math.floor(num_updates / _backups(gamma))
    return fqe_distributional.Config(
        **_values(settings, num_updates, gamma),
        target_period=max(min(published.target_period, period), 1),
        learning_rate=_learning_rate(published.learning_rate, num_updates, published.num_updates),
    )


def best_dice_config(settings: Settings, gamma: float) -> dice.Config:
    """Settings of BestDICE."""
    published = dice.Config(**dice.PRESETS["best_dice"])
    transitions = settings.ratio_updates * settings.ratio_batch
    rate = _learning_rate(
        published.nu_learning_rate, transitions, published.num_updates * published.batch_size
    )
    return dice.Config(
        **{
            **dice.PRESETS["best_dice"],
            **_ratios(settings, gamma),
            "nu_learning_rate": rate,
            "zeta_learning_rate": rate,
        }
    )


def dual_dice_config(settings: Settings, gamma: float) -> dice.Config:
    """Settings of DualDICE."""
    return dice.Config(**{**dice.PRESETS["dual_dice"], **_ratios(settings, gamma)})


def vpm_config(settings: Settings, gamma: float) -> vpm.Config:
    """Settings of the power method: as many updates a power step as halved ones leave."""
    least, most = POWER_PERIODS
    flow_steps = convergence.PLANNED_HORIZONS / (1.0 - gamma)
    period = math.floor(settings.ratio_updates / (2 * flow_steps))
    return vpm.Config(**_ratios(settings, gamma), power_period=min(max(period, least), most))


def _backups(gamma: float) -> float:
    """How many a fit of values is planned for, at least."""
    return BACKUP_HORIZONS / (1.0 - gamma)


def _learning_rate(published: float, size: int, published_size: int) -> float:
    return LEARNING_RATE if size < published_size else published


def _values(settings: Settings, num_updates: int, gamma: float) -> dict[str, Any]:
    """Settings that fits of values have in common."""
    return {
        "num_updates": num_updates,
        "hidden_layers": settings.fqe_layers,
        "gamma": gamma,
        "bootstrap": settings.bootstrap,
    }


def _ratios(settings: Settings, gamma: float) -> dict[str, Any]:
    """Settings that fits of density ratios have in common."""
    return {
        "num_updates": settings.ratio_updates,
        "batch_size": settings.ratio_batch,
        "gamma": gamma,
        "hidden_layers": settings.ratio_layers,
        "bootstrap": settings.bootstrap,
    }
