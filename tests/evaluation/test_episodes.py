import functools
import pathlib
import subprocess
import sys
import threading
import time

import dm_env
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dm_env import specs

from offline_mbrl.evaluation.episodes import evaluate, make_evaluator
from offline_mbrl.types import Policy, UsageError

# --- policies ---


def catch_mode(params, observation):
    """Optimal on catch when `params` is 0; walks left when it is 1."""
    ball, paddle = jnp.argmax(observation[:-1].max(0)), jnp.argmax(observation[-1])
    return jnp.where(params > 0, 0, 1 + jnp.sign(ball - paddle)).astype(jnp.int32)


def random_catch(params, observation, key):
    del params, observation
    return jax.random.randint(key, (), 0, 3)


CATCH = Policy(sample=random_catch, mode=catch_mode)


def constant(value):
    action = lambda params, observation, key=None: jnp.asarray(value)  # noqa: E731
    return Policy(sample=action, mode=action)


# --- simulators with known answers ---


class Counter(dm_env.Environment):
    """Episode n lasts `length(n)` steps and pays n + 1 a step; `trouble` is called with the number of each step."""

    def __init__(self, length=lambda episode: 3, trouble=lambda step: None, action_spec=None):
        self._length, self._trouble = length, trouble
        self._action_spec = action_spec or specs.DiscreteArray(2)
        self._episode, self._step, self._steps = -1, 0, 0

    def reset(self):
        self._episode, self._step = self._episode + 1, 0
        return dm_env.restart(self._observation())

    def step(self, action):
        self._step, self._steps = self._step + 1, self._steps + 1
        self._trouble(self._steps)
        if self._step == self._length(self._episode):
            return dm_env.termination(float(self._episode + 1), self._observation())
        return dm_env.transition(float(self._episode + 1), self._observation())

    def _observation(self):
        return np.array([self._episode, self._step], np.float32)

    def observation_spec(self):
        return specs.Array((2,), np.float32)

    def action_spec(self):
        return self._action_spec


def counter(**settings):
    return lambda simulator, *, seed: Counter(**settings)


# --- returns ---


def test_optimal_policy_catches_every_ball_and_a_random_one_scores_as_published():
    found = evaluate(CATCH, jnp.zeros(()), "bsuite/catch", seed=0, num_episodes=50, greedy=True)
    assert found.complete
    assert found.message == ""
    np.testing.assert_array_equal(found.returns, np.ones(50))
    np.testing.assert_array_equal(found.lengths, np.full(50, 9))
    sampled = evaluate(CATCH, jnp.zeros(()), "bsuite/catch", seed=0, num_episodes=1000, greedy=False)
    assert -0.70 < sampled.returns.mean() < -0.52


def test_every_slot_plays_its_share_whatever_the_lengths():
    found = evaluate(
        constant(1), (), "any", seed=0, num_episodes=8, greedy=True, batch_size=3,
        make=counter(length=lambda episode: 2 * episode + 1))  # fmt: skip
    np.testing.assert_array_equal(found.lengths, [1, 1, 1, 3, 3, 3, 5, 5])
    np.testing.assert_array_equal(found.returns, [1, 1, 1, 6, 6, 6, 15, 15])


def test_same_seed_gives_the_same_episodes_and_another_seed_others():
    evaluator = make_evaluator(CATCH, "bsuite/catch?noise=0.5", num_episodes=40, greedy=False, batch_size=7)
    first, again, other = (evaluator(jnp.zeros(()), seed=seed).returns for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_seeds_episodes_do_not_depend_on_the_seeds_beside_it():
    params = jnp.array([0.0, 1.0, 0.0])
    settings = {"num_episodes": 23, "batch_size": 5, "greedy": True}
    simulator = "bsuite/catch?noise=0.5"
    together = evaluate(CATCH, params, simulator, seed=3, num_seeds=3, **settings)
    two = evaluate(CATCH, params[:2], simulator, seed=3, num_seeds=2, **settings)
    alone = evaluate(CATCH, params[0], simulator, seed=3, **settings)
    assert together.returns.shape == together.lengths.shape == (3, 23)
    np.testing.assert_array_equal(together.returns[:2], two.returns)
    np.testing.assert_array_equal(together.returns[0], alone.returns)


@pytest.mark.parametrize("greedy", [True, False])
def test_seeds_meet_simulators_and_keys_of_their_own(greedy):
    settings = {"num_episodes": 40, "batch_size": 10, "greedy": greedy}
    played = evaluate(CATCH, jnp.zeros(3), "bsuite/catch?noise=0.5", seed=3, num_seeds=3, **settings)
    assert not np.array_equal(played.returns[0], played.returns[1])
    assert not np.array_equal(played.returns[1], played.returns[2])


def test_slots_do_not_share_their_randomness():
    def sample(params, observation, key):
        return jax.random.randint(key, (), 0, 2)

    seen = []

    class Recorder(Counter):
        def step(self, action):
            seen.append(int(action))
            return super().step(action)

    policy = Policy(sample=sample, mode=None)
    evaluate(policy, (), "any", seed=0, num_episodes=20, greedy=False, make=lambda name, seed: Recorder())
    actions = np.array(seen).reshape(3, 20)
    assert (np.ptp(actions, axis=1) == 1).all()
    assert (np.ptp(actions, axis=0) == 1).any()


def test_repeated_evaluation_compiles_once():
    traces = []

    def mode(params, observation):
        traces.append(1)
        return catch_mode(params, observation)

    evaluator = make_evaluator(CATCH._replace(mode=mode), "bsuite/catch", num_episodes=5, greedy=True)
    for seed in range(3):
        evaluator(jnp.zeros(()), seed=seed)
    assert len(traces) == 1


def test_continuous_policy_acts_in_a_real_simulator():
    policy = constant(np.full(1, 0.5, np.float32))
    found = evaluate(policy, (), "gym/Pendulum-v1", seed=0, num_episodes=3, greedy=True, batch_size=2)
    assert found.complete
    np.testing.assert_array_equal(found.lengths, [200] * 3)
    assert (found.returns < 0).all()


# --- trouble ---


def test_hanging_simulator_ends_the_evaluation_with_what_was_finished():
    release = threading.Event()
    hang = lambda step: release.wait(60) if step == 5 else None  # noqa: E731
    start = time.monotonic()
    found = evaluate(
        constant(1), (), "slow/one", seed=0, num_episodes=4, greedy=True, batch_size=2, timeout=0.5,
        make=counter(trouble=hang))  # fmt: skip
    release.set()
    assert time.monotonic() - start < 10
    assert not found.complete
    assert found.message == "slow/one: no answer from the simulator within 0.5 s; 2 of 4 episodes were finished"
    np.testing.assert_array_equal(found.returns, [3, 3, np.nan, np.nan])
    np.testing.assert_array_equal(found.lengths, [3, 3, 0, 0])


def test_raising_simulator_ends_the_evaluation_with_its_message():
    def trouble(step):
        if step == 4:
            raise RuntimeError("physics diverged")

    found = evaluate(
        constant(1), (), "any", seed=0, num_episodes=2, greedy=True, batch_size=1, num_seeds=None,
        make=counter(trouble=trouble))  # fmt: skip
    assert not found.complete
    assert "RuntimeError: physics diverged" in found.message
    np.testing.assert_array_equal(found.returns, [3, np.nan])


def test_simulator_that_hangs_while_it_is_built_is_incomplete():
    release = threading.Event()

    def make(simulator, *, seed):
        release.wait(60)
        return Counter()

    found = evaluate(constant(1), (), "any", seed=0, num_episodes=2, greedy=True, timeout=0.3, make=make)
    release.set()
    assert not found.complete
    assert np.isnan(found.returns).all()


def test_python_exits_while_a_simulator_hangs():
    program = """if True:
        import time, test_episodes as here
        found = here.evaluate(here.constant(1), (), "any", seed=0, num_episodes=1, greedy=True, timeout=0.3,
                              make=here.counter(trouble=lambda step: time.sleep(600)))
        print(found.complete)"""
    command = [sys.executable, "-c", program]
    folder = pathlib.Path(__file__).parent
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, cwd=folder)
    assert result.stdout.strip() == "False"


def test_threads_end_with_the_evaluation():
    evaluate(constant(1), (), "any", seed=0, num_episodes=4, greedy=True, make=counter())
    deadline = time.monotonic() + 5
    while any(thread.name == "simulators" and thread.is_alive() for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_unknown_simulator_is_the_users_error():
    with pytest.raises(UsageError, match="the closest known: bsuite/catch"):
        evaluate(CATCH, jnp.zeros(()), "bsuite/cacth", seed=0, num_episodes=2, greedy=True)


BOX = functools.partial(specs.BoundedArray, dtype=np.float32, minimum=-1, maximum=1)


@pytest.mark.parametrize(
    ("action", "action_spec", "message"),
    [(2, None, "gave the action 2"), (-1, None, "gave the action -1"), (0.0, None, "dtype float32"),
     ([1, 1], None, "shape"), ([0.0, 1.5], BOX((2,)), "1.5"), ([np.nan, 0.0], BOX((2,)), "nan"),
     ([0, 1], BOX((2,)), "dtype int32")],
)  # fmt: skip
def test_action_outside_the_simulators_is_refused(action, action_spec, message):
    with pytest.raises(UsageError, match=message):
        evaluate(constant(action), (), "any", seed=0, num_episodes=2, greedy=True,
                 make=counter(action_spec=action_spec))  # fmt: skip


def test_numbers_below_one_are_refused():
    with pytest.raises(UsageError, match="at least 1"):
        make_evaluator(CATCH, "bsuite/catch", num_episodes=0, greedy=True)


def test_discounted_returns_start_anew_with_every_episode():
    found = evaluate(
        constant(1), (), "any", seed=0, num_episodes=4, greedy=True, batch_size=2, gamma=0.5,
        make=counter(length=lambda episode: episode + 2))  # fmt: skip
    np.testing.assert_allclose(found.returns, [1.5, 1.5, 3.5, 3.5])  # 1 + 1/2; 2 (1 + 1/2 + 1/4)
