"""When an episode of a known task ends for good: rules on one transition, by the task's exact name.

A rule is `(observation, action, next_observation) -> [] bool`, pure and of jnp; most look at the
next observation alone, `o` below. Time limits are not terminations. A task that is not here is
refused rather than guessed from a part of its name: rules by substring give AntMaze the Ant's
height rule, which would read its x-position.

Sources: gymnasium's `terminated` of the same task (tests compare them step by step), D4RL's for its
AntMaze goals.
"""

import difflib

import jax.numpy as jnp

from offline_mbrl.environments import maze2d
from offline_mbrl.types import Array, Termination, UsageError


def never(observation: Array, action: Array, next_observation: Array) -> Array:
    """Only time ends the episode."""
    del observation, action, next_observation
    return jnp.zeros((), bool)


def hopper(observation: Array, action: Array, next_observation: Array) -> Array:
    """Unhealthy: not finite, `o[0] <= 0.7`, `|o[1]| >= 0.2`, or any `|o[1:]| >= 100`."""
    del observation, action
    o = next_observation
    bounded = jnp.all(jnp.isfinite(o)) & jnp.all(jnp.abs(o[1:]) < 100)
    return ~(bounded & (o[0] > 0.7) & (jnp.abs(o[1]) < 0.2))


def walker2d(observation: Array, action: Array, next_observation: Array) -> Array:
    """Unhealthy: height `o[0]` outside (0.8, 2) or angle `o[1]` outside (-1, 1)."""
    del observation, action
    o = next_observation
    return ~((o[0] > 0.8) & (o[0] < 2.0) & (o[1] > -1.0) & (o[1] < 1.0))


def ant(observation: Array, action: Array, next_observation: Array) -> Array:
    """Unhealthy: not finite, or height `o[0]` outside [0.2, 1]."""
    del observation, action
    o = next_observation
    return ~(jnp.all(jnp.isfinite(o)) & (o[0] >= 0.2) & (o[0] <= 1.0))


def humanoid(observation: Array, action: Array, next_observation: Array) -> Array:
    """Unhealthy: height `o[0]` outside (1, 2)."""
    del observation, action
    return ~((next_observation[0] > 1.0) & (next_observation[0] < 2.0))


def inverted_pendulum(observation: Array, action: Array, next_observation: Array) -> Array:
    """Fallen: not finite, or angle `|o[1]| > 0.2`."""
    del observation, action
    return ~(jnp.all(jnp.isfinite(next_observation)) & (jnp.abs(next_observation[1]) <= 0.2))


def inverted_double_pendulum(observation: Array, action: Array, next_observation: Array) -> Array:
    """The tip at height 1 or lower; `o` is x, two sines, two cosines, and velocities."""
    del observation, action
    o = next_observation
    return 0.6 * (o[3] + o[3] * o[4] - o[1] * o[2]) <= 1.0


def cartpole(observation: Array, action: Array, next_observation: Array) -> Array:
    """The cart farther than 2.4 from the middle, or the pole leaning more than 12 degrees."""
    del observation, action
    return (jnp.abs(next_observation[0]) > 2.4) | (
        jnp.abs(next_observation[2]) > 12 * 2 * jnp.pi / 360
    )


def mountain_car_continuous(observation: Array, action: Array, next_observation: Array) -> Array:
    """At the top: position at least 0.45 and not rolling back."""
    del observation, action
    return (next_observation[0] >= 0.45) & (next_observation[1] >= 0)


def adroit_pen(observation: Array, action: Array, next_observation: Array) -> Array:
    """The pen dropped: its height `o[26] < 0.075` (D4RL's pen).

    It stands under no name: pass the function for a dataset of your own.
    """
    del observation, action
    return next_observation[26] < 0.075


def antmaze(goal_x: float, goal_y: float) -> Termination:
    """The goal reached: `|o[:2] - goal| < 0.5`."""

    def reached(observation: Array, action: Array, next_observation: Array) -> Array:
        del observation, action
        return jnp.hypot(next_observation[0] - goal_x, next_observation[1] - goal_y) < 0.5

    return reached


# --- by name ---

_GYM = {  # name: (rule, versions)
    "Hopper": (hopper, (2, 3, 4, 5)),
    "Walker2d": (walker2d, (2, 3, 4, 5)),
    "Ant": (ant, (2, 3, 4, 5)),
    "HalfCheetah": (never, (2, 3, 4, 5)),
    "Swimmer": (never, (2, 3, 4, 5)),
    "Humanoid": (humanoid, (2, 3, 4, 5)),
    "HumanoidStandup": (never, (2, 4, 5)),
    "Reacher": (never, (2, 4, 5)),
    "Pusher": (never, (2, 4, 5)),
    "InvertedPendulum": (inverted_pendulum, (2, 4, 5)),
    "Pendulum": (never, (1,)),
    "InvertedDoublePendulum": (inverted_double_pendulum, (2, 4, 5)),
    "CartPole": (cartpole, (0, 1)),
    "MountainCarContinuous": (mountain_car_continuous, (0,)),
}
_CONTROL = (  # RL Unplugged's tasks: only time ends them
    "cartpole_swingup",
    "cheetah_run",
    "finger_turn_hard",
    "fish_swim",
    "humanoid_run",
    "manipulator_insert_ball",
    "manipulator_insert_peg",
    "walker_stand",
    "walker_walk",
)
_MAZES = {  # as in CBOP's released code
    "umaze": (0.75, 8.75),
    "medium": (20.75, 20.75),
    "large": (32.75, 24.75),
}
_VARIANTS = (
    "umaze",
    "umaze-diverse",
    "medium-play",
    "medium-diverse",
    "large-play",
    "large-diverse",
)
TERMINATIONS: dict[str, Termination] = {
    **{
        f"gym/{name}-v{version}": rule
        for name, (rule, versions) in _GYM.items()
        for version in versions
    },
    **{f"control/{name}": never for name in _CONTROL},
    **{f"rlu_control_suite/{name}": never for name in _CONTROL},
    **{f"maze2d/{name}": never for name in maze2d.names()},
    "d4rl_mujoco_hopper": hopper,
    "d4rl_mujoco_walker2d": walker2d,
    "d4rl_mujoco_halfcheetah": never,
    "d4rl_mujoco_ant": ant,
    **{
        f"d4rl_antmaze/{variant}-{version}": antmaze(*_MAZES[variant.partition("-")[0]])
        for variant in _VARIANTS
        for version in ("v0", "v2")
    },
}


def lookup(name: str) -> Termination:
    """The rule of a simulator or a dataset.

    Args:
      name: exact, `gym/Hopper-v4`, `control/cheetah_run`, `d4rl_antmaze/umaze-v2`,
        `d4rl_mujoco_hopper/v2-medium` (all configurations of these share one rule). A simulator's
        options (`?noise=0.1`) make no difference.

    Raises:
      UsageError: none is known; the message has the closest names.
    """
    plain = name.partition("?")[0]
    rule = TERMINATIONS.get(plain) or TERMINATIONS.get(plain.partition("/")[0])
    if rule is None:
        close = difflib.get_close_matches(plain, TERMINATIONS, n=3)
        hint = f"; the closest known: {', '.join(close)}" if close else ""
        raise UsageError(
            f"no termination rule is known for {name!r}{hint}; pass a function (observation, "
            "action, next_observation) -> bool, or termination.never if only time ends it"
        )
    return rule
