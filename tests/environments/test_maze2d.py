"""Mazes: motion against closed forms and MuJoCo, walls, rewards, episodes, and the simulator."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offline_mbrl import environments
from offline_mbrl.data.catalog import official
from offline_mbrl.environments import maze2d, termination
from offline_mbrl.types import Policy, UsageError

KEY = jax.random.key(0)
OPEN = maze2d.maze("open-dense")
LAYOUTS = sorted(maze2d.LAYOUTS)


def steps(task, state, actions):
    """States `[T + 1, 4]` and rewards `[T]`."""

    def body(state, action):
        after, reward = maze2d.step(task, state, action)
        return after, (after, reward)

    state = jnp.asarray(state, jnp.float32)
    _, (later, rewards) = jax.jit(functools.partial(jax.lax.scan, body))(state, actions)
    return np.concatenate([state[None], later]), np.asarray(rewards)


def test_a_step_away_from_walls_is_eulers_with_implicit_damping():
    state, _ = steps(OPEN, [2.0, 3.0, 1.0, -0.5], jnp.array([[0.3, -2.0]]))
    mass = 1000 * 4 / 3 * np.pi * 0.1**3
    velocity = np.array([1.0, -0.5])
    force = 100 * np.array([0.3, -1.0]) - velocity  # actions are clipped
    velocity = velocity + 0.01 * force / (mass + 0.01)
    np.testing.assert_allclose(state[1, 2:], velocity, rtol=1e-6)
    np.testing.assert_allclose(state[1, :2], [2, 3] + 0.01 * velocity, rtol=1e-6)


def test_velocities_are_clipped_before_a_step():
    fast, _ = steps(OPEN, [2.0, 3.0, 50.0, 0.0], jnp.zeros((1, 2)))
    slower, _ = steps(OPEN, [2.0, 3.0, 5.0, 0.0], jnp.zeros((1, 2)))
    np.testing.assert_array_equal(fast[1], slower[1])


def test_free_motion_is_mujocos():
    mujoco = pytest.importorskip("mujoco")
    model = mujoco.MjModel.from_xml_string(
        """
        <mujoco>
          <compiler inertiafromgeom="true"/>
          <option timestep="0.01" gravity="0 0 0" integrator="Euler"/>
          <worldbody>
            <body name="ball" pos="1.2 1.2 0">
              <geom type="sphere" size="0.1" density="1000" contype="0" conaffinity="0"/>
              <joint name="x" type="slide" axis="1 0 0" damping="1"/>
              <joint name="y" type="slide" axis="0 1 0" damping="1"/>
            </body>
          </worldbody>
          <actuator>
            <motor joint="x" gear="100" ctrlrange="-1 1" ctrllimited="true"/>
            <motor joint="y" gear="100" ctrlrange="-1 1" ctrllimited="true"/>
          </actuator>
        </mujoco>
        """
    )
    data = mujoco.MjData(model)
    actions = np.random.default_rng(0).uniform(-1, 1, (40, 2))
    data.qpos[:] = [2.0, 3.0]
    expected = []
    for action in actions:
        data.qvel[:] = np.clip(data.qvel, -5, 5)
        data.ctrl[:] = action
        mujoco.mj_step(model, data)
        expected.append(np.concatenate([data.qpos, data.qvel]))
    states, _ = steps(OPEN, [2.0, 3.0, 0.0, 0.0], jnp.asarray(actions, jnp.float32))
    assert np.abs(np.diff(states[:, :2], axis=0)).max() > 0.005
    np.testing.assert_allclose(states[1:], expected, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_ball_is_never_in_a_wall_and_reaches_the_edges(layout):
    task = maze2d.maze(f"{layout}-sparse")
    key_start, key_action = jax.random.split(KEY)
    starts = jax.vmap(functools.partial(maze2d.reset, task))(jax.random.split(key_start, 64))
    # Actions that are held for a while, so that walls are met at every speed.
    actions = jnp.repeat(jax.random.uniform(key_action, (64, 20, 2), minval=-1, maxval=1), 40, 1)

    def body(state, action):
        after, _ = jax.vmap(functools.partial(maze2d.step, task))(state, jnp.sign(action))
        return after, after

    _, states = jax.lax.scan(body, starts, jnp.swapaxes(actions, 0, 1))
    positions = np.asarray(states[..., :2], np.float64).reshape(-1, 2)
    inside = maze2d.RADIUS - 2e-4
    for corner in ((-inside, -inside), (-inside, inside), (inside, -inside), (inside, inside)):
        cells = np.floor(positions + corner + 0.7).astype(int)
        assert not task.walls[cells[:, 0], cells[:, 1]].any()
    touching = np.isclose(positions % 1, 0.2, atol=1e-5) | np.isclose(positions % 1, 0.4, atol=1e-5)
    assert touching.any(axis=0).all()  # at i + 0.2 and at i - 0.6


def test_at_a_wall_the_coordinate_is_clamped_and_its_velocity_lost():
    task = maze2d.maze("umaze-sparse")  # cell (1, 1) has a wall at its lower sides
    states, _ = steps(task, [0.5, 1.0, -2.0, 1.0], jnp.zeros((12, 2)))
    np.testing.assert_allclose(states[-1, 0], 0.4, atol=1e-6)
    assert states[-1, 2] == 0
    assert states[-1, 3] > 0.9  # along the wall it goes on


def test_a_fast_ball_does_not_jump_into_a_wall_from_a_corner():
    task = maze2d.maze("umaze-sparse")
    states, _ = steps(task, [0.45, 0.45, -5.0, -5.0], -jnp.ones((5, 2)))
    np.testing.assert_allclose(states[-1], [0.4, 0.4, 0, 0], atol=1e-6)


def test_rewards_are_of_the_next_position():
    goal = np.array([2.0, 3.0])
    assert maze2d.sparse(jnp.array([2.29, 3.4]), goal) == 1
    assert maze2d.sparse(jnp.array([2.31, 3.4]), goal) == 0
    np.testing.assert_allclose(maze2d.dense(jnp.array([5.0, 7.0]), goal), np.exp(-5), rtol=1e-6)
    states, rewards = steps(OPEN, [2.0, 2.0, 0.0, 3.0], jnp.ones((3, 2)))
    distance = np.linalg.norm(states[1:, :2] - OPEN.goal, axis=1)
    np.testing.assert_allclose(rewards, np.exp(-distance), rtol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_episodes_start_near_every_free_cell(layout):
    task = maze2d.maze(f"{layout}-sparse")
    states = jax.vmap(functools.partial(maze2d.reset, task))(jax.random.split(KEY, 4_000))
    cells = np.asarray(jax.vmap(maze2d.cell_of)(states[:, :2]))
    assert set(map(tuple, cells)) == set(map(tuple, task.free))
    assert np.abs(states[:, :2] - cells).max() <= 0.1 + 1e-6
    np.testing.assert_allclose(np.std(states[:, 2:]), 0.1, rtol=0.05)


@pytest.mark.parametrize("name", maze2d.names())
def test_the_catalogs_facts_are_those_of_the_simulator(name):
    facts = official.LOCAL_MAZE2D[f"maze2d-{name}"]
    assert facts.simulator == f"maze2d/{name}"
    spec = environments.spec(facts.simulator)
    assert spec.horizon == facts.horizon
    assert spec.action == facts.action
    assert termination.lookup(facts.simulator) is termination.never


# --- episodes ---


def to_the_goal():
    """Straight to the goal of the open maze, and stays there."""

    def mode(params, observation):
        return jnp.clip(10 * (params["goal"] - observation[:2]) - observation[2:], -1.0, 1.0)

    return Policy(sample=lambda params, observation, key: mode(params, observation), mode=mode)


def test_returns_are_those_of_the_simulators_episodes():
    params = {"goal": jnp.asarray(OPEN.goal)}
    policy = to_the_goal()
    returns = jax.jit(lambda params, key: maze2d.returns(OPEN, policy, params, key, 500))(
        params, KEY
    )
    evaluate = jax.jit(policy.mode)
    simulator = environments.make("maze2d/open-dense", seed=0)
    totals = []
    for _ in range(10):
        timestep = simulator.reset()
        total = 0.0
        while not timestep.last():
            timestep = simulator.step(np.asarray(evaluate(params, timestep.observation)))
            total += timestep.reward
        assert timestep.discount == 1
        totals.append(total)
    assert returns.shape == (500,)
    assert np.min(returns) - 1 < min(totals) < max(totals) < np.max(returns) + 1
    assert abs(np.mean(returns) - np.mean(totals)) < 4 * np.std(returns) / np.sqrt(10)
    assert np.mean(returns) > 0.6 * OPEN.limit


def test_a_simulator_is_reproducible_and_seeded_again():
    def rollout(simulator):
        states = [simulator.reset().observation, simulator.step([1.0, -1.0]).observation]
        return np.stack([*states, simulator.reset().observation])

    first = environments.make("maze2d/medium-sparse", seed=3)
    expected = rollout(first)
    np.testing.assert_array_equal(
        rollout(environments.make("maze2d/medium-sparse", seed=3)), expected
    )
    assert not np.array_equal(rollout(first), expected)
    assert environments.reseed(first, 3)
    np.testing.assert_array_equal(rollout(first), expected)


def test_an_unknown_maze_is_refused():
    with pytest.raises(UsageError, match="choose one of open-sparse"):
        maze2d.maze("umaze")
    with pytest.raises(UsageError, match="maze2d/umaze-sparse"):
        environments.make("maze2d/umaze-spars", seed=0)
