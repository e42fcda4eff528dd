"""Each planted fault is found, and named with its field, row and episode."""

import dataclasses

import jax
import numpy as np
from data_examples import episode, episodes

from offline_mbrl.data import audit, specs, steps
from offline_mbrl.data.sources import ingest
from offline_mbrl.types import BoundedActions, DiscreteActions, EnvironmentSpec


def aligned(listed):
    joined = next(
        ingest.grouped(
            ingest.Batch(records, np.array([len(records["reward"])])) for records in listed
        )
    )
    return steps.align(joined.records, joined.lengths)


def spec(part, action=DiscreteActions(3)):
    return EnvironmentSpec(specs.observation_structure(part.columns["observation"]), action)


def findings(part, action=DiscreteActions(3)):
    return audit.findings(part, spec(part, action))


def test_good_data_have_no_findings():
    assert findings(aligned([*episodes(30), episode(length=20, terminal=True, start=1e4)])) == []


def test_nan_and_infinity_are_named_once_for_each_field_and_episode():
    part = aligned([episode(length=4, terminal=True, start=100.0 * i, seed=i) for i in range(3)])
    part.columns["observation"][6:8, 1] = np.nan  # episode 1, rows 5 .. 9
    part.columns["reward"][12] = -np.inf  # episode 2
    assert [tuple(finding) for finding in audit.nonfinite(part)] == [
        ("error", "observation", 6, 1, "is not finite (nan)"),
        ("error", "reward", 12, 2, "is not finite (-inf)"),
    ]


def test_nested_fields_are_named_by_their_path():
    records = episode(length=4, terminal=True)
    part = aligned([records | {"observation": {"a": {"b": np.full(5, np.nan)}}}])
    assert [finding.field for finding in audit.nonfinite(part)] == ["observation/a/b"]


def test_actions_outside_their_range():
    part = aligned(episodes(3))
    part.columns["action"][5] = 7
    (finding,) = audit.action_range(part, DiscreteActions(3))
    assert (finding.severity, finding.row, finding.message) == ("error", 5, "7 is outside 0 .. 2")
    assert finding.episode == int(np.searchsorted(part.episode_ends, 5))
    continuous = aligned(
        [episode(length=3, terminal=True) | {"action": np.array([[0.0], [1.00001], [-1.5], [9.0]])}]
    )
    (finding,) = audit.action_range(continuous, BoundedActions((-1.0,), (1.0,)))
    # Rounding is let pass, row 3 is no step
    assert (finding.row, finding.message) == (2, "[-1.5] is outside [-1, 1]")


def test_wrong_shapes_and_dtypes():
    part = aligned(episodes(2))
    wrong = EnvironmentSpec(jax.ShapeDtypeStruct((3,), np.float32), BoundedActions((-1.0,), (1.0,)))
    messages = {finding.field: finding.message for finding in audit.shapes(part, wrong)}
    assert messages == {
        "observation": "has rows of float32[2], the spec says float32[3]",
        "action": "has rows of int32[], the spec says float32[1]",
    }
    nested = EnvironmentSpec({"a": jax.ShapeDtypeStruct((3,), np.float32)}, DiscreteActions(3))
    assert [finding.message for finding in audit.shapes(part, nested)] == ["is missing"]


def test_constant_fields_and_entries():
    part = aligned(episodes(5))
    part.columns["observation"][:, 1] = 4.0
    # Beside the last observations stays a meaningless 0
    part.columns["reward"][audit.steps_taken(part)] = 2.0
    messages = {finding.field: finding.message for finding in audit.constants(part)}
    assert messages == {"observation": "entries [1] of 2 never change", "reward": "never changes"}


def test_repeated_transitions_are_counted_and_the_first_is_named():
    part = episode(length=4, terminal=True)
    (finding,) = audit.duplicates(
        aligned([part, episode(length=2, terminal=True, start=50.0), part])
    )
    assert (finding.row, finding.episode) == (8, 2)
    assert finding.message == "4 of 10 transitions repeat an earlier one"
    other = part | {"reward": part["reward"] + 1}
    assert audit.duplicates(aligned([part, other])) == []


def limited(*, terminal):
    return [
        episode(
            length=9 if index % 2 else 5 + index,
            terminal=terminal or index % 2 == 0,
            start=100.0 * index,
        )
        for index in range(4)
    ]


def test_a_time_limit_stored_as_a_terminal_is_named():
    (finding,) = audit.terminals_at_limit(aligned(limited(terminal=True)))
    assert finding.message.startswith(
        "2 of 4 terminals come exactly at the greatest length, 9 steps: a time limit"
    )
    assert (finding.field, finding.episode, finding.row) == ("is_terminal", 1, 15)
    assert audit.terminals_at_limit(aligned(limited(terminal=False))) == []


def test_terminals_before_a_known_time_limit_are_none_of_it():
    lengths = (17, 20, 17, 11)
    listed = [
        episode(length=length, terminal=length < 20, start=100.0 * i, seed=i)
        for i, length in enumerate(lengths)
    ]
    train = aligned([listed[0], *listed[2:]])  # the longest episode is held out
    assert audit.terminals_at_limit(train) != []
    assert audit.terminals_at_limit(train, 20) == []
    assert audit.findings(train, dataclasses.replace(spec(train), horizon=20)) == []
    assert audit.findings(train, spec(train), longest=20) == []
    assert len(audit.findings(train, dataclasses.replace(spec(train), horizon=17), longest=20)) == 1


def test_a_terminal_step_that_leads_to_its_own_observation_is_named():
    listed = [
        episode(length=4, terminal=index != 1, start=100.0 * index, seed=index)
        for index in range(3)
    ]
    for records in listed[1:]:
        records["observation"][-1] = records["observation"][-2]
    (finding,) = audit.unknown_terminals(aligned(listed))
    assert (finding.severity, finding.field, finding.row, finding.episode) == (
        "warning",
        "observation",
        13,
        2,
    )
    assert finding.message.startswith(
        "1 of 2 terminal steps lead to a copy of their own observation"
    )
    frames = [records | {"observation": np.zeros((5, 2, 2), np.uint8)} for records in listed]
    assert audit.unknown_terminals(aligned(frames)) == []


def test_statistics_of_episodes():
    part = aligned([episode(length=2, terminal=True), episode(length=4, terminal=False)])
    part.columns["reward"][:] = [1, 2, 0, 1, 1, 1, 1, 0]
    summary = audit.episodes(part)
    assert summary["episodes"] == 2
    assert (summary["terminal"], summary["truncated"], summary["transitions"]) == (1, 1, 6)
    assert (summary["length_min"], summary["length_mean"], summary["length_max"]) == (2, 3, 4)
    assert (summary["return_min"], summary["return_mean"], summary["return_max"]) == (3, 3.5, 4)
