"""A linear system whose model has errors that a test chooses, and data of the system itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from rollout_models import statistics

from offline_mbrl.data import memory
from offline_mbrl.rollouts.pessimism import Penalty
from offline_mbrl.types import DynamicsModel, MemberPredictions, ModelParams, Prediction

SIZE = 2
DECAY = 0.9


def params(*, bias=0.0, noise=0.0, std=1.0, end=0.0, members=1, slope=0.0):
    """Of `model`: what it adds to the truth, the deviation of its samples, the deviation that it
    states, and the share of |s| that its bias grows by; 1 in `end` ends every episode at once."""
    network = {
        "bias": jnp.full(members, bias),
        "noise": jnp.full(members, noise),
        "std": jnp.full(members, std),
        "slope": jnp.full(members, slope),
        "end": jnp.asarray(end),
    }
    return ModelParams(
        network={"members": network, "shared": {}},
        statistics=statistics(SIZE, SIZE, 1e9),
        elites=jnp.arange(members),
    )


def truth(state, action):
    """`s' = 0.9 s + a`, `r = sum s`."""
    return DECAY * state + action, jnp.sum(state, axis=-1)


@functools.cache
def model():
    """Predicts `s' = 0.9 s + a + bias + slope |s|`, `r = sum s`."""

    def step(params, state, action, key):
        network = params.network["members"]
        following, reward = truth(state, action)
        extra = network["bias"] + network["slope"] * jnp.linalg.norm(state)  # [E]
        means = jnp.concatenate(
            [following[None] + extra[:, None], jnp.full((extra.size, 1), reward)], axis=1
        )
        key_member, key_noise = jax.random.split(key)
        e = params.elites[jax.random.randint(key_member, (), 0, params.elites.shape[0])]
        drawn = means[e] + network["noise"][e] * jax.random.normal(key_noise, means.shape[1:])
        std = jnp.broadcast_to(network["std"][:, None], means.shape)
        prediction = Prediction(
            observation=drawn[:-1],
            reward=drawn[-1],
            discount=1.0 - network["end"],
            members=MemberPredictions(mean=means, std=std),
        )
        return drawn[:-1], prediction

    def reset(params, observation, key):
        del params, key
        return observation

    def unused(*_):
        raise NotImplementedError

    return DynamicsModel(
        init=unused, loss=unused, log_prob=unused, reset=reset, step=step, member=unused
    )


def dataset(num_episodes=8, length=30, *, seed=0, noise=0.0, terminal=False):
    """Episodes of the true system with noise of this deviation on states and rewards."""
    rng = np.random.default_rng(seed)
    state = rng.normal(size=(num_episodes, SIZE))
    rows = []
    for _ in range(length):
        action = rng.uniform(-1, 1, (num_episodes, SIZE))
        following, reward = (np.asarray(part) for part in truth(state, action))
        rows.append((state, action, reward + noise * rng.normal(size=num_episodes)))
        state = following + noise * rng.normal(size=state.shape)
    rows.append((state, 0 * state, np.zeros(num_episodes)))
    observation, action, reward = (
        np.stack(column, axis=1).reshape(-1, *column[0].shape[1:])
        for column in zip(*rows, strict=True)
    )
    is_last = np.arange(len(reward)) % (length + 1) == length
    return memory.Dataset.from_arrays(
        {
            "observation": observation.astype(np.float32),
            "action": action.astype(np.float32),
            "reward": reward.astype(np.float32),
            "is_last": is_last,
            "is_terminal": is_last & terminal,
        }
    )


@functools.cache
def true_error():
    """The penalty that knows the system: how far the prediction is from the truth."""

    def apply(params, observation, action, prediction):
        del params
        following, reward = truth(observation, action)
        error = jnp.append(prediction.observation - following, prediction.reward - reward)
        return jnp.sqrt(jnp.mean(jnp.square(error)))

    return Penalty(apply=apply, needs_members=False)
