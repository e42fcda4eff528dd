"""D4RL's controller of maze2d: along the shortest way of cells to a goal, by waypoints.

The next cell of every way is in a table; walkers that follow it are stepped in one compiled loop.
A goal that is reached, or not within the task's limit, gives way to another, and the ball goes on
from where it is.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.environments import maze2d
from offline_mbrl.environments.maze2d import Maze
from offline_mbrl.types import Action, Array, Key, Transition

GAIN = 10.0  # of the way to the waypoint; the velocity counts -1
REACHED = 0.1  # distance at which a waypoint or a goal is reached
# Waypoints but the goal are shifted by so much at most: towards the middles of cells.
SHIFT = 0.2
NEIGHBORS = ((-1, 0), (0, -1), (1, 0), (0, 1))


class Walk(NamedTuple):
    """A ball, and where it is going."""

    state: Array  # [4]
    goal_cell: Array  # [] index of a free cell
    goal: Array  # [2] a position in it
    cell: Array  # [] index of the cell of the waypoint
    waypoint: Array  # [2]
    steps: Array  # [] int32, since the goal was drawn


class Walked(NamedTuple):
    """One step of a walk."""

    transition: Transition
    is_last: Array  # [] bool, the goal changes after it


def next_cells(task: Maze) -> np.ndarray:
    """`[F, F]` the cell that follows cell c on a shortest way to goal g, at `[g, c]`; g at its own.

    Cells are indices into `task.free`; of several shortest ways the first neighbor's is taken.
    """
    index = {tuple(cell): number for number, cell in enumerate(task.free.tolist())}
    table = np.full((len(index), len(index)), -1, np.int32)
    for goal, number in index.items():
        table[number, number] = number
        border = [goal]
        while border:
            reached = []
            for cell in border:
                for shift in NEIGHBORS:
                    near = (cell[0] + shift[0], cell[1] + shift[1])
                    if near in index and table[number, index[near]] < 0:
                        table[number, index[near]] = index[cell]
                        reached.append(near)
            border = reached
    return table


def control(state: Array, waypoint: Array) -> Action:
    """`clip(10 (waypoint - position) - velocity, -1, 1)`, `[2]`.

    Args:
      state: `[4]`.
      waypoint: `[2]`.
    """
    return jnp.clip(GAIN * (waypoint - state[:2]) - state[2:], -1.0, 1.0)


def start(task: Maze, ways: np.ndarray, key: Key) -> Walk:
    """A ball at the start of an episode with its first goal.

    Args:
      task: the maze.
      ways: from `next_cells`.
      key: consumed.
    """
    key_reset, key_goal = jax.random.split(key)
    return _to_new_goal(task, ways, maze2d.reset(task, key_reset), key_goal)


def step(task: Maze, ways: np.ndarray, walk: Walk, key: Key) -> tuple[Walk, Walked]:
    """A step of the ball, and the waypoint after it.

    Args:
      task: the maze, whose reward is that of its own goal.
      ways: from `next_cells`.
      walk: before the step.
      key: of the next waypoint or goal; consumed.
    """
    key_goal, key_waypoint = jax.random.split(key)
    action = control(walk.state, walk.waypoint)
    state, reward = maze2d.step(task, walk.state, action)
    is_solved = _is_near(state, walk.goal)
    is_last = is_solved | (walk.steps + 1 >= task.limit)
    after = walk._replace(state=state, steps=walk.steps + 1)
    following = jnp.asarray(ways)[walk.goal_cell, walk.cell]
    onward = after._replace(
        cell=following, waypoint=_waypoint(task, following, walk.goal_cell, walk.goal, key_waypoint)
    )
    after = _where(_is_near(state, walk.waypoint), onward, after)
    after = _where(is_last, _to_new_goal(task, ways, state, key_goal), after)
    transition = Transition(
        observation=walk.state,
        action=action,
        reward=reward,
        discount=jnp.ones(()),
        next_observation=state,
    )
    return after, Walked(transition=transition, is_last=is_last)


def play(
    task: Maze, ways: np.ndarray, walks: Walk, key: Key, num_steps: int
) -> tuple[Walk, Walked]:
    """Steps of many walks side by side; `[num_steps, N, ...]` of them.

    Args:
      task: the maze.
      ways: from `next_cells`.
      walks: `[N, ...]`.
      key: consumed.
      num_steps: of each.
    """
    size = walks.steps.shape[0]
    one_step = jax.vmap(functools.partial(step, task, ways))

    def body(walks: Walk, key: Key) -> tuple[Walk, Walked]:
        return one_step(walks, jax.random.split(key, size))

    return jax.lax.scan(body, walks, jax.random.split(key, num_steps))


def _to_new_goal(task: Maze, ways: np.ndarray, state: Array, key: Key) -> Walk:
    key_cell, key_goal, key_waypoint = jax.random.split(key, 3)
    free = jnp.asarray(task.free)
    goal_cell = jax.random.randint(key_cell, (), 0, free.shape[0])
    spread = maze2d.START_SPREAD
    shift = jax.random.uniform(key_goal, (2,), minval=-spread, maxval=spread)
    goal = free[goal_cell] + shift
    here = jnp.argmax(jnp.all(free == maze2d.cell_of(state[:2])[None], axis=1))
    cell = jnp.asarray(ways)[goal_cell, here]
    return Walk(
        state=state,
        goal_cell=goal_cell,
        goal=goal,
        cell=cell,
        waypoint=_waypoint(task, cell, goal_cell, goal, key_waypoint),
        steps=jnp.int32(0),
    )


def _waypoint(task: Maze, cell: Array, goal_cell: Array, goal: Array, key: Key) -> Array:
    """`[2]`: the goal in its cell, a point near the middle of any other."""
    shift = jax.random.uniform(key, (2,), maxval=SHIFT)
    return jnp.where(cell == goal_cell, goal, jnp.asarray(task.free)[cell] - shift)


def _is_near(state: Array, point: Array) -> Array:
    return jnp.sum(jnp.square(state[:2] - point)) <= REACHED**2


def _where(condition: Array, chosen: Walk, other: Walk) -> Walk:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), chosen, other)
