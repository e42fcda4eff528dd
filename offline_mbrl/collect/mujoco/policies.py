"""The policies of the local MuJoCo data: one run of soft actor-critic a task, and its levels.

D4RL's recipes (arXiv:2004.07219, appendix A): an expert is trained to the end, a medium policy is
stopped at a third of the expert's return, and a replay set is the experience up to a level. Here a
run is kept as snapshots, so that data of any size are made from them without training.

    python -m offline_mbrl.collect.mujoco.policies hopper

trains the policies of a task anew and writes them to the file that data are made from.
"""

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from offline_mbrl import environments
from offline_mbrl.collect import policy_set, policy_training
from offline_mbrl.collect.policy_set import PolicySet
from offline_mbrl.collect.policy_training import SAC, Plan
from offline_mbrl.data.catalog import official
from offline_mbrl.learners import sac
from offline_mbrl.types import UsageError

COMMITTED = Path(__file__).parents[1] / "policies"
MEDIUM = 1 / 3  # of the way from uniform actions to the expert's return
TOLERANCE = 0.05  # of that way
# A quadruped that small networks only teach to stand.
LARGER = dataclasses.replace(
    SAC,
    actor_layers=(128, 128),
    critic_layers=(256, 256),
    actor_learning_rate=3e-4,
    critic_learning_rate=3e-4,
    temperature_learning_rate=3e-4,
)
PLANS = {
    "ant": Plan(
        800_000,
        behavior_runs=1,
        num_snapshots=32,
        updates_per_step=0.25,
        batch_size=256,
        learner=LARGER,
    ),
    "halfcheetah": Plan(300_000, behavior_runs=1, num_snapshots=20),
    "hopper": Plan(300_000, behavior_runs=1, num_snapshots=24),
    "pendulum": Plan(20_000, behavior_runs=1, num_snapshots=20),
    "walker2d": Plan(400_000, behavior_runs=1, num_snapshots=20),
}


def location(task: str) -> Path:
    """The file of a task's policies."""
    return COMMITTED / f"mujoco_{task}.npz"


def policies(task: str) -> PolicySet:
    """A task's snapshots, in the order of training.

    Raises:
      UsageError: the file is missing or damaged.
    """
    path = location(task)
    if not path.is_file():
        raise UsageError(
            f"the policies of {task} do not come with the package: train them, which takes hours, "
            f"by `python -m offline_mbrl.collect.mujoco.policies {task}`"
        )
    loaded = policy_set.load(path)
    return policy_set.take(loaded, np.argsort(loaded.step, kind="stable"))


def expert(snapshots: PolicySet) -> int:
    """The row of the snapshot with the highest mean return."""
    return int(np.argmax(snapshots.mean_return))


def medium(snapshots: PolicySet) -> int:
    """The row, before the expert's, of a policy at a third of the expert's return.

    It is the last one within `TOLERANCE` of that level, or else the closest one. Returns count from
    that of uniform actions, because Pendulum's are negative.
    """
    low = float(snapshots.random_return)
    best = expert(snapshots)
    share = (snapshots.mean_return[: max(best, 1)] - low) / (snapshots.mean_return[best] - low)
    distance = np.abs(share - MEDIUM)
    near = np.flatnonzero(distance < TOLERANCE)
    return int(near[-1]) if near.size else int(np.argmin(distance))


def train(task: str, plan: Plan, *, out: Path, report: Callable[[str], None]) -> None:
    """Trains a task's run and writes its snapshots.

    Args:
      task: for example `hopper`.
      plan: the plan; its first run alone is trained.
      out: the file.
      report: called with a line about every snapshot.
    """
    simulator = official.MUJOCO_SIMULATORS[task]
    spec = environments.spec(simulator)
    snapshots = policy_training.train_run(
        sac.make(plan.learner, spec),
        simulator,
        plan,
        run=0,
        role=policy_set.BEHAVIOR,
        horizon=spec.horizon,
        report=report,
    )
    policy_set.save(out, snapshots)


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m offline_mbrl.collect.mujoco.policies",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("task", choices=sorted(PLANS))
    parser.add_argument("--out", type=Path, help="the file to write (default: the package's own)")
    options = parser.parse_args(argv)
    out = options.out or location(options.task)
    report = functools.partial(print, flush=True)
    try:
        train(options.task, PLANS[options.task], out=out, report=report)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
