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
