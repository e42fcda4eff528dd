import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dm_env import specs
from simulator_examples import CATCH, Counter, catch_mode, constant, counter

from offline_mbrl import policies
from offline_mbrl.evaluation.episodes import evaluate, make_evaluator, opened
from offline_mbrl.types import Policy, UsageError

# --- returns ---


def test_optimal_policy_catches_every_ball_and_a_random_one_scores_as_published():
    found = evaluate(CATCH, jnp.zeros(()), "bsuite/catch", seed=0, num_episodes=50, greedy=True)
    assert found.complete
    assert found.message == ""
    np.testing.assert_array_equal(found.returns, np.ones(50))
    np.testing.assert_array_equal(found.lengths, np.full(50, 9))
    sampled = evaluate(
        CATCH, jnp.zeros(()), "bsuite/catch", seed=0, num_episodes=1000, greedy=False
    )
    assert -0.70 < sampled.returns.mean() < -0.52


def test_every_slot_plays_its_share_whatever_the_lengths():
    found = evaluate(
        constant(1),
        (),
        "any",
        seed=0,
        num_episodes=8,
        greedy=True,
        batch_size=3,
        make=counter(length=lambda episode: 2 * episode + 1),
    )
    np.testing.assert_array_equal(found.lengths, [1, 1, 1, 3, 3, 3, 5, 5])
    np.testing.assert_array_equal(found.returns, [1, 1, 1, 6, 6, 6, 15, 15])


def test_same_seed_gives_the_same_episodes_and_another_seed_others():
    with opened(CATCH, "bsuite/catch?noise=0.5", batch_size=7) as evaluator:
        first, again, other = (
            evaluator.evaluate(jnp.zeros(()), seed=seed, num_episodes=40, greedy=False).returns
            for seed in (0, 0, 1)
        )
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
    played = evaluate(
        CATCH, jnp.zeros(3), "bsuite/catch?noise=0.5", seed=3, num_seeds=3, **settings
    )
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
    evaluate(
        policy, (), "any", seed=0, num_episodes=20, greedy=False, make=lambda name, seed: Recorder()
    )
    actions = np.array(seen).reshape(3, 20)
    assert (np.ptp(actions, axis=1) == 1).all()
    assert (np.ptp(actions, axis=0) == 1).any()


LEFT = jnp.ones(())  # parameters of CATCH with which it walks left: 1 of 5 balls is caught


@pytest.mark.parametrize("seed", [0, 1])
def test_greedy_play_of_catch_is_its_mean_over_the_five_starts_whatever_the_seed(seed):
    played = evaluate(CATCH, LEFT, "bsuite/catch", seed=seed, num_episodes=20, greedy=True)
    assert (played.starts, played.returns.shape) == (5, (20,))
    np.testing.assert_allclose(played.returns.mean(), (1 - 4) / 5, rtol=1e-12)
    np.testing.assert_array_equal(played.lengths, np.full(20, 9))


def test_every_seed_meets_all_starts():
    params = jnp.array([0.0, 1.0, 1.0])
    settings = {"num_episodes": 25, "greedy": True, "num_seeds": 3}
    played = evaluate(CATCH, params, "bsuite/catch", seed=0, **settings)
    np.testing.assert_allclose(played.returns.mean(axis=1), [1, -0.6, -0.6], rtol=1e-12)


@pytest.mark.parametrize(
    ("simulator", "changes"),
    [
        ("bsuite/catch?noise=0.5", {}),
        ("bsuite/catch", {"greedy": False}),
        ("bsuite/catch", {"num_episodes": 7}),
        ("bsuite/catch", {"batch_size": 4}),
    ],
)
def test_starts_are_drawn_where_they_cannot_all_count_alike(simulator, changes):
    settings = {"num_episodes": 10, "greedy": True} | changes
    assert evaluate(CATCH, LEFT, simulator, seed=0, **settings).starts == 0


def test_an_actor_may_act_at_random_so_that_its_starts_are_drawn():
    actor = policies.as_actor(CATCH)
    settings = {"seed": 0, "num_episodes": 10, "greedy": True}
    assert evaluate(actor, LEFT, "bsuite/catch", **settings).starts == 0


def test_repeated_evaluation_compiles_once():
    traces = []

    def mode(params, observation):
        traces.append(1)
        return catch_mode(params, observation)

    with opened(CATCH._replace(mode=mode), "bsuite/catch") as evaluator:
        for seed in range(3):
            evaluator.evaluate(jnp.zeros(()), seed=seed, num_episodes=5, greedy=True)
    assert len(traces) == 1


def test_continuous_policy_acts_in_a_real_simulator():
    policy = constant(np.full(1, 0.5, np.float32))
    found = evaluate(
        policy, (), "gym/Pendulum-v1", seed=0, num_episodes=3, greedy=True, batch_size=2
    )
    assert found.complete
    np.testing.assert_array_equal(found.lengths, [200] * 3)
    assert (found.returns < 0).all()


def test_discounted_returns_start_anew_with_every_episode():
    found = evaluate(
        constant(1),
        (),
        "any",
        seed=0,
        num_episodes=4,
        greedy=True,
        batch_size=2,
        gamma=0.5,
        make=counter(length=lambda episode: episode + 2),
    )
    np.testing.assert_allclose(found.returns, [1.5, 1.5, 3.5, 3.5])  # 1 + 1/2; 2 (1 + 1/2 + 1/4)


# --- refusals ---


def test_unknown_simulator_is_the_users_error():
    with pytest.raises(UsageError, match="the closest known: bsuite/catch"):
        evaluate(CATCH, jnp.zeros(()), "bsuite/cacth", seed=0, num_episodes=2, greedy=True)


BOX = functools.partial(specs.BoundedArray, dtype=np.float32, minimum=-1, maximum=1)


@pytest.mark.parametrize(
    ("action", "action_spec", "message"),
    [
        (2, None, "gave the action 2"),
        (-1, None, "gave the action -1"),
        (0.0, None, "dtype float32"),
        ([1, 1], None, "shape"),
        ([0.0, 1.5], BOX((2,)), "1.5"),
        ([np.nan, 0.0], BOX((2,)), "nan"),
        ([0, 1], BOX((2,)), "dtype int32"),
    ],
)
def test_action_outside_the_simulators_is_refused(action, action_spec, message):
    with pytest.raises(UsageError, match=message):
        evaluate(
            constant(action),
            (),
            "any",
            seed=0,
            num_episodes=2,
            greedy=True,
            make=counter(action_spec=action_spec),
        )


def test_numbers_below_one_are_refused():
    with pytest.raises(UsageError, match="num_episodes must be at least 1, got 0"):
        evaluate(CATCH, (), "bsuite/catch", seed=0, num_episodes=0, greedy=True)
    with pytest.raises(UsageError, match="batch_size must be at least 1, got 0"):
        make_evaluator(CATCH, "bsuite/catch", batch_size=0)
