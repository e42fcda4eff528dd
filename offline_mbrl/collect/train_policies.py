"""Trains the policies behind `local/control/<task>` and its target policies, from nothing, and
writes them as npz.

    python -m offline_mbrl.collect.train_policies --task cheetah_run
    python -m offline_mbrl.collect.train_policies --task fish_swim --behavior-runs 2 --target-runs 0
    --steps 300000

A finished run is a file of its own in the folder of runs, so that after a stop the same command
goes on with the next run; when all are there the task's one file is written. The first runs make
data (behavior), the others are evaluated (target): none is both. The files of the tasks in
`offline_mbrl/collect/policies/` were made by the first command.
"""

import argparse
import sys
from pathlib import Path

from offline_mbrl.collect import control_policies
from offline_mbrl.types import UsageError


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m offline_mbrl.collect.train_policies",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--task", required=True, help="for example cheetah_run")
    parser.add_argument(
        "--behavior-runs", type=int, help="runs that make data; left out, the task's plan"
    )
    parser.add_argument(
        "--target-runs", type=int, help="runs whose policies are evaluated; left out, the plan"
    )
    parser.add_argument(
        "--steps", type=int, help="environment steps of each run; left out, the plan"
    )
    parser.add_argument(
        "--out", type=Path, help="the file to write; left out, the one under the data root"
    )
    told = parser.parse_args(argv)
    try:
        plan = control_policies.plan(
            told.task,
            behavior_runs=told.behavior_runs,
            target_runs=told.target_runs,
            num_steps=told.steps,
        )
        path = control_policies.train(
            told.task, plan, out=told.out, say=lambda line: print(line, flush=True)
        )
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
