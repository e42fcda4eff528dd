"""Policies that are to be judged: grouped by what one compiled call can evaluate, and checked."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

from offline_mbrl import policies as policy_functions
from offline_mbrl.selection.estimators import GROUPS, Group
from offline_mbrl.selection.records import Data, Policies, stack
from offline_mbrl.types import (
    Actor,
    BoundedActions,
    EnvironmentSpec,
    Params,
    Policy,
    UsageError,
)

Candidates = Mapping[str, tuple[Policy | Actor, Params]]  # policies by name, parameters of one each


class PolicyGroup(NamedTuple):
    """Policies that one function acts with."""

    names: tuple[str, ...]  # P
    policies: Policies


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


def require(candidates: Candidates, groups: Mapping[str, Group], data: Data, seeds: int) -> None:
    """Refuses policies and estimators that do not go together before anything is fitted.

    Args:
      candidates: (policy, parameters) by name.
      groups: the estimators, by name.
      data: what they are judged by.
      seeds: fits of each estimator.

    Raises:
      UsageError: there is no policy, estimator or seed, or a policy does not fit the data.
    """
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
