"""A ball that is pushed through a maze, in JAX: D4RL's maze2d without a simulator.

A state is `(x, y, vx, vy)`. Cell (i, j) of a layout is a unit square that spans
`[i - 0.7, i + 0.3]` of x and the same of y around j; the ball has a radius of 0.1. A force of 100 N
along each action entry moves a mass of 4.19 kg against a damping of 1, in steps of 0.01 s by
MuJoCo's Euler method (implicit in the damping); away from walls that is the simulator's own step.
At a wall the coordinate is clamped and its velocity becomes 0, one axis after the other, where
MuJoCo's soft contact lets the ball in a little and round corners.

Nothing ends an episode but its limit. Every function takes one state; vmap for many.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import dm_env
import jax
import jax.numpy as jnp
import numpy as np
from dm_env import specs

from offline_mbrl.types import Action, Array, Key, Params, Policy, UsageError

STEP = 0.01  # seconds
GEAR = 100.0  # newtons at the action 1
DAMPING = 1.0
RADIUS = 0.1
MASS = 1_000.0 * 4.0 / 3.0 * np.pi * RADIUS**3  # of density 1000
MAX_VELOCITY = 5.0  # of each entry, before a step
START_SPREAD = 0.1  # positions start uniformly in so much around a cell, each way
START_VELOCITY = 0.1  # standard deviation
GOAL_RADIUS = 0.5
LOWER = -0.7  # of a cell's edges, from its indices
UPPER = 0.3
SKIN = 1e-4  # a ball that touches a wall from the side is not inside it

# Walls are #, the goal of the task is G; the first index is x.
LAYOUTS: Mapping[str, tuple[str, ...]] = {
    "open": ("#######", "#OOOOO#", "#OOGOO#", "#OOOOO#", "#######"),
    "umaze": ("#####", "#GOO#", "###O#", "#OOO#", "#####"),
    "medium": (
        "########",
        "#OO##OO#",
        "#OO#OOO#",
        "##OOO###",
        "#OO#OOO#",
        "#O#OO#O#",
        "#OOO#OG#",
        "########",
    ),
    "large": (
        "############",
        "#OOOO#OOOOO#",
        "#O##O#O#O#O#",
        "#OOOOOO#OOO#",
        "#O####O###O#",
        "#OO#O#OOOOO#",
        "##O#O#O#O###",
        "#OO#OOO#OGO#",
        "############",
    ),
}
LIMITS = {"open": 150, "umaze": 300, "medium": 600, "large": 800}  # steps of an episode


class Maze(NamedTuple):
    """A task: a layout and its reward."""

    walls: np.ndarray  # [X, Y] bool
    free: np.ndarray  # [F, 2] int, the cells where episodes may start
    goal: np.ndarray  # [2] the position of the goal
    limit: int  # steps of an episode
    reward: Callable[[Array, Array], Array]  # (next position [2], goal [2]) -> []


# --- rewards ---


def sparse(position: Array, goal: Array) -> Array:
    """1 within 0.5 of the goal, else 0, `[]`."""
    return (_distance(position, goal) <= GOAL_RADIUS).astype(jnp.float32)


def dense(position: Array, goal: Array) -> Array:
    """`exp(-distance to the goal)`, `[]`."""
    return jnp.exp(-_distance(position, goal))


def _distance(position: Array, goal: Array) -> Array:
    return jnp.sqrt(jnp.sum(jnp.square(position - goal)))


REWARDS = {"sparse": sparse, "dense": dense}


# --- tasks ---


def names() -> list[str]:
    """The tasks, for example `umaze-sparse`."""
    return [f"{layout}-{reward}" for layout in LAYOUTS for reward in REWARDS]


@functools.cache
def maze(name: str) -> Maze:
    """A task.

    Args:
      name: one of `names()`.

    Raises:
      UsageError: there is no such task.
    """
    if name not in names():
        raise UsageError(f"unknown maze {name!r}; choose one of {', '.join(names())}")
    layout, _, reward = name.partition("-")
    cells = np.array([list(line) for line in LAYOUTS[layout]])
    return Maze(
        walls=cells == "#",
        free=np.argwhere(cells != "#"),
        goal=np.argwhere(cells == "G")[0].astype(np.float32),
        limit=LIMITS[layout],
        reward=REWARDS[reward],
    )


# --- motion ---


def reset(task: Maze, key: Key) -> Array:
    """A state `[4]` in a uniform free cell, the goal's among them."""
    key_cell, key_position, key_velocity = jax.random.split(key, 3)
    cell = jax.random.randint(key_cell, (), 0, task.free.shape[0])
    shift = jax.random.uniform(key_position, (2,), minval=-START_SPREAD, maxval=START_SPREAD)
    position = jnp.asarray(task.free, jnp.float32)[cell] + shift
    return jnp.concatenate([position, START_VELOCITY * jax.random.normal(key_velocity, (2,))])


def step(task: Maze, state: Array, action: Action) -> tuple[Array, Array]:
    """The next state `[4]` and its reward `[]`.

    Args:
      task: the maze.
      state: `[4]`.
      action: `[2]`, clipped to [-1, 1].
    """
    position = state[:2]
    velocity = jnp.clip(state[2:], -MAX_VELOCITY, MAX_VELOCITY)
    force = GEAR * jnp.clip(action, -1.0, 1.0) - DAMPING * velocity
    velocity = velocity + STEP * force / (MASS + STEP * DAMPING)
    walls = jnp.asarray(task.walls)
    x, vx = _moved(walls, position[0], velocity[0], position[1])
    y, vy = _moved(walls.T, position[1], velocity[1], x)
    after = jnp.stack([x, y, vx, vy])
    return after, task.reward(after[:2], jnp.asarray(task.goal))


def cell_of(position: Array) -> Array:
    """`[2]` int32, the cell that a position `[2]` is in."""
    return jnp.floor(position - LOWER).astype(jnp.int32)


def _moved(walls: Array, along: Array, velocity: Array, across: Array) -> tuple[Array, Array]:
    """Position and velocity along the first axis of the walls after a step."""
    moved = along + STEP * velocity
    direction = jnp.sign(velocity)
    ahead = _index(moved + RADIUS * direction)
    width = RADIUS - SKIN
    blocked = walls[ahead, _index(across - width)] | walls[ahead, _index(across + width)]
    # The far edge of the ball lies on the near edge of the wall.
    edge = ahead + jnp.where(direction > 0, LOWER, UPPER) - RADIUS * direction
    is_stopped = blocked & (direction != 0)
    return jnp.where(is_stopped, edge, moved), jnp.where(is_stopped, 0.0, velocity)


def _index(coordinate: Array) -> Array:
    return jnp.floor(coordinate - LOWER).astype(jnp.int32)


# --- episodes ---


def returns(task: Maze, policy: Policy, params: Params, key: Key, num_episodes: int) -> Array:
    """Undiscounted returns `[num_episodes]` of the greedy policy, all side by side; jit it.

    Args:
      task: the maze.
      policy: of states `[4]`.
      params: its parameters.
      key: of the starts; consumed.
      num_episodes: how many.
    """
    states = jax.vmap(functools.partial(reset, task))(jax.random.split(key, num_episodes))

    def advance(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        states, total = carry
        actions = jax.vmap(policy.mode, (None, 0))(params, states)
        states, reward = jax.vmap(functools.partial(step, task))(states, actions)
        return (states, total + reward), None

    initial = (states, jnp.zeros(num_episodes))
    (_, total), _ = jax.lax.scan(advance, initial, None, length=task.limit)
    return total


# --- behind dm_env ---


def load(name: str, seed: int) -> tuple[dm_env.Environment, int]:
    """A task as a simulator, and its limit in steps, which is a truncation (discount 1).

    Args:
      name: one of `names()`.
      seed: of the starts.
    """
    return Simulator(name, seed), maze(name).limit


def reseed(environment: dm_env.Environment, seed: int) -> bool:
    """Seeds the next reset of a `Simulator`; False where this is another environment."""
    if not isinstance(environment, Simulator):
        return False
    environment.reseed(seed)
    return True


@functools.cache
def _programs(name: str) -> tuple[Callable, Callable]:
    """Compiled `reset` and `step` of a task, shared by its simulators."""
    task = maze(name)
    return jax.jit(functools.partial(reset, task)), jax.jit(functools.partial(step, task))


class Simulator(dm_env.Environment):
    """One ball in a maze, stepped on the host."""

    def __init__(self, name: str, seed: int):
        """Args: `name` is one of `names()`, `seed` that of the starts."""
        self._reset, self._step = _programs(name)
        self._limit = maze(name).limit
        self._state = np.zeros(4, np.float32)
        self.reseed(seed)

    def reseed(self, seed: int) -> None:
        """Makes the next resets those of a new simulator with this seed."""
        self._words = np.random.default_rng([seed, 7])
        self._left = 0

    def reset(self) -> dm_env.TimeStep:
        """Starts an episode."""
        with self._on_host():
            key = jax.random.key(int(self._words.integers(2**31)))
            self._state = np.asarray(self._reset(key))
        self._left = self._limit
        return dm_env.restart(self._state)

    def step(self, action: Any) -> dm_env.TimeStep:
        """Takes a step, or starts an episode when the last one is over."""
        if not self._left:
            return self.reset()
        with self._on_host():
            state, reward = self._step(self._state, np.asarray(action, np.float32))
        self._state = np.asarray(state)
        self._left -= 1
        if self._left:
            return dm_env.transition(float(reward), self._state)
        return dm_env.truncation(float(reward), self._state, discount=1.0)

    def observation_spec(self) -> specs.Array:
        """The state `[4]`."""
        return specs.Array((4,), np.float32, "observation")

    def action_spec(self) -> specs.BoundedArray:
        """`[2]` in [-1, 1]."""
        return specs.BoundedArray((2,), np.float32, -1.0, 1.0, "action")

    def _on_host(self) -> Any:
        # A single step is over before an accelerator has begun.
        return jax.default_device(jax.devices("cpu")[0])
