"""Small explicit models: statistics by hand, random parameters, a linear system with noise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.data import memory, normalize, splits
from offline_mbrl.models import explicit, feedforward, fitting
from offline_mbrl.types import BoundedActions, EnvironmentSpec, Transition

STATE, ACTION = 3, 2
D = STATE + 1
NOISE = np.array(
    [0.1, 0.2, 0.05, 0.1], np.float32
)  # deviations of (next observation, reward) given the rest


def spec(state_size=STATE, action_size=ACTION):
    observation = jax.ShapeDtypeStruct((state_size,), jnp.float32)
    return EnvironmentSpec(observation, BoundedActions((-1.0,) * action_size, (1.0,) * action_size))


def statistics(seed=0, *, state_size=STATE, action_size=ACTION, constant=(), scale=1.0):
    """Of transitions that never were; entries in `constant` never varied."""
    rng = np.random.default_rng(seed)
    state_mean = scale * rng.normal(size=state_size)
    state_std = scale * rng.uniform(0.5, 3, state_size)
    action_mean = rng.normal(size=action_size)
    action_std = rng.uniform(0.5, 3, action_size)
    delta_mean = scale * rng.normal(size=state_size)
    delta_std = scale * rng.uniform(0.1, 2, state_size)
    reward_mean = scale * rng.normal()
    reward_std = scale * rng.uniform(0.5, 2)
    varies = ~np.isin(np.arange(state_size + 1), constant)
    transitions = normalize.TransitionStatistics(
        observation_mean=np.float32(state_mean),
        observation_std=np.float32(state_std),
        observation_min=np.float32(state_mean - scale * 5),
        observation_max=np.float32(state_mean + scale * 5),
        action_mean=np.float32(action_mean),
        action_std=np.float32(action_std),
        delta_mean=np.float32(delta_mean),
        delta_std=np.where(varies[:-1], delta_std, 1).astype(np.float32),
        reward_mean=np.float32(reward_mean),
        reward_std=np.float32(reward_std),
        reward_min=np.float32(reward_mean - scale * 5),
        reward_max=np.float32(reward_mean + scale * 5),
        varies=varies,
        terminates=np.asarray(False),
    )
    return normalize.Statistics(mean=(), std=(), transitions=transitions)


def density(hidden=(8,), **sizes):
    return feedforward.make(
        feedforward.Config(hidden), sizes.get("state_size", STATE), sizes.get("action_size", ACTION)
    )


def transition(seed=0, lead=(), *, state_size=STATE, action_size=ACTION):
    rng = np.random.default_rng([seed, 1])

    def draw(*shape):
        return jnp.asarray(rng.normal(size=(*lead, *shape)), jnp.float32)

    return Transition(
        observation=draw(state_size),
        action=draw(action_size),
        reward=draw(),
        discount=jnp.ones(lead),
        next_observation=draw(state_size),
    )


def scattered(params, seed=0, scale=0.3):
    """Parameters of a network with noise on every leaf, so that no bias is zero."""
    rng = np.random.default_rng([seed, 2])

    def noisy(leaf):
        return leaf + np.float32(scale) * rng.normal(size=leaf.shape).astype(np.float32)

    return params._replace(network=jax.tree.map(noisy, params.network))


def with_part(params, name, part):
    """The same parameters with another `members`, `shared` or `continuation` of the network."""
    return params._replace(network=params.network | {name: part})


def ensemble(num_members=3, *, seed=0, constant=(), **settings):
    """A model and parameters of it."""
    model = small(num_members, **settings)
    return model, scattered(
        model.init(jax.random.key(seed), statistics(constant=constant)), seed + 1
    )


@functools.cache
def small(num_members, **settings):
    return jitted(explicit.make(density(), spec(), num_members=num_members, **settings))


def jitted(model):
    """The same model; eager calls of small functions take most of a test's time."""

    @jax.jit
    def init(key, transitions):
        return model.init(key, normalize.Statistics(mean=(), std=(), transitions=transitions))

    return model._replace(
        init=lambda key, statistics: init(key, statistics.transitions),
        loss=jax.jit(model.loss),
        log_prob=jax.jit(model.log_prob),
        step=jax.jit(model.step),
        member=jax.jit(model.member),
    )


def many_steps(model, params, transition, num, seed=0):
    """Predictions of `num` keys for one observation and action."""
    keys = jax.random.split(jax.random.key(seed), num)
    return _steps(model.step)(params, transition.observation, transition.action, keys)[1]


@functools.cache
def _steps(step):
    return jax.jit(jax.vmap(step, (None, None, None, 0)))


def linear(size=6_000, seed=0, noise=NOISE):
    """Independent transitions of a linear system: a dataset with a held-out part, statistics of the
    rest, and (A, B, w).
    """
    rng = np.random.default_rng(seed)
    a = 0.3 * rng.normal(size=(STATE, STATE))
    b = rng.normal(size=(STATE, ACTION))
    w = rng.normal(size=STATE)
    observation = rng.normal(size=(size, STATE))
    action = rng.uniform(-1, 1, (size, ACTION))
    change = observation @ a.T + action @ b.T + noise[:-1] * rng.normal(size=(size, STATE))
    reward = observation @ w + noise[-1] * rng.normal(size=size)
    arrays = {
        "observation": observation,
        "action": action,
        "reward": reward,
        "next_observation": observation + change,
        "is_terminal": np.zeros(size, bool),
        "is_truncated": np.ones(size, bool),
    }
    dataset = splits.hold_out(memory.Dataset.from_arrays(arrays), fraction=0.2, seed=seed)
    return dataset, fitting.training_statistics(dataset), (a, b, w)
