"""Small explicit models: statistics by hand, random parameters, and a linear system with known noise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.data import memory, normalize, splits
from offline_mbrl.models import explicit, feedforward
from offline_mbrl.types import BoundedActions, EnvironmentSpec, Transition

STATE, ACTION = 3, 2
D = STATE + 1
NOISE = np.array([0.1, 0.2, 0.05, 0.1], np.float32)  # deviations of (next observation, reward) given the rest


def spec(state_size=STATE, action_size=ACTION):
    observation = jax.ShapeDtypeStruct((state_size,), jnp.float32)
    return EnvironmentSpec(observation, BoundedActions((-1.0,) * action_size, (1.0,) * action_size))


def statistics(seed=0, *, state_size=STATE, action_size=ACTION, constant=(), scale=1.0):
    """Of transitions that never were; entries in `constant` never varied."""
    rng = np.random.default_rng(seed)
    state = [rng.normal(size=state_size), rng.uniform(0.5, 3, state_size)]
    action = [rng.normal(size=action_size), rng.uniform(0.5, 3, action_size)]
    delta = [rng.normal(size=state_size), rng.uniform(0.1, 2, state_size)]
    reward = [rng.normal(), rng.uniform(0.5, 2)]
    varies = ~np.isin(np.arange(state_size + 1), constant)
    figures = [scale * state[0], scale * state[1], scale * (state[0] - 5), scale * (state[0] + 5), *action,
               *(scale * figure for figure in delta), *(scale * figure for figure in reward),
               scale * (reward[0] - 5), scale * (reward[0] + 5)]  # fmt: skip
    of = normalize.TransitionStatistics(*(np.float32(figure) for figure in figures), varies, np.asarray(False))
    of = of._replace(delta_std=np.where(varies[:-1], of.delta_std, 1).astype(np.float32))
    return normalize.Statistics((), (), of)


def density(hidden=(8,), **sizes):
    return feedforward.make(
        feedforward.Config(hidden), sizes.get("state_size", STATE), sizes.get("action_size", ACTION)
    )


def transition(seed=0, lead=(), *, state_size=STATE, action_size=ACTION):
    rng = np.random.default_rng([seed, 1])
    draw = lambda *shape: jnp.asarray(rng.normal(size=(*lead, *shape)), jnp.float32)  # noqa: E731
    return Transition(draw(state_size), draw(action_size), draw(), jnp.ones(lead), draw(state_size))


def scattered(params, seed=0, scale=0.3):
    """Parameters of a network with noise on every leaf, so that no bias is zero."""
    rng = np.random.default_rng([seed, 2])
    noisy = lambda leaf: leaf + np.float32(scale) * rng.normal(size=leaf.shape).astype(np.float32)  # noqa: E731
    return params | {"network": jax.tree.map(noisy, params["network"])}


def ensemble(num_members=3, *, seed=0, constant=(), **settings):
    """A model and parameters of it."""
    model = small(num_members, **settings)
    return model, scattered(model.init(jax.random.key(seed), statistics(constant=constant)), seed + 1)


@functools.cache
def small(num_members, **settings):
    return jitted(explicit.make(density(), spec(), num_members=num_members, **settings))


def jitted(model):
    """The same model; eager calls of small functions take most of a test's time."""
    known = jax.jit(lambda key, of: model.init(key, normalize.Statistics((), (), of)))
    return model._replace(
        init=lambda key, of: known(key, of.transitions), loss=jax.jit(model.loss), log_prob=jax.jit(model.log_prob),
        step=jax.jit(model.step), member=jax.jit(model.member))  # fmt: skip


def many_steps(model, params, of, num, seed=0):
    """What `num` keys make of one observation and action."""
    keys = jax.random.split(jax.random.key(seed), num)
    return _steps(model.step)(params, of.observation, of.action, keys)[1]


@functools.cache
def _steps(step):
    return jax.jit(jax.vmap(step, (None, None, None, 0)))


def linear(size=6_000, seed=0, noise=NOISE):
    """Independent transitions of a linear system: a dataset with a held-out part, its statistics, and (A, B, w)."""
    rng = np.random.default_rng(seed)
    a, b, w = 0.3 * rng.normal(size=(STATE, STATE)), rng.normal(size=(STATE, ACTION)), rng.normal(size=STATE)
    observation, action = rng.normal(size=(size, STATE)), rng.uniform(-1, 1, (size, ACTION))
    following = observation + observation @ a.T + action @ b.T + noise[:-1] * rng.normal(size=(size, STATE))
    reward = observation @ w + noise[-1] * rng.normal(size=size)
    arrays = {"observation": observation, "action": action, "reward": reward, "next_observation": following,
              "is_terminal": np.zeros(size, bool), "is_truncated": np.ones(size, bool)}  # fmt: skip
    dataset = splits.hold_out(memory.Dataset.from_arrays(arrays), fraction=0.2, seed=seed)
    return dataset, normalize.Statistics((), (), normalize.transition_statistics(dataset)), (a, b, w)
