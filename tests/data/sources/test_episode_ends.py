"""Ends of episodes that flags do not mark."""

import numpy as np

from offline_mbrl.data import steps
from offline_mbrl.data.sources import episode_ends


def test_limits_count_from_the_last_terminal():
    terminal = np.isin(np.arange(12), [1, 6])
    # Episodes 0-1, 2-4 (cut), 5-6, 7-9 (cut), 10-11
    cut = episode_ends.at_limit(terminal, 3)
    np.testing.assert_array_equal(np.flatnonzero(cut), [4, 9])


def test_a_terminal_at_the_limit_is_no_cut():
    terminal = np.isin(np.arange(6), 2)
    assert np.flatnonzero(episode_ends.at_limit(terminal, 3)).tolist() == [5]


def test_limits_equal_a_count_row_by_row():
    terminal = np.random.default_rng(0).random(2000) < 0.05
    expected = np.zeros(2000, bool)
    step = 0
    for row, ended in enumerate(terminal):
        expected[row] = not ended and step == 9
        step = 0 if ended or expected[row] else step + 1
    np.testing.assert_array_equal(episode_ends.at_limit(terminal, 10), expected)


def test_jumps_are_steps_longer_than_the_stride():
    position = np.array([[0, 0], [0.6, 0.6], [3, 3], [3, 4], [0, 0]])
    assert episode_ends.at_jumps(position, 1.0).tolist() == [False, True, False, True, False]


def table(terminals, cuts, size):
    rows = np.arange(size)
    return {
        "observation": np.arange(float(size))[:, None],
        "action": np.ones((size, 1)),
        "reward": np.isin(rows, terminals).astype(float),
        "is_terminal": np.isin(rows, terminals),
        "is_truncated": np.isin(rows, cuts),
    }


def transitions(table):
    """(observation, reward, discount, next observation) of the aligned rows."""
    aligned = steps.align(steps.from_transitions(table))
    columns = aligned.columns
    starts = np.setdiff1d(np.arange(len(columns["reward"])), aligned.episode_ends)
    observation = columns["observation"][:, 0]
    return [
        (observation[row], columns["reward"][row], columns["discount"][row], observation[row + 1])
        for row in starts
    ]


def test_rows_lead_on_over_terminals_and_not_over_cuts():
    # Terminals at 2, 3 within 0-5, and at the cut itself in 6-8.
    continued, left_out = episode_ends.lead_on(table([2, 3, 8], [5, 8], 9))
    assert left_out == 1  # row 5
    assert transitions(continued) == [
        (0, 0, 1, 1),
        (1, 0, 1, 2),
        (2, 1, 0, 3),
        (3, 1, 0, 4),
        (4, 0, 1, 5),
        (6, 0, 1, 7),
        (7, 0, 1, 8),
        (8, 1, 0, 8),  # a copy: unknown
    ]


def test_an_episode_of_a_cut_row_alone_is_left_out():
    continued, left_out = episode_ends.lead_on(table([0], [1, 2, 4], 5))
    assert left_out == 3
    assert transitions(continued) == [(0, 1, 0, 1), (3, 0, 1, 4)]


def test_a_cut_separates_rows_that_look_alike():
    alike = table([], [2, 5], 6) | {"observation": np.zeros((6, 1))}
    continued, _ = episode_ends.lead_on(alike)
    aligned = steps.align(steps.from_transitions(continued))
    assert np.diff([-1, *aligned.episode_ends]).tolist() == [3, 3]
