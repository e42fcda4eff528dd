"""Evaluations of a run hold no more memory the longer it lasts."""

import jax
import pytest
from control_suite_marks import needs_control_suite

from offline_mbrl import environments
from offline_mbrl.evaluation.episodes import opened
from offline_mbrl.runs import memory
from offline_mbrl.types import BoundedActions, Policy

NUM_EVALUATIONS = 20
LIMIT = 50 * 2**20


def random_policy(simulator):
    spec = environments.spec(simulator)

    def sample(params, observation, key):
        if isinstance(spec.action, BoundedActions):
            return jax.random.uniform(key, (spec.action.size,), minval=-1, maxval=1)
        return jax.random.randint(key, (), 0, spec.action.num_actions)

    return Policy(sample=sample, mode=None)


def short(simulator, *, seed):
    """A task of the control suite whose episodes last 10 steps."""
    environment = environments.make(simulator, seed=seed)
    environment._environment._step_limit = 10
    return environment


@pytest.mark.parametrize(
    ("simulator", "make", "num_simulators"),
    [
        pytest.param("control/cartpole_swingup", short, 20, marks=needs_control_suite),
        pytest.param("control/lqr_lqr_2_1", short, 4, marks=needs_control_suite),
        ("gym/Hopper-v4?max_steps=10", environments.make, 20),
        ("bsuite/catch", environments.make, 20),
        ("atari/Pong?max_steps=5", environments.make, 1),
    ],
)
def test_twenty_evaluations_grow_by_less_than_50_mib(simulator, make, num_simulators):
    with opened(random_policy(simulator), simulator, make=make) as evaluator:
        for index in range(NUM_EVALUATIONS + 1):
            found = evaluator.evaluate((), seed=index, num_episodes=num_simulators, greedy=False)
            assert found.complete, found.message
            if index == 0:
                before = memory.now().anonymous
        growth = memory.now().anonymous - before
    assert growth < LIMIT, memory.in_words(growth)


@needs_control_suite
def test_closed_simulators_are_given_back():
    before = memory.now().anonymous
    for _ in range(3):
        with opened(random_policy("control/fish_swim"), "control/fish_swim", make=short) as one:
            assert one.evaluate((), seed=0, num_episodes=30, greedy=False).complete
    assert memory.now().anonymous - before < LIMIT
