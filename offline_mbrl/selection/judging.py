"""Which of several policies to deploy, by estimates from logged data alone.

data = selection.prepare(dataset, spec, gamma=0.99)
judged = selection.judge({"sac": (policy, params), ...}, data, key=jax.random.key(0))
print(selection.advice(judged))
"""

import collections
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from offline_mbrl import policies as policy_functions
from offline_mbrl.ope import intervals, support
from offline_mbrl.selection.estimators import GROUPS, Group, lookup
from offline_mbrl.selection.records import Data, Policies, Settings, stack, unstack
from offline_mbrl.types import (
    Actor,
    BoundedActions,
    EnvironmentSpec,
    Estimate,
    Key,
    Params,
    Policy,
    UsageError,
)

DEFAULT_ESTIMATORS = ("model_ff", "fqe", "importance")
Candidates = Mapping[str, tuple[Policy | Actor, Params]]  # policies by name, parameters of one each


class Judged(NamedTuple):
    """One policy."""

    name: str
    estimates: dict[str, Estimate]  # by estimator, over its seeds
    verdict: support.Verdict
    rank: float  # mean over estimators; 1 is best


class PolicyGroup(NamedTuple):
    """Policies that one function acts with."""

    names: tuple[str, ...]  # P
    policies: Policies


def judge(
    candidates: Candidates,
    data: Data,
    *,
    key: Key,
    estimators: Sequence[str] = DEFAULT_ESTIMATORS,
    seeds: int = 4,
    settings: Settings = Settings(bootstrap=True),
    progress: Callable[[int, int], None] | None = None,
) -> list[Judged]:
    """All policies, best mean rank first.

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
    _require_candidates(candidates, groups, data, seeds)
    policy_groups = grouped(candidates, data.spec)
    pieces = list(itertools.product(groups, range(seeds)))
    # policy -> estimator -> an estimate for each seed
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
    resampled = {
        estimator
        for group in groups.values()
        if settings.bootstrap and group.resamples
        for estimator in group.names
    }
    estimates = {
        name: {
            estimator: over_seeds(fits, resampled=estimator in resampled)
            for estimator, fits in by_estimator.items()
        }
        for name, by_estimator in collected.items()
    }
    return ranked(estimates, data.limits)


def ranked(
    estimates: Mapping[str, dict[str, Estimate]], limits: support.Limits = support.Limits()
) -> list[Judged]:
    """Policies with their verdicts, best mean rank first.

    Args:
      estimates: policy -> estimator -> estimate.
      limits: beyond which support counts as low.
    """
    ranks = mean_ranks(estimates)
    judged = [
        Judged(
            name=name,
            estimates=by_estimator,
            verdict=verdict(by_estimator, limits),
            rank=ranks[name],
        )
        for name, by_estimator in estimates.items()
    ]
    return sorted(judged, key=lambda policy: policy.rank)


def advice(judged: Sequence[Judged]) -> str:
    """What to deploy, how sure that is, and what speaks against it; a sentence a line."""
    best = judged[0]
    shared = shared_estimators(policy.estimates for policy in judged)
    lines = [f"Highest mean rank over {len(shared)} estimators: {best.name}."]
    close = [policy.name for policy in judged[1:] if not are_apart(best, policy)]
    if close:
        lines.append(f"No estimator's intervals tell it from: {', '.join(close)}.")
    if best.verdict.low_support:
        lines.append(
            "Warning: the data support this policy poorly, so its estimates may be far off:"
        )
        lines += [f"  {reason}" for reason in best.verdict.reasons]
        supported = [policy.name for policy in judged if not policy.verdict.low_support]
        if supported:
            lines.append(f"The best without such a warning: {supported[0]}.")
        else:
            lines.append("No policy is without such a warning.")
    return "\n".join(lines)


# --- several fits, several estimators ---


def over_seeds(fits: Sequence[Estimate], *, resampled: bool) -> Estimate:
    """One estimate of several fits; see `intervals.combine`."""
    if len(fits) == 1:
        return fits[0]
    return intervals.combine(stack(list(fits)), resampled=resampled)


def mean_ranks(estimates: Mapping[str, Mapping[str, Estimate]]) -> dict[str, float]:
    """Mean rank of each policy, 1 the best, over the estimators that judge every policy.

    An estimate that is not finite ranks last.
    """
    from scipy import stats  # takes a second to load

    columns = sorted(shared_estimators(estimates.values()))
    values = np.array(
        [
            [float(by_estimator[column].value) for column in columns]
            for by_estimator in estimates.values()
        ]
    )
    ranks = stats.rankdata(np.where(np.isfinite(values), -values, np.inf), axis=0)
    return dict(zip(estimates, ranks.mean(axis=1).tolist(), strict=True))


def shared_estimators(estimates: Iterable[Mapping[str, Estimate]]) -> set[str]:
    """The estimators that judge every policy."""
    return set.intersection(*map(set, estimates))


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


def are_apart(policy: Judged, other: Judged) -> bool:
    """Whether the 95 % intervals of some estimator of the two do not meet."""
    for name in policy.estimates.keys() & other.estimates.keys():
        first = policy.estimates[name]
        second = other.estimates[name]
        width = intervals.NORMAL_95 * float(first.stderr + second.stderr)
        if abs(float(first.value - second.value)) > width:
            return True
    return False


# --- policies ---


def grouped(candidates: Candidates, spec: EnvironmentSpec) -> list[PolicyGroup]:
    """Policies with the same functions and parameters of the same shapes, stacked.

    Args:
      candidates: (policy, parameters) by name.
      spec: of the data.
    """
    kinds: list[tuple[Policy | Actor, object, dict[str, Params]]] = []
    for name, (policy, params) in candidates.items():
        shapes = jax.tree.map(lambda leaf: (np.shape(leaf), str(np.asarray(leaf).dtype)), params)
        for known_policy, known_shapes, members in kinds:
            if policy == known_policy and shapes == known_shapes:
                members[name] = params
                break
        else:
            kinds.append((policy, shapes, {name: params}))
    return [
        PolicyGroup(
            names=tuple(members),
            policies=Policies(policy=acting(policy, spec), params=stack(list(members.values()))),
        )
        for policy, _, members in kinds
    ]


def acting(policy: Policy | Actor, spec: EnvironmentSpec) -> Policy | Actor:
    """The policy with the actions that a simulator would take from it.

    Continuous actions are clipped. Those of an actor are left as they are: rollouts in models,
    which alone take actors, clip them.
    """
    continuous = isinstance(spec.action, BoundedActions)
    if not continuous or isinstance(policy, Actor):
        return policy
    return policy_functions.clipped(policy)


def _require_candidates(
    candidates: Candidates, groups: Mapping[str, Group], data: Data, seeds: int
) -> None:
    """Refuses policies and estimators that do not go together before anything is fitted."""
    if not candidates:
        raise UsageError("no policy to judge: give at least one as {name: (policy, params)}")
    if not groups:
        names = ", ".join(GROUPS)
        raise UsageError(f"no estimator is named: choose from {names}")
    if seeds < 1:
        raise UsageError(f"seeds must be at least 1, got {seeds}")
    for name, (policy, params) in candidates.items():
        policy_functions.check_fits(policy, params, data.spec, data.spec.observation)
        require_kind(name, policy, groups)


def require_kind(name: str, policy: Policy | Actor, groups: Mapping[str, Group]) -> None:
    """Refuses a policy without what an estimator needs: no memory, a density.

    Args:
      name: of the policy.
      policy: its functions.
      groups: the estimators, by name.

    Raises:
      UsageError: the message names the policy, the estimator, and those that do without.
    """
    for group_name, group in groups.items():
        if not group.takes_actors:
            policy_functions.require_memoryless(policy, f"estimator {group_name} (for {name})")
    needing = [group_name for group_name, group in groups.items() if group.needs_density]
    if needing and getattr(policy, "log_prob", None) is None:
        others = [group_name for group_name in groups if group_name not in needing]
        raise UsageError(
            f"{name} has no log_prob, which {', '.join(needing)} needs: choose other estimators, "
            f"for example {','.join(others or ['model_ff', 'fqe'])}"
        )
