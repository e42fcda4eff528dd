"""The policies of the control suite: how far each task's are trained, where they are kept, and
training them.

Soft actor-critic with small networks in several independent runs; each run is kept at moments
spread evenly over the whole of training, from nearly random to its end, as the recorded training
runs of RL Unplugged are (there D4PG and V-MPO). The first runs make data, the others are only ever
evaluated.
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

# Small networks and a large learning rate: chosen for learning per CPU second, not for the last
# point of return.
SAC = sac.Config(
    actor_layers=(64, 64),
    critic_layers=(128, 128),
    actor_learning_rate=1e-3,
    critic_learning_rate=1e-3,
    temperature_learning_rate=1e-3,
)
EPISODES = 5  # by which a snapshot's mean return is measured
RANDOM_EPISODES = 20  # by which the return of uniform actions is
COMMITTED = Path(__file__).parent / "policies"


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a task's policies are trained."""

    num_steps: int = 200_000  # environment steps of each run
    behavior_runs: int = 2
    target_runs: int = 0
    num_snapshots: int = 10  # of each run
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
    """A task's plan, with what is given instead of its own.

    Raises:
      UsageError: the task is unknown, or a number is out of range.
    """
    check(task)
    given = {"behavior_runs": behavior_runs, "target_runs": target_runs, "num_steps": num_steps}
    chosen = dataclasses.replace(
        PLANS.get(task, Plan()),
        **{name: value for name, value in given.items() if value is not None},
    )
    if (
        chosen.behavior_runs < 1
        or chosen.target_runs < 0
        or chosen.num_steps < chosen.num_snapshots
    ):
        raise UsageError(
            f"{task}: give at least 1 behavior run, no negative number of target runs and at least "
            f"{chosen.num_snapshots} steps"
        )
    return chosen


def check(task: str) -> None:
    """Refuses a task that is not one of the nine.

    Raises:
      UsageError: the task is unknown.
    """
    if task not in official.CONTROL:
        raise UsageError(f"unknown task {task!r}: expected one of {', '.join(official.CONTROL)}")


def location(task: str) -> Path:
    """Where a task's policies are: in the package, or else under the data root once they are
    trained."""
    committed = COMMITTED / f"{task}.npz"
    return committed if committed.is_file() else atomic.root() / "policies" / f"{task}.npz"


def policies(task: str, say: Callable[[str], None] = lambda line: None) -> PolicySet:
    """A task's policies; they are trained first where they are not there yet.

    Raises:
      UsageError: the task is unknown, the simulator is missing, or the file is damaged.
    """
    check(task)
    path = location(task)
    return policy_set.load(path if path.is_file() else train(task, plan(task), say=say))


def policy(params: PyTree) -> Policy:
    """The function that acts with parameters `[P, ...]`, its sizes read off them; no simulator is
    needed."""
    kernels = [params[name]["kernel"] for name in sorted(params)]
    layers, size = tuple(kernel.shape[-1] for kernel in kernels[:-1]), kernels[-1].shape[-1] // 2
    spec = EnvironmentSpec(
        jax.ShapeDtypeStruct((kernels[0].shape[-2],), np.float32),
        BoundedActions((-1.0,) * size, (1.0,) * size),
    )
    made = sac.make(dataclasses.replace(SAC, actor_layers=layers), spec).policy
    assert made is not None
    return made


# --- training ---


def train(
    task: str,
    plan: Plan,
    *,
    out: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Trains all runs of a plan that are not done yet, and writes the set of all their policies.

    Args:
      task: for example `cheetah_run`.
      plan: see `Plan`.
      out: the file; None for the one under the data root.
      say: called with a line about every snapshot.

    Returns:
      The file.
    """
    check(task)
    learner = sac.make(SAC, environments.spec(f"control/{task}"))
    kept = (
        atomic.root() / "policies" / f"{task}-steps{plan.num_steps}-snapshots{plan.num_snapshots}"
    )
    done = []
    for run in range(plan.behavior_runs + plan.target_runs):
        path = kept / f"run{run}.npz"
        if not path.is_file():
            role = policy_set.BEHAVIOR if run < plan.behavior_runs else policy_set.TARGET
            policy_set.save(path, train_run(learner, task, plan, run=run, role=role, say=say))
        done.append(policy_set.load(path))
    path = out or atomic.root() / "policies" / f"{task}.npz"
    policy_set.save(path, policy_set.join(done))
    return path


def train_run(
    learner: Learner,
    task: str,
    plan: Plan,
    *,
    run: int,
    role: str,
    say: Callable[[str], None] = lambda line: None,
) -> PolicySet:
    """One run: its snapshots, each with its measured return. The run's number is its seed."""
    simulator = f"control/{task}"
    config = online.Config(
        num_steps=plan.num_steps, updates_per_step=plan.updates_per_step, batch_size=plan.batch_size
    )
    moments = [
        plan.num_steps * (number + 1) // plan.num_snapshots for number in range(plan.num_snapshots)
    ]
    judges = online.simulators(simulator, EPISODES, entropy=[run, 9])
    action_spec: Any = judges[0].action_spec()
    uniform = functools.partial(online.uniform, np.random.default_rng([run, 10]), action_spec.shape)
    random = np.concatenate([returns(judges, uniform) for _ in range(RANDOM_EPISODES // EPISODES)])
    assert learner.policy is not None
    act = online.acting(learner.policy, jax.random.fold_in(jax.random.key(run), 11))
    steps, params, measured = [], [], []
    for step, weights in online.train(learner, simulator, config, seed=run, snapshots=moments):
        steps.append(step)
        params.append(weights)
        measured.append(returns(judges, functools.partial(act, weights)))
        say(
            f"{task} run {run} ({role}) step {step}: return {measured[-1].mean():.1f} (random "
            f"{random.mean():.1f})"
        )
    found, count = np.asarray(measured), len(steps)
    return PolicySet(
        params=jax.tree.map(lambda *leaves: np.stack(leaves), *params),
        run=np.full(count, run, np.int32),
        step=np.asarray(steps, np.int32),
        mean_return=found.mean(axis=1).astype(np.float32),
        stderr=(found.std(axis=1, ddof=1) / EPISODES**0.5).astype(np.float32),
        role=np.full(count, role),
        random_return=np.asarray(random.mean(), np.float32),
    )


def returns(running: Sequence[dm_env.Environment], act: online.Act) -> np.ndarray:
    """Undiscounted returns `[K]` of one episode in each of K control suite simulators, all of the
    same length."""
    _, seen = online.play(running, online.reset(running), act, official.CONTROL_HORIZON)
    return (
        np.asarray(seen.reward, np.float64)
        .reshape(official.CONTROL_HORIZON, len(running))
        .sum(axis=0)
    )
