"""The DeepMind control suite: `<domain>_<task>`, for example `cartpole_swingup`."""

import contextlib
import logging
import os
import re
import threading
from collections.abc import Iterator
from typing import Any

import dm_env
import numpy as np

# A texture of computed pixels whose sides have three digits, as a model file declares it.
_TEXTURE = re.compile(rb"<texture\b[^>]*\bbuiltin=[^>]*>")
_SIDE = re.compile(rb"\b(width|height)=\"\d{3,}\"")
_SKYBOX = "./common/skybox.xml"
_LOADING = threading.RLock()


def names() -> list[str]:
    """All domain and task pairs."""
    return list(_tasks())


def load(name: str, seed: int) -> tuple[dm_env.Environment, int]:
    """A control suite task and its time limit in agent steps.

    Reaching the limit is a truncation (discount 1). Textures are small: the suite's sky alone is 11
    of the 12 MiB that a simulator takes, and nothing here renders.

    Args:
      name: one of `names()`.
      seed: of the task's randomness.
    """
    domain, task = _tasks()[name]
    from dm_control import suite

    with _without_warnings(), _small_textures():
        environment = suite.load(domain, task, task_kwargs={"random": seed})
    limit = environment._step_limit  # no public name for it
    return environment, int(limit) if limit < float("inf") else 0


def reseed(environment: dm_env.Environment, seed: int) -> bool:
    """Makes the task draw from `seed`, as if it had just been loaded with it.

    Each reset sets the physics back and draws everything else anew, so the random state is all that
    a task remembers. The models of `lqr` are drawn when they are built: they are not reseeded.

    Args:
      environment: reset it before its next step.
      seed: as of `load`.

    Returns:
      False, and nothing was changed, where this is no task of the suite or where its model depends
      on the seed.
    """
    task: Any = getattr(environment, "task", None)
    module = type(task).__module__
    if not module.startswith("dm_control.suite.") or module == "dm_control.suite.lqr":
        return False
    task._random = np.random.RandomState(seed)  # no public name for it
    return True


def _tasks() -> dict[str, tuple[str, str]]:
    without_display()
    from dm_control import suite

    return {f"{domain}_{task}": (domain, task) for domain, task in suite.ALL_TASKS}


@contextlib.contextmanager
def _small_textures() -> Iterator[None]:
    """While inside, models of the suite are read with textures of 8 x 8 computed pixels."""
    from dm_control.suite import common

    def read_model(file_name: str) -> bytes:
        return _shrunk(read(file_name))

    with _LOADING:
        read = common.read_model
        skybox = common.ASSETS[_SKYBOX]
        common.read_model = read_model
        common.ASSETS[_SKYBOX] = _shrunk(skybox)
        try:
            yield
        finally:
            common.read_model = read
            common.ASSETS[_SKYBOX] = skybox


def _shrunk(model: bytes) -> bytes:
    return _TEXTURE.sub(lambda texture: _SIDE.sub(rb'\1="8"', texture.group()), model)


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Hides the warning of each model about an attribute that MuJoCo calls deprecated."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def without_display() -> None:
    """Tells MuJoCo, which looks for a display on import, not to look where there is none."""
    if not os.environ.get("DISPLAY") and not os.environ.get("MUJOCO_GL"):
        os.environ["MUJOCO_GL"] = "disabled"
