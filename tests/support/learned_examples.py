"""Fits of learned estimators on the chain of five states, which their tests share."""

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.data import episodes, normalize
from offline_mbrl.ope import intervals
from offline_mbrl.problems import known
from offline_mbrl.training.blocks import run_block
from offline_mbrl.training.fit import fit, keys_for

GAMMA = 0.8
START = np.eye(5, dtype=np.float32)[np.repeat(np.arange(4), np.arange(4, 0, -1) * 50)]  # the chain's own distribution


def chain(*, terminal=False, num_episodes=5_000, **settings):
    """The chain; long enough that where it is cut does not show at this gamma."""
    return known.tabular(0, terminal=terminal, num_episodes=num_episodes, horizon=30, gamma=GAMMA, **settings)


def statistics(dataset) -> normalize.Statistics:
    """Of a dataset with discrete actions."""
    actions = np.asarray(dataset.action, np.float32)[:, None]
    measured = normalize.transition_statistics(dataset._replace(action=actions))
    return normalize.statistics(dataset)._replace(transitions=measured)


def stacked(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def fitted(problem, made, policies, *, num_updates, key=0, seeds=None, dataset=None):
    """(state [P, ...], estimates [P]) of one fit for all policies."""
    learner, read_out = made
    dataset = problem.dataset if dataset is None else dataset
    found = fit(
        learner, dataset, key=jax.random.key(key), num_updates=num_updates, block_updates=num_updates,
        seeds=seeds or range(len(policies)), statistics=statistics(dataset), given={"target": stacked(policies)},
    )  # fmt: skip
    assert not found.failures
    many = jax.jit(jax.vmap(read_out, (0, None, None)))
    return found.state.learner, many(found.state.learner, START, jax.random.key(1))


def single(made, *, num_updates):
    """One short fit without a seed axis, compiled once: (seed, params, dataset, statistics) -> estimate."""
    learner, read_out = made

    @jax.jit
    def run(keys, params, dataset, known_of_data):
        key_sample, key_init = jax.random.split(keys[0])
        state = learner.init(key_init, learner.sample(dataset, key_sample), known_of_data, {"target": params})
        state, _ = run_block(learner, state, dataset, keys[1], start=0, num_steps=num_updates)
        return read_out(state, START, jax.random.key(1))

    return lambda seed, params, dataset, known_of_data: run(
        keys_for(jax.random.key(0), [seed])[0], params, dataset, known_of_data)  # fmt: skip


def averaged(problem, made, policies, *, num_updates, repeats=2):
    """(state [repeats * P, ...], estimates [P]), each estimate of several fits."""
    states, each = fitted(problem, made, list(policies) * repeats, num_updates=num_updates)
    by_policy = jax.tree.map(
        lambda leaf: jnp.swapaxes(leaf.reshape(repeats, len(policies), *leaf.shape[1:]), 0, 1), each
    )
    return states, jax.vmap(lambda of_one: intervals.combine(of_one, resampled=False))(by_policy)


def exact(problem, policies):
    """Values [P] without end, which is what bootstrapping estimates."""
    return np.array([problem.value(params, np.inf) for params in policies])


def assert_on_policy(problem, estimate):
    """An estimate of the behavior policy is the mean logged return within two standard errors, and within 5 %."""
    logged = episodes.trajectories(problem.dataset)
    returns = np.sum(logged.reward * GAMMA ** np.arange(logged.reward.shape[1]), axis=1)
    error = np.hypot(estimate.stderr, returns.std() / np.sqrt(len(returns)))
    assert abs(estimate.value - returns.mean()) < min(2 * error, 0.05 * returns.mean())


def assert_finds_values(problem, made, *, num_updates):
    """(policies, state [2 * 3, ...], estimates [3]) of fits that end at the exact values of the behavior and of two."""
    policies = [problem.behavior_params, problem.target_params[1], problem.target_params[3]]
    state, found = averaged(problem, made, policies, num_updates=num_updates)
    np.testing.assert_allclose(found.value, exact(problem, policies), rtol=0.02)
    assert_on_policy(problem, jax.tree.map(lambda leaf: leaf[0], found))
    return policies, state, found
