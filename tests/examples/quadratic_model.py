"""The linear-quadratic problem as a perfect model, and policies for planners in it."""

import jax
import jax.numpy as jnp

from offline_mbrl.planning.shooting import Task
from offline_mbrl.problems import linear_quadratic
from offline_mbrl.types import DynamicsModel, ModelParams, Policy, Prediction

DYNAMICS = jnp.asarray(linear_quadratic.DYNAMICS, jnp.float32)
DRIVE = jnp.asarray(linear_quadratic.DRIVE, jnp.float32)
COST = jnp.asarray(linear_quadratic.optimal_cost(), jnp.float32)
START = jnp.array([0.6, -0.3])


def outcome(state, action):
    """(next state, reward) of one step."""
    return DYNAMICS @ state + DRIVE @ action, -jnp.sum(state**2) - jnp.sum(action**2)


def model(change=lambda state, action, reward: reward):
    """`change` gives the reward that the model predicts; members add their own `bonus` to it."""

    def step(params, state, action, key):
        del key  # deterministic
        following, reward = outcome(state, action)
        member = params.network["members"]["bonus"][params.elites[0]]
        prediction = Prediction(
            observation=following,
            reward=change(state, action, reward) + member,
            discount=jnp.ones(()),
        )
        return following, prediction

    def member(params, e):
        members = {"bonus": params.network["members"]["bonus"][e][None]}
        network = {"members": members, "shared": {}}
        return params._replace(network=network, elites=jnp.zeros(1, jnp.int32))

    def unused(*_):
        raise NotImplementedError

    def reset(params, observation, key):
        del params, key
        return observation

    return DynamicsModel(
        init=unused, loss=unused, log_prob=unused, reset=reset, step=step, member=member
    )


def model_params(bonus=(0.0,)):
    """One member for each bonus."""
    network = {"members": {"bonus": jnp.asarray(bonus)}, "shared": {}}
    return ModelParams(network=network, statistics=None, elites=jnp.arange(len(bonus)))


def optimal_tail(params, observation, action, key):
    """What the optimal controller earns from a state, whatever the action."""
    del params, action, key
    return -observation @ COST @ observation


def task(**changes):
    """Five steps ahead, then the optimal return."""
    settings = {
        "model": model(),
        "policy": linear_quadratic.controller(),
        "action_size": 1,
        "horizon": 5,
        "gamma": linear_quadratic.GAMMA,
        "tail": optimal_tail,
    }
    return Task(**{**settings, **changes})


def params(gain=((0.0, 0.0),), bonus=(0.0,), tail=None):
    """Of a planner whose policy is the controller `gain`, inaction by default."""
    policy = {"gain": jnp.asarray(gain, jnp.float32)}
    return {"model": model_params(bonus), "policy": policy, "tail": {} if tail is None else tail}


def normal_policy():
    """`N(mean, std^2)` in every state, unbounded."""

    def mode(params, observation):
        del observation
        return params["mean"]

    def sample(params, observation, key):
        del observation
        return params["mean"] + params["std"] * jax.random.normal(key, params["mean"].shape)

    return Policy(sample=sample, mode=mode)
