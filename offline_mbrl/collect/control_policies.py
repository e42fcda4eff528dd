"""The policies of the control suite: plans of their training, their files, and the training.

Several independent runs of soft actor-critic with small networks are kept at moments spread evenly
over training, from nearly random to the end, like the recorded training runs of RL Unplugged (there
D4PG and V-MPO). The first runs generate data, the others are only evaluated.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dm_env
import jax
import numpy as np

from offline_mbrl import environments
from offline_mbrl.collect import online, policy_set
from offline_mbrl.collect.policy_set import PolicySet
from offline_mbrl.data.catalog import official
from offline_mbrl.data.store import atomic
from offline_mbrl.learners import sac
from offline_mbrl.types import BoundedActions, EnvironmentSpec, Learner, Policy, PyTree, UsageError

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
COMMITTED = Path(__file__).parent / "policies"


@dataclasses.dataclass(frozen=True)
class Plan:
    """A plan of the training of a task's policies."""

    num_steps: int = 200_000  # environment steps of each run
    behavior_runs: int = 2
    target_runs: int = 0
    num_snapshots: int = 10  # per run
    updates_per_step: float = 1.0
    batch_size: int = 128


PLANS = {
    "cartpole_swingup": Plan(50_000, behavior_runs=3, target_runs=3),
    "cheetah_run": Plan(150_000, behavior_runs=3, target_runs=2),
    "walker_walk": Plan(150_000, behavior_runs=2),
}


def plan(
    task: str,
    *,
    behavior_runs: int | None = None,
    target_runs: int | None = None,
    num_steps: int | None = None,
) -> Plan:
    """A task's plan with some fields replaced.

    Args:
      task: for example `cheetah_run`.
      behavior_runs: runs that generate data; None: the plan's own.
      target_runs: runs whose policies are evaluated; None: the plan's own.
      num_steps: environment steps of each run; None: the plan's own.

    Raises:
      UsageError: the task is unknown, or a number is out of range.
    """
    check(task)
    fields = {"behavior_runs": behavior_runs, "target_runs": target_runs, "num_steps": num_steps}
    changes = {name: value for name, value in fields.items() if value is not None}
    changed = dataclasses.replace(PLANS.get(task, Plan()), **changes)
    too_short = changed.num_steps < changed.num_snapshots
    if changed.behavior_runs < 1 or changed.target_runs < 0 or too_short:
        raise UsageError(
            f"{task}: give at least 1 behavior run, no negative number of target runs and at least "
            f"{changed.num_snapshots} steps"
        )
    return changed


def check(task: str) -> None:
    """Refuses unknown tasks.

    Raises:
      UsageError: the task is unknown.
    """
    if task not in official.CONTROL:
        raise UsageError(f"unknown task {task!r}: expected one of {', '.join(official.CONTROL)}")


def location(task: str) -> Path:
    """The file of a task's policies: in the package where shipped, else under the data root."""
    committed = COMMITTED / f"{task}.npz"
    return committed if committed.is_file() else atomic.root() / "policies" / f"{task}.npz"


def policies(task: str, report: Callable[[str], None] = lambda line: None) -> PolicySet:
    """A task's policies, which are trained first where their file is absent.

    Raises:
      UsageError: the task is unknown, the simulator is missing, or the file is damaged.
    """
    check(task)
    path = location(task)
    return policy_set.load(path if path.is_file() else train(task, plan(task), report=report))


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


# --- training ---


def train(
    task: str,
    plan: Plan,
    *,
    out: Path | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Trains all runs of a plan that are not finished, and writes the set of all their policies.

    Args:
      task: for example `cheetah_run`.
      plan: the plan.
      out: the file; None: the one under the data root.
      report: called with a line about every snapshot.

    Returns:
      The file.
    """
    check(task)
    learner = sac.make(SAC, environments.spec(f"control/{task}"))
    name = f"{task}-steps{plan.num_steps}-snapshots{plan.num_snapshots}"
    folder = atomic.root() / "policies" / name
    sets = []
    for run in range(plan.behavior_runs + plan.target_runs):
        path = folder / f"run{run}.npz"
        if not path.is_file():
            role = policy_set.BEHAVIOR if run < plan.behavior_runs else policy_set.TARGET
            policy_set.save(path, train_run(learner, task, plan, run=run, role=role, report=report))
        sets.append(policy_set.load(path))
    path = out or atomic.root() / "policies" / f"{task}.npz"
    policy_set.save(path, policy_set.join(sets))
    return path


def train_run(
    learner: Learner,
    task: str,
    plan: Plan,
    *,
    run: int,
    role: str,
    report: Callable[[str], None] = lambda line: None,
) -> PolicySet:
    """Trains one run and measures the return of its snapshots.

    Args:
      learner: with a policy that samples actions.
      task: for example `cheetah_run`.
      plan: the plan.
      run: number of the run, which is its seed.
      role: `policy_set.BEHAVIOR` or `policy_set.TARGET`.
      report: called with a line about every snapshot.
    """
    simulator = f"control/{task}"
    config = online.Config(
        num_steps=plan.num_steps, updates_per_step=plan.updates_per_step, batch_size=plan.batch_size
    )
    moments = [
        plan.num_steps * (number + 1) // plan.num_snapshots for number in range(plan.num_snapshots)
    ]
    running = online.simulators(simulator, EPISODES, entropy=[run, 9])
    action_spec: Any = running[0].action_spec()
    uniform = functools.partial(online.uniform, np.random.default_rng([run, 10]), action_spec.shape)
    random = np.concatenate([returns(running, uniform) for _ in range(RANDOM_EPISODES // EPISODES)])
    assert isinstance(learner.policy, Policy)
    act = online.acting(learner.policy, jax.random.fold_in(jax.random.key(run), 11))
    snapshots = []
    snapshot_returns = []
    for snapshot in online.train(learner, simulator, config, seed=run, snapshots=moments):
        snapshots.append(snapshot)
        measured = returns(running, functools.partial(act, snapshot.params))
        snapshot_returns.append(measured)
        report(
            f"{task} run {run} ({role}) step {snapshot.step}: return {measured.mean():.1f} "
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


def returns(running: Sequence[dm_env.Environment], act: online.Act) -> np.ndarray:
    """Undiscounted returns `[K]` of an episode in each of K control suite simulators."""
    horizon = official.CONTROL_HORIZON  # the length of every episode
    _, transitions = online.play(running, online.reset(running), act, horizon)
    rewards = np.asarray(transitions.reward, np.float64).reshape(horizon, len(running))
    return rewards.sum(axis=0)
