"""Which of several policies to deploy, by estimates from logged data alone.

data = selection.prepare(dataset, spec, gamma=0.99)
judgement = selection.judge({"sac": (policy, params), ...}, data, key=jax.random.key(0))
print(selection.advice(judgement))

Every policy is judged by the families of estimators that may vote on it (`voting`), drawn together
with the others and with the logged behavior (`joint`). Chosen is the policy whose gain over the
behavior has the largest lower bound; the behavior, where no gain is more likely than not; and
nothing where no family may vote.
"""

import collections
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax

from offline_mbrl.ope import intervals, support
from offline_mbrl.selection import candidates as candidate_policies
from offline_mbrl.selection.candidates import Candidates
from offline_mbrl.selection.comparison import joint, voting
from offline_mbrl.selection.comparison.behavior import Logged, logged
from offline_mbrl.selection.comparison.joint import Standing
from offline_mbrl.selection.estimators import Group, lookup
from offline_mbrl.selection.records import Data, Settings, stack, unstack
from offline_mbrl.types import Estimate, Key

DEFAULT_ESTIMATORS = ("model_ff", "fqe", "importance")
BEHAVIOR = "the behavior"  # chosen where no policy is more likely better than worse than it
SHORTLIST = 0.8  # probability that the policies to deploy together hold the best


class Judged(NamedTuple):
    """One policy."""

    name: str
    estimates: dict[str, Estimate]  # by estimator, over its seeds
    verdict: support.Verdict
    votes: dict[str, str]  # family -> the estimator that votes for it
    standing: Standing | None  # None where no family may vote


class Judgement(NamedTuple):
    """All policies beside each other."""

    behavior: Logged
    policies: tuple[Judged, ...]  # first choice first; those without a standing last
    chosen: str | None  # a policy's name, `BEHAVIOR`, or None where nothing can be said
    # The fewest first choices that hold the best of all judged policies with 80 %.
    shortlist: tuple[str, ...]
    beaten: dict[str, float]  # probability that the first choice is better, for each of the others


def judge(
    candidates: Candidates,
    data: Data,
    *,
    key: Key,
    estimators: Sequence[str] = DEFAULT_ESTIMATORS,
    seeds: int = 4,
    settings: Settings = Settings(bootstrap=True),
    progress: Callable[[int, int], None] | None = None,
) -> Judgement:
    """Judges all policies, the first choice first.

    Args:
      candidates: (policy, parameters) by name. Those with the same functions and parameters of the
        same shapes are evaluated in one compiled call.
      data: of `estimators.prepare`; its limits decide when support is low.
      key: of all fits; seed s folds s into it.
      estimators: names of groups in `GROUPS`.
      seeds: fits of each estimator. What they differ by joins the interval, which is the wider the
        fewer they are.
      settings: how much each estimator is fitted.
      progress: called with (fits done, fits in all) after each.

    Raises:
      UsageError: no policy, estimator or seed; an unknown estimator; a policy that does not fit the
        data or is not what an estimator needs; or a fit that failed.
    """
    groups = {name: lookup(name) for name in estimators}
    candidate_policies.require(candidates, groups, data, seeds)
    fits = _fits(candidates, data, groups, key, seeds, settings, progress)
    resampled = {
        estimator
        for group in groups.values()
        if settings.bootstrap and group.resamples
        for estimator in group.names
    }
    estimates = {
        name: {
            estimator: over_seeds(of_seeds, resampled=estimator in resampled)
            for estimator, of_seeds in by_estimator.items()
        }
        for name, by_estimator in fits.items()
    }
    return judgement(estimates, logged(data), data.limits)


def _fits(
    candidates: Candidates,
    data: Data,
    groups: Mapping[str, Group],
    key: Key,
    seeds: int,
    settings: Settings,
    progress: Callable[[int, int], None] | None,
) -> dict[str, dict[str, list[Estimate]]]:
    """Policy -> estimator -> an estimate for each seed."""
    policy_groups = candidate_policies.grouped(candidates, data.spec)
    pieces = list(itertools.product(groups, range(seeds)))
    collected: dict[str, dict[str, list[Estimate]]] = {
        name: collections.defaultdict(list) for name in candidates
    }
    for done, (group_name, seed) in enumerate(pieces, 1):
        group = groups[group_name]
        key_learn, key_estimate = jax.random.split(jax.random.fold_in(key, seed))
        learned = group.learn(data, settings, key_learn)
        for policy_group in policy_groups:
            batch = group.estimate(learned, data, policy_group.policies, settings, key_estimate)
            for estimator, stacked in jax.device_get(batch).items():
                for name, estimate in zip(policy_group.names, unstack(stacked), strict=True):
                    collected[name][estimator].append(estimate)
        if progress is not None:
            progress(done, len(pieces))
    return collected


def judgement(
    estimates: Mapping[str, dict[str, Estimate]],
    behavior: Logged,
    limits: support.Limits = support.Limits(),
) -> Judgement:
    """What estimates say of policies together.

    Args:
      estimates: policy -> estimator -> estimate.
      behavior: returns of the logged episodes.
      limits: beyond which support counts as low.
    """
    votes = {name: voting.votes(by_estimator) for name, by_estimator in estimates.items()}
    voted = {
        name: {family: estimates[name][estimator] for family, estimator in by_family.items()}
        for name, by_family in votes.items()
        if by_family
    }
    together = _together(voted, behavior)
    order = [*together.standings, *(name for name in estimates if name not in voted)]
    judged = tuple(
        Judged(
            name=name,
            estimates=estimates[name],
            verdict=verdict(estimates[name], limits),
            votes=votes[name],
            standing=together.standings.get(name),
        )
        for name in order
    )
    return Judgement(
        behavior=behavior,
        policies=judged,
        chosen=_chosen(judged),
        shortlist=together.shortlist,
        beaten=together.beaten,
    )


class _Together(NamedTuple):
    """Policies with a vote beside each other."""

    standings: dict[str, Standing]  # first choice first
    shortlist: tuple[str, ...]
    beaten: dict[str, float]


def _together(voted: Mapping[str, Mapping[str, Estimate]], behavior: Logged) -> _Together:
    if not voted:
        return _Together(standings={}, shortlist=(), beaten={})
    names = list(voted)
    draws = joint.draw(voted, behavior.by_family())
    standings = joint.standings(draws)
    rows = sorted(range(len(names)), key=lambda row: -standings[row].least_gain)
    order = [names[row] for row in rows]
    return _Together(
        standings={names[row]: standings[row] for row in rows},
        shortlist=tuple(order[: joint.shortlist(draws, rows, SHORTLIST)]),
        beaten=dict(zip(order[1:], joint.larger(draws, rows), strict=True)),
    )


def _chosen(judged: Sequence[Judged]) -> str | None:
    first = judged[0]
    if first.standing is None:
        return None
    likely_better = any(
        policy.standing is not None and policy.standing.better > 0.5 for policy in judged
    )
    return first.name if likely_better else BEHAVIOR


# --- several fits, several estimators ---


def over_seeds(fits: Sequence[Estimate], *, resampled: bool) -> Estimate:
    """One estimate of several fits; see `intervals.combine`."""
    if len(fits) == 1:
        return fits[0]
    return intervals.combine(stack(list(fits)), resampled=resampled)


def verdict(estimates: Mapping[str, Estimate], limits: support.Limits) -> support.Verdict:
    """The verdicts of all estimators of one policy together.

    Each reason stands once, with the estimators that give it.
    """
    estimators_of: dict[str, list[str]] = collections.defaultdict(list)
    for name, estimate in estimates.items():
        for reason in support.verdict(estimate.diagnostics, limits).reasons:
            estimators_of[reason].append(name)
    reasons = tuple(f"{', '.join(names)}: {reason}" for reason, names in estimators_of.items())
    return support.Verdict(low_support=bool(reasons), reasons=reasons)
