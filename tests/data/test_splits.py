"""What is held out, and what models are normalized by."""

import numpy as np
import pytest

from offline_mbrl.data import memory, normalize, splits
from offline_mbrl.types import UsageError


def dataset(num_episodes=20, length=7, seed=0):
    rng = np.random.default_rng(seed)
    size = num_episodes * (length + 1)
    last = np.arange(size) % (length + 1) == length
    observation = np.concatenate([rng.normal(3, 2, (size, 2)), np.full((size, 1), 4.0)], axis=1)
    return memory.Dataset.from_arrays(
        {
            "observation": observation,
            "action": rng.uniform(-1, 1, (size, 1)),
            "reward": rng.normal(1, 3, size),
            "is_last": last,
            "is_terminal": last & (np.arange(size) < size // 2),
        }
    )


@pytest.mark.parametrize("by", ["transition", "episode"])
def test_held_out_rows_and_starts_are_a_partition(by):
    data = dataset()
    split = splits.hold_out(data, fraction=0.3, by=by)
    np.testing.assert_array_equal(np.sort(np.append(split.starts, split.held_out)), data.starts)
    assert len(split.held_out) == 42
    assert split.observation is data.observation
    if by == "episode":
        assert not np.isin(data.episode_end[split.held_out], data.episode_end[split.starts]).any()


def test_at_most_so_many_transitions_and_at_least_five_episodes_are_held_out():
    assert len(splits.hold_out(dataset(), fraction=0.2, most=10).held_out) == 10
    assert len(splits.hold_out(dataset(), fraction=0.01, by="episode").held_out) == 5 * 7


@pytest.mark.parametrize("wrong", [{"by": "step"}, {"fraction": 1.0}, {"fraction": 0.001}])
def test_a_split_that_leaves_a_side_empty_is_refused(wrong):
    with pytest.raises(UsageError, match="hold_out"):
        splits.hold_out(dataset(), **wrong)


def test_statistics_are_those_of_the_training_transitions_alone():
    split = splits.hold_out(dataset(), fraction=0.5)
    statistics = normalize.transition_statistics(split)
    rows = split.starts
    delta = split.observation[rows + 1] - split.observation[rows]
    np.testing.assert_allclose(statistics.delta_std[:2], delta.std(axis=0)[:2], rtol=1e-5)
    np.testing.assert_allclose(
        statistics.observation_mean, split.observation[rows].mean(axis=0), rtol=1e-5
    )
    np.testing.assert_allclose(
        [statistics.reward_mean, statistics.reward_std],
        [split.reward[rows].mean(), split.reward[rows].std()],
        rtol=1e-4,
    )
    assert statistics.reward_max == split.reward[rows].max()


def test_constant_entries_are_marked_and_never_divided_by():
    statistics = normalize.transition_statistics(dataset())
    np.testing.assert_array_equal(statistics.varies, [True, True, False, True])
    assert statistics.delta_std[2] == statistics.observation_std[2] == 1
    assert statistics.terminates
    assert not normalize.transition_statistics(
        dataset()._replace(discount=np.ones(160, np.float32))
    ).terminates


# --- by return ---


def with_returns(returns, length=3):
    """One episode of each return, which its first step brings."""
    reward = np.zeros((len(returns), length))
    reward[:, 0] = returns
    is_last = np.tile(np.arange(length) == length - 1, len(returns))
    return memory.Dataset.from_arrays(
        {
            "observation": np.arange(reward.size, dtype=float)[:, None],
            "next_observation": np.arange(1.0, reward.size + 1)[:, None],
            "action": np.zeros((reward.size, 1)),
            "reward": reward.ravel(),
            "is_terminal": np.zeros(reward.size, bool),
            "is_truncated": is_last,
        }
    )


def test_transitions_count_by_their_episodes_return_between_the_lowest_and_the_highest():
    data = with_returns([0.0, 1.0, 2.0, 4.0])
    weighted = splits.weighted_by_return(data, copies=7)
    counts = np.bincount(weighted.starts // 4, minlength=4)  # three steps are four records
    # 7 copies of 12 transitions: weights 0, 1/4, 1/2 and 1 of three steps each.
    np.testing.assert_allclose(counts, 84 * np.array([0, 1, 2, 4]) / 7, atol=1)
    assert weighted.observation is data.observation
    assert set(weighted.starts) <= set(data.starts)


def test_remainders_are_drawn_so_that_weights_hold_on_average():
    data = with_returns([0.0, 1.0, 3.0])
    counts = [
        np.bincount(splits.weighted_by_return(data, seed=seed, copies=1).starts // 4, minlength=3)
        for seed in range(200)
    ]
    np.testing.assert_allclose(np.mean(counts, axis=0), [0.0, 2.25, 6.75], atol=0.1)


def test_equal_returns_leave_the_data_as_they_are():
    data = with_returns([2.0, 2.0])
    assert splits.weighted_by_return(data) is data
