"""Episodes of the DeepMind control suite in RL Unplugged's layout, made by policies of every
strength.

RL Unplugged recorded whole training runs, sub-sampled them, and thinned the successful episodes by
two thirds. Here the
same is done with snapshots: `training` keeps each of several runs at evenly spaced moments, the
episodes of a dataset are shared out evenly among those snapshots in the order of training, and
snapshots that return at least `SUCCESS` of the best one's mean get a third of a share. Actions are
sampled; one in twenty is uniform instead, so that no action has a vanishing density, and the
density of that mixture is logged.

The runs that make data are never those whose policies are evaluated (`target_policies`).
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.collect import control_policies, online, policy_set
from offline_mbrl.collect.policy_set import PolicySet
from offline_mbrl.data.catalog import official
from offline_mbrl.types import Array, Policy, PyTree, Transition, UsageError

UNIFORM = 0.05  # probability of a uniform action instead of the policy's
SUCCESS = 0.8  # of the best snapshot's mean return
SUCCESSFUL_SHARE = 1 / 3  # of the episodes that such a snapshot would get
NUM_SIMULATORS = 10  # stepped side by side


class Targets(NamedTuple):
    """Policies to be evaluated: one function, P sets of parameters."""

    policy: Policy
    params: PyTree  # [P, ...]
    names: tuple[str, ...]  # for example run3-step25024
    info: PolicySet  # where each comes from and what it returned in a few episodes


def collect(
    task: str,
    *,
    num_episodes: int,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[dict[str, Any]]:
    """Plays the task's behavior policies and yields the episodes, from the beginning of training to
    its end.

    Args:
      task: for example `cheetah_run`. Where its policies are not there yet they are trained first,
        once.
      num_episodes: in all.
      seed: fixes the episodes; the policies do not depend on it.
      progress: called after every batch of episodes with the number so far and in all.
      say: called with lines about training, where there is some.

    Returns:
      Episodes `{"steps": {...}, "metadata": {"episode_id", "episode_return", "policy_run",
      "policy_step", "policy_return"}}`. Steps are RLDS records `[T + 1, ...]`: `observation` `[D]`,
      the canonical vector; `action` `[A]`, `reward` and `discount` (always 1: the time limit is no
      terminal); flags; and `behavior_log_prob`, the log density of the action under the mixture
      that chose it; numbers are float32. On the last record only the observation and the flags mean
      anything.

    Raises:
      UsageError: the task is unknown, or the number is out of range.
    """
    control_policies.check(task)
    if num_episodes < 1:
        raise UsageError(f"num_episodes must be at least 1, got {num_episodes}")
    return _run(task, num_episodes, seed, progress, say)


def target_policies(task: str, count: int | None = None) -> Targets:
    """Policies of other training runs than the data's, from weak to strong.

    Args:
      task: `cartpole_swingup` or `cheetah_run`, or another one whose policies were trained with
        target runs.
      count: so many, their mean returns spread evenly over the range; None for all.

    Raises:
      UsageError: the task is unknown, or has fewer target policies.
    """
    control_policies.check(task)
    path = control_policies.location(task)
    found = policy_set.with_role(policy_set.load(path), policy_set.TARGET)
    if not len(found.run):
        raise UsageError(
            f"{task} has no target policies in {path}: train some with `python -m "
            f"offline_mbrl.collect.train_policies --task {task} --target-runs 3`"
        )
    found = policy_set.spread(found, count or len(found.run))
    names = tuple(f"run{run}-step{step}" for run, step in zip(found.run, found.step, strict=True))
    return Targets(control_policies.policy(found.params), found.params, names, found)


def schedule(policies: PolicySet, num_episodes: int) -> np.ndarray:
    """`[num_episodes]` which policy plays each episode, in the order of training; see the top of
    this file."""
    order = np.lexsort((policies.run, policies.step))
    successful = policies.mean_return[order] >= SUCCESS * policies.mean_return.max()
    shares = np.cumsum(np.where(successful, SUCCESSFUL_SHARE, 1.0))
    return order[
        np.searchsorted(shares / shares[-1], (np.arange(num_episodes) + 0.5) / num_episodes)
    ]


def mixed(policy: Policy, params: PyTree, observation: Array, key: Array) -> tuple[Array, Array]:
    """An action `[A]` of the policy, or with probability `UNIFORM` a uniform one, and the mixture's
    log density `[]`.

    `log((1 - u) pi(a|s) + u 2^-A)` at the action itself, whichever part chose it.
    """
    key_which, key_uniform, key_policy = jax.random.split(key, 3)
    sampled = policy.sample(params, observation, key_policy)
    uniform = jax.random.uniform(key_uniform, sampled.shape, minval=-1.0, maxval=1.0)
    action = jnp.where(jax.random.bernoulli(key_which, UNIFORM), uniform, sampled)
    assert policy.log_prob is not None
    chosen = jnp.log1p(-UNIFORM) + policy.log_prob(params, observation, action)
    return action, jnp.logaddexp(chosen, jnp.log(UNIFORM) - action.size * jnp.log(2.0))


def _run(
    task: str,
    num_episodes: int,
    seed: int,
    progress: Callable[[int, int], None],
    say: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    policies = policy_set.with_role(control_policies.policies(task, say), policy_set.BEHAVIOR)
    act, order = _acting(policies, jax.random.key(seed)), schedule(policies, num_episodes)
    size, length = min(NUM_SIMULATORS, num_episodes), official.CONTROL_HORIZON
    running = online.simulators(f"control/{task}", size, entropy=[seed, 12])
    observations = online.reset(running)

    for first in range(0, num_episodes, size):
        rows = np.resize(order[first : first + size], size)  # the last batch may have some to spare
        choose = functools.partial(act, rows, itertools.count(first * length))
        observations, seen = online.play(running, observations, choose, length)
        whole = jax.tree.map(lambda leaf: leaf.reshape(length, size, *leaf.shape[1:]), seen)
        for place, row in enumerate(rows[: num_episodes - first].tolist()):
            yield _episode(
                jax.tree.map(lambda leaf, place=place: leaf[:, place], whole),
                first + place,
                row,
                policies,
            )
        progress(min(first + size, num_episodes), num_episodes)


def _acting(policies: PolicySet, key: Array) -> Callable:
    """`online.Act` for K simulators after the numbers `[K]` of their policies and a counter of
    calls; compiled."""
    policy = control_policies.policy(policies.params)

    @jax.jit
    def act(params: PyTree, rows: Array, observations: Array, count: Array) -> tuple[Array, Array]:
        keys = jax.random.split(jax.random.fold_in(key, count), observations.shape[0])
        chosen = jax.tree.map(lambda leaf: leaf[rows], params)
        return jax.vmap(lambda *one: mixed(policy, *one))(chosen, observations, keys)

    params = jax.device_put(policies.params)
    return lambda rows, counter, observations: act(
        params, rows, observations, np.uint32(next(counter))
    )


def _episode(seen: Transition, number: int, row: int, policies: PolicySet) -> dict[str, Any]:
    """RLDS records of the transitions `[T, ...]` of one whole episode."""
    length = len(seen.reward)
    padded = lambda column, last: np.concatenate([column, np.full_like(column[:1], last)])  # noqa: E731
    steps = {
        "observation": np.concatenate([seen.observation, seen.next_observation[-1:]]),
        "action": padded(seen.action, 0.0),
        "reward": padded(seen.reward, 0.0),
        "discount": padded(seen.discount, 1.0),
        "is_first": np.arange(length + 1) == 0,
        "is_last": np.arange(length + 1) == length,
        "is_terminal": np.zeros(length + 1, bool),
        "behavior_log_prob": padded(seen.extras, 0.0),
    }
    origin = {
        "policy_run": int(policies.run[row]),
        "policy_step": int(policies.step[row]),
        "policy_return": float(policies.mean_return[row]),
    }
    return {
        "steps": steps,
        "metadata": {
            "episode_id": number,
            "episode_return": float(seen.reward.sum(dtype=np.float64)),
            **origin,
        },
    }
