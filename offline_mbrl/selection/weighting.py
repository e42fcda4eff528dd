"""Importance sampling of logged policies: densities of the behavior, logged or cloned, and every form of weights."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.data import episodes
from offline_mbrl.learners import bc
from offline_mbrl.ope import support
from offline_mbrl.ope.weights import importance
from offline_mbrl.selection import fits
from offline_mbrl.selection.fits import Data, Estimates, Policies, Settings
from offline_mbrl.training import fit
from offline_mbrl.types import Array, BoundedActions, Estimate, Policy, PyTree, Trajectory

WEIGHTINGS: Mapping[str, Callable[..., Estimate]] = {
    "ordinary": importance.ordinary, "weighted": importance.weighted,
    "per_decision": importance.ordinary_per_decision, "weighted_per_decision": importance.weighted_per_decision,
    "clipped_per_decision": importance.clipped_per_decision,
}  # fmt: skip
DENSITIES = ("logged", "cloned")  # of the behavior


def clone(data: Data, settings: Settings, key: Array) -> tuple[Policy, PyTree]:
    """A density of the data's actions: policy functions and parameters."""
    config = bc.Config(num_updates=settings.clone_updates, batch_size=256)
    if isinstance(data.spec.action, BoundedActions):
        density = bc.ContinuousConfig(layers=settings.clone_layers)
        config = dataclasses.replace(config, continuous=density)
    learner = bc.make(config, data.spec)
    found = fit.fit(learner, data.dataset, key=key, num_updates=config.num_updates, statistics=data.statistics)
    fits.check(found, "the behavior")
    assert learner.policy is not None
    return learner.policy, fit.policy_params(learner, found.state)


def importance_weights(learned: Any, data: Data, policies: Policies, settings: Settings, key: Array) -> Estimates:
    """With the logged density where there is one, and with a cloned one, which also tells how likely actions are."""
    del settings
    cloned, clone_params = learned
    trajectories = episodes.trajectories(data.dataset, data.horizon)
    density = jax.jit(lambda params, of: importance.log_probs(cloned, params, of))
    densities = {"cloned": density(clone_params, trajectories)}
    if (logged := fits.behavior_log_prob(trajectories)) is not None:
        densities["logged"] = logged

    @jax.jit
    def every(target: PyTree, trajectories: Trajectory, behavior: Array) -> Estimates:
        ratios = importance.log_ratios(policies.policy, target, trajectories, behavior)
        return {
            name: method(trajectories, ratios, gamma=data.gamma, limits=data.limits)
            for name, method in WEIGHTINGS.items()
        }

    rows = np.random.default_rng(0).choice(np.asarray(data.dataset.starts), 1_000)
    seen, taken = data.dataset.observation[rows], data.dataset.action[rows]
    likely = jax.jit(lambda target: support.action_support(
        cloned, clone_params, policies.policy, target, seen, taken, key))  # fmt: skip
    found: Estimates = {}
    targets = fits.separate(policies.params)
    signs = [likely(target) for target in targets]
    for kind, behavior in densities.items():
        each = [{name: support.with_signs(one, sign, data.limits) for name, one in every(
            target, trajectories, behavior).items()} for target, sign in zip(targets, signs, strict=True)]  # fmt: skip
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
        found |= {f"{name}_is_{kind}": one for name, one in stacked.items()}
    return found
