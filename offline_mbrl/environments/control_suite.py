"""The DeepMind control suite: `<domain>_<task>`, for example `cartpole_swingup`."""

import contextlib
import logging
import os
from collections.abc import Iterator

import dm_env


def names() -> list[str]:
    """All domain and task pairs."""
    return list(_tasks())


def load(name: str, seed: int) -> tuple[dm_env.Environment, int]:
    """A control suite task and its time limit in agent steps; reaching it is a truncation (discount 1)."""
    domain, task = _tasks()[name]
    from dm_control import suite

    with _without_warnings():
        environment = suite.load(domain, task, task_kwargs={"random": seed})
    limit = environment._step_limit  # no public name for it
    return environment, int(limit) if limit < float("inf") else 0


def _tasks() -> dict[str, tuple[str, str]]:
    without_display()
    from dm_control import suite

    return {f"{domain}_{task}": (domain, task) for domain, task in suite.ALL_TASKS}


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """The suite's own models use an attribute that MuJoCo calls deprecated: a line for every simulator."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def without_display() -> None:
    """MuJoCo looks for a display on import; nothing here renders, so without one it is told not to look."""
    if not os.environ.get("DISPLAY") and not os.environ.get("MUJOCO_GL"):
        os.environ["MUJOCO_GL"] = "disabled"
