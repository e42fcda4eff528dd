"""Episodes of behaviors in a simulator as datasets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offline_mbrl.collect import visits
from offline_mbrl.policies import as_policy

SIMULATOR = "gym/Pendulum-v1?max_steps=15"


def play(act, seed=0):
    return visits.play(SIMULATOR, act, num_steps=200, seed=seed)


def gain(params, observation, key):
    del key
    return params * observation[1:2]


def test_steps_are_in_order_and_no_step_leads_from_one_episode_to_the_next():
    data = play(visits.uniform(1, 0))
    assert len(data.starts) == 200
    following = data.observation[data.starts + 1]
    before = data.observation[data.starts]
    torque = 2 * data.action[data.starts, 0]
    sine = before[:, 1]
    velocity = np.clip(before[:, 2] + (15.0 * sine + 3.0 * torque) * 0.05, -8, 8)  # of gymnasium
    np.testing.assert_allclose(following[:, 2], velocity, atol=1e-3)
    assert (data.discount == 1).all()  # time cuts, nothing terminates
    ends = np.unique(data.episode_end)
    assert len(ends) == 20  # 15 steps and 5 of each simulator


def test_actions_are_the_policys_with_noise_where_asked_and_clipped():
    policy = as_policy(gain)
    own = play(visits.sampling(policy, jnp.array(5.0), 0))
    expected = np.clip(5.0 * own.observation[own.starts, 1], -1, 1)
    np.testing.assert_allclose(own.action[own.starts, 0], expected, atol=1e-5)
    act = visits.perturbed(visits.sampling(policy, jnp.array(0.0), 0), 0.1, 0)
    noisy = play(act).action
    assert noisy.std() == pytest.approx(0.1, rel=0.2)
    again = play(visits.perturbed(visits.sampling(policy, jnp.array(0.0), 0), 0.1, 0))
    jax.tree.map(np.testing.assert_array_equal, again.action, noisy)
