"""A linear-Gaussian ensemble behind `DynamicsModel`, policies for it, and their exact values."""

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.data.normalize import TransitionStatistics
from offline_mbrl.types import DynamicsModel, MemberPredictions, ModelParams, Policy, Prediction


def params(num_members=1, *, seed=0, size=3, actions=2, spread=0.1, noise=0.1, limit=1e9):
    """Members around one stable system; `spread` is how far they disagree."""
    generator = np.random.default_rng(seed)
    A = 0.8 * np.linalg.qr(generator.normal(size=(size, size)))[0]
    B = generator.normal(size=(size, actions)) * 0.3

    def around(matrix):
        noisy = matrix + spread * generator.normal(size=(num_members, *matrix.shape)) / 3
        return jnp.asarray(noisy, jnp.float32)

    members = {
        "A": around(A),
        "B": around(B),
        "noise": jnp.full(num_members, noise),
        "cost": jnp.full(num_members, 0.2),
        "c": around(np.arange(1.0, size + 1)),
        "bias": jnp.full(num_members, 0.5),
    }
    return ModelParams(
        network={"members": members, "shared": {}},
        statistics=statistics(size, actions, limit),
        elites=jnp.arange(num_members),
    )


def statistics(size, actions, limit):
    """Of data that fill [-limit, limit] and have unit scales."""
    return TransitionStatistics(
        observation_mean=jnp.zeros(size),
        observation_std=jnp.ones(size),
        observation_min=jnp.full(size, -limit),
        observation_max=jnp.full(size, limit),
        action_mean=jnp.zeros(actions),
        action_std=jnp.ones(actions),
        delta_mean=jnp.zeros(size),
        delta_std=jnp.ones(size),
        reward_mean=jnp.zeros(()),
        reward_std=jnp.ones(()),
        reward_min=jnp.array(-limit),
        reward_max=jnp.array(limit),
        varies=jnp.ones(size + 1, bool),
        terminates=jnp.zeros((), bool),
    )


def take(tree, e):
    return jax.tree.map(lambda leaf: leaf[e], tree)


def mean(member, state, action):
    """Expected next state, then reward."""
    reward = member["bias"] + member["c"] @ state - member["cost"] * state @ state
    return jnp.append(member["A"] @ state + member["B"] @ action, reward)


def model():
    """`s' = A s + B a + noise`, `r = bias + c s - cost |s|^2 + noise`.

    `step` draws an elite member every time.
    """

    def step(params, state, action, key):
        key_member, key_noise = jax.random.split(key)
        members = params.network["members"]
        means = jax.vmap(mean, (0, None, None))(members, state, action)
        e = params.elites[jax.random.randint(key_member, (), 0, params.elites.shape[0])]
        drawn = means[e] + members["noise"][e] * jax.random.normal(key_noise, means.shape[1:])
        prediction = Prediction(
            observation=drawn[:-1],
            reward=drawn[-1],
            discount=jnp.ones(()),
            members=MemberPredictions(
                mean=means, std=jnp.broadcast_to(members["noise"][:, None], means.shape)
            ),
        )
        return drawn[:-1], prediction

    def member(params, e):
        members = jax.tree.map(lambda leaf: leaf[e][None], params.network["members"])
        return params._replace(
            network={"members": members, "shared": {}}, elites=jnp.zeros(1, jnp.int32)
        )

    def unused(*_):
        raise NotImplementedError

    def reset(params, observation, key):
        del params, key
        return observation

    return DynamicsModel(
        init=unused, loss=unused, log_prob=unused, reset=reset, step=step, member=member
    )


def policy():
    """`a = K s + std eps`."""

    def mode(params, observation):
        return params["K"] @ observation

    def sample(params, observation, key):
        noise = jax.random.normal(key, (params["K"].shape[0],))
        return mode(params, observation) + params["std"] * noise

    return Policy(sample=sample, mode=mode)


def policy_params(seed=0, *, size=3, actions=2, std=0.1, scale=0.2):
    generator = np.random.default_rng(seed)
    gain = jnp.asarray(generator.normal(size=(actions, size)) * scale, jnp.float32)
    return {"K": gain, "std": jnp.array(std)}


def stacked(many):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *many)


def value(params, policy_params, start, *, gamma, horizon, member=0):
    """The exact expected discounted return from `start` `[n]` with one member throughout."""
    system = jax.tree.map(
        lambda leaf: np.asarray(leaf, np.float64), take(params.network["members"], member)
    )
    K = np.asarray(policy_params["K"], np.float64)
    std = float(policy_params["std"])
    closed = system["A"] + system["B"] @ K
    noise = system["noise"] ** 2 * np.eye(len(start)) + std**2 * system["B"] @ system["B"].T
    mean = np.asarray(start, np.float64)
    covariance = np.zeros((len(start),) * 2)
    total = 0.0
    for t in range(horizon):
        square = mean @ mean + np.trace(covariance)
        total += gamma**t * (system["bias"] + system["c"] @ mean - system["cost"] * square)
        mean = closed @ mean
        covariance = closed @ covariance @ closed.T + noise
    return total
