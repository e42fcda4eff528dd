"""The DeepMind control suite: `<domain>_<task>`, for example `cartpole_swingup`."""

import os

import dm_env


def names() -> list[str]:
    """All domain and task pairs."""
    return list(_tasks())


def load(name: str, seed: int) -> tuple[dm_env.Environment, int]:
    """A control suite task and its time limit in agent steps; reaching it is a truncation (discount 1)."""
    domain, task = _tasks()[name]
    from dm_control import suite

    environment = suite.load(domain, task, task_kwargs={"random": seed})
    limit = environment._step_limit  # no public name for it
    return environment, int(limit) if limit < float("inf") else 0


def _tasks() -> dict[str, tuple[str, str]]:
    without_display()
    from dm_control import suite

    return {f"{domain}_{task}": (domain, task) for domain, task in suite.ALL_TASKS}


def without_display() -> None:
    """MuJoCo looks for a display on import; nothing here renders, so without one it is told not to look."""
    if not os.environ.get("DISPLAY") and not os.environ.get("MUJOCO_GL"):
        os.environ["MUJOCO_GL"] = "disabled"
