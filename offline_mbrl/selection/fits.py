"""What each off-policy estimator is fitted with, and how it comes to estimates for policies stacked on `[P]`.

Values of the doubly robust ones are those of `fqe`, for an episode that goes on past its time limit, like `fqe`'s own.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from offline_mbrl.data import episodes, memory, normalize
from offline_mbrl.models import autoregressive, conditionals, explicit, feedforward, fitting
from offline_mbrl.models.density import Density
from offline_mbrl.ope import batches, model_based, support, visits
from offline_mbrl.ope.ratios import dice, vpm
from offline_mbrl.ope.values import fqe, fqe_distributional
from offline_mbrl.ope.weights import doubly_robust, importance, magic  # fmt: skip
from offline_mbrl.training import fit
from offline_mbrl.types import (
    Array,
    DynamicsModel,
    EnvironmentSpec,
    Estimate,
    Metrics,
    Policy,
    PyTree,
    Trajectory,
    UsageError,
)

VISITS_SEEN = 10_000  # transitions by which the policies' visits are judged

Estimates = dict[str, Estimate]  # of estimators by name, every field [P, ...]


class Data(NamedTuple):
    """What policies are judged by."""

    dataset: memory.Dataset  # with held-out transitions, for models
    statistics: normalize.Statistics  # of the training transitions
    spec: EnvironmentSpec
    gamma: float
    horizon: int
    limits: support.Limits = support.Limits()  # of signs, beyond which an estimate says that support is low


class Policies(NamedTuple):
    """P policies of one kind."""

    policy: Policy
    params: PyTree  # [P, ...]

    @property
    def count(self) -> int:
        """P."""
        return len(jax.tree.leaves(self.params)[0])


@dataclass(frozen=True)
class Settings:
    """How much each estimator is fitted: enough for a first answer on a CPU. The published ones are the files' own."""

    model_updates: int = 8_001  # of all members; judged on held-out transitions every 500, not after the last
    model_members: int = 4
    model_layers: tuple[int, ...] = (256, 256, 256)  # of a feedforward model
    masked_units: int = 256  # of an autoregressive one
    model_beta: float = 0.5  # how much transitions that are hard to predict count; 0: as in the likelihood
    fqe_updates: int = 100_000
    distributional_updates: int = 50_000  # of categorical fitted values, each about twice as long
    fqe_layers: tuple[int, ...] = (64, 64)  # of either
    ratio_updates: int = 50_000  # of DICE and VPM
    ratio_layers: tuple[int, ...] = (64, 64)
    ratio_batch: int = 256
    clone_updates: int = 10_000
    clone_layers: tuple[int, ...] = (256, 256)
    side_by_side: int = 4  # policies rolled out together in a model
    bootstrap: bool = False  # each fit of values or ratios sees its own resample of the episodes


# --- models ---


def fit_model(density: Density, data: Data, settings: Settings, key: Array) -> tuple[DynamicsModel, PyTree]:
    """An ensemble of such densities: the model, and the parameters of each member's best moment.

    Where the data have true terminals, when episodes end is learned beside the density.
    """
    ends = bool(explicit.transition_statistics(data.statistics)["terminates"])
    continuation = explicit.learned_continuation(data.spec) if ends else None
    model = explicit.make(density, data.spec, num_members=settings.model_members, continuation=continuation)
    learner = fitting.make(
        model, fitting.Config(num_updates=settings.model_updates), num_members=settings.model_members)  # fmt: skip
    found = fit.fit(
        learner, data.dataset, key=key, num_updates=settings.model_updates, statistics=data.statistics)  # fmt: skip
    check(found, "the model")
    return model, fit.policy_params(learner, found.state)


def check(found: fit.FitResult, what: str) -> None:
    """Refuses a fit that broke down: estimates made of it would look like any others.

    Raises:
      UsageError: with the seed and the figure.
    """
    if found.failures:
        seed, reason = next(iter(found.failures.items()))
        raise UsageError(f"{what} could not be fitted: seed {seed}: {reason}; look at the data's scales, or lower the "
                         "learning rate")  # fmt: skip


def conditional(settings: Settings) -> conditionals.ConditionalConfig:
    """The densities of single entries: rare jumps must not pass for noise, because rollouts go through them."""
    return conditionals.ConditionalConfig(beta=settings.model_beta)


def learn_feedforward(data: Data, settings: Settings, key: Array) -> tuple[DynamicsModel, PyTree]:
    """An ensemble of feedforward models."""
    config = feedforward.Config(settings.model_layers, conditional(settings))
    return fit_model(feedforward.make(config, *explicit.sizes(data.spec)), data, settings, key)


def learn_masked(data: Data, settings: Settings, key: Array) -> tuple[DynamicsModel, PyTree]:
    """An ensemble of masked autoregressive models."""
    config = autoregressive.MaskedConfig(hidden_size=settings.masked_units, conditional=conditional(settings))
    return fit_model(autoregressive.masked(config, *explicit.sizes(data.spec)), data, settings, key)


def rolled_out(name: str, learned: Any, data: Data, policies: Policies, settings: Settings, key: Array) -> Estimates:
    """Returns of the policies in a fitted model."""
    model, params = learned
    one = model_based.make(model, policies.policy, gamma=data.gamma, horizon=data.horizon, limits=data.limits)
    estimator = jax.jit(model_based.many(one, chunk=settings.side_by_side))
    return {name: estimator(params, policies.params, episodes.initial_observations(data.dataset), key)}


# --- fitted values and density ratios ---


def _fitted(make: Callable, config: Any, data: Data, policies: Policies, key: Array) -> tuple[Any, Any, Estimate]:
    """A learned estimator for all policies in one fit: (learner, state, estimates)."""
    if config.bootstrap and len(episodes.first_rows(data.dataset)) < 2:
        raise UsageError("a single episode cannot be resampled: switch off bootstrap, or log more episodes")
    learner, read_out = make(config, data.spec, policies.policy)
    key_fit, key_read = jax.random.split(key)
    found = fit.fit(
        learner, data.dataset, key=key_fit, num_updates=config.num_updates, seeds=range(policies.count),
        statistics=data.statistics, given={"target": policies.params})  # fmt: skip
    check(found, "the estimator")
    starts = episodes.initial_observations(data.dataset)
    many = jax.jit(lambda state: jax.vmap(lambda one: read_out(one, starts, key_read))(state))
    estimates = support.with_signs(many(found.state.learner), visited(data, policies), data.limits)
    return learner, found.state, estimates


def visited(data: Data, policies: Policies) -> Metrics:
    """How much of the data the policies' visits rest on, `[P]`: what estimators of single transitions cannot see."""
    seen = batches.experience(VISITS_SEEN)

    @jax.jit
    def shares(params: PyTree, dataset: memory.Dataset) -> Metrics:
        batch = seen(dataset, jax.random.key(9))
        of = functools.partial(visits.visited_share, policies.policy, gamma=data.gamma)
        return jax.vmap(lambda one: of(one, batch, data.spec, jax.random.key(10)))(params)

    return shares(policies.params, data.dataset)


def fitted_alone(
    name: str, make: Callable, config: Callable[[Settings, float], Any], learned: Any, data: Data, policies: Policies,
    settings: Settings, key: Array,
) -> Estimates:  # fmt: skip
    """The estimates of a learned estimator that needs nothing but its own fit."""
    del learned  # nothing is learned without the policy
    return {name: _fitted(make, config(settings, data.gamma), data, policies, key)[2]}


def fqe_and_robust(learned: Any, data: Data, policies: Policies, settings: Settings, key: Array) -> Estimates:
    """Fitted values, and where the behavior's density was logged, the doubly robust estimates made of them."""
    del learned
    key_fit, key_values = jax.random.split(key)
    config = fqe.Config(**_values(settings, settings.fqe_updates, data.gamma))
    learner, state, direct = _fitted(fqe.make, config, data, policies, key_fit)
    trajectories = episodes.trajectories(data.dataset, data.horizon)
    logged = behavior_log_prob(trajectories)
    if policies.policy.log_prob is None or logged is None:
        return {"fqe": direct}
    values = fqe.values(config, data.spec, policies.policy)

    @jax.jit
    def robust(params: PyTree, target: PyTree, trajectories: Trajectory, logged: Array) -> Estimates:
        ratios = importance.log_ratios(policies.policy, target, trajectories, logged)
        q, v = doubly_robust.along(values.q_value, values.state_value, params, trajectories, key_values)
        methods = {"doubly_robust": doubly_robust.doubly_robust,
                   "weighted_doubly_robust": doubly_robust.weighted_doubly_robust, "magic": magic.magic}  # fmt: skip
        return {name: method(trajectories, ratios, q, v, gamma=data.gamma) for name, method in methods.items()}

    both = zip(*map(separate, (fit.policy_params(learner, state), policies.params)), strict=True)
    each = [robust(*one, trajectories, logged) for one in both]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    short = {"updates_too_few": direct.diagnostics["updates_too_few"]}  # of the values that they are made of
    return {"fqe": direct} | {
        name: one._replace(diagnostics={**one.diagnostics, **short}) for name, one in stacked.items()}  # fmt: skip


def behavior_log_prob(trajectories: Trajectory) -> Array | None:
    """What was logged of the behavior policy's density `[N, T]`, or None."""
    extras: Any = trajectories.extras
    return jnp.asarray(extras["behavior_log_prob"]) if "behavior_log_prob" in extras else None


def separate(stacked: PyTree) -> list[PyTree]:
    """Trees `[P, ...]` as P trees."""
    size = len(jax.tree.leaves(stacked)[0])
    return [jax.tree.map(lambda leaf, row=row: leaf[row], stacked) for row in range(size)]


def distributional(settings: Settings, gamma: float) -> fqe_distributional.Config:
    """Settings of distributional fitted values."""
    return fqe_distributional.Config(**_values(settings, settings.distributional_updates, gamma))


def _values(settings: Settings, num_updates: int, gamma: float) -> dict[str, Any]:
    """What fits of values are given, of either kind."""
    return {"num_updates": num_updates, "hidden_layers": settings.fqe_layers, "gamma": gamma,
            "bootstrap": settings.bootstrap}  # fmt: skip


def dice_config(preset: str, settings: Settings, gamma: float) -> dice.Config:
    """Settings of one of the DICE presets."""
    return dice.Config(**{**dice.PRESETS[preset], **_ratios(settings, gamma)})


def vpm_config(settings: Settings, gamma: float) -> vpm.Config:
    """Settings of the power method."""
    return vpm.Config(**_ratios(settings, gamma))


def _ratios(settings: Settings, gamma: float) -> dict[str, Any]:
    """What fits of density ratios are given, of either kind."""
    return {"num_updates": settings.ratio_updates, "batch_size": settings.ratio_batch, "gamma": gamma,
            "hidden_layers": settings.ratio_layers, "bootstrap": settings.bootstrap}  # fmt: skip
