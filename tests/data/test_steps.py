"""Where episodes end, on examples written out by hand."""

import numpy as np
import pytest

from offline_mbrl.data import memory, steps
from offline_mbrl.types import UsageError


def records(size, **fields):
    return {
        "observation": np.arange(size, dtype=np.float32)[:, None],
        "action": np.arange(size),
        "reward": np.arange(1.0, size + 1),
        **fields,
    }


def flags(size, *rows):
    return np.isin(np.arange(size), rows)


def test_terminal_episode_of_the_spec_has_discount_zero_only_on_the_step_that_leads_there():
    # raw rewards [0, 1, 2, 3, 4] and discounts [1, 1, 1, 1, 0] are stored as below (two zeros: the
    # builder's habit)
    fields = {
        "observation": np.arange(5.0),
        "action": np.arange(5),
        "reward": np.array([1.0, 2, 3, 4, 0]),
        "discount": np.array([1.0, 1, 1, 0, 0]),
        "is_first": flags(5, 0),
        "is_last": flags(5, 4),
        "is_terminal": flags(5, 4),
    }
    part = steps.align(fields)
    np.testing.assert_array_equal(part.columns["reward"], [1, 2, 3, 4, 0])
    np.testing.assert_array_equal(part.columns["discount"], [1, 1, 1, 0, 1])
    dataset = memory.from_columns(part)
    np.testing.assert_array_equal(dataset.starts, [0, 1, 2, 3])
    np.testing.assert_array_equal(np.asarray(dataset.discount)[dataset.starts], [1, 1, 1, 0])


def test_truncation_never_stops_bootstrapping_whatever_the_source_s_discount_says():
    part = steps.align(records(4, is_last=flags(4, 3), discount=np.zeros(4)))
    np.testing.assert_array_equal(part.columns["discount"], 1)


def test_masks_stop_bootstrapping_inside_an_episode_and_end_none():
    part = steps.align(records(6, is_last=flags(6, 2, 5), bootstrap=[1, 0, 0, 0, 1, 1]))
    np.testing.assert_array_equal(part.episode_ends, [2, 5])
    np.testing.assert_array_equal(part.columns["discount"], [1, 0, 1, 0, 1, 1])
    np.testing.assert_array_equal(part.columns["reward"], [1, 2, 0, 4, 5, 0])
    assert "bootstrap" not in part.columns


def test_each_kind_of_end_closes_an_episode():
    for ends in (
        {"is_last": flags(6, 2, 5)},
        {"is_terminal": flags(6, 2)},
        {"is_first": flags(6, 0, 3)},
    ):
        np.testing.assert_array_equal(steps.align(records(6, **ends)).episode_ends, [2, 5])
    np.testing.assert_array_equal(steps.align(records(6), np.array([3, 3])).episode_ends, [2, 5])


def test_an_episode_of_one_record_is_dropped_and_counted():
    part = steps.align(records(5, is_last=flags(5, 1, 2, 4)))
    assert part.dropped == {"episodes of a single record": 1}
    np.testing.assert_array_equal(part.columns["observation"][:, 0], [0, 1, 3, 4])
    np.testing.assert_array_equal(part.episode_ends, [1, 3])


def test_what_stands_beside_the_last_observation_becomes_zero():
    fields = records(4, is_last=flags(4, 1, 3), log_prob=np.array([1.0, np.nan, 1.0, np.inf]))
    part = steps.align(fields)
    for name in ("action", "reward", "log_prob"):
        np.testing.assert_array_equal(part.columns[name][[1, 3]], 0)
    # The caller's arrays are not touched
    np.testing.assert_array_equal(fields["reward"], [1, 2, 3, 4])


def table(**fields):
    return {
        "observation": np.arange(5.0),
        "action": np.arange(5),
        "reward": np.arange(5.0),
        **fields,
    }


def test_transitions_with_next_observation_keep_every_step():
    # episode 0: rows 0, 1, cut; episode 1: rows 2, 3, 4, terminal
    fields = table(
        is_terminal=flags(5, 4),
        is_truncated=flags(5, 1),
        next_observation=np.array([1.0, 11, 3, 4, 44]),
    )
    part = steps.align(steps.from_transitions(fields))
    np.testing.assert_array_equal(part.columns["observation"], [0, 1, 11, 2, 3, 4, 44])
    np.testing.assert_array_equal(part.columns["discount"], [1, 1, 1, 1, 1, 0, 1])
    np.testing.assert_array_equal(part.episode_ends, [2, 6])


def test_transitions_without_next_observation_lose_the_last_step_of_a_cut_episode_only():
    fields = table(is_terminal=flags(5, 4), is_truncated=flags(5, 1))
    part = steps.align(steps.from_transitions(fields))
    np.testing.assert_array_equal(part.columns["observation"], [0, 1, 2, 3, 4, 4])
    np.testing.assert_array_equal(part.columns["discount"], [1, 1, 1, 1, 0, 1])
    np.testing.assert_array_equal(part.episode_ends, [1, 5])


def test_an_unfinished_last_episode_counts_as_cut():
    part = steps.align(steps.from_transitions(table(is_terminal=flags(5, 1))))
    np.testing.assert_array_equal(part.episode_ends, [2, 5])
    np.testing.assert_array_equal(part.columns["discount"], [1, 0, 1, 1, 1, 1])


GOOD = {
    "observation": np.zeros((4, 2)),
    "action": np.zeros(4, int),
    "reward": np.zeros(4),
    "is_last": flags(4, 3),
    "is_terminal": flags(4, 3),
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observation": None}, "'observation' is missing"),
        ({"action": None}, "'action' is missing"),
        ({"reward": None, "rewrd": np.zeros(4)}, "did you mean 'rewrd'"),
        ({"is_last": None, "is_terminal": None}, "no field marks where episodes end"),
        ({"action": np.zeros(3, int)}, "'action' has shape .3,., but reward has 4 rows"),
        (
            {"observation": {"a": np.zeros((5, 1))}},
            "'observation/a' has shape .5, 1., but reward has 4 rows",
        ),
        ({"reward": np.zeros((4, 1))}, "'reward' must have one axis"),
        ({"observation": np.array(["a", "b", "c", "d"])}, "'observation' has dtype"),
        ({"observation": np.full((4, 2), np.nan)}, "'observation' is not finite at row 0"),
        ({"reward": np.array([0.0, 0, np.inf, 0])}, "'reward' is not finite at row 2"),
        ({"is_last": np.zeros((4, 1), bool)}, "'is_last' must have one axis"),
        ({"is_last": flags(4, 0, 1, 2, 3)}, "no transition is left"),
        ({"reward": np.float32(1.0)}, "'reward' must have one axis"),
        ({name: value[:0] for name, value in GOOD.items()}, "empty"),
    ],
)
def test_from_arrays_refuses_in_one_line(changes, message):
    arrays = {name: value for name, value in (GOOD | changes).items() if value is not None}
    with pytest.raises(UsageError, match=message) as refused:
        memory.Dataset.from_arrays(arrays)
    assert "\n" not in str(refused.value)


def test_from_arrays_understands_d4rl_names():
    observations = np.arange(4.0)[:, None]
    dataset = memory.Dataset.from_arrays(
        {
            "observations": observations,
            "next_observations": observations + 1,
            "actions": np.zeros((4, 2)),
            "rewards": np.ones(4),
            "terminals": flags(4, 1),
            "timeouts": flags(4, 3),
        }
    )
    np.testing.assert_array_equal(np.asarray(dataset.observation)[:, 0], [0, 1, 2, 2, 3, 4])
    np.testing.assert_array_equal(dataset.starts, [0, 1, 3, 4])
    assert dataset.action.dtype == np.float32


def test_a_table_that_no_row_ends_is_told_from_one_episode():
    arrays = {"observation": np.arange(5.0), "action": np.arange(5), "reward": np.arange(5.0)}
    with pytest.warns(
        UserWarning, match="no row ends an episode: all 5 steps are taken as one.*is_truncated"
    ):
        dataset = memory.Dataset.from_arrays(arrays | {"is_terminal": flags(5)})
    assert len(dataset.starts) == 4
    for cut in (
        {"is_truncated": flags(5)},
        {"is_terminal": flags(5, 2)},
        {"next_observation": np.arange(1.0, 6.0)},
    ):
        # No warning, which were an error
        memory.Dataset.from_arrays({"is_terminal": flags(5)} | arrays | cut)
