"""Runs of soft actor-critic in a simulator, kept at moments spread evenly over their training."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import dm_env
import jax
import numpy as np

from offline_mbrl.collect import online
from offline_mbrl.collect.policy_set import PolicySet
from offline_mbrl.learners import sac
from offline_mbrl.types import BoundedActions, EnvironmentSpec, Learner, Policy, PyTree

# Small networks and a large learning rate, chosen for the progress per CPU second.
SAC = sac.Config(
    actor_layers=(64, 64),
    critic_layers=(128, 128),
    actor_learning_rate=1e-3,
    critic_learning_rate=1e-3,
    temperature_learning_rate=1e-3,
)
EPISODES = 5  # for a snapshot's mean return
RANDOM_EPISODES = 20  # for the mean return of uniform actions


@dataclasses.dataclass(frozen=True)
class Plan:
    """A plan of the training of a task's policies."""

    num_steps: int = 200_000  # environment steps of each run
    behavior_runs: int = 2
    target_runs: int = 0
    num_snapshots: int = 10  # per run
    updates_per_step: float = 1.0
    batch_size: int = 128
    learner: sac.Config = SAC


def policy(params: PyTree) -> Policy:
    """The policy with parameters `[P, ...]`; its layer sizes are inferred from their shapes."""
    kernels = [params[name]["kernel"] for name in sorted(params)]
    layers = tuple(kernel.shape[-1] for kernel in kernels[:-1])
    size = kernels[-1].shape[-1] // 2
    spec = EnvironmentSpec(
        observation=jax.ShapeDtypeStruct((kernels[0].shape[-2],), np.float32),
        action=BoundedActions(minimum=(-1.0,) * size, maximum=(1.0,) * size),
    )
    learner = sac.make(dataclasses.replace(SAC, actor_layers=layers), spec)
    assert isinstance(learner.policy, Policy)
    return learner.policy


def train_run(
    learner: Learner,
    simulator: str,
    plan: Plan,
    *,
    run: int,
    role: str,
    horizon: int,
    report: Callable[[str], None] = lambda line: None,
) -> PolicySet:
    """Trains one run and measures the return of its snapshots.

    Args:
      learner: with a policy that samples actions.
      simulator: for example `control/cheetah_run`.
      plan: the plan.
      run: number of the run, which is its seed.
      role: `policy_set.BEHAVIOR` or `policy_set.TARGET`.
      horizon: steps of the longest episode.
      report: called with a line about every snapshot.
    """
    config = online.Config(
        num_steps=plan.num_steps, updates_per_step=plan.updates_per_step, batch_size=plan.batch_size
    )
    moments = [
        plan.num_steps * (number + 1) // plan.num_snapshots for number in range(plan.num_snapshots)
    ]
    running = online.simulators(simulator, EPISODES, entropy=[run, 9])
    action_spec: Any = running[0].action_spec()
    uniform = functools.partial(online.uniform, np.random.default_rng([run, 10]), action_spec.shape)
    measured = [returns(running, uniform, horizon) for _ in range(RANDOM_EPISODES // EPISODES)]
    random = np.concatenate(measured)
    assert isinstance(learner.policy, Policy)
    act = online.acting(learner.policy, jax.random.fold_in(jax.random.key(run), 11))
    snapshots = []
    snapshot_returns = []
    for snapshot in online.train(learner, simulator, config, seed=run, snapshots=moments):
        snapshots.append(snapshot)
        episodes = returns(running, functools.partial(act, snapshot.params), horizon)
        snapshot_returns.append(episodes)
        report(
            f"{simulator} run {run} ({role}) step {snapshot.step}: return {episodes.mean():.1f} "
            f"(random {random.mean():.1f})"
        )
    returns_by_snapshot = np.asarray(snapshot_returns)
    count = len(snapshots)
    return PolicySet(
        params=jax.tree.map(lambda *leaves: np.stack(leaves), *[s.params for s in snapshots]),
        run=np.full(count, run, np.int32),
        step=np.asarray([snapshot.step for snapshot in snapshots], np.int32),
        mean_return=returns_by_snapshot.mean(axis=1).astype(np.float32),
        stderr=(returns_by_snapshot.std(axis=1, ddof=1) / EPISODES**0.5).astype(np.float32),
        role=np.full(count, role),
        random_return=np.asarray(random.mean(), np.float32),
    )


def returns(running: Sequence[dm_env.Environment], act: online.Act, horizon: int) -> np.ndarray:
    """Undiscounted returns `[K]` of an episode in each of K simulators.

    Args:
      running: the simulators.
      act: chooses the actions.
      horizon: steps of the longest episode.
    """
    _, transitions, is_last = online.play(running, online.reset(running), act, horizon)
    rewards = np.asarray(transitions.reward, np.float64).reshape(horizon, len(running))
    over = np.cumsum(is_last.reshape(rewards.shape), axis=0) - is_last.reshape(rewards.shape)
    return (rewards * (over == 0)).sum(axis=0)
