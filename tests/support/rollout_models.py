"""A linear-Gaussian ensemble behind `DynamicsModel`, policies for it, and their exact values."""

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.types import DynamicsModel, Policy, Prediction


def params(num_members=1, *, seed=0, size=3, actions=2, spread=0.1, noise=0.1, limit=1e9):
    """Members around one stable system; `spread` is how far they disagree."""
    generator = np.random.default_rng(seed)
    A = 0.8 * np.linalg.qr(generator.normal(size=(size, size)))[0]
    B = generator.normal(size=(size, actions)) * 0.3
    around = lambda matrix: jnp.asarray(  # noqa: E731
        matrix + spread * generator.normal(size=(num_members, *matrix.shape)) / 3, jnp.float32)  # fmt: skip
    members = {
        "A": around(A), "B": around(B), "noise": jnp.full(num_members, noise),
        "cost": jnp.full(num_members, 0.2), "c": around(np.arange(1.0, size + 1)), "bias": jnp.full(num_members, 0.5),
    }  # fmt: skip
    statistics = {
        "observation_min": jnp.full(size, -limit), "observation_max": jnp.full(size, limit),
        "reward_min": jnp.array(-limit), "reward_max": jnp.array(limit), "delta_std": jnp.ones(size),
        "action_mean": jnp.zeros(actions), "varies": jnp.ones(size + 1, bool),
    }  # fmt: skip
    return {"network": {"members": members, "shared": {}}, "statistics": statistics, "elites": jnp.arange(num_members)}


def take(tree, e):
    return jax.tree.map(lambda leaf: leaf[e], tree)


def mean(member, state, action):
    """Expected next state, then reward."""
    reward = member["bias"] + member["c"] @ state - member["cost"] * state @ state
    return jnp.append(member["A"] @ state + member["B"] @ action, reward)


def model():
    """`s' = A s + B a + noise`, `r = bias + c s - cost |s|^2 + noise`; `step` draws an elite member every time."""

    def step(params, state, action, key):
        key_member, key_noise = jax.random.split(key)
        members = params["network"]["members"]
        means = jax.vmap(mean, (0, None, None))(members, state, action)
        e = params["elites"][jax.random.randint(key_member, (), 0, params["elites"].shape[0])]
        drawn = means[e] + members["noise"][e] * jax.random.normal(key_noise, means.shape[1:])
        stds = jnp.broadcast_to(members["noise"][:, None], means.shape)
        return drawn[:-1], Prediction(drawn[:-1], drawn[-1], jnp.ones(()), (means, stds))

    def member(params, e):
        members = jax.tree.map(lambda leaf: leaf[e][None], params["network"]["members"])
        return {**params, "network": {"members": members, "shared": {}}, "elites": jnp.zeros(1, jnp.int32)}

    def unused(*_):
        raise NotImplementedError

    return DynamicsModel(unused, unused, unused, lambda params, observation, key: observation, step, member)


def policy():
    """`a = K s + std eps`."""

    def mode(params, observation):
        return params["K"] @ observation

    def sample(params, observation, key):
        return mode(params, observation) + params["std"] * jax.random.normal(key, (params["K"].shape[0],))

    return Policy(sample, mode)


def policy_params(seed=0, *, size=3, actions=2, std=0.1, scale=0.2):
    generator = np.random.default_rng(seed)
    return {"K": jnp.asarray(generator.normal(size=(actions, size)) * scale, jnp.float32), "std": jnp.array(std)}


def stacked(many):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *many)


def value(params, policy_params, start, *, gamma, horizon, member=0):
    """The exact expected discounted return from `start` `[n]` when one member is used throughout."""
    one = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), take(params["network"]["members"], member))
    K, std = np.asarray(policy_params["K"], np.float64), float(policy_params["std"])
    closed = one["A"] + one["B"] @ K
    noise = one["noise"] ** 2 * np.eye(len(start)) + std**2 * one["B"] @ one["B"].T
    mean, covariance, total = np.asarray(start, np.float64), np.zeros((len(start),) * 2), 0.0
    for t in range(horizon):
        reward = one["bias"] + one["c"] @ mean - one["cost"] * (mean @ mean + np.trace(covariance))
        total += gamma**t * reward
        mean, covariance = closed @ mean, closed @ covariance @ closed.T + noise
    return total
