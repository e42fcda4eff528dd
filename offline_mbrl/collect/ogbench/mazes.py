"""OGBench's scripts of the point mass in a maze: the shortest way to a goal, with noise."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from offline_mbrl.collect.ogbench import playing
from offline_mbrl.collect.ogbench.playing import Play, Script
from offline_mbrl.environments import ogbench

NOISE = 0.5  # standard deviation
STITCH_CELLS = 4  # from the start to the goal of `stitch`

Cell = tuple[int, int]  # row and column


def player(name: str, kind: str) -> Play:
    """What plays the environment `name`, for example `pointmaze-medium`.

    Args:
      name: without its version.
      kind: `navigate` or `stitch`.
    """
    environment = ogbench.make(name, terminate_at_goal=False, max_episode_steps=-1)
    maze = environment.unwrapped
    free = free_cells(maze.maze_map)
    corners = [cell for cell in free if not is_hallway(maze.maze_map, cell)]

    def start(seed: int | None, draws: np.random.Generator) -> Script:
        first = free[draws.integers(len(free))]
        goals = corners if kind == "navigate" else cells_at(maze.maze_map, first, STITCH_CELLS)
        goal = goals[draws.integers(len(goals))] if goals else first
        task = {"init_ij": first, "goal_ij": goal}
        observation, info = environment.reset(seed=seed, options={"task_info": task})

        def choose(observation: Any, info: Mapping[str, Any]) -> np.ndarray:
            here = maze.get_xy()
            subgoal, _ = maze.get_oracle_subgoal(here, maze.cur_goal_xy)
            way = subgoal - here
            direction = way / (np.linalg.norm(way) + 1e-6)
            return direction + draws.normal(0, NOISE, direction.shape)

        def proceed(info: Mapping[str, Any]) -> None:
            if info["success"] and kind == "navigate":
                cell = corners[draws.integers(len(corners))]
                maze.set_goal(goal_xy=maze.add_noise(maze.ij_to_xy(cell)))

        return Script(observation=observation, info=info, choose=choose, proceed=proceed)

    return playing.player(environment, start)


def free_cells(maze: np.ndarray) -> list[Cell]:
    """The cells of a map `[rows, columns]` that are not walls (1)."""
    return [(int(row), int(column)) for row, column in np.argwhere(maze == 0)]


def is_hallway(maze: np.ndarray, cell: Cell) -> bool:
    """Whether walls are on two opposite sides of a free cell, and on no other."""
    row, column = cell
    vertical = (maze[row - 1, column], maze[row + 1, column])
    horizontal = (maze[row, column - 1], maze[row, column + 1])
    return (vertical, horizontal) in (((0, 0), (1, 1)), ((1, 1), (0, 0)))


def cells_at(maze: np.ndarray, start: Cell, distance: int) -> list[Cell]:
    """The free cells whose shortest way from `start` has `distance` steps."""
    reached = {start}
    border = [start]
    for _ in range(distance):
        near = [
            (row + down, column + right)
            for row, column in border
            for down, right in ((-1, 0), (0, -1), (1, 0), (0, 1))
        ]
        border = [cell for cell in dict.fromkeys(near) if cell not in reached and not maze[cell]]
        reached.update(border)
    return border
