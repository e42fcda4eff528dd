"""Data of mazes: the shortest ways, episodes between changes of the goal, and the catalog."""

import functools
import itertools

import jax
import numpy as np
import pytest

from offline_mbrl.collect.maze2d import episodes, waypoints
from offline_mbrl.commands import datasets
from offline_mbrl.data.catalog import load as catalog
from offline_mbrl.data.catalog import names
from offline_mbrl.environments import maze2d
from offline_mbrl.types import UsageError

UMAZE = maze2d.maze("umaze-sparse")


def run(name="maze2d-umaze-sparse", num_steps=6_000, seed=0):
    return list(episodes.collect(name, num_steps=num_steps, seed=seed))


@pytest.fixture(scope="module")
def played():
    return run()


def distances(task):
    """`[F, F]` steps between free cells, by powers of the adjacency."""
    cells = task.free
    adjacent = np.abs(cells[:, None] - cells[None]).sum(axis=-1) == 1
    table = np.where(np.eye(len(cells), dtype=bool), 0, np.inf)
    reached = np.eye(len(cells), dtype=bool)
    for count in range(1, len(cells)):
        following = reached @ adjacent
        table[following & ~np.isfinite(table)] = count
        reached = following
    return table


@pytest.mark.parametrize("layout", sorted(maze2d.LAYOUTS))
def test_every_way_is_a_shortest_one(layout):
    task = maze2d.maze(f"{layout}-sparse")
    ways = waypoints.next_cells(task)
    table = distances(task)
    assert np.isfinite(table).all()
    goals, cells = np.indices(ways.shape)
    np.testing.assert_array_equal(table[goals, ways], np.maximum(table - 1, 0))
    assert (table[cells, ways] <= 1).all()


def test_the_controller_pushes_towards_the_waypoint_and_brakes():
    state = np.array([1.0, 2.0, 0.5, -0.5])
    np.testing.assert_allclose(
        waypoints.control(state, np.array([1.06, 2.01])), [0.1, 0.6], rtol=1e-5
    )
    np.testing.assert_allclose(waypoints.control(state, np.array([3.0, 0.0])), [1.0, -1.0])


def test_waypoints_are_cells_of_the_way_and_the_goal_itself_at_its_end():
    ways = waypoints.next_cells(UMAZE)
    walks = jax.jit(jax.vmap(functools.partial(waypoints.start, UMAZE, ways)))(
        jax.random.split(jax.random.key(0), 200)
    )
    cells = UMAZE.free[np.asarray(walks.cell)]
    at_goal = np.asarray(walks.cell == walks.goal_cell)
    shift = cells - np.asarray(walks.waypoint)
    assert ((shift >= 0) & (shift <= waypoints.SHIFT))[~at_goal].all()
    np.testing.assert_array_equal(walks.waypoint[at_goal], walks.goal[at_goal])
    here = np.floor(np.asarray(walks.state[:, :2]) + 0.7).astype(int)
    assert (np.abs(here - cells).sum(axis=1) <= 1).all()


def test_episodes_are_records_of_the_maze(played):
    for episode in played[:20]:
        steps = episode["steps"]
        length = len(steps["reward"]) - 1
        assert length <= UMAZE.limit
        assert set(steps) == {
            "observation",
            "action",
            "reward",
            "discount",
            "is_first",
            "is_last",
            "is_terminal",
        }
        assert not steps["is_terminal"].any()
        after, reward = jax.jit(jax.vmap(functools.partial(maze2d.step, UMAZE)))(
            steps["observation"][:-1], steps["action"][:-1]
        )
        np.testing.assert_allclose(steps["observation"][1:], after, atol=1e-5)
        np.testing.assert_array_equal(steps["reward"][:-1], reward)


def test_a_walk_goes_on_from_where_its_last_episode_ended(played):
    assert sum(len(episode["steps"]["reward"]) - 1 for episode in played) == 6_000
    links = [
        np.array_equal(first["steps"]["observation"][-1], second["steps"]["observation"][0])
        for first, second in itertools.pairwise(played)
    ]
    assert links.count(False) == episodes.NUM_WALKS - 1


def test_goals_are_reached_and_no_episode_stays_at_the_tasks_goal(played):
    lengths = np.array([len(episode["steps"]["reward"]) - 1 for episode in played])
    assert np.median(lengths) < 0.5 * UMAZE.limit
    visits = sum(episode["metadata"]["episode_return"] for episode in played)
    assert 0 < visits < 0.6 * 6_000


def test_the_seed_decides_the_data():
    def content(data):
        return b"".join(episode["steps"]["observation"].tobytes() for episode in data)

    assert content(run(num_steps=200)) == content(run(num_steps=200))
    assert content(run(num_steps=200)) != content(run(num_steps=200, seed=1))


def test_a_dataset_is_built_from_its_name():
    from rich.console import Console

    name = "local/maze2d-umaze-dense-steps2000"
    loaded = datasets.load(name, Console(quiet=True))
    assert loaded.name == name
    assert (loaded.simulator, loaded.spec.horizon) == ("maze2d/umaze-dense", 300)
    assert loaded.spec.observation.shape == (4,)
    assert (loaded.dataset.discount[loaded.dataset.starts] == 1).all()
    noted = catalog.open_named(name).manifest["provenance"]["written_by"]
    assert noted["steps"] == 2_000
    assert "controller" in noted["behavior"]


def test_unknown_mazes_are_refused():
    with pytest.raises(UsageError, match="unknown maze"):
        run("maze2d-huge-sparse")
    with pytest.raises(UsageError, match="local/maze2d-umaze-sparse"):
        names.lookup("local/maze2d-umaze-spars")
