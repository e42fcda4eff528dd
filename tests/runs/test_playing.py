"""What evaluations during training cost, and how many of them a run can afford."""

import time

import jax.numpy as jnp
import numpy as np
import pytest
from simulator_examples import CATCH

from offline_mbrl import environments
from offline_mbrl.evaluation import episodes
from offline_mbrl.runs import playing
from offline_mbrl.runs.report import tables


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("training", [0.0, 100.0, 12_345.6])
@pytest.mark.parametrize("each", [0.7, 30.0])
def test_as_many_are_played_as_fit_into_the_share_of_the_run(share, training, each):
    count = playing.affordable(10**6, each, training, share, allowance=0.0)

    def fits(number):
        return number * each <= share * (training + number * each) + 1e-6

    assert fits(count)
    assert not fits(count + 1)


def test_no_more_are_played_than_asked_for():
    assert playing.affordable(10, 1.0, 1e6) == 10
    assert playing.affordable(10, 60.0, 3600.0) == 6  # 360 of 3,960 seconds
    assert playing.affordable(10, 1e6, 3600.0, share=1.0) == 10
    assert playing.affordable(10, 0.0, 3600.0) == 10


def test_short_runs_keep_their_curve_within_an_allowance():
    assert playing.affordable(10, 1.0, 0.0) == 10
    assert playing.affordable(10, 3.0, 0.0) == 3
    assert playing.affordable(10, 11.0, 0.0) == 0


def test_the_cost_is_one_line_and_says_what_is_left_out():
    assert playing.cost(10, 10, 2.34) == "10 evaluations during training, each about 2.3 s"
    line = playing.cost(10, 3, 240.0)
    assert line.startswith("3 of 10 evaluations during training, each about 4 min: more would")
    assert "\n" not in line


def test_greedy_and_sampled_episodes_are_counted_together():
    shown = []
    with playing.opened(CATCH, "bsuite/catch", num_seeds=2) as player:
        played = player.play(
            jnp.zeros(2), seed=0, num_episodes=3, show=lambda *progress: shown.append(progress)
        )
    total = playing.num_played(2, 3)
    assert shown == [(number, "episodes") for number in range(1, total + 1)]
    alone = episodes.evaluate(
        CATCH, jnp.zeros(2), "bsuite/catch", seed=0, num_episodes=3, greedy=False, num_seeds=2
    )
    np.testing.assert_array_equal(played["sampled"].returns, alone.returns)
    np.testing.assert_array_equal(played["greedy"].returns, np.ones((2, 3)))


def test_a_result_says_that_all_starts_were_played():
    with playing.opened(CATCH, "bsuite/catch", num_seeds=2) as player:
        played = player.play(jnp.zeros(2), seed=0, num_episodes=5)
    evaluation = playing.summarize(played, None)
    outcome = {"seeds": [0, 1], "failures": {}, "evaluation": evaluation}
    outcome |= {"updates_per_second": 1.0}
    outcome |= {"timings": {"update_seconds": 1.0, "compile_seconds": 1.0}}
    (line,) = (line for line in tables.notes(outcome) if "starts" in line)
    assert line == "greedy: exact, the mean over all 5 starts; nothing else is random"


def test_the_estimate_is_at_least_the_steps_times_the_time_of_one(monkeypatch):
    class Slow:
        def __init__(self, environment):
            self.environment = environment

        def __getattr__(self, name):
            return getattr(self.environment, name)

        def step(self, action):
            time.sleep(0.005)
            return self.environment.step(action)

    make = environments.make
    monkeypatch.setattr(environments, "make", lambda name, *, seed: Slow(make(name, seed=seed)))
    with playing.opened(CATCH, "bsuite/catch", num_seeds=2) as player:
        longest = player.seconds(jnp.zeros(2), 3)
        given = player.seconds(jnp.zeros(2), 3, 100)
    step = 2 * 3 * 0.005  # of all simulators
    assert 2 * 9 * step <= longest < 2 * 9 * (step + 1)
    assert 2 * 100 * step <= given < 2 * 100 * (step + 1)
