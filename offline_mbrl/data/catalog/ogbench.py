"""Facts of OGBench's data of states: names, tasks, who acted, and what rewards and ends mean.

A dataset is play without a task; `-singletask-task1` to `-task5` label it for a task. Names here
leave out the version of OGBench's own ones, which all are `-v0`.
"""

import re
from typing import NamedTuple

VERSION = "-v0"
NUM_TASKS = 5
STEPS = 1_000_000  # of a dataset that is generated here
STATE = ("qpos", "button_states")  # the simulator's state, from which a task's labels follow
HELD_OUT = "-val"
FOLDER = "ogbench"  # below the root of the data
OWN_FOLDER = "~/.ogbench/data"  # where ogbench itself puts the files that it fetches
_NAME = re.compile(r"(.*?)(?:-singletask-task([1-5]))?")

# What rows mean, with a task and without.
SEMANTICS = (
    "reward of the state before the action, minus the number of its unsolved parts, as ogbench "
    "1.2 and later has it in simulators too",
    "discount is ogbench's masks: 0 on every step from a solved state, also inside episodes",
    "episodes end at ogbench's terminals, which are truncations unless the discount is 0 there",
)
WITHOUT_TASK = (
    "no task and no reward (0 everywhere): -singletask-task1 to -task5 label the same steps",
    "episodes end at ogbench's terminals, all of which are truncations",
)

_LOCOMOTION = {
    "pointmaze": ("medium", "large", "giant", "teleport"),
    "antmaze": ("medium", "large", "giant", "teleport"),
    "humanoidmaze": ("medium", "large", "giant"),
    "antsoccer": ("arena", "medium"),
}
_MANIPULATION = (
    *(f"cube-{number}" for number in ("single", "double", "triple", "quadruple")),
    "scene",
    *(f"puzzle-{size}" for size in ("3x3", "4x4", "4x5", "4x6")),
)
DATASETS = (
    *(f"{name}-{kind}" for name in _MANIPULATION for kind in ("play", "noisy")),
    *(
        f"{robot}-{maze}-{kind}"
        for robot, mazes in _LOCOMOTION.items()
        for maze in mazes
        for kind in ("navigate", "stitch")
    ),
    *(f"antmaze-{maze}-explore" for maze in ("medium", "large", "teleport")),
)


class Collected(NamedTuple):
    """A dataset that OGBench's scripts collect, without a learned policy."""

    horizon: int  # steps of an episode
    action_size: int
    behavior: str


_BEHAVIORS = {
    "play": "ogbench's scripted plans with smoothed noise, a new random target after each",
    "noisy": "ogbench's scripted feedback policies with noise and random actions",
    "navigate": "shortest ways to random goals, a new one where the last is reached, with noise",
    "stitch": "shortest ways to a goal four cells away, with noise",
}
_LOCAL_ENVIRONMENTS = ("cube-single", "cube-double", "scene", "puzzle-3x3", "puzzle-4x4")
COLLECTED = {
    **{
        f"{environment}-{kind}": Collected(horizon=1000, action_size=5, behavior=_BEHAVIORS[kind])
        for environment in _LOCAL_ENVIRONMENTS
        for kind in ("play", "noisy")
    },
    **{
        f"pointmaze-{maze}-{kind}": Collected(
            horizon=horizon, action_size=2, behavior=_BEHAVIORS[kind]
        )
        for maze in _LOCOMOTION["pointmaze"]
        for kind, horizon in (("navigate", 2000 if maze == "giant" else 1000), ("stitch", 200))
    },
}


def split(name: str) -> tuple[str, int]:
    """`cube-single-play` and 1 of `cube-single-play-singletask-task1`; 0 where there is no task."""
    match = _NAME.fullmatch(name)
    assert match is not None
    return match[1], int(match[2] or 0)


def joined(name: str, task: int) -> str:
    """The inverse of `split`."""
    return f"{name}-singletask-task{task}" if task else name


def environment(dataset: str) -> str:
    """`cube-single` of `cube-single-play`."""
    return dataset.rpartition("-")[0]


def simulator(dataset: str, task: int) -> str | None:
    """The simulator of a dataset's task; None without a task, since the goal is not observed."""
    return f"ogbench/{joined(environment(dataset), task)}" if task else None


def parse(name: str) -> tuple[str, int] | None:
    """The dataset and the task of `ogbench/cube-single-play-singletask-task1`, with `-v0` or not.

    None where it is no name of OGBench.
    """
    family, _, rest = name.partition("/")
    dataset, task = split(rest.removesuffix(VERSION))
    return (dataset, task) if family == "ogbench" and dataset in DATASETS else None


def names() -> list[str]:
    """All official names, in their short form."""
    return [
        f"ogbench/{joined(dataset, task)}" for dataset in DATASETS for task in range(NUM_TASKS + 1)
    ]
