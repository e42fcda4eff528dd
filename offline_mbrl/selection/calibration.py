"""How far estimators are right on the user's own data: the log's own policies as targets.

Logs are often made by a policy that changed while it learned. Every second episode is set apart and
cut in their order into a few parts; a policy cloned from a part is a target whose value is known,
the part's mean logged return, and the estimators are fitted to the other episodes. A clone is not
its part's policy: what it loses by imitation counts as the estimators' error here, so that the
coverage that is measured is rather too low than too high.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from offline_mbrl.data import episodes
from offline_mbrl.ope import intervals
from offline_mbrl.selection import judging, metrics, weighting
from offline_mbrl.selection.comparison import voting
from offline_mbrl.selection.comparison.behavior import Logged, logged
from offline_mbrl.selection.judging import Judgement
from offline_mbrl.selection.records import Data, Settings
from offline_mbrl.types import Estimate, Key, UsageError

LEAST_EPISODES = 4  # of a part


class Measured(NamedTuple):
    """One estimator on the targets."""

    coverage: float  # share of the targets whose 95 % interval holds the logged return
    rank_correlation: float  # NaN for less than two targets, or where the values are equal
    bias: float  # mean of estimate minus logged return
    may_vote: float  # share of the targets on which it may vote


class Calibration(NamedTuple):
    """All estimators on the targets."""

    names: tuple[str, ...]  # of the targets
    values: tuple[Logged, ...]  # what their parts of the log returned
    judgement: Judgement
    estimators: dict[str, Measured]


def calibrate(
    data: Data,
    *,
    key: Key,
    estimators: Sequence[str] = judging.DEFAULT_ESTIMATORS,
    seeds: int = 4,
    settings: Settings = Settings(bootstrap=True),
    parts: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Measures estimators on targets cloned from parts of the log.

    Args:
      data: of `estimators.prepare`.
      key: of all fits.
      estimators: names of groups.
      seeds: fits of each.
      settings: how much is fitted.
      parts: targets.
      progress: as for `judge`.

    Raises:
      UsageError: there are too few episodes, or what `judge` raises.
    """
    others, targets = halves(data, parts)
    key_clone, key_judge = jax.random.split(key)
    learner, config = weighting.density_learner(data, settings)
    names = tuple(f"part {number} of {parts}" for number in range(1, parts + 1))
    candidates = {}
    for number, (name, target) in enumerate(zip(names, targets, strict=True)):
        key_part = jax.random.fold_in(key_clone, number)
        params = weighting.fit_density(learner, target, config.num_updates, key_part)
        candidates[name] = (learner.policy, params)
    judgement = judging.judge(
        candidates,
        others,
        key=key_judge,
        estimators=estimators,
        seeds=seeds,
        settings=settings,
        progress=progress,
    )
    values = tuple(logged(target) for target in targets)
    return Calibration(
        names=names,
        values=values,
        judgement=judgement,
        estimators=measure(judgement, dict(zip(names, values, strict=True))),
    )


def halves(data: Data, parts: int) -> tuple[Data, list[Data]]:
    """Every second episode to estimate by, and the others cut into parts in the log's order.

    Args:
      data: of `estimators.prepare`.
      parts: how many.

    Raises:
      UsageError: a part would have fewer than `LEAST_EPISODES` episodes.
    """
    ends = np.asarray(data.dataset.episode_end)
    last = ends[episodes.first_rows(data.dataset)]
    apart = last[1::2]
    if len(apart) < LEAST_EPISODES * parts:
        raise UsageError(
            f"calibration cuts every second episode into {parts} parts of at least "
            f"{LEAST_EPISODES}: {2 * LEAST_EPISODES * parts} episodes are needed, these data have "
            f"{len(last)}"
        )
    chunks = [_of_episodes(data, chunk) for chunk in np.array_split(apart, parts)]
    return _of_episodes(data, last[::2]), chunks


def measure(judgement: Judgement, values: dict[str, Logged]) -> dict[str, Measured]:
    """Each estimator beside the logged returns.

    Args:
      judgement: of the targets.
      values: what they returned, by name.
    """
    names = list(dict.fromkeys(name for own in judgement.policies for name in own.estimates))
    family_of = {name: family for family, own in voting.FAMILIES.items() for name in own}
    measured = {}
    for name in names:
        pairs = [
            (own.estimates[name], values[own.name].by_family()[family_of[name]])
            for own in judgement.policies
            if name in own.estimates
        ]
        measured[name] = _measured(pairs)
    return measured


def _measured(pairs: Sequence[tuple[Estimate, Estimate]]) -> Measured:
    estimates = np.array([float(estimate.value) for estimate, _ in pairs])
    truth = np.array([float(value.value) for _, value in pairs])
    errors = np.array([np.hypot(float(own.stderr), float(value.stderr)) for own, value in pairs])
    return Measured(
        coverage=float(np.mean(np.abs(estimates - truth) <= intervals.NORMAL_95 * errors)),
        rank_correlation=float(metrics.rank_correlation(truth, estimates)),
        bias=float(np.mean(estimates - truth)),
        may_vote=float(np.mean([voting.may_vote(estimate) for estimate, _ in pairs])),
    )


def _of_episodes(data: Data, last_rows: np.ndarray) -> Data:
    """The data of the episodes that end in these rows."""
    dataset = data.dataset
    ends = np.asarray(dataset.episode_end)

    def kept(rows: Any) -> np.ndarray:
        rows = np.asarray(rows)
        return rows[np.isin(ends[rows], last_rows)]

    dataset = dataset._replace(starts=kept(dataset.starts))
    if dataset.held_out is not None:
        dataset = dataset._replace(held_out=kept(dataset.held_out))
    return data._replace(dataset=dataset)
