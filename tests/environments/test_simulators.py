import subprocess
import sys

import dm_env
import gymnasium
import numpy as np
import pytest
from control_suite_marks import needs_control_suite

from offline_mbrl import environments
from offline_mbrl.environments import simulators, wrappers
from offline_mbrl.environments.gymnasium import FromGymnasium
from offline_mbrl.types import BoundedActions, DiscreteActions, UsageError


def catch_action(observation):
    """Moves the paddle under the ball: optimal, the ball is never more than two columns away."""
    ball, paddle = int(np.argmax(observation[:-1].max(0))), int(np.argmax(observation[-1]))
    return 1 + int(np.sign(ball - paddle))


def returns(environment, act, num_episodes):
    found = []
    for _ in range(num_episodes):
        timestep, total = environment.reset(), 0.0
        while not timestep.last():
            timestep = environment.step(act(timestep.observation))
            total += timestep.reward
        found.append(total)
    return np.array(found)


def test_optimal_policy_catches_every_ball():
    assert (returns(environments.make("bsuite/catch", seed=0), catch_action, 100) == 1).all()


def test_random_policy_on_catch_scores_as_published():
    rng = np.random.default_rng(0)
    found = returns(environments.make("bsuite/catch", seed=0), lambda _: rng.integers(3), 2000)
    assert -0.68 < found.mean() < -0.54


def test_the_starts_of_catch_are_its_five_columns_and_nothing_after_them_is_random():
    seeds = environments.starts("bsuite/catch")
    simulators = [environments.make("bsuite/catch", seed=seed) for seed in seeds]
    first = [simulator.reset().observation for simulator in simulators]
    assert sorted(int(observation[0].argmax()) for observation in first) == [0, 1, 2, 3, 4]
    again = environments.make("bsuite/catch", seed=seeds[0])
    again.reset()
    for action in (0, 2, 1, 0, 0, 2, 1, 1, 2):
        np.testing.assert_array_equal(
            again.step(action).observation, simulators[0].step(action).observation
        )


@pytest.mark.parametrize(
    "simulator", ["bsuite/catch?noise=0.1", "bsuite/cartpole", "gym/Pendulum-v1", "any"]
)
def test_starts_that_are_many_or_lead_to_chance_are_not_listed(simulator):
    assert environments.starts(simulator) == ()


def test_full_noise_makes_the_optimal_policy_random():
    found = returns(environments.make("bsuite/catch?noise=1", seed=0), catch_action, 2000)
    assert -0.68 < found.mean() < -0.54


def test_noise_replaces_the_stated_share_of_actions_and_tells_which():
    environment = environments.make("bsuite/catch?noise=0.3", seed=0)
    environment.reset()
    executed = []
    for _ in range(6000):
        environment.step(1)
        executed.append(environment.executed_action)
    counts = np.bincount(executed, minlength=3) / 6000
    np.testing.assert_allclose(counts, [0.1, 0.8, 0.1], atol=0.02)


def test_noise_on_continuous_actions_is_uniform_in_the_unit_box():
    noisy = environments.make("gym/Pendulum-v1?noise=1", seed=0)
    noisy.reset()
    executed = []
    for _ in range(1000):
        noisy.step(np.ones(1, np.float32))
        executed.append(noisy.executed_action)
    assert np.abs(executed).max() <= 1
    assert abs(np.mean(executed)) < 0.1
    assert abs(np.var(executed) - 1 / 3) < 0.05


@pytest.mark.parametrize(
    "name",
    [
        "bsuite/cartpole?noise=0.2",
        "gym/CartPole-v1",
        pytest.param("control/cartpole_swingup", marks=needs_control_suite),
    ],
)
def test_same_seed_gives_the_same_episode_and_another_seed_another(name):
    def observations(seed):
        environment = environments.make(name, seed=seed)
        action = 1 if hasattr(environment.action_spec(), "num_values") else np.full(1, 0.3)
        return np.stack(
            [
                environment.reset().observation,
                *(environment.step(action).observation for _ in range(10)),
            ]
        )

    np.testing.assert_array_equal(observations(3), observations(3))
    assert (observations(3) != observations(4)).any()


@pytest.mark.parametrize(
    ("name", "shape", "horizon"),
    [("catch", (10, 5), 9), ("cartpole", (1, 6), 1001), ("mountain_car", (1, 3), 1000)],
)
def test_bsuite_spec_has_the_published_shapes(name, shape, horizon):
    spec = environments.spec(f"bsuite/{name}")
    assert (spec.observation.shape, spec.observation.dtype) == (shape, np.float32)
    assert spec.action == DiscreteActions(3)
    assert spec.horizon == horizon


def balance(observation):
    """Keeps bsuite's pole up for the whole episode."""
    x, x_dot, sin, _, theta_dot, _ = observation[0]
    return 1 + int(np.sign(10 * sin + 2 * theta_dot + 0.6 * x + 1.2 * x_dot))


@pytest.mark.parametrize(
    ("name", "act"), [("catch", catch_action), ("cartpole", balance), ("mountain_car", lambda _: 1)]
)
def test_bsuite_time_limit_is_a_terminal_at_the_horizon(name, act):
    environment, length = environments.make(f"bsuite/{name}", seed=0), 0
    timestep = environment.reset()
    while not timestep.last():
        timestep, length = environment.step(act(timestep.observation)), length + 1
    assert length == environments.spec(f"bsuite/{name}").horizon
    assert timestep.discount == 0


# --- one convention ---


def test_flattening_sorts_keys_and_ravels_in_c_order():
    observation = {"b": np.arange(4.0).reshape(2, 2), "a": 7.0, "c": np.array([True])}
    flat = wrappers.flatten(observation)
    np.testing.assert_array_equal(flat, [7, 0, 1, 2, 3, 1])
    assert flat.dtype == np.float32


@needs_control_suite
def test_control_suite_observation_is_the_flattened_dictionary():
    from dm_control import suite

    ours = environments.make("control/humanoid_run", seed=5)
    theirs = suite.load("humanoid", "run", task_kwargs={"random": 5})
    observation = theirs.reset().observation
    assert list(observation) != sorted(observation)  # so that the order is tested
    expected = np.concatenate([np.ravel(observation[key]) for key in sorted(observation)])
    found = ours.reset().observation
    np.testing.assert_array_equal(found, expected.astype(np.float32))
    assert (
        found.shape
        == ours.observation_spec().shape
        == environments.spec("control/humanoid_run").observation.shape
    )


@needs_control_suite
def test_control_suite_time_limit_is_a_truncation():
    environment = environments.make("control/cartpole_swingup", seed=0)
    timestep, length = environment.reset(), 0
    while not timestep.last():
        timestep, length = environment.step(np.zeros(1)), length + 1
    assert length == environments.spec("control/cartpole_swingup").horizon == 1000
    assert timestep.discount == 1


def test_continuous_actions_are_rescaled_to_the_simulators_bounds():
    spec = environments.spec("gym/Pendulum-v1")
    assert spec.action == BoundedActions((-2.0,), (2.0,))
    environment = environments.make("gym/Pendulum-v1", seed=0)
    assert (environment.action_spec().minimum, environment.action_spec().maximum) == (-1, 1)
    environment.reset()
    for given, executed in [(-1.0, -2.0), (0.25, 0.5), (1.0, 2.0)]:
        environment.step(np.array([given], np.float32))
        assert environment.executed_action == executed


def test_unbounded_actions_are_refused():
    class Unbounded(dm_env.Environment):
        def reset(self):
            return dm_env.restart(np.zeros(1, np.float32))

        def step(self, action):
            return dm_env.transition(0.0, np.zeros(1, np.float32))

        def observation_spec(self):
            return dm_env.specs.Array((1,), np.float32)

        def action_spec(self):
            return dm_env.specs.BoundedArray((1,), np.float32, -np.inf, np.inf)

    with pytest.raises(UsageError, match="no bounds"):
        wrappers.canonical(Unbounded())


# --- gymnasium's two kinds of end ---


def test_truncated_gymnasium_episode_ends_with_discount_one():
    environment = environments.make("gym/CartPole-v1?max_steps=5", seed=0)
    timesteps = [environment.reset(), *(environment.step(t % 2) for t in range(5))]
    assert [timestep.last() for timestep in timesteps] == [False] * 5 + [True]
    assert timesteps[-1].discount == 1


def test_terminated_gymnasium_episode_ends_with_discount_zero():
    environment = environments.make("gym/CartPole-v1", seed=0)
    timestep = environment.reset()
    for _ in range(50):  # pushing one way, the pole falls within a dozen steps
        timestep = timestep if timestep.last() else environment.step(0)
    assert timestep.last()
    assert timestep.discount == 0
    assert environment.step(0).first()


def test_older_mujoco_versions_are_not_newer_ones():
    assert environments.spec("gym/Hopper-v4").horizon == 1000
    shapes = {
        name: environments.spec(f"gym/{name}").observation.shape for name in ("Ant-v4", "Ant-v5")
    }
    assert shapes == {"Ant-v4": (27,), "Ant-v5": (105,)}


def test_discrete_gymnasium_observations_become_one_array():
    environment = environments.make("gym/FrozenLake-v1", seed=0)
    np.testing.assert_array_equal(environment.reset().observation, np.eye(16, dtype=np.float32)[0])
    assert environments.spec("gym/FrozenLake-v1").observation.shape == (16,)


def test_actions_of_another_kind_are_refused():
    class Several(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(0, 1, (1,))
        action_space = gymnasium.spaces.MultiDiscrete([2, 2])

    with pytest.raises(UsageError, match="not supported"):
        FromGymnasium(Several(), 0)


# --- Atari ---


def test_atari_frames_follow_the_protocol():
    environment = environments.make("atari/Pong", seed=0)
    spec = environments.spec("atari/Pong")
    assert spec.action == DiscreteActions(6)
    assert spec.horizon == 27_000
    first = environment.reset().observation
    assert (first.shape, first.dtype) == ((84, 84, 4), np.uint8)
    assert all((first[..., frame] == first[..., 0]).all() for frame in range(4))
    later = [environment.step(0).observation for _ in range(30)]
    np.testing.assert_array_equal(
        later[-1][..., :3], later[-2][..., 1:]
    )  # the newest frame comes last
    assert (later[-1][..., 3] != later[-1][..., 2]).any()


def test_atari_holds_an_action_for_four_frames_and_sticks_a_quarter_of_the_time():
    environment = environments.make("atari/Breakout", seed=0)
    raw = environment._environment
    environment.reset()
    environment.step(0)
    assert raw.unwrapped.ale.getEpisodeFrameNumber() == 4
    assert raw.unwrapped.ale.getFloat("repeat_action_probability") == 0.25


def test_atari_step_limit_is_a_truncation():
    environment = environments.make("atari/Pong?max_steps=3", seed=0)
    environment.reset()
    timesteps = [environment.step(0) for _ in range(3)]
    assert [timestep.last() for timestep in timesteps] == [False, False, True]
    assert timesteps[-1].discount == 1


# --- names ---


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bsuit/catch", "did you mean bsuite"),
        ("catch", "expected FAMILY/NAME"),
        ("bsuite/cacth", "the closest known: bsuite/catch"),
        pytest.param(
            "control/cartpole_swing", "control/cartpole_swingup", marks=needs_control_suite
        ),
        ("gym/Hoper-v4", "gym/Hopper-v4"),
        ("atari/pong", "atari/Pong"),
        ("bsuite/catch?nois=1", "unknown option 'nois'"),
        ("bsuite/catch?noise=2", "probability from 0 to 1"),
        ("bsuite/catch?noise=nan", "probability from 0 to 1"),
        ("bsuite/catch?noise", "options are written"),
        ("gym/CartPole-v1?max_steps=0.5", "positive whole number"),
    ],
)
def test_wrong_name_gets_one_clear_line(name, message):
    with pytest.raises(UsageError, match=message.replace("?", r"\?")) as error:
        environments.make(name, seed=0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("bsuite/catch", "bsuite", "bsuite"),
        ("control/cartpole_swingup", "dm_control", "control"),
        ("gym/CartPole-v1", "gymnasium", "gymnasium"),
        ("atari/Pong", "ale_py", "atari"),
    ],
)
def test_missing_library_is_named_with_its_extra(monkeypatch, name, package, extra):
    loaded = [
        module for module in sys.modules if module == package or module.startswith(f"{package}.")
    ]
    for module in [*loaded, package]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=rf"pip install 'offline_mbrl\[{extra}\]'"):
        simulators.make(name, seed=0)


def test_importing_the_room_loads_no_simulator():
    program = (
        "import sys, offline_mbrl.environments\n"
        "libraries = ('bsuite', 'dm_control', 'mujoco', 'gymnasium', 'ale_py', 'tensorflow')\n"
        "print([name for name in libraries if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
