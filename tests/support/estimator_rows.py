"""Rows of the benchmark of estimators with figures that a test chooses."""

import numpy as np

from experiments.benchmarks import rows
from experiments.benchmarks.ope import runs

QUICK = runs.PRESETS["quick"]
TASKS = QUICK.tasks
VALUES = np.array([1.0, 2.0, 3.0, 5.0])
NAMES = tuple(f"run3-step{number}" for number in range(4))


def truth(task=TASKS[0], names=NAMES, values=VALUES, episodes=QUICK.episodes):
    """True values of a task's policies."""
    return [
        runs.Truth(task, policy, name, episodes, float(value), 0.1, 0.995, "abc", "python x")
        for policy, (name, value) in enumerate(zip(names, values, strict=True))
    ]


def estimated(estimator, values, *, seed=0, task=TASKS[0], group="fqe", **fields):
    """Estimates of the same policies."""
    shared = {
        "settings": runs.settings_key(QUICK.settings),
        "stderr": 0.2,
        "low_support": 0.0,
        "cpu_seconds": 1.5,
        "revision": "abc",
        "command": "x",
    } | fields
    return [
        runs.Row(
            task=task,
            group=group,
            estimator=estimator,
            seed=seed,
            policy=policy,
            value=float(value),
            **shared,
        )
        for policy, value in enumerate(values)
    ]


def write(folder, estimates, truths=None):
    """Both tables, in this folder."""
    rows.append(folder / runs.TRUTH, runs.Truth, truths or truth())
    rows.append(folder, runs.Row, estimates)
    return folder
