"""OGBench's tasks: what they say of states, ends and seeds, and their success in an evaluation."""

import dm_env
import numpy as np
import pytest
from control_suite_marks import needs_control_suite
from dm_env import specs

from offline_mbrl import environments
from offline_mbrl.environments import ogbench, simulators
from offline_mbrl.evaluation.episodes import evaluate
from offline_mbrl.runs import playing
from offline_mbrl.types import Policy, UsageError

CUBE = "ogbench/cube-single-singletask-task1"
MAZE = "ogbench/pointmaze-medium-singletask-task3"


def inner(environment):
    """The package's own environment within one of `environments.make`."""
    return environment._environment._environment._environment.unwrapped


def beside_the_goal(maze, distance):
    return np.asarray(maze.cur_goal_xy) + np.array([distance, 0.0])


def rollout(environment, num_steps=12):
    """Observations of two episodes."""
    rng = np.random.default_rng(0)
    observations = []
    for _ in range(2):
        observations.append(environment.reset().observation)
        for _ in range(num_steps):
            action = rng.uniform(-1, 1, environment.action_spec().shape).astype(np.float32)
            observations.append(environment.step(action).observation)
    return np.stack(observations)


@needs_control_suite
@pytest.mark.parametrize(
    ("name", "size", "actions", "horizon"), [(CUBE, 28, 5, 200), (MAZE, 2, 2, 1000)]
)
def test_a_task_is_described(name, size, actions, horizon):
    spec = environments.spec(name)
    assert spec.observation.shape == (size,)
    assert spec.observation.dtype == np.float32
    assert (spec.action.minimum, spec.action.maximum) == ((-1.0,) * actions, (1.0,) * actions)
    assert spec.horizon == horizon


@needs_control_suite
@pytest.mark.parametrize(
    "name",
    [CUBE, MAZE, "ogbench/pointmaze-teleport-singletask-task1", "ogbench/scene-singletask-task2"],
)
def test_a_task_that_is_seeded_again_plays_as_a_new_one_and_leaves_numpy_alone(name):
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    fresh = rollout(environments.make(name, seed=7))
    used = environments.make(name, seed=3)
    assert (rollout(used) != fresh).any()
    used.reset()
    used.step(np.zeros(used.action_spec().shape, np.float32))
    assert environments.reseed(used, 7)
    np.testing.assert_array_equal(rollout(used), fresh)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@needs_control_suite
def test_reward_and_end_are_those_of_the_state_before_the_action():
    environment = environments.make(MAZE, seed=0)
    environment.reset()
    maze = inner(environment)
    first = environment.step(np.zeros(2, np.float32))
    assert (first.reward, first.discount, first.last()) == (-1.0, 1.0, False)
    maze.set_xy(beside_the_goal(maze, maze._goal_tol - 0.5))
    solved = environment.step(np.float32([1, 0]))  # half a unit of slack, a fifth of a unit of way
    assert (solved.reward, solved.discount, solved.last()) == (0.0, 0.0, True)
    environment.reset()
    maze.set_xy(beside_the_goal(maze, maze._goal_tol + 0.1))
    entering = environment.step(np.float32([-1, 0]))
    assert np.linalg.norm(entering.observation - maze.cur_goal_xy) < maze._goal_tol
    assert (entering.reward, entering.discount) == (-1.0, 1.0)
    assert environment.step(np.zeros(2, np.float32)).discount == 0.0


@needs_control_suite
def test_the_time_limit_truncates():
    environment = environments.make(CUBE, seed=0)
    environment.reset()
    for _ in range(200):
        timestep = environment.step(np.zeros(5, np.float32))
    assert timestep.last()
    assert timestep.discount == 1.0


@needs_control_suite
def test_an_unknown_task_is_refused_with_the_closest():
    with pytest.raises(UsageError, match="cube-single-singletask-task1"):
        environments.make("ogbench/cube-singel-singletask-task1", seed=0)
    assert all("visual" not in name for name in ogbench.names())


def test_a_missing_package_says_what_to_install(monkeypatch):
    def names():
        raise ModuleNotFoundError("no module", name="ogbench")

    monkeypatch.setattr(ogbench, "names", names)
    with pytest.raises(UsageError, match=r"offline_mbrl\[ogbench\].*3\.12 or older"):
        simulators.make(CUBE, seed=0)


# --- success ---


class Countdown(dm_env.Environment):
    """Ends after two steps: solved where the action is 1, else by time."""

    def reset(self):
        self._left = 2
        return dm_env.restart(np.zeros(1, np.float32))

    def step(self, action):
        self._left -= 1
        observation = np.zeros(1, np.float32)
        if self._left:
            return dm_env.transition(-1.0, observation)
        if action == 1:
            return dm_env.termination(0.0, observation)
        return dm_env.truncation(-1.0, observation, discount=1.0)

    def observation_spec(self):
        return specs.Array((1,), np.float32)

    def action_spec(self):
        return specs.DiscreteArray(2)


def make(simulator, *, seed):
    return Countdown()


CONSTANT = Policy(
    sample=lambda params, observation, key: params,
    mode=lambda params, observation: params,
    log_prob=None,
)


def played(name):
    return evaluate(
        CONSTANT,
        np.array([1, 0], np.int32),
        name,
        seed=0,
        num_episodes=3,
        greedy=True,
        num_seeds=2,
        make=make,
    )


def test_episodes_that_end_in_a_terminal_are_successes_of_these_tasks_alone():
    evaluation = played(CUBE)
    np.testing.assert_array_equal(evaluation.success, [[True] * 3, [False] * 3])
    np.testing.assert_array_equal(evaluation.returns, [[-1.0] * 3, [-2.0] * 3])
    assert played("gym/Hopper-v5").success is None


def test_the_summary_has_each_seeds_share_of_successes():
    summary = playing.summarize({"greedy": played(CUBE)}, None)["greedy"]
    assert summary["success"] == [1.0, 0.0]
    assert summary["success_interquartile_mean"] == 0.5
    assert "success" not in playing.summarize({"greedy": played("any")}, None)["greedy"]
