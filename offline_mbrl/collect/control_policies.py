"""The policies of the control suite: plans of their training, their files, and the training.

Several independent runs of soft actor-critic with small networks are kept at moments spread evenly
over training, from nearly random to the end, like the recorded training runs of RL Unplugged (there
D4PG and V-MPO). The first runs generate data, the others are only evaluated.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from offline_mbrl import environments
from offline_mbrl.collect import policy_set, policy_training
from offline_mbrl.collect.policy_set import PolicySet
from offline_mbrl.collect.policy_training import SAC, Plan
from offline_mbrl.data.catalog import official
from offline_mbrl.data.store import atomic
from offline_mbrl.learners import sac
from offline_mbrl.types import Learner, UsageError

COMMITTED = Path(__file__).parent / "policies"


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
    """`policy_training.train_run` in a task of the control suite."""
    return policy_training.train_run(
        learner,
        f"control/{task}",
        plan,
        run=run,
        role=role,
        horizon=official.CONTROL_HORIZON,
        report=report,
    )
