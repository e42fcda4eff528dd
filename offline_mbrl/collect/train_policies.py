"""Trains the policies of `local/control/<task>` and its target policies, and writes them as npz.

    python -m offline_mbrl.collect.train_policies --task cheetah_run
    python -m offline_mbrl.collect.train_policies --task fish_swim --steps 300000 \\
        --behavior-runs 2 --target-runs 0

Every finished run is saved as a file, so that the same command resumes with the next run; after the
last run the task's file is written. The first runs generate data (behavior), the others are
evaluated (target). The first command made the files in `offline_mbrl/collect/policies/`.
"""

import argparse
import functools
import sys
from pathlib import Path

from offline_mbrl.collect import control_policies
from offline_mbrl.types import UsageError


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m offline_mbrl.collect.train_policies",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--task", required=True, help="for example cheetah_run")
    parser.add_argument(
        "--behavior-runs", type=int, help="runs that generate data (default: the task's plan)"
    )
    parser.add_argument(
        "--target-runs", type=int, help="runs whose policies are evaluated (default: the plan)"
    )
    parser.add_argument(
        "--steps", type=int, help="environment steps of each run (default: the plan)"
    )
    parser.add_argument(
        "--out", type=Path, help="the file to write (default: one under the data root)"
    )
    options = parser.parse_args(argv)
    try:
        plan = control_policies.plan(
            options.task,
            behavior_runs=options.behavior_runs,
            target_runs=options.target_runs,
            num_steps=options.steps,
        )
        report = functools.partial(print, flush=True)
        path = control_policies.train(options.task, plan, out=options.out, report=report)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
