"""How each off-policy estimator is fitted and comes to estimates of policies stacked on `[P]`.

Values of the doubly robust ones are those of `fqe`, for an episode that continues past its time
limit, like `fqe`'s own.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from offline_mbrl import policies as policy_functions
from offline_mbrl.data import episodes, memory
from offline_mbrl.models import explicit, fitting, kinds
from offline_mbrl.models.autoregressive import MaskedConfig
from offline_mbrl.models.coupled import CoupledConfig
from offline_mbrl.models.densities.conditionals import ConditionalConfig
from offline_mbrl.models.feedforward import FeedforwardConfig
from offline_mbrl.ope import batches, critics, model_based, support, visits
from offline_mbrl.ope.values import fqe
from offline_mbrl.ope.weights import doubly_robust, importance, magic
from offline_mbrl.selection import configs
from offline_mbrl.selection.records import (
    Data,
    EstimateFn,
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
    Context,
    DynamicsModel,
    Estimate,
    Key,
    Learner,
    Metrics,
    ModelParams,
    Observation,
    Params,
    PyTree,
    Trajectory,
    UsageError,
)

NUM_VISITS = 10_000  # transitions by which the policies' visits are judged
# A learned estimator's `make`: (config, spec, policy) -> (learner, read-out).
MakeFn = Callable[..., tuple[Learner, Callable[[PyTree, Context, Observation, Key], Estimate]]]


def require_fitted(result: fit.FitResult, name: str) -> None:
    """Refuses a fit that failed: estimates made of it would look like any others.

    Raises:
      UsageError: with the seed and the quantity that became non-finite.
    """
    if result.failures:
        seed, reason = next(iter(result.failures.items()))
        raise UsageError(
            f"{name} could not be fitted: seed {seed}: {reason}; look at the data's scales, or "
            "lower the learning rate"
        )


# --- models ---


def learn_feedforward(
    data: Data, settings: Settings, key: Key
) -> tuple[DynamicsModel, ModelParams]:
    """An ensemble of feedforward models."""
    config = FeedforwardConfig(hidden_layers=settings.model_layers, **_ensemble(settings))
    return fit_model(config, data, key)


def learn_masked(data: Data, settings: Settings, key: Key) -> tuple[DynamicsModel, ModelParams]:
    """An ensemble of masked autoregressive models."""
    config = MaskedConfig(hidden_size=settings.masked_units, **_ensemble(settings))
    return fit_model(config, data, key)


def learn_coupled(data: Data, settings: Settings, key: Key) -> tuple[DynamicsModel, ModelParams]:
    """An ensemble of models with coupled entries."""
    config = CoupledConfig(hidden_layers=settings.model_layers, **_ensemble(settings))
    return fit_model(config, data, key)


def fit_model(config: kinds.ModelConfig, data: Data, key: Key) -> tuple[DynamicsModel, ModelParams]:
    """An explicit model, and the parameters of each member's best evaluation.

    Where the data have true terminals, the end of episodes is learned beside the density.

    Args:
      config: of the model and its fit.
      data: with held-out transitions.
      key: consumed.

    Raises:
      UsageError: the fit failed.
    """
    terminates = bool(explicit.require_statistics(data.statistics).terminates)
    continuation = explicit.learned_continuation(data.spec) if terminates else None
    model = kinds.make(config, data.spec, continuation=continuation)
    learner = kinds.learner(config, model)
    context = Context(statistics=data.statistics)
    result = fit.fit(
        learner, data.dataset, key=key, num_updates=config.fit.num_updates, context=context
    )
    require_fitted(result, "the model")
    return model, fit.policy_params(learner, result.state, context)


def rolled_out(name: str) -> EstimateFn:
    """Returns of the policies in a model that was learned from the data."""

    def estimate(
        learned: Any, data: Data, policies: Policies, settings: Settings, key: Key
    ) -> Estimates:
        model, params = learned
        rollouts = model_based.explicit_rollouts(
            model, policies.policy, gamma=data.gamma, horizon=data.horizon
        )
        single_policy = model_based.make(rollouts, limits=data.limits)
        estimator = jax.jit(model_based.many(single_policy, chunk=settings.side_by_side))
        starts = episodes.initial_observations(data.dataset)
        return {name: estimator(params, policies.params, starts, key)}

    return estimate


def _ensemble(settings: Settings) -> dict[str, Any]:
    """Settings that models have in common.

    Rare jumps must not count as noise, because rollouts go through them. All updates are done;
    members keep their best evaluation.
    """
    return {
        "conditional": ConditionalConfig(beta=settings.model_beta),
        "num_members": settings.model_members,
        "fit": fitting.Config(num_updates=settings.model_updates, patience=0),
    }


# --- fitted values and density ratios ---


def fitted_alone(name: str, make: MakeFn, config: Callable[[Settings, float], Any]) -> EstimateFn:
    """The estimates of a learned estimator that needs nothing but its own fit.

    Args:
      name: of the estimator.
      make: its constructor.
      config: (settings, discount factor) -> its configuration.
    """

    def estimate(
        learned: Any, data: Data, policies: Policies, settings: Settings, key: Key
    ) -> Estimates:
        del learned
        _, estimates = _fitted(make, config(settings, data.gamma), data, policies, key)
        return {name: estimates}

    return estimate


def fqe_and_robust(
    learned: Any, data: Data, policies: Policies, settings: Settings, key: Key
) -> Estimates:
    """Fitted values, and the doubly robust estimates where the behavior's density was logged.

    Args:
      learned: nothing.
      data: what they are fitted to.
      policies: P of them.
      settings: how long.
      key: consumed.

    Raises:
      UsageError: a policy has a memory, a single episode is to be resampled, or the fit failed.
    """
    del learned
    key_fit, key_values = jax.random.split(key)
    config = configs.fqe_config(settings, data.gamma)
    params, direct = _fitted(fqe.make, config, data, policies, key_fit)
    trajectories = episodes.trajectories(data.dataset, data.horizon)
    logged = behavior_log_prob(trajectories)
    policy = policy_functions.require_memoryless(policies.policy, "fqe")
    if policy.log_prob is None or logged is None:
        return {"fqe": direct}
    values = fqe.values(config, data.spec, policy)
    methods = {
        "doubly_robust": doubly_robust.doubly_robust,
        "weighted_doubly_robust": doubly_robust.weighted_doubly_robust,
        "magic": magic.magic,
    }

    @jax.jit
    def robust(
        params: critics.FittedParams, target: Params, trajectories: Trajectory, logged: Array
    ) -> Estimates:
        ratios = importance.log_ratios(policy, target, trajectories, logged)
        q, v = doubly_robust.along(
            values.q_value, values.state_value, params, trajectories, key_values
        )
        return {
            name: method(trajectories, ratios, q, v, gamma=data.gamma)
            for name, method in methods.items()
        }

    pairs = zip(unstack(params), unstack(policies.params), strict=True)
    stacked = stack([robust(*pair, trajectories, logged) for pair in pairs])
    # Their values may be unsettled.
    settling = {"updates_too_few": direct.diagnostics["updates_too_few"]}
    corrected = {
        name: estimate._replace(diagnostics={**estimate.diagnostics, **settling})
        for name, estimate in stacked.items()
    }
    return {"fqe": direct} | corrected


def visited(data: Data, policies: Policies) -> Metrics:
    """How much of the data the policies' visits rest on, `[P]`.

    Estimators of single transitions cannot see it.
    """
    policy = policy_functions.require_memoryless(policies.policy, "visited_share")
    sample = batches.Experience(NUM_VISITS)

    @jax.jit
    def shares(params: Params, dataset: memory.Dataset) -> Metrics:
        batch = sample(dataset, None, jax.random.key(9))

        def single_policy(params: Params) -> Metrics:
            return visits.visited_share(
                policy, params, batch, data.spec, jax.random.key(10), gamma=data.gamma
            )

        return jax.vmap(single_policy)(params)

    return shares(policies.params, data.dataset)


def _fitted(
    make: MakeFn, config: Any, data: Data, policies: Policies, key: Key
) -> tuple[PyTree, Estimate]:
    """A learned estimator for all policies in one fit: its parameters and estimates, `[P, ...]`."""
    policy_functions.require_memoryless(policies.policy, "this estimator")
    if config.bootstrap and len(episodes.first_rows(data.dataset)) < 2:
        raise UsageError(
            "a single episode cannot be resampled: switch off bootstrap, or log more episodes"
        )
    learner, read_out = make(config, data.spec, policies.policy)
    key_fit, key_read, key_resample = jax.random.split(key, 3)
    upstream = {
        critics.TARGET: policies.params,
        # All policies are judged by the same episodes, so that their differences are in pairs.
        critics.RESAMPLE: jnp.broadcast_to(key_resample, policies.count),
    }
    context = Context(statistics=data.statistics, upstream=upstream)
    result = fit.fit(
        learner,
        data.dataset,
        key=key_fit,
        num_updates=config.num_updates,
        seeds=range(policies.count),
        context=context,
    )
    require_fitted(result, "the estimator")
    starts = episodes.initial_observations(data.dataset)

    @jax.jit
    def over_policies(state: fit.FitState, context: Context) -> Estimate:
        def single_policy(state: PyTree, context: Context) -> Estimate:
            return read_out(state, context, starts, key_read)

        return fit.over_seeds(single_policy, state, context)

    estimates = over_policies(result.state, context)
    estimates = support.with_signs(estimates, visited(data, policies), data.limits)
    return fit.policy_params(learner, result.state, context), estimates
