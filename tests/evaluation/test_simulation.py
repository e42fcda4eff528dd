"""Simulators that are built once, and what happens when they fail."""

import pathlib
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
import simulator_examples
from simulator_examples import Counter, constant, counter

from offline_mbrl import environments
from offline_mbrl.evaluation.episodes import evaluate, opened
from offline_mbrl.types import Policy

# --- the same simulators for many evaluations ---


def test_greedy_and_sampled_evaluations_and_smaller_ones_share_their_simulators():
    built = []

    def make(simulator, *, seed):
        built.append(seed)
        return environments.make("gym/CartPole-v1?max_steps=5", seed=seed)

    policy = constant(1)
    with opened(policy, "any", num_seeds=2, batch_size=4, make=make) as evaluator:
        for num_episodes, greedy in ((9, True), (9, False), (3, True), (6, False)):
            found = evaluator.evaluate((), seed=0, num_episodes=num_episodes, greedy=greedy)
            assert found.complete
    assert len(built) == 2 * 4


@pytest.mark.parametrize(
    "name",
    [
        "bsuite/cartpole?noise=0.3",
        "gym/Hopper-v4?noise=0.3",
        "gym/Pendulum-v1?max_steps=30",
    ],
)
def test_used_simulators_play_the_episodes_of_new_ones(name):
    action = environments.make(name, seed=0).action_spec()

    def sample(params, observation, key):
        if hasattr(action, "num_values"):
            return jax.random.randint(key, (), 0, 3)
        return jax.random.uniform(key, action.shape, minval=-1, maxval=1)

    policy = Policy(sample=sample, mode=None)
    size = {"num_episodes": 3, "greedy": False}
    with opened(policy, name, batch_size=2) as evaluator:
        used = [evaluator.evaluate((), seed=seed, **size) for seed in (0, 1, 0)]
    for seed, played in zip((0, 1, 0), used, strict=True):
        fresh = evaluate(policy, (), name, seed=seed, batch_size=2, **size)
        np.testing.assert_array_equal(played.returns, fresh.returns)
        np.testing.assert_array_equal(played.lengths, fresh.lengths)


def test_ended_episodes_are_counted_as_they_end():
    counts = []
    with opened(constant(1), "any", batch_size=2, make=counter()) as evaluator:
        evaluator.evaluate((), seed=0, num_episodes=5, greedy=True, ended=counts.append)
    assert counts == [1, 2, 3, 4, 5]


def test_the_time_of_a_step_is_that_of_all_simulators_one_after_the_other():
    slow = counter(length=lambda episode: 100, trouble=lambda step: time.sleep(0.002))
    with opened(constant(1), "any", num_seeds=2, batch_size=5, make=slow) as evaluator:
        seconds = evaluator.seconds_per_step((), num_episodes=5, num_steps=5)
    assert 0.02 <= seconds < 0.2


# --- trouble ---


def test_hanging_simulator_ends_the_evaluation_with_what_was_finished():
    release = threading.Event()

    def hang(step):
        if step == 5:
            release.wait(60)

    start = time.monotonic()
    found = evaluate(
        constant(1),
        (),
        "slow/one",
        seed=0,
        num_episodes=4,
        greedy=True,
        batch_size=2,
        timeout=0.5,
        make=counter(trouble=hang),
    )
    release.set()
    assert time.monotonic() - start < 10
    assert not found.complete
    assert (
        found.message
        == "slow/one: no answer from the simulator within 0.5 s; 2 of 4 episodes were finished"
    )
    np.testing.assert_array_equal(found.returns, [3, 3, np.nan, np.nan])
    np.testing.assert_array_equal(found.lengths, [3, 3, 0, 0])


def test_raising_simulator_ends_the_evaluation_with_its_message():
    def trouble(step):
        if step == 4:
            raise RuntimeError("physics diverged")

    found = evaluate(
        constant(1),
        (),
        "any",
        seed=0,
        num_episodes=2,
        greedy=True,
        batch_size=1,
        num_seeds=None,
        make=counter(trouble=trouble),
    )
    assert not found.complete
    assert "RuntimeError: physics diverged" in found.message
    np.testing.assert_array_equal(found.returns, [3, np.nan])


def test_simulator_that_hangs_while_it_is_built_is_incomplete():
    release = threading.Event()

    def make(simulator, *, seed):
        release.wait(60)
        return Counter()

    found = evaluate(
        constant(1), (), "any", seed=0, num_episodes=2, greedy=True, timeout=0.3, make=make
    )
    release.set()
    assert not found.complete
    assert np.isnan(found.returns).all()


def test_python_exits_while_a_simulator_hangs():
    program = """if True:
        import time, simulator_examples as examples
        from offline_mbrl.evaluation.episodes import evaluate
        make = examples.counter(trouble=lambda step: time.sleep(600))
        found = evaluate(examples.constant(1), (), "any", seed=0, num_episodes=1, greedy=True,
                         timeout=0.3, make=make)
        print(found.complete)"""
    command = [sys.executable, "-c", program]
    folder = pathlib.Path(simulator_examples.__file__).parent
    result = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=60, cwd=folder
    )
    assert result.stdout.strip() == "False"


def test_after_a_failure_other_simulators_are_built():
    failing = [True]

    def trouble(step):
        if failing.pop() if failing else False:
            raise RuntimeError("once")

    with opened(constant(1), "any", make=counter(trouble=trouble)) as evaluator:
        found = [
            evaluator.evaluate((), seed=0, num_episodes=2, greedy=True).complete for _ in range(2)
        ]
    assert found == [False, True]


def test_an_interrupted_evaluation_leaves_no_answer_behind():
    def interrupt(count):
        raise KeyboardInterrupt

    with opened(constant(1), "any", make=counter(length=lambda n: 3)) as evaluator:
        size = {"num_episodes": 2, "greedy": True}
        with pytest.raises(KeyboardInterrupt):
            evaluator.evaluate((), seed=0, **size, ended=interrupt)
        np.testing.assert_array_equal(evaluator.evaluate((), seed=0, **size).lengths, [3, 3])


def test_threads_end_with_the_evaluation():
    evaluate(constant(1), (), "any", seed=0, num_episodes=4, greedy=True, make=counter())
    deadline = time.monotonic() + 5
    while any(
        thread.name == "simulators" and thread.is_alive() for thread in threading.enumerate()
    ):
        assert time.monotonic() < deadline
        time.sleep(0.01)
