"""Policies and simulators with computed answers."""

import functools
import os
import time

import dm_env
import jax
import jax.numpy as jnp
import numpy as np
from dm_env import specs

from offline_mbrl.types import Policy, UsageError

# --- policies ---


def catch_mode(params, observation):
    """Optimal on catch when `params` is 0; walks left when it is 1."""
    ball, paddle = jnp.argmax(observation[:-1].max(0)), jnp.argmax(observation[-1])
    return jnp.where(params > 0, 0, 1 + jnp.sign(ball - paddle)).astype(jnp.int32)


def random_catch(params, observation, key):
    del params, observation
    return jax.random.randint(key, (), 0, 3)


CATCH = Policy(sample=random_catch, mode=catch_mode)


def constant(value):
    def action(params, observation, key=None):
        return jnp.asarray(value)

    return Policy(sample=action, mode=action)


# --- simulators with known answers ---


class Counter(dm_env.Environment):
    """Episode n lasts `length(n)` steps and pays n + 1 a step.

    `trouble` is called with the number of each step.
    """

    def __init__(self, length=lambda episode: 3, trouble=lambda step: None, action_spec=None):
        self._length, self._trouble = length, trouble
        self._action_spec = action_spec or specs.DiscreteArray(2)
        self._episode, self._step, self._steps = -1, 0, 0

    def reset(self):
        self._episode, self._step = self._episode + 1, 0
        return dm_env.restart(self._observation())

    def step(self, action):
        self._step, self._steps = self._step + 1, self._steps + 1
        self._trouble(self._steps)
        if self._step == self._length(self._episode):
            return dm_env.termination(float(self._episode + 1), self._observation())
        return dm_env.transition(float(self._episode + 1), self._observation())

    def _observation(self):
        return np.array([self._episode, self._step], np.float32)

    def observation_spec(self):
        return specs.Array((2,), np.float32)

    def action_spec(self):
        return self._action_spec


def make_counter(simulator, *, seed, **settings):
    return Counter(**settings)


def counter(**settings):
    return functools.partial(make_counter, **settings)


# --- trouble that another process can import ---


def raise_at_4(step):
    if step == 4:
        raise RuntimeError("physics diverged")


def hang_at_4(step):
    if step == 4:
        time.sleep(600)


def exit_at_4(step):
    if step == 4:
        os._exit(3)


def refuse(simulator, *, seed):
    raise UsageError(f"no licence for {simulator}")
