"""Online training of a continuous learner in a simulator: where the control suite's behavior
policies come from.

Several simulators are stepped side by side: one compiled call chooses the actions of all of them,
and after a round of steps one compiled call stores what was seen and makes all the round's updates.
The learner is the offline one; only the data differ. Everything follows from the seed.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import dm_env
import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl import environments
from offline_mbrl.data import ring
from offline_mbrl.types import (
    Array,
    Context,
    Learner,
    Metrics,
    Policy,
    PyTree,
    Transition,
    UsageError,
)

# Observations [K, D] -> actions [K, A], extras [K, ...] or ()
Act = Callable[[np.ndarray], tuple[Any, PyTree]]


@dataclass(frozen=True)
class Config:
    """How experience and updates alternate."""

    num_steps: int = 50_000  # environment steps in all, over the simulators together
    num_simulators: int = 8  # stepped side by side
    round_steps: int = 8  # steps of each simulator between two dispatches of updates
    updates_per_step: float = 1.0  # updates per environment step
    batch_size: int = 128  # transitions per update
    warmup_steps: int = 2_000  # steps of uniform actions before the first update


class Snapshot(NamedTuple):
    """The policy at one moment of a run."""

    step: int  # environment steps made
    params: PyTree  # of the learner's policy


# --- updates ---


def learn(
    learner: Learner,
    state: PyTree,
    replay: ring.Ring,
    new: Transition,
    key: Array,
    *,
    num_updates: int,
    batch_size: int,
) -> tuple[PyTree, ring.Ring, Metrics]:
    """Stores transitions `[N, ...]` and makes `num_updates` updates; their mean metrics. Pure: to
    be compiled whole."""
    replay = ring.store(replay, new)

    def update(state: PyTree, key: Array) -> tuple[PyTree, Metrics]:
        key_sample, key_step = jax.random.split(key)
        batch = ring.sample(replay, batch_size, key_sample)
        return learner.step(state, Context(), batch, key_step)

    state, metrics = jax.lax.scan(update, state, jax.random.split(key, num_updates))
    return state, replay, {name: jnp.mean(values) for name, values in metrics.items()}


# --- simulators side by side ---


def simulators(name: str, count: int, *, entropy: Sequence[int]) -> list[dm_env.Environment]:
    """`count` simulators with seeds of their own that follow from `entropy`."""
    seeds = np.random.SeedSequence(entropy).generate_state(count)
    return [environments.make(name, seed=int(one)) for one in seeds]


def reset(running: Sequence[dm_env.Environment]) -> np.ndarray:
    """Starts an episode in each of K simulators: observations `[K, D]`."""
    return np.stack([simulator.reset().observation for simulator in running])


def play(
    running: Sequence[dm_env.Environment], observations: np.ndarray, act: Act, num_steps: int
) -> tuple[np.ndarray, Transition]:
    """Makes `num_steps` steps in each of K simulators; where an episode ends, the next one starts
    at once.

    Args:
      running: the simulators.
      observations: `[K, D]` where they stand.
      act: chooses the actions.
      num_steps: T.

    Returns:
      Where they stand now, and what was seen, `[T * K, ...]` float32, all simulators' first step
      first.
    """
    seen = []
    for _ in range(num_steps):
        actions, extras = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), act(observations))
        after = [simulator.step(action) for simulator, action in zip(running, actions, strict=True)]
        reward: Any = np.array([one.reward for one in after], np.float32)
        discount: Any = np.array([one.discount for one in after], np.float32)
        following = np.stack([one.observation for one in after])
        seen.append(Transition(observations, actions, reward, discount, following, extras))
        observations = following
        if any(one.last() for one in after):
            begun = [
                simulator.reset().observation if one.last() else one.observation
                for simulator, one in zip(running, after, strict=True)
            ]
            observations = np.stack(begun)
    return observations, jax.tree.map(lambda *columns: np.concatenate(columns), *seen)


# --- the run ---


def train(
    learner: Learner,
    simulator: str,
    config: Config,
    *,
    seed: int,
    snapshots: Sequence[int],
    progress: Callable[[int, Metrics], None] = lambda step, metrics: None,
) -> Iterator[Snapshot]:
    """Trains online and yields the policy at given moments.

    Args:
      learner: `step(state, Transition [B, ...], key)`; its policy acts by sampling.
      simulator: for example `control/cheetah_run`.
      config: see `Config`.
      seed: fixes everything.
      snapshots: environment steps, increasing; each is taken at the end of the round that reaches
        it.
      progress: called after every round with the steps done and the round's mean metrics.

    Raises:
      UsageError: the learner has no policy, a snapshot lies outside the run, or the policy became
        non-finite.
    """
    policy = learner.policy
    if policy is None:
        raise UsageError("a learner without a policy cannot be trained online")
    if (
        not snapshots
        or list(snapshots) != sorted(set(snapshots))
        or not 0 < snapshots[0] <= snapshots[-1]
    ):
        raise UsageError(
            f"snapshots must be increasing numbers of steps, at least 1, got {list(snapshots)}"
        )
    if snapshots[-1] > config.num_steps:
        raise UsageError(
            f"the last snapshot is at step {snapshots[-1]}, but the run has {config.num_steps} "
            "steps"
        )
    return _train(learner, policy, simulator, config, seed, list(snapshots), progress)


def _train(
    learner: Learner,
    policy: Policy,
    simulator: str,
    config: Config,
    seed: int,
    wanted: list[int],
    progress: Callable[[int, Metrics], None],
) -> Iterator[Snapshot]:
    running, rng = (
        simulators(simulator, config.num_simulators, entropy=[seed, 7]),
        np.random.default_rng([seed, 8]),
    )
    key_init, key_act, key_learn = jax.random.split(jax.random.key(seed), 3)
    round_size = config.num_simulators * config.round_steps
    act, save, update = acting(policy, key_act), *_programs(learner, config, key_learn, round_size)
    action_spec: Any = running[0].action_spec()
    observations, step, state, replay, params = reset(running), 0, None, None, None
    while wanted:
        if step < config.warmup_steps or state is None or replay is None:
            choose = functools.partial(uniform, rng, action_spec.shape)
            observations, new = play(running, observations, choose, config.round_steps)
            if state is None or replay is None:
                example = jax.tree.map(lambda column: column[0], new)
                replay = ring.empty(example, -(-config.num_steps // round_size) * round_size)
                # copied: JAX refuses to donate one buffer twice
                state = jax.tree.map(jnp.copy, learner.init(key_init, new, Context()))
                params = learner.policy_params(state, Context())
            replay = save(replay, new)
        else:
            observations, new = play(
                running, observations, functools.partial(act, params), config.round_steps
            )
            state, replay, metrics = update(state, replay, new, np.uint32(step))
            # The state is donated to the next round
            params = jax.tree.map(jnp.copy, learner.policy_params(state, Context()))
            progress(step + round_size, metrics)
        step += round_size
        while wanted and step >= wanted[0]:
            wanted.pop(0)
            yield Snapshot(step, _finite(jax.device_get(params), step))


def _finite(params: PyTree, step: int) -> PyTree:
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)):
        raise UsageError(f"the policy is not finite after {step} steps: lower the learner's rates")
    return params


def _programs(
    learner: Learner, config: Config, key: Array, round_size: int
) -> tuple[Callable, Callable]:
    """Compiled: storing alone, and storing with a round's updates. States and replays are
    donated."""
    num_updates = round(round_size * config.updates_per_step)

    def update(
        state: PyTree, replay: ring.Ring, new: Transition, step: Array
    ) -> tuple[PyTree, ring.Ring, Metrics]:
        return learn(
            learner,
            state,
            replay,
            new,
            jax.random.fold_in(key, step),
            num_updates=num_updates,
            batch_size=config.batch_size,
        )

    return jax.jit(ring.store, donate_argnums=0), jax.jit(update, donate_argnums=(0, 1))


def uniform(
    rng: np.random.Generator, shape: tuple[int, ...], observations: np.ndarray
) -> tuple[np.ndarray, tuple]:
    """Uniform actions `[K, *shape]` for `play`."""
    return rng.uniform(-1, 1, (len(observations), *shape)), ()


def acting(policy: Policy, key: Array) -> Callable[[PyTree, np.ndarray], tuple[Array, tuple]]:
    """A policy for `play`, compiled: (params, observations `[K, D]`) to sampled actions; new keys
    every call."""

    def act(params: PyTree, observations: Array, count: Array) -> Array:
        keys = jax.random.split(jax.random.fold_in(key, count), observations.shape[0])
        return jax.vmap(policy.sample, (None, 0, 0))(params, observations, keys)

    compiled, counter = jax.jit(act), itertools.count()
    return lambda params, observations: (
        compiled(params, observations, np.uint32(next(counter))),
        (),
    )
