"""Fits of learned estimators on the chain of five states, which their tests share."""

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.data import episodes, normalize
from offline_mbrl.ope import intervals
from offline_mbrl.problems import known
from offline_mbrl.training.blocks import run_block
from offline_mbrl.training.fit import fit, keys_for
from offline_mbrl.types import Context

GAMMA = 0.8
# The chain's own distribution of first states.
START = np.eye(5, dtype=np.float32)[np.repeat(np.arange(4), np.arange(4, 0, -1) * 50)]


def chain(*, terminal=False, num_episodes=5_000, **settings):
    """The chain; long enough that its time limit does not show at this gamma."""
    return known.tabular(
        0, terminal=terminal, num_episodes=num_episodes, horizon=30, gamma=GAMMA, **settings
    )


def context(dataset, params):
    """The context of a fit for the policy, or policies `[P, ...]`, of these parameters."""
    statistics = normalize.full_statistics(dataset)
    return Context(statistics=statistics, upstream={"target": params})


def stacked(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def over_policies(function):
    """`function(state, context, *others)` over states `[P, ...]` and their policies."""

    def mapped(states, context, *others):
        def single(state, upstream):
            return function(state, context._replace(upstream=upstream), *others)

        return jax.vmap(single)(states, context.upstream)

    return mapped


def fitted(problem, made, policies, *, num_updates, key=0, seeds=None, dataset=None):
    """(state [P, ...], context, estimates [P]) of one fit for all policies."""
    learner, read_out = made
    dataset = problem.dataset if dataset is None else dataset
    run_context = context(dataset, stacked(policies))
    result = fit(
        learner,
        dataset,
        key=jax.random.key(key),
        num_updates=num_updates,
        block_updates=num_updates,
        seeds=seeds or range(len(policies)),
        context=run_context,
    )
    assert not result.failures
    states = result.state.learner
    estimates = jax.jit(over_policies(read_out))(states, run_context, START, jax.random.key(1))
    return states, run_context, estimates


def single(made, *, num_updates):
    """One short fit without a seed axis, compiled once: (seed, dataset, context) -> estimate."""
    learner, read_out = made

    @jax.jit
    def run(keys, dataset, run_context):
        key_sample, key_init = jax.random.split(keys[0])
        example = learner.sample(dataset, None, key_sample)
        state = learner.init(key_init, example, run_context)
        state, _ = run_block(
            learner, state, run_context, dataset, (), keys[1], start=0, num_steps=num_updates
        )
        return read_out(state, run_context, START, jax.random.key(1))

    return lambda seed, dataset, run_context: run(
        keys_for(jax.random.key(0), [seed])[0], dataset, run_context
    )


def averaged(problem, made, policies, *, num_updates, repeats=2):
    """(state [repeats * P, ...], context, estimates [P]), each estimate of several fits."""
    states, run_context, estimates = fitted(
        problem, made, list(policies) * repeats, num_updates=num_updates
    )

    def policies_first(leaf):
        return jnp.swapaxes(leaf.reshape(repeats, len(policies), *leaf.shape[1:]), 0, 1)

    def combined(estimate):
        return intervals.combine(estimate, resampled=False)

    by_policy = jax.tree.map(policies_first, estimates)
    return states, run_context, jax.vmap(combined)(by_policy)


def exact(problem, policies):
    """Values [P] without end, which is what bootstrapping estimates."""
    return np.array([problem.value(params, np.inf) for params in policies])


def assert_on_policy(problem, estimate):
    """The behavior's estimate is the mean logged return within two standard errors and 5 %."""
    logged = episodes.trajectories(problem.dataset)
    powers = GAMMA ** np.arange(logged.reward.shape[1])
    returns = np.sum(logged.reward * powers, axis=1)
    error = np.hypot(estimate.stderr, returns.std() / np.sqrt(len(returns)))
    assert abs(estimate.value - returns.mean()) < min(2 * error, 0.05 * returns.mean())


def assert_finds_values(problem, made, *, num_updates):
    """Fits end at the exact values of the behavior and of two other policies.

    Returns:
      (policies, states [2 * 3, ...], context, estimates [3]).
    """
    policies = [problem.behavior_params, problem.target_params[1], problem.target_params[3]]
    states, run_context, estimates = averaged(problem, made, policies, num_updates=num_updates)
    np.testing.assert_allclose(estimates.value, exact(problem, policies), rtol=0.02)
    assert_on_policy(problem, jax.tree.map(lambda leaf: leaf[0], estimates))
    return policies, states, run_context, estimates
