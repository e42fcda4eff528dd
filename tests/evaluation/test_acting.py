"""Actors: the carry of every slot and seed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dm_env import specs
from simulator_examples import CATCH, Counter

from offline_mbrl import policies
from offline_mbrl.evaluation.episodes import evaluate
from offline_mbrl.types import Actor


def remembering(init):
    """Remembers the first observation, and counts steps: acts 1 where both agree with the time."""

    def act(params, carry, observation, key):
        first, steps = carry
        right = (steps == observation[1]) & jnp.all(first == observation * jnp.array([1, 0]))
        return right.astype(jnp.int32), (first, steps + 1)

    return Actor(init=init, act=act)


class OnlyOne(Counter):
    """Pays 1 for the action 1, else nothing."""

    def step(self, action):
        return super().step(action)._replace(reward=float(action))


@pytest.mark.parametrize("num_seeds", [None, 2])
def test_a_carry_is_made_at_each_first_observation_and_kept_between(num_seeds):
    def init(params, observation, key):
        return observation, jnp.zeros((), jnp.int32)

    def make(simulator, *, seed):
        return OnlyOne(length=lambda episode: 2 + (seed + episode) % 4)

    params = () if num_seeds is None else jnp.zeros(num_seeds)
    found = evaluate(
        remembering(init),
        params,
        "any",
        seed=0,
        num_seeds=num_seeds,
        num_episodes=7,
        greedy=True,
        batch_size=3,
        make=make,
    )
    assert len(np.unique(found.lengths)) > 1
    np.testing.assert_array_equal(found.returns, found.lengths)


def test_carries_of_slots_and_episodes_are_drawn_with_keys_of_their_own():
    def init(params, observation, key):
        return jax.random.randint(key, (), 0, 2**20)

    drawn = []

    class Recorder(Counter):
        def step(self, action):
            drawn.append(int(action))
            return super().step(0)

    actor = Actor(init=init, act=lambda params, carry, observation, key: (carry, carry))
    action_spec = specs.DiscreteArray(2**20)
    evaluate(
        actor,
        (),
        "any",
        seed=0,
        num_episodes=10,
        greedy=False,
        batch_size=5,
        make=lambda name, seed: Recorder(action_spec=action_spec),
    )
    carries = np.array(drawn).reshape(2, 3, 5)  # episode, step, slot
    assert (carries == carries[:, :1]).all()
    assert len(np.unique(carries)) == 10


def test_a_policy_and_what_it_lifts_into_play_the_same_episodes():
    lifted = policies.as_actor(CATCH)
    size = {"num_episodes": 12, "batch_size": 5}
    for greedy in (True, False):
        first, second = (
            evaluate(policy, jnp.zeros(()), "bsuite/catch", seed=0, greedy=greedy, **size)
            for policy in (CATCH, lifted)
        )
        np.testing.assert_array_equal(first.returns, second.returns)
