"""What the logged policy is worth, within the horizon and beyond time limits."""

import numpy as np

from offline_mbrl import selection
from offline_mbrl.data import memory, specs
from offline_mbrl.selection.comparison import behavior

GAMMA = 0.9


def prepared(*episodes, horizon):
    """Data of episodes (rewards, whether they end in a true terminal), judged with `GAMMA`."""
    rewards = np.concatenate([rewards for rewards, _ in episodes])
    lengths = [len(rewards) for rewards, _ in episodes]
    last = np.concatenate([np.arange(length) == length - 1 for length in lengths])
    ends = np.repeat([ends for _, ends in episodes], lengths)
    observation = np.concatenate([np.arange(length) for length in lengths])[:, None]
    dataset = memory.Dataset.from_arrays(
        {
            "observation": observation.astype(np.float32),
            "next_observation": observation.astype(np.float32) + 1,
            "action": np.linspace(-1, 1, len(rewards), dtype=np.float32)[:, None],
            "reward": rewards.astype(np.float32),
            "is_terminal": last & ends,
            "is_truncated": last & ~ends,
        }
    )
    return selection.prepare(dataset, specs.spec_of(dataset), gamma=GAMMA, horizon=horizon)


def powers(length):
    return GAMMA ** np.arange(length)


def test_returns_within_the_horizon_are_means_over_episodes():
    first, second = np.full(20, 2.0), np.linspace(0, 1, 20)
    logged = behavior.logged(prepared((first, False), (second, False), horizon=10))
    returns = np.array([first[:10] @ powers(10), second[:10] @ powers(10)])
    np.testing.assert_allclose(logged.within_horizon.value, returns.mean(), rtol=1e-5)
    np.testing.assert_allclose(
        logged.within_horizon.stderr, returns.std(ddof=1) / np.sqrt(2), rtol=1e-4
    )
    expected = (first[:10].sum() + second[:10].sum()) / 2
    np.testing.assert_allclose(logged.undiscounted, expected, rtol=1e-5)


def test_after_a_time_limit_the_late_mean_reward_goes_on_and_after_a_terminal_nothing():
    """A constant reward of 2 for ever is worth 2 / (1 - gamma), however early it is cut."""
    cut = behavior.logged(prepared((np.full(20, 2.0), False), (np.full(20, 2.0), False), horizon=5))
    np.testing.assert_allclose(cut.continuing.value, 2.0 / (1 - GAMMA), rtol=1e-5)
    ended = behavior.logged(
        prepared((np.full(20, 2.0), True), (np.full(20, 2.0), True), horizon=20)
    )
    np.testing.assert_allclose(ended.continuing.value, ended.within_horizon.value)
    np.testing.assert_allclose(ended.within_horizon.value, 2.0 * powers(20).sum(), rtol=1e-5)


def test_each_family_is_compared_in_its_own_convention():
    logged = behavior.logged(prepared((np.ones(20), False), (np.ones(20), False), horizon=20))
    by_family = logged.by_family()
    assert by_family["values"] is by_family["ratios"] is logged.continuing
    assert by_family["models"] is by_family["weights"] is logged.within_horizon
