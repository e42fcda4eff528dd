"""Episodes of gymnasium's MuJoCo tasks by D4RL's recipes, from the snapshots of one training run.

| kind | behavior |
|---|---|
| random | uniform actions |
| medium | the policy at a third of the expert's return |
| expert | the best policy of the run |
| medium-expert | half of the steps by each of the two |
| medium-replay | the snapshots up to the medium policy, as many steps by each, in order |
| full-replay | all snapshots, likewise |

Actions are sampled and their log densities logged. Differences: D4RL's replay sets are the buffer
of the training run itself, with a policy that changes at every step; here it changes at snapshots,
so that data of any size are made without training. Next observations are the true ones, and a time
limit is a truncation, where D4RL's v0 and v1 files have neither.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.collect import online, policy_set, policy_training, records
from offline_mbrl.collect.mujoco import policies
from offline_mbrl.collect.policy_set import PolicySet
from offline_mbrl.data.catalog import official
from offline_mbrl.types import Array, Key, Params, Policy, Transition, UsageError

NUM_SIMULATORS = 10  # stepped side by side, for a single policy
CHUNK = 1_000  # steps of all simulators between two reports of progress


def collect(
    name: str,
    *,
    num_steps: int,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[dict[str, Any]]:
    """Plays a task's policies and yields the episodes, policy by policy.

    The last episode of every simulator is truncated where its steps are used up.

    Args:
      name: task and kind, for example `hopper-medium-replay`.
      num_steps: total number of steps.
      seed: source of the episodes' randomness; the policies do not depend on it.
      progress: called with the number of steps done and `num_steps`.

    Returns:
      Episodes `{"steps": {...}, "metadata": {...}}` as `control.collect` has them; `policy_run` is
      -1 for uniform actions. `discount` is 0 at a true terminal.

    Raises:
      UsageError: the name is unknown, or there are too few steps for its policies.
    """
    task, _, kind = name.partition("-")
    if task not in official.MUJOCO_SIMULATORS or kind not in official.MUJOCO_KINDS:
        raise UsageError(f"unknown MuJoCo data {name!r}")
    snapshots = policies.policies(task)
    rows = simulator_rows(kind, snapshots)
    if num_steps < len(rows):
        raise UsageError(f"local/mujoco/{name} has {len(rows)} policies: give as many steps")
    return _run(task, rows, snapshots, num_steps, seed, progress)


def simulator_rows(kind: str, snapshots: PolicySet) -> np.ndarray:
    """`[K]` the snapshot that acts in each simulator, in the order of the data; -1 is uniform."""
    medium = policies.medium(snapshots)
    expert = policies.expert(snapshots)
    half = NUM_SIMULATORS // 2
    rows = {
        "random": [-1] * NUM_SIMULATORS,
        "medium": [medium] * NUM_SIMULATORS,
        "expert": [expert] * NUM_SIMULATORS,
        "medium-expert": [medium] * half + [expert] * half,
        "medium-replay": range(medium + 1),
        "full-replay": range(len(snapshots.run)),
    }
    return np.asarray(rows[kind], np.int32)


def _run(
    task: str,
    rows: np.ndarray,
    snapshots: PolicySet,
    num_steps: int,
    seed: int,
    progress: Callable[[int, int], None],
) -> Iterator[dict[str, Any]]:
    running = online.simulators(official.MUJOCO_SIMULATORS[task], len(rows), entropy=[seed, 13])
    act = _acting(rows, snapshots, jax.random.key(seed))
    lengths = np.diff(np.linspace(0, num_steps, len(rows) + 1).astype(np.int64))  # of simulators
    observations = online.reset(running)
    chunks = []
    ends = []
    longest = int(lengths.max())
    for start in range(0, longest, CHUNK):
        count = min(CHUNK, longest - start)
        observations, transitions, is_last = online.play(running, observations, act, count)
        shape = (count, len(rows))
        chunks.append(jax.tree.map(lambda x, s=shape: x.reshape(*s, *x.shape[1:]), transitions))
        ends.append(is_last.reshape(shape))
        progress(min((start + count) * len(rows), num_steps), num_steps)
    played = jax.tree.map(lambda *parts: np.concatenate(parts), *chunks)
    over = np.concatenate(ends)
    number = itertools.count()
    for index, row in enumerate(rows.tolist()):
        length = int(lengths[index])
        column = jax.tree.map(lambda leaf, i=index, t=length: leaf[:t, i], played)
        bounds = np.union1d(np.flatnonzero(over[:length, index]) + 1, [length])
        for first, last in itertools.pairwise([0, *bounds.tolist()]):
            episode = jax.tree.map(lambda leaf, a=first, b=last: leaf[a:b], column)
            yield _episode(episode, next(number), row, snapshots)


def _acting(rows: np.ndarray, snapshots: PolicySet, key: Key) -> online.Act:
    """The policy of each simulator at its observation, with the log densities of the actions."""
    policy = policy_training.policy(snapshots.params)

    def choose(
        policy: Policy, params: Params, row: Array, observation: Array, key: Key
    ) -> tuple[Array, Array]:
        sampled = policy.sample(params, observation, key)
        uniform = jax.random.uniform(key, sampled.shape, minval=-1.0, maxval=1.0)
        action = jnp.where(row < 0, uniform, sampled)
        assert policy.log_prob is not None
        density = policy.log_prob(params, observation, action)
        return action, jnp.where(row < 0, -action.size * jnp.log(2.0), density)

    @jax.jit
    def act(params: Params, observations: Array, count: Array) -> tuple[Array, Array]:
        keys = jax.random.split(jax.random.fold_in(key, count), observations.shape[0])
        chosen = functools.partial(choose, policy)
        return jax.vmap(chosen)(params, jnp.asarray(rows), observations, keys)

    params = jax.device_put(jax.tree.map(lambda leaf: leaf[np.maximum(rows, 0)], snapshots.params))
    counter = itertools.count()
    return lambda observations: act(params, observations, np.uint32(next(counter)))


def _episode(
    transitions: Transition, number: int, row: int, snapshots: PolicySet
) -> dict[str, Any]:
    """The episode of the transitions `[T, ...]`, played by snapshot `row`."""
    uniform = {
        "policy_run": -1,
        "policy_step": 0,
        "policy_return": float(snapshots.random_return),
    }
    return {
        "steps": records.steps(transitions),
        "metadata": {
            "episode_id": number,
            "episode_return": records.total(transitions.reward),
            **(uniform if row < 0 else policy_set.origin(snapshots, row)),
        },
    }
