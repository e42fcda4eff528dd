"""Statistics of transitions with unknown outcomes, small units or discrete actions."""

import numpy as np
import pytest

from offline_mbrl.data import memory, normalize
from offline_mbrl.problems import toy
from offline_mbrl.types import UsageError

UNKNOWN = "60 of 60 terminal steps have no known next observation.*`next_observation`"


def table(num_episodes=60, length=4, seed=0):
    """Transitions of terminal episodes: the first entry changes by 1, the second by noise."""
    rng = np.random.default_rng(seed)
    changes = np.stack(
        [np.ones((num_episodes, length)), rng.normal(size=(num_episodes, length))], axis=-1
    )
    path = np.cumsum(
        np.concatenate([rng.normal(size=(num_episodes, 1, 2)), changes], axis=1), axis=1
    )

    def flat(values):
        return values.reshape(-1, *values.shape[2:])

    ends = np.tile(np.arange(length) == length - 1, (num_episodes, 1))
    return {
        "observation": flat(path[:, :-1]),
        "next_observation": flat(path[:, 1:]),
        "is_terminal": flat(ends),
        "action": rng.uniform(-1, 1, (num_episodes * length, 1)),
        "reward": np.where(flat(ends), 100.0, 1.0),
    }


def without_outcomes(fields):
    return {name: value for name, value in fields.items() if name != "next_observation"}


def statistics(fields):
    return normalize.transition_statistics(memory.Dataset.from_arrays(fields))


def test_an_invented_change_counts_in_no_moment_of_changes_but_its_reward_does():
    complete = statistics(table())
    with pytest.warns(UserWarning, match=UNKNOWN):
        incomplete = statistics(without_outcomes(table()))
    # a change of always 1 is none to model
    np.testing.assert_array_equal(complete.varies, [False, True, True])
    np.testing.assert_array_equal(incomplete.varies, complete.varies)
    np.testing.assert_allclose(incomplete.delta_mean, complete.delta_mean, atol=0.15)
    np.testing.assert_allclose(incomplete.delta_std, complete.delta_std, rtol=0.15)
    for name in (
        "reward_mean",
        "reward_std",
        "reward_max",
        "observation_mean",
        "observation_std",
        "action_std",
    ):
        np.testing.assert_array_equal(getattr(incomplete, name), getattr(complete, name))
    assert incomplete.reward_max == 100
    assert incomplete.terminates


def test_where_every_outcome_is_unknown_changes_are_constant_and_rewards_are_not():
    bandit = toy.bandit(0, num_steps=50).dataset
    with pytest.warns(UserWarning, match="50 of 50 terminal steps"):
        measured = normalize.transition_statistics(bandit)
    np.testing.assert_array_equal(measured.varies, [False, False, True])
    np.testing.assert_array_equal(measured.delta_mean, 0)
    np.testing.assert_array_equal(measured.delta_std, 1)


def test_a_state_that_is_known_to_stay_is_taken_for_unknown_only_at_a_terminal():
    fields = table()
    stays = np.arange(len(fields["reward"])) % 4 == 3
    fields["next_observation"] = np.where(
        stays[:, None], fields["observation"], fields["next_observation"]
    )
    with pytest.warns(UserWarning, match=UNKNOWN):
        assert not statistics(fields).varies[0]
    cut = fields | {"is_terminal": np.zeros(len(stays), bool), "is_truncated": stays}
    assert statistics(cut).varies[0]  # a change of 0 or 1


@pytest.mark.parametrize("scale", [1e-7, 1e-20, 1e7])
def test_what_varies_does_not_depend_on_the_unit(scale):
    fields = table()
    scaled = fields | {
        name: scale * fields[name] for name in ("observation", "next_observation", "reward")
    }
    original = statistics(fields)
    rescaled = statistics(scaled)
    np.testing.assert_array_equal(rescaled.varies, original.varies)
    for name in ("observation_std", "reward_std"):
        np.testing.assert_allclose(
            getattr(rescaled, name), np.float32(scale) * getattr(original, name), rtol=1e-4
        )
    np.testing.assert_allclose(
        rescaled.delta_std[1], np.float32(scale) * original.delta_std[1], rtol=1e-4
    )
    assert rescaled.delta_std[0] == 1
    full = normalize.statistics(memory.Dataset.from_arrays(scaled))
    np.testing.assert_allclose(full.std, rescaled.observation_std, rtol=0.2)


def test_rounding_and_the_noise_of_a_simulator_at_rest_count_as_constant():
    rng = np.random.default_rng(0)
    size = 1_000
    rounded = np.float32(1e4) * (1 + np.float32(1.2e-7) * rng.integers(0, 2, size))
    at_rest = 1e-16 * rng.normal(size=size)
    observation = np.stack(
        [rng.normal(size=size), rounded, at_rest, 1e-7 * rng.normal(size=size)], axis=1
    )
    fields = {
        "observation": observation,
        "action": rng.uniform(-1, 1, (size, 1)),
        "reward": np.ones(size),
        "is_terminal": np.zeros(size, bool),
        "is_truncated": np.arange(size) == size - 1,
    }
    measured = statistics(fields)
    np.testing.assert_array_equal(measured.varies, [True, False, False, False, False])
    np.testing.assert_array_equal(measured.observation_std[1:], 1)
    np.testing.assert_array_equal(
        normalize.statistics(memory.Dataset.from_arrays(fields)).std[1:], 1
    )


def test_discrete_actions_are_measured_as_one_hot():
    fields = table() | {"action": np.arange(240) % 3}
    measured = statistics(fields)
    np.testing.assert_allclose(measured.action_mean, 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(measured.action_std, np.sqrt(2) / 3, rtol=1e-6)
    assert measured.delta_mean.shape == (2,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action": np.zeros(240, np.float32)}, r"float32\[\] in field 'action'"),
        ({"action": np.zeros((240, 2), np.int32)}, r"int32\[2\] in field 'action'"),
        (
            {name: np.zeros((240, 2, 2)) for name in ("observation", "next_observation")},
            "flatten the observations",
        ),
        (
            {name: {"x": np.zeros((240, 2))} for name in ("observation", "next_observation")},
            "flatten the observations",
        ),
    ],
)
def test_the_column_that_is_no_vector_is_named(changes, message):
    with pytest.raises(UsageError, match=message):
        statistics(table() | changes)
