"""Returns of the data against sums written out."""

import numpy as np
import pytest

from offline_mbrl.data import monte_carlo
from offline_mbrl.data.memory import Dataset

ROAD = np.arange(5, dtype=np.float32)[:, None]  # five states of four steps, no two alike


def dataset(*, is_truncated: bool) -> Dataset:
    """Two episodes of two steps, rewards 1, 2, 3, 4; the second ends where it began."""
    ends = np.array([False, True, False, True])
    return Dataset.from_arrays(
        {
            "observation": np.array([[0.0], [1.0], [5.0], [6.0]], np.float32),
            "next_observation": np.array([[1.0], [2.0], [6.0], [5.0]], np.float32),
            "action": np.zeros((4, 1), np.float32),
            "reward": np.array([1.0, 2.0, 3.0, 4.0], np.float32),
            "is_terminal": ends & (not is_truncated),
            "is_truncated": ends & is_truncated,
        }
    )


def test_an_episodes_return_is_the_sum_of_its_rewards():
    returns, episode = monte_carlo.episode_returns(dataset(is_truncated=True))
    np.testing.assert_array_equal(returns, [3.0, 7.0])
    np.testing.assert_array_equal(episode, [0, 0, 1, 1])


def test_a_terminated_episode_is_never_continued():
    returns = monte_carlo.augmented_returns(np.ones(4), ROAD * 0.0, gamma=0.5, is_truncated=False)
    np.testing.assert_allclose(returns, [1.875, 1.75, 1.5, 1.0])


def test_a_truncated_episode_goes_on_from_the_state_closest_to_its_last_one():
    observation = ROAD.copy()
    observation[4] = 1.1  # the second state is closest
    reward = np.array([1.0, 2.0, 3.0, 4.0])
    returns = monte_carlo.augmented_returns(reward, observation, gamma=0.5, is_truncated=True)
    # from the last step on: 4, then steps 1, 2, 3; the first step has four rewards already
    expected = [
        3.25,
        2 + 3 / 2 + 4 / 4 + 2 / 8,
        3 + 4 / 2 + 2 / 4 + 3 / 8,
        4 + 2 / 2 + 3 / 4 + 4 / 8,
    ]
    np.testing.assert_allclose(returns, expected)


@pytest.mark.parametrize("length", [1, 3, 50])
def test_constant_rewards_on_a_circle_have_the_same_return_everywhere(length):
    """An episode that ends where it began: every return has as many rewards as it has steps."""
    observation = np.zeros((length + 1, 1), np.float32)
    observation[1:-1] = 1.0 + np.arange(length - 1)[:, None]
    returns = monte_carlo.augmented_returns(
        np.ones(length), observation, gamma=0.9, is_truncated=True
    )
    np.testing.assert_allclose(returns, (1 - 0.9**length) / 0.1, rtol=1e-9)


def test_rows_have_the_returns_of_their_own_episode():
    ended = dataset(is_truncated=False)
    rows = np.asarray(ended.starts)
    np.testing.assert_allclose(monte_carlo.row_returns(ended, 0.5)[rows], [2.0, 2.0, 5.0, 4.0])
    cut = dataset(is_truncated=True)
    np.testing.assert_allclose(
        # the first episode's last state is closest to its second, the other's is its first
        monte_carlo.row_returns(cut, 0.5)[rows],
        [2.0, 2.0 + 0.5 * 2.0, 5.0, 4.0 + 0.5 * 3.0],
    )
