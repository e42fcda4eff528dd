"""Importance sampling of logged policies: behavior densities, logged or cloned, and all weights."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from offline_mbrl import policies as policy_functions
from offline_mbrl.data import episodes
from offline_mbrl.learners import bc
from offline_mbrl.ope import support
from offline_mbrl.ope.weights import importance
from offline_mbrl.selection.fits import require_fitted
from offline_mbrl.selection.records import (
    Data,
    Estimates,
    Policies,
    Settings,
    behavior_log_prob,
    stack,
    unstack,
)
from offline_mbrl.training import fit
from offline_mbrl.types import (
    Array,
    BoundedActions,
    Context,
    Estimate,
    Key,
    Learner,
    Metrics,
    Params,
    Policy,
    Trajectory,
)

NUM_STATES = 1_000  # of the data at which the policies' actions are compared with the behavior's
WEIGHTINGS: Mapping[str, Callable[..., Estimate]] = {
    "ordinary": importance.ordinary,
    "weighted": importance.weighted,
    "per_decision": importance.ordinary_per_decision,
    "weighted_per_decision": importance.weighted_per_decision,
    "clipped_per_decision": importance.clipped_per_decision,
}
DENSITIES = ("logged", "cloned")  # of the behavior
NAMES = tuple(f"{name}_is_{density}" for density in DENSITIES for name in WEIGHTINGS)


def clone(data: Data, settings: Settings, key: Key) -> tuple[Policy, Params]:
    """A density of the data's actions: policy functions and parameters.

    Args:
      data: what is cloned.
      settings: how long.
      key: consumed.

    Raises:
      UsageError: the fit failed.
    """
    learner, config = density_learner(data, settings)
    assert isinstance(learner.policy, Policy)
    return learner.policy, fit_density(learner, data, config.num_updates, key)


def density_learner(data: Data, settings: Settings) -> tuple[Learner, bc.Config]:
    """The learner that clones data's actions, and its config."""
    config = bc.Config(num_updates=settings.clone_updates, batch_size=256)
    if isinstance(data.spec.action, BoundedActions):
        density = bc.ContinuousConfig(layers=settings.clone_layers)
        config = dataclasses.replace(config, continuous=density)
    return bc.make(config, data.spec), config


def fit_density(learner: Learner, data: Data, num_updates: int, key: Key) -> Params:
    """The parameters of `density_learner`'s policy after a fit.

    Raises:
      UsageError: the fit failed.
    """
    context = Context(statistics=data.statistics)
    result = fit.fit(learner, data.dataset, key=key, num_updates=num_updates, context=context)
    require_fitted(result, "the behavior")
    return fit.policy_params(learner, result.state, context)


def importance_weights(
    learned: Any, data: Data, policies: Policies, settings: Settings, key: Key
) -> Estimates:
    """Estimates with the logged density where there is one, and with a cloned one.

    The clone also tells how likely the policies' actions are.

    Args:
      learned: what `clone` returned.
      data: whole episodes.
      policies: P of them, with a density.
      settings: not used.
      key: of the policies' noise.

    Raises:
      UsageError: a policy has no density, or a memory.
    """
    del settings
    policy = policy_functions.require_memoryless(policies.policy, "importance")
    cloned, clone_params = learned
    trajectories = episodes.trajectories(data.dataset, data.horizon)
    cloned_log_prob = jax.jit(
        lambda params, trajectories: importance.log_probs(cloned, params, trajectories)
    )
    densities = {"cloned": cloned_log_prob(clone_params, trajectories)}
    if (logged := behavior_log_prob(trajectories)) is not None:
        densities["logged"] = logged

    @jax.jit
    def all_weightings(target: Params, trajectories: Trajectory, behavior: Array) -> Estimates:
        ratios = importance.log_ratios(policy, target, trajectories, behavior)
        return {
            name: method(trajectories, ratios, gamma=data.gamma, limits=data.limits)
            for name, method in WEIGHTINGS.items()
        }

    targets = unstack(policies.params)
    signs = _action_signs(cloned, clone_params, data, policies, key)
    estimates: Estimates = {}
    for density, behavior in densities.items():
        rows = [
            {
                name: support.with_signs(estimate, sign, data.limits)
                for name, estimate in all_weightings(target, trajectories, behavior).items()
            }
            for target, sign in zip(targets, signs, strict=True)
        ]
        estimates |= {f"{name}_is_{density}": estimate for name, estimate in stack(rows).items()}
    return estimates


def _action_signs(
    cloned: Policy, clone_params: Params, data: Data, policies: Policies, key: Key
) -> list[Metrics]:
    """How likely each policy's actions are under the clone."""
    policy = policy_functions.require_memoryless(policies.policy, "importance")
    rows = np.random.default_rng(0).choice(np.asarray(data.dataset.starts), NUM_STATES)
    observations = data.dataset.observation[rows]
    actions = data.dataset.action[rows]

    @jax.jit
    def single_policy(target: Params) -> Metrics:
        return support.action_support(
            cloned, clone_params, policy, target, observations, actions, key
        )

    return [single_policy(target) for target in unstack(policies.params)]
