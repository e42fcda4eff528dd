import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offline_mbrl.environments import termination
from offline_mbrl.environments.control_suite import without_display
from offline_mbrl.types import UsageError

without_display()
STEPS = 300


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """MuJoCo writes its warnings to a file in the working directory."""
    monkeypatch.chdir(tmp_path)


def transitions(name, seed=0):
    """Random steps and whether each terminated; episodes start anew wherever one ends."""
    gymnasium.logger.min_level = gymnasium.logger.ERROR
    environment = gymnasium.make(name, disable_env_checker=True)
    observation, _ = environment.reset(seed=seed)
    environment.action_space.seed(seed)
    rows = []
    for _ in range(STEPS):
        action = environment.action_space.sample()
        following, _, terminated, truncated, _ = environment.step(action)
        rows.append((observation, np.asarray(action), following, terminated))
        observation = environment.reset()[0] if terminated or truncated else following
    environment.close()
    return [np.stack(column).astype(np.float32) for column in zip(*rows, strict=True)]


def over(rule, *arrays):
    return np.asarray(jax.jit(jax.vmap(rule))(*(jnp.asarray(array) for array in arrays)))


def ends(name, observation):
    observation = jnp.asarray(observation, jnp.float32)
    return bool(termination.lookup(name)(observation, jnp.zeros(1), observation))


# (name, whether random actions end an episode within the steps)
@pytest.mark.parametrize(
    ("name", "some"),
    [
        ("Hopper-v4", True),
        ("Hopper-v5", True),
        ("Walker2d-v4", True),
        ("Walker2d-v5", True),
        ("Ant-v4", True),
        ("Humanoid-v4", True),
        ("Humanoid-v5", True),
        ("InvertedPendulum-v4", True),
        ("InvertedPendulum-v5", True),
        ("InvertedDoublePendulum-v4", True),
        ("InvertedDoublePendulum-v5", True),
        ("CartPole-v1", True),
        ("HalfCheetah-v4", False),
        ("Swimmer-v4", False),
        ("Reacher-v4", False),
        ("Pendulum-v1", False),
        ("MountainCarContinuous-v0", False),
    ],
)
def test_rules_agree_with_gymnasium_on_every_random_step(name, some):
    *arrays, terminated = transitions(name)
    np.testing.assert_array_equal(over(termination.lookup(f"gym/{name}"), *arrays), terminated)
    assert terminated.any() == some


def test_ants_rule_agrees_with_gymnasium_where_it_falls():
    environment = gymnasium.make("Ant-v4", disable_env_checker=True).unwrapped
    environment.reset(seed=0)
    for height in (0.15, 0.199, 0.201, 0.6, 0.999, 1.001, 1.5):
        position = environment.init_qpos.copy()
        position[2] = height
        environment.set_state(position, environment.init_qvel)
        assert ends("gym/Ant-v4", environment._get_obs()) == environment.terminated
    environment.close()


def test_continuous_mountain_car_agrees_with_gymnasium_at_the_top():
    environment = gymnasium.make("MountainCarContinuous-v0", disable_env_checker=True).unwrapped
    environment.reset(seed=0)
    found = []
    for state in ((0.44, 0.03), (0.44, 0.0), (0.5, -0.02), (0.449, -0.01)):
        environment.state = np.array(state)
        following, _, terminated, _, _ = environment.step(np.array([1.0]))
        assert ends("gym/MountainCarContinuous-v0", following) == terminated
        found.append(terminated)
    assert any(found)
    assert not all(found)


HEALTHY = {
    "gym/Hopper-v4": [1.2, *[0.0] * 10],
    "gym/HalfCheetah-v4": [0.0] * 17,
    "gym/Walker2d-v4": [1.2, *[0.0] * 16],
}


def test_hoppers_bound_of_100_holds_on_both_sides():
    for value in (150.0, -150.0):
        observation = np.array(HEALTHY["gym/Hopper-v4"])
        assert not ends("gym/Hopper-v4", observation)
        observation[7] = value
        assert ends("gym/Hopper-v4", observation)


@pytest.mark.parametrize("name", ["gym/HalfCheetah-v4", "gym/Walker2d-v4"])
def test_tasks_without_a_bound_on_all_entries_get_none(name):
    observation = np.array(HEALTHY[name])
    observation[12] = 150.0
    assert not ends(name, observation)


def test_states_that_are_not_finite_end_the_tasks_that_say_so():
    observation = np.array(HEALTHY["gym/Hopper-v4"])
    observation[9] = np.nan
    assert ends("gym/Hopper-v4", observation)
    assert ends("gym/Ant-v4", [0.5, *[0.0] * 25, np.inf])
    assert not ends("gym/Ant-v4", [0.5, *[0.0] * 26])


def test_antmaze_ends_at_its_goal_and_not_by_the_ants_height():
    far = np.zeros(29)
    assert ends("gym/Ant-v4", far)  # as a height, this x-position would be one of a fallen ant
    assert not ends("d4rl_antmaze/umaze-v2", far)
    for name, goal in (("umaze-diverse-v0", (0.75, 8.75)), ("large-play-v2", (32.75, 24.75))):
        assert ends(f"d4rl_antmaze/{name}", [goal[0] + 0.3, goal[1] - 0.3, *far[2:]])
        assert not ends(f"d4rl_antmaze/{name}", [goal[0] + 0.4, goal[1] - 0.4, *far[2:]])


def test_a_dropped_pen_ends_the_episode():
    held = np.full(45, 0.1)
    rule = termination.adroit_pen
    assert not rule(held, held, jnp.asarray(held))
    assert rule(held, held, jnp.asarray(held).at[26].set(0.07))


@pytest.mark.parametrize(
    "name", ["control/cheetah_run", "rlu_control_suite/walker_walk", "control/fish_swim?noise=0.1"]
)
def test_control_tasks_are_ended_by_time_alone(name):
    assert not ends(name, np.full(30, np.inf))


def test_one_rule_serves_all_configurations_of_a_dataset_and_all_options_of_a_simulator():
    assert termination.lookup("d4rl_mujoco_hopper/v2-medium") is termination.hopper
    assert termination.lookup("gym/Hopper-v4?noise=0.1&max_steps=200") is termination.hopper


@pytest.mark.parametrize(
    "name",
    ["gym/Hoper-v4", "gym/AntMaze_UMaze-v4", "gym/hopper-v4", "maze2d-umaze-v1", "Hopper-v4"],
)
def test_unknown_names_are_refused_with_the_closest(name):
    with pytest.raises(UsageError, match="no termination rule is known for") as caught:
        termination.lookup(name)
    if "op" in name:
        assert "gym/Hopper-v4" in str(caught.value)
