"""Logged episodes of known problems, their ratios and exact values."""

import functools

import jax
import numpy as np

from offline_mbrl.data import episodes
from offline_mbrl.ope.weights import doubly_robust, importance, magic
from offline_mbrl.types import Trajectory

FORMS = {"plain": doubly_robust.doubly_robust, "weighted": doubly_robust.weighted_doubly_robust}


@functools.cache
def logged(make, seed=0, **sizes):
    """(problem, its logged trajectories)."""
    problem = make(seed, **sizes)
    return problem, episodes.trajectories(problem.dataset)


@functools.cache
def ratios_of(policy):
    """(params, batch) -> log ratios against the logged density."""

    @jax.jit
    def ratios(params, batch):
        return importance.log_ratios(policy, params, batch, batch.extras["behavior_log_prob"])

    return ratios


def batch_of(reward, mask=None, discount=None):
    """Trajectories of these rewards `[N, T]` and nothing else."""
    reward = np.asarray(reward, np.float32)
    ones = np.ones_like(reward)
    return Trajectory(
        observation=np.zeros((*np.add(reward.shape, (0, 1)), 1), np.float32),
        action=np.zeros(reward.shape, np.int32),
        reward=reward,
        discount=ones if discount is None else np.asarray(discount, np.float32),
        mask=ones if mask is None else np.asarray(mask, np.float32),
    )


def exact(problem, params, batch):
    """Values with the steps left until the horizon; nothing is left there."""
    steps = problem.spec.horizon - np.arange(problem.spec.horizon + 1)
    before = batch.observation[:, :-1]
    q = problem.q(params, before, batch.action, steps[:-1])
    v = problem.v(params, batch.observation, steps)
    return q.astype(np.float32), v.astype(np.float32)


def wrong(q, v):
    """Far from the truth, but `v` is the policy's mean of `q`, and 0 is left at the horizon."""
    v = 0.6 * v + 0.5
    v[:, -1] = 0
    return 0.6 * q + 0.5, v


def split(tree, repeats):
    """The episodes of one long log as `repeats` datasets."""
    return jax.tree.map(lambda leaf: leaf.reshape(repeats, -1, *leaf.shape[1:]), tree)


@jax.jit
def robust(batch, log_ratios, q, v, gamma=0.9):
    """Both forms at once: they share what is compiled."""
    return {
        name: estimate(batch, log_ratios, q, v, gamma=gamma) for name, estimate in FORMS.items()
    }


@functools.partial(jax.jit, static_argnames="lengths")
def blended(batch, log_ratios, q, v, lengths, gamma=0.9):
    """The blend of these lengths."""
    return magic.magic(batch, log_ratios, q, v, gamma=gamma, lengths=lengths)
