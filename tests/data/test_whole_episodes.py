"""Whole episodes: which there are, where they begin and end, and what belongs to which step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offline_mbrl.data import episodes, splits
from offline_mbrl.data.memory import Dataset
from offline_mbrl.types import UsageError


def dataset_of(lengths, terminal):
    """Episodes of given lengths; values are multiples of the row: reward 10, extra 100."""
    size = sum(lengths) + len(lengths)
    ends = np.cumsum(np.array(lengths) + 1) - 1
    rows = np.arange(size, dtype=np.float32)
    return Dataset.from_arrays(
        {
            "observation": {"a": rows[:, None], "b": np.stack([rows, -rows], 1)},
            "action": np.arange(size),
            "reward": 10 * rows,
            "behavior_log_prob": 100 * rows,
            "is_last": np.isin(np.arange(size), ends),
            "is_terminal": np.isin(np.arange(size), ends[np.array(terminal)]),
        }
    )


@pytest.fixture
def dataset():
    return dataset_of([3, 5, 2], [True, False, True])


def test_first_observations_are_those_of_each_episode(dataset):
    np.testing.assert_array_equal(episodes.first_rows(dataset), [0, 4, 10])
    first = episodes.initial_observations(dataset)
    np.testing.assert_array_equal(first["a"], [[0], [4], [10]])
    np.testing.assert_array_equal(first["b"], [[0, 0], [4, -4], [10, -10]])


def test_an_episode_s_rewards_actions_and_extras_are_those_of_the_same_step(dataset):
    batch = episodes.trajectories(dataset)
    assert batch.reward.shape == (3, 5)
    happened = batch.mask == 1
    np.testing.assert_array_equal(happened.sum(axis=1), [3, 5, 2])
    observed = batch.observation["a"][:, :-1, 0]
    np.testing.assert_array_equal(batch.reward[happened], 10 * observed[happened])
    np.testing.assert_array_equal(batch.action[happened], observed[happened])
    np.testing.assert_array_equal(
        batch.extras["behavior_log_prob"][happened], 100 * observed[happened]
    )
    assert (batch.reward[~happened] == 0).all()


def test_the_last_observation_is_the_episode_s_own_and_repeats(dataset):
    observed = episodes.trajectories(dataset).observation["a"][..., 0]
    np.testing.assert_array_equal(observed[0], [0, 1, 2, 3, 3, 3])
    np.testing.assert_array_equal(observed[1], [4, 5, 6, 7, 8, 9])
    np.testing.assert_array_equal(observed[2], [10, 11, 12, 12, 12, 12])


def test_terminals_have_discount_zero_and_time_limits_one(dataset):
    np.testing.assert_array_equal(
        episodes.trajectories(dataset).discount, [[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]
    )


def test_a_shorter_horizon_cuts_and_a_longer_one_pads(dataset):
    complete = episodes.trajectories(dataset, 7)
    cut = episodes.trajectories(dataset, 2)
    np.testing.assert_array_equal(complete.mask.sum(axis=1), [3, 5, 2])
    np.testing.assert_array_equal(cut.mask, 1)
    np.testing.assert_array_equal(cut.discount, [[1, 1], [1, 1], [1, 0]])
    np.testing.assert_array_equal(cut.reward, complete.reward[:, :2])


def test_chunks_together_are_the_whole(dataset):
    complete = episodes.trajectories(dataset)
    parts = [
        episodes.trajectories(dataset, 5, rows=rows)
        for rows in np.array_split(episodes.first_rows(dataset), 2)
    ]
    jax.tree.map(
        lambda all_, *chunks: np.testing.assert_array_equal(all_, np.concatenate(chunks)),
        complete,
        *parts,
    )


def test_episodes_held_out_whole_are_left_out_and_single_transitions_are_not():
    dataset = dataset_of([4] * 10, [False] * 10)
    by_episode = splits.hold_out(dataset, fraction=0.3, by="episode")
    rows = episodes.first_rows(by_episode)
    assert len(rows) == 5
    assert not np.isin(by_episode.held_out, rows).any()
    np.testing.assert_array_equal(episodes.initial_observations(by_episode)["a"][:, 0], rows)
    by_transition = splits.hold_out(dataset, fraction=0.3)
    np.testing.assert_array_equal(episodes.trajectories(by_transition).mask, np.ones((10, 4)))


def test_a_dataset_on_the_device_gives_host_arrays(dataset):
    batch = episodes.trajectories(jax.tree.map(jnp.asarray, dataset))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(batch))
    jax.tree.map(np.testing.assert_array_equal, batch, episodes.trajectories(dataset))


def test_rows_inside_an_episode_and_empty_horizons_are_refused(dataset):
    with pytest.raises(UsageError, match="row 5 begins no episode"):
        episodes.trajectories(dataset, rows=[0, 5])
    with pytest.raises(UsageError, match="at least 1 step, got 0"):
        episodes.trajectories(dataset, 0)
