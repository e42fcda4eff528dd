"""A simulator that is seeded again plays as a new one, and models without pictures as with them."""

import numpy as np
import pytest
from control_suite_marks import needs_control_suite

from offline_mbrl import environments
from offline_mbrl.environments import wrappers

CONTROL = (  # a task of each kind of start: drawn poses, drawn targets, rejected ones, moved bodies
    "cartpole_swingup",
    "cheetah_run",
    "finger_turn_hard",
    "fish_swim",
    "humanoid_run",
    "manipulator_insert_peg",
    "point_mass_hard",
    "quadruped_fetch",
    "reacher_hard",
    "stacker_stack_2",
    "swimmer_swimmer6",
)
OTHERS = (
    "gym/Hopper-v4",
    "gym/Ant-v5?noise=0.2",
    "gym/Reacher-v5",
    "gym/Pendulum-v1?noise=0.5",
    "gym/CartPole-v1?max_steps=7",
    "gym/FrozenLake-v1",
    "atari/Breakout",
    "atari/Pong?noise=0.3",
)


def random_action(environment, rng):
    spec = environment.action_spec()
    if hasattr(spec, "num_values"):
        return int(rng.integers(spec.num_values))
    return rng.uniform(-1, 1, spec.shape).astype(np.float32)


def rollout(environment, num_steps=15, num_episodes=2):
    """Observations and rewards of some steps of several episodes."""
    rng = np.random.default_rng(0)
    observations = []
    rewards = []
    for _ in range(num_episodes):
        observations.append(environment.reset().observation)
        for _ in range(num_steps):
            timestep = environment.step(random_action(environment, rng))
            observations.append(timestep.observation)
            rewards.append(timestep.reward or 0.0)
    return np.stack(observations), np.array(rewards)


def check_reseeded(name):
    fresh = rollout(environments.make(name, seed=7))
    used = environments.make(name, seed=3)
    other = rollout(used)
    used.reset()
    used.step(random_action(used, np.random.default_rng(1)))  # in the middle of an episode
    assert environments.reseed(used, 7)
    again = rollout(used)
    np.testing.assert_array_equal(again[0], fresh[0])
    np.testing.assert_array_equal(again[1], fresh[1])
    return (other[0] != fresh[0]).any()


@needs_control_suite
@pytest.mark.parametrize("task", CONTROL)
def test_a_task_that_is_seeded_again_plays_as_a_new_one(task):
    assert check_reseeded(f"control/{task}")


@pytest.mark.parametrize("name", OTHERS)
def test_a_game_that_is_seeded_again_plays_as_a_new_one(name):
    check_reseeded(name)


@needs_control_suite
def test_action_noise_of_a_task_is_seeded_again():
    assert check_reseeded("control/cartpole_swingup?noise=0.5")


@needs_control_suite
def test_a_task_whose_model_is_drawn_is_not_seeded_again():
    assert not environments.reseed(environments.make("control/lqr_lqr_2_1", seed=0), 1)


def test_what_is_built_in_a_millisecond_is_not_seeded_again():
    assert not environments.reseed(environments.make("bsuite/catch?noise=0.1", seed=0), 1)


@needs_control_suite
@pytest.mark.parametrize("task", CONTROL)
def test_small_textures_change_the_size_of_a_model_and_no_step(task):
    from dm_control import suite

    ours = environments.make(f"control/{task}", seed=5)
    names = {f"{domain}_{name}": (domain, name) for domain, name in suite.ALL_TASKS}
    plain = suite.load(*names[task], task_kwargs={"random": 5})
    inner = ours._environment
    assert inner.physics.model.ptr.nbuffer < 2**20 < plain.physics.model.ptr.nbuffer
    spec = plain.action_spec()
    first = ours.reset().observation
    np.testing.assert_array_equal(first, wrappers.flatten(plain.reset().observation))
    rng = np.random.default_rng(0)
    for _ in range(15):
        action = rng.uniform(-1, 1, spec.shape).astype(np.float32)
        timestep = ours.step(action)
        expected = plain.step(ours.executed_action)
        flat = wrappers.flatten(expected.observation)
        np.testing.assert_array_equal(timestep.observation, flat)
        assert timestep.reward == expected.reward


@needs_control_suite
def test_textures_of_other_users_of_the_suite_are_left_alone():
    from dm_control.suite import common

    skybox = common.ASSETS["./common/skybox.xml"]
    read_model = common.read_model
    environments.make("control/cartpole_swingup", seed=0)
    assert common.ASSETS["./common/skybox.xml"] is skybox
    assert common.read_model is read_model
    assert b'"800"' in skybox
