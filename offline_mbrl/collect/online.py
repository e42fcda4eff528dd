"""Online training of a continuous learner in a simulator, for the control suite's policies.

Several simulators are stepped side by side: one compiled call chooses the actions of all of them,
and after a round of steps one compiled call stores the transitions and makes all updates of the
round. The learner is the offline one; only the data differ. All randomness follows from the seed.
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
    Key,
    Learner,
    Metrics,
    Params,
    Policy,
    PyTree,
    Transition,
    UsageError,
)

# Observations [K, D] -> actions [K, A], extras [K, ...] or ()
Act = Callable[[np.ndarray], tuple[Any, PyTree]]


@dataclass(frozen=True)
class Config:
    """Settings of the alternation between experience and updates."""

    num_steps: int = 50_000  # environment steps of all simulators together
    num_simulators: int = 8  # stepped side by side
    round_steps: int = 8  # steps of each simulator between two dispatches of updates
    updates_per_step: float = 1.0  # updates per environment step
    batch_size: int = 128  # transitions per update
    warmup_steps: int = 2_000  # steps of uniform actions before the first update


class Snapshot(NamedTuple):
    """The policy at one moment of a run."""

    step: int  # environment steps so far
    params: Params  # parameters of the learner's policy


# --- updates ---


def learn(
    learner: Learner,
    state: PyTree,
    replay: ring.Ring,
    new: Transition,
    key: Key,
    *,
    num_updates: int,
    batch_size: int,
) -> tuple[PyTree, ring.Ring, Metrics]:
    """Stores transitions and makes a round of updates; a pure function, to be compiled.

    Args:
      learner: its `step` is run.
      state: the learner's.
      replay: earlier transitions.
      new: `[N, ...]` transitions to store first.
      key: consumed.
      num_updates: number of updates.
      batch_size: transitions per update.

    Returns:
      The new state and replay, and the mean metrics of the updates.
    """
    replay = ring.store(replay, new)

    def update(state: PyTree, key: Key) -> tuple[PyTree, Metrics]:
        key_sample, key_step = jax.random.split(key)
        batch = ring.sample(replay, batch_size, key_sample)
        return learner.step(state, Context(), batch, key_step)

    state, metrics = jax.lax.scan(update, state, jax.random.split(key, num_updates))
    return state, replay, {name: jnp.mean(values) for name, values in metrics.items()}


# --- simulators side by side ---


def simulators(name: str, count: int, *, entropy: Sequence[int]) -> list[dm_env.Environment]:
    """Makes simulators with different seeds.

    Args:
      name: for example `control/cheetah_run`.
      count: number of simulators.
      entropy: source of the seeds.
    """
    seeds = np.random.SeedSequence(entropy).generate_state(count)
    return [environments.make(name, seed=int(seed)) for seed in seeds]


def reset(running: Sequence[dm_env.Environment]) -> np.ndarray:
    """Starts an episode in each of K simulators; returns the observations `[K, D]`."""
    return np.stack([simulator.reset().observation for simulator in running])


def play(
    running: Sequence[dm_env.Environment], observations: np.ndarray, act: Act, num_steps: int
) -> tuple[np.ndarray, Transition, np.ndarray]:
    """Makes T steps in each of K simulators; where an episode ends, the next one starts at once.

    Args:
      running: the simulators.
      observations: `[K, D]` their current observations.
      act: chooses the actions.
      num_steps: T.

    Returns:
      The current observations `[K, D]`; the transitions `[T * K, ...]` float32, in the order of
      time and, within a step, of the simulators; and which of them ended an episode, `[T * K]`
      bool.
    """
    rounds = []
    ends = []
    for _ in range(num_steps):
        actions, extras = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), act(observations))
        timesteps = [
            simulator.step(action) for simulator, action in zip(running, actions, strict=True)
        ]
        reward: Any = np.array([timestep.reward for timestep in timesteps], np.float32)
        discount: Any = np.array([timestep.discount for timestep in timesteps], np.float32)
        next_observations = np.stack([timestep.observation for timestep in timesteps])
        rounds.append(
            Transition(
                observation=observations,
                action=actions,
                reward=reward,
                discount=discount,
                next_observation=next_observations,
                extras=extras,
            )
        )
        observations = next_observations
        is_last = np.array([timestep.last() for timestep in timesteps])
        ends.append(is_last)
        if is_last.any():
            current = [
                simulator.reset().observation if timestep.last() else timestep.observation
                for simulator, timestep in zip(running, timesteps, strict=True)
            ]
            observations = np.stack(current)
    transitions = jax.tree.map(lambda *columns: np.concatenate(columns), *rounds)
    return observations, transitions, np.concatenate(ends)


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
    """Trains online and yields snapshots of the policy.

    Args:
      learner: learns from batches of transitions `[B, ...]`; its policy acts by sampling.
      simulator: for example `control/cheetah_run`.
      config: settings.
      seed: source of all randomness.
      snapshots: increasing numbers of environment steps; a snapshot is taken at the end of the
        round that reaches its number.
      progress: called after every round with the steps done and the round's mean metrics.

    Raises:
      UsageError: the learner has no policy without memory, a snapshot lies outside the run, or the
        policy became non-finite.
    """
    policy = learner.policy
    if not isinstance(policy, Policy):
        raise UsageError("a learner without a policy, or with memory, cannot be trained online")
    is_increasing = list(snapshots) == sorted(set(snapshots))
    if not snapshots or not is_increasing or snapshots[0] < 1:
        raise UsageError(
            f"snapshots must be increasing numbers of steps, at least 1, got {list(snapshots)}"
        )
    if snapshots[-1] > config.num_steps:
        raise UsageError(
            f"the last snapshot is at step {snapshots[-1]}, but the run has {config.num_steps} "
            "steps"
        )
    return _train(learner, policy, simulator, config, seed, snapshots, progress)


def _train(
    learner: Learner,
    policy: Policy,
    simulator: str,
    config: Config,
    seed: int,
    snapshots: Sequence[int],
    progress: Callable[[int, Metrics], None],
) -> Iterator[Snapshot]:
    running = simulators(simulator, config.num_simulators, entropy=[seed, 7])
    rng = np.random.default_rng([seed, 8])
    key_init, key_act, key_learn = jax.random.split(jax.random.key(seed), 3)
    round_size = config.num_simulators * config.round_steps
    act = acting(policy, key_act)
    save, update = _programs(learner, config, key_learn, round_size)
    action_spec: Any = running[0].action_spec()
    act_uniformly = functools.partial(uniform, rng, action_spec.shape)
    observations = reset(running)
    step = 0
    state = replay = params = None
    pending = list(snapshots)
    while pending:
        if step < config.warmup_steps or state is None or replay is None:
            observations, new, _ = play(running, observations, act_uniformly, config.round_steps)
            if state is None or replay is None:
                example = jax.tree.map(lambda column: column[0], new)
                replay = ring.empty(example, -(-config.num_steps // round_size) * round_size)
                # Copied, because JAX refuses to donate a buffer twice.
                state = jax.tree.map(jnp.copy, learner.init(key_init, new, Context()))
                params = learner.policy_params(state, Context())
            replay = save(replay, new)
        else:
            act_by_policy = functools.partial(act, params)
            observations, new, _ = play(running, observations, act_by_policy, config.round_steps)
            state, replay, metrics = update(state, replay, new, np.uint32(step))
            # Copied, because the next round donates the state.
            params = jax.tree.map(jnp.copy, learner.policy_params(state, Context()))
            progress(step + round_size, metrics)
        step += round_size
        while pending and step >= pending[0]:
            pending.pop(0)
            yield Snapshot(step=step, params=_finite(jax.device_get(params), step))


def _finite(params: Params, step: int) -> Params:
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)):
        raise UsageError(f"the policy is not finite after {step} steps: lower the learner's rates")
    return params


def _programs(
    learner: Learner, config: Config, key: Key, round_size: int
) -> tuple[Callable, Callable]:
    """Compiles storing alone, and storing with updates; states and replays are donated."""
    num_updates = round(round_size * config.updates_per_step)

    def update(
        state: PyTree, replay: ring.Ring, new: Transition, step: Array
    ) -> tuple[PyTree, ring.Ring, Metrics]:
        round_key = jax.random.fold_in(key, step)
        return learn(
            learner,
            state,
            replay,
            new,
            round_key,
            num_updates=num_updates,
            batch_size=config.batch_size,
        )

    save = jax.jit(ring.store, donate_argnums=0)
    return save, jax.jit(update, donate_argnums=(0, 1))


def uniform(
    rng: np.random.Generator, shape: tuple[int, ...], observations: np.ndarray
) -> tuple[np.ndarray, tuple]:
    """Chooses uniform actions, for `play`.

    Args:
      rng: advanced by the draw.
      shape: shape of an action.
      observations: `[K, D]`.

    Returns:
      Actions `[K, *shape]` and no extras.
    """
    return rng.uniform(-1, 1, (len(observations), *shape)), ()


def acting(policy: Policy, key: Key) -> Callable[[Params, np.ndarray], tuple[Array, tuple]]:
    """Compiles a policy for `play`: `(params, observations [K, D]) -> (sampled actions, ())`.

    Every call uses new keys.
    """

    @jax.jit
    def sample(params: Params, observations: Array, count: Array) -> Array:
        keys = jax.random.split(jax.random.fold_in(key, count), observations.shape[0])
        return jax.vmap(policy.sample, (None, 0, 0))(params, observations, keys)

    counter = itertools.count()

    def act(params: Params, observations: np.ndarray) -> tuple[Array, tuple]:
        return sample(params, observations, np.uint32(next(counter))), ()

    return act
