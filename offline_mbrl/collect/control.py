"""Episodes of the DeepMind control suite by policies of every strength, in RL Unplugged's layout.

RL Unplugged recorded whole training runs, sub-sampled them, and thinned the successful episodes by
two thirds. This module does the same with snapshots: `control_policies` keeps several runs at
evenly spaced moments, the episodes of a dataset are divided evenly among the snapshots in the order
of training, and snapshots with at least `SUCCESS` of the best mean return get a third of a share.
Actions are sampled; one in twenty is uniform instead, so that no action has a vanishing density,
and the density of that mixture is logged.

The policies that are evaluated (`target_policies`) come from other runs than the data's.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.collect import control_policies, online, policy_set, policy_training, records
from offline_mbrl.collect.policy_set import PolicySet
from offline_mbrl.data.catalog import official
from offline_mbrl.types import Array, Key, Params, Policy, Transition, UsageError

UNIFORM = 0.05  # probability of a uniform action instead of the policy's
SUCCESS = 0.8  # share of the best snapshot's mean return from which a snapshot is successful
SUCCESSFUL_SHARE = 1 / 3  # factor of a successful snapshot's number of episodes
NUM_SIMULATORS = 10  # stepped side by side


class Targets(NamedTuple):
    """Policies to be evaluated: P sets of parameters of one policy."""

    policy: Policy
    params: Params  # [P, ...]
    names: tuple[str, ...]  # for example run3-step25024
    info: PolicySet  # their origins, and their mean returns in a few episodes


def collect(
    task: str,
    *,
    num_episodes: int,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    report: Callable[[str], None] = lambda line: None,
) -> Iterator[dict[str, Any]]:
    """Plays a task's behavior policies and yields the episodes in the order of training.

    Args:
      task: for example `cheetah_run`. Its policies are trained first where they are absent.
      num_episodes: total number of episodes.
      seed: source of the episodes' randomness; the policies do not depend on it.
      progress: called after every batch of episodes with the number done and `num_episodes`.
      report: called with lines about the training of policies.

    Returns:
      Episodes `{"steps": {...}, "metadata": {"episode_id", "episode_return", "policy_run",
      "policy_step", "policy_return"}}`. Steps are RLDS records `[T + 1, ...]`: `observation` `[D]`,
      the canonical vector; `action` `[A]`, `reward` and `discount` (always 1: the time limit is no
      terminal); flags; and `behavior_log_prob`, the log density of the action under the mixture
      that chose it; numbers are float32. On the last record only the observation and the flags
      are meaningful.

    Raises:
      UsageError: the task is unknown, or the number is out of range.
    """
    control_policies.check(task)
    if num_episodes < 1:
        raise UsageError(f"num_episodes must be at least 1, got {num_episodes}")
    return _run(task, num_episodes, seed, progress, report)


def target_policies(task: str, count: int | None = None) -> Targets:
    """Policies of other training runs than the data's, from weak to strong.

    Args:
      task: `cartpole_swingup` or `cheetah_run`, or another task that was trained with target runs.
      count: number of policies, their mean returns spread evenly over the range; None: all.

    Raises:
      UsageError: the task is unknown, or has fewer target policies.
    """
    control_policies.check(task)
    path = control_policies.location(task)
    targets = policy_set.with_role(policy_set.load(path), policy_set.TARGET)
    if not len(targets.run):
        raise UsageError(
            f"{task} has no target policies in {path}: train some with `python -m "
            f"offline_mbrl.collect.train_policies --task {task} --target-runs 3`"
        )
    targets = policy_set.spread(targets, count or len(targets.run))
    return Targets(
        policy=policy_training.policy(targets.params),
        params=targets.params,
        names=tuple(
            f"run{run}-step{step}" for run, step in zip(targets.run, targets.step, strict=True)
        ),
        info=targets,
    )


def schedule(policies: PolicySet, num_episodes: int) -> np.ndarray:
    """`[num_episodes]` rows of the policies that play the episodes; see the top of this file."""
    order = np.lexsort((policies.run, policies.step))
    successful = policies.mean_return[order] >= SUCCESS * policies.mean_return.max()
    shares = np.cumsum(np.where(successful, SUCCESSFUL_SHARE, 1.0))
    quantiles = (np.arange(num_episodes) + 0.5) / num_episodes
    return order[np.searchsorted(shares / shares[-1], quantiles)]


def mixed(policy: Policy, params: Params, observation: Array, key: Key) -> tuple[Array, Array]:
    """Samples an action of the policy, or with probability `UNIFORM` a uniform one.

    Args:
      policy: with a density.
      params: the policy's.
      observation: `[D]`.
      key: consumed.

    Returns:
      The action `[A]` and the mixture's log density `log((1 - u) pi(a|s) + u 2^-A)` there, `[]`.
    """
    key_which, key_uniform, key_policy = jax.random.split(key, 3)
    sampled = policy.sample(params, observation, key_policy)
    uniform = jax.random.uniform(key_uniform, sampled.shape, minval=-1.0, maxval=1.0)
    action = jnp.where(jax.random.bernoulli(key_which, UNIFORM), uniform, sampled)
    assert policy.log_prob is not None
    policy_part = jnp.log1p(-UNIFORM) + policy.log_prob(params, observation, action)
    uniform_part = jnp.log(UNIFORM) - action.size * jnp.log(2.0)
    return action, jnp.logaddexp(policy_part, uniform_part)


def _run(
    task: str,
    num_episodes: int,
    seed: int,
    progress: Callable[[int, int], None],
    report: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    policies = policy_set.with_role(control_policies.policies(task, report), policy_set.BEHAVIOR)
    act = _acting(policies, jax.random.key(seed))
    order = schedule(policies, num_episodes)
    size = min(NUM_SIMULATORS, num_episodes)
    length = official.CONTROL_HORIZON
    running = online.simulators(f"control/{task}", size, entropy=[seed, 12])
    observations = online.reset(running)

    for first in range(0, num_episodes, size):
        rows = np.resize(order[first : first + size], size)  # extra ones in the last batch
        choose = functools.partial(act, rows, itertools.count(first * length))
        observations, transitions, _ = online.play(running, observations, choose, length)
        episodes = jax.tree.map(
            lambda leaf: leaf.reshape(length, size, *leaf.shape[1:]), transitions
        )
        for index, row in enumerate(rows[: num_episodes - first].tolist()):
            episode = jax.tree.map(lambda leaf, index=index: leaf[:, index], episodes)
            yield _episode(episode, first + index, row, policies)
        progress(min(first + size, num_episodes), num_episodes)


def _acting(policies: PolicySet, key: Key) -> Callable:
    """Compiles `(rows of policies [K], counter of calls, observations [K, D]) -> actions, extras`.

    With the first two arguments bound it is an `online.Act`.
    """
    policy = policy_training.policy(policies.params)

    @jax.jit
    def act(params: Params, rows: Array, observations: Array, count: Array) -> tuple[Array, Array]:
        keys = jax.random.split(jax.random.fold_in(key, count), observations.shape[0])
        row_params = jax.tree.map(lambda leaf: leaf[rows], params)
        return jax.vmap(functools.partial(mixed, policy))(row_params, observations, keys)

    params = jax.device_put(policies.params)
    return lambda rows, counter, observations: act(
        params, rows, observations, np.uint32(next(counter))
    )


def _episode(transitions: Transition, number: int, row: int, policies: PolicySet) -> dict[str, Any]:
    """The episode of the transitions `[T, ...]`, played by policy `row`."""
    return {
        "steps": records.steps(transitions),
        "metadata": {
            "episode_id": number,
            "episode_return": records.total(transitions.reward),
            **policy_set.origin(policies, row),
        },
    }
