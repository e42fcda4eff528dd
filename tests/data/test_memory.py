"""Samplers: windows and transitions at the ends of episodes, and uniformity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from data_examples import episodes

from offline_mbrl.data import memory, steps
from offline_mbrl.data.memory import Dataset
from offline_mbrl.data.sources import ingest
from offline_mbrl.types import UsageError


def dataset_of(lengths, terminal):
    """Episodes of these many transitions; observation = row, reward = row + 1."""
    size = sum(lengths) + len(lengths)
    ends = np.cumsum(np.array(lengths) + 1) - 1
    is_last = np.isin(np.arange(size), ends)
    is_terminal = np.isin(np.arange(size), ends[np.array(terminal)])
    arrays = {
        "observation": np.arange(size, dtype=np.float32)[:, None],
        "action": np.arange(size),
        "reward": np.arange(1.0, size + 1),
        "is_last": is_last,
        "is_terminal": is_terminal,
    }
    return jax.tree.map(jnp.asarray, memory.Dataset.from_arrays(arrays))


def test_the_mask_of_the_spec_s_example():
    dataset = dataset_of([2, 5], [True, True])  # last[2] = 1, first[3] = 1
    window = memory.window(dataset, jnp.int32(0), length=6)
    np.testing.assert_array_equal(window.mask, [1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(window.reward, [1, 2, 0, 0, 0, 0])
    np.testing.assert_array_equal(window.discount, [1, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(window.observation[:, 0], [0, 1, 2, 2, 2, 2, 2])


def test_after_a_truncation_nothing_is_known_and_the_discount_stays_one():
    window = memory.window(dataset_of([2, 5], [False, True]), jnp.int32(0), length=4)
    np.testing.assert_array_equal(window.mask, [1, 1, 0, 0])
    np.testing.assert_array_equal(window.discount, [1, 1, 1, 1])


def test_no_window_shows_anything_of_the_next_episode():
    dataset = dataset_of([2, 3, 1, 4], [True, False, True, False])
    for row in range(len(dataset.reward)):
        window = memory.window(dataset, jnp.int32(row), length=5)
        assert window.observation.max() <= dataset.episode_end[row]
        assert window.mask.sum() == min(5, int(dataset.episode_end[row]) - row)
        assert (np.asarray(window.reward)[np.asarray(window.mask) == 0] == 0).all()


def test_a_window_that_starts_on_a_final_record_is_masked_throughout():
    dataset = dataset_of([2, 5], [True, True])
    np.testing.assert_array_equal(memory.window(dataset, jnp.int32(2), length=3).mask, 0)
    starts = memory.Windows(4096, 1, start_on_final=True)(
        dataset, None, jax.random.key(0)
    ).observation[:, 0, 0]
    assert set(np.asarray(starts).tolist()) == set(range(9))


def test_transitions_never_cross_an_end_and_are_uniform_over_steps():
    dataset = dataset_of([2, 5, 1], [True, False, True])
    batch = jax.jit(memory.Transitions(8000))(dataset, None, jax.random.key(0))
    np.testing.assert_array_equal(batch.next_observation, batch.observation + 1)
    rows, counts = np.unique(np.asarray(batch.observation)[:, 0], return_counts=True)
    np.testing.assert_array_equal(rows, [0, 1, 3, 4, 5, 6, 7, 9])
    assert scipy.stats.chisquare(counts).pvalue > 1e-4


def test_windows_start_uniformly_on_transitions():
    dataset = dataset_of([2, 5, 1], [True, False, True])
    batch = jax.jit(memory.Windows(8000, 3))(dataset, None, jax.random.key(1))
    rows, counts = np.unique(np.asarray(batch.observation)[:, 0, 0], return_counts=True)
    np.testing.assert_array_equal(rows, dataset.starts)
    assert scipy.stats.chisquare(counts).pvalue > 1e-4


def test_windows_hold_the_steps_that_were_collected():
    listed = episodes(5)
    joined = next(ingest.grouped(ingest.Batch(e, np.array([len(e["reward"])])) for e in listed))
    dataset = memory.from_columns(steps.align(joined.records, joined.lengths))
    row = 0
    for episode in listed:
        length = len(episode["reward"]) - 1
        window = memory.window(jax.tree.map(jnp.asarray, dataset), jnp.int32(row), length=length)
        np.testing.assert_array_equal(window.observation, episode["observation"])
        np.testing.assert_array_equal(window.action, episode["action"][:-1])
        np.testing.assert_array_equal(window.reward, episode["reward"][:-1])
        assert window.discount[-1] == 1 - episode["is_terminal"][-1]
        row += length + 1


# --- frames stored once, stacked inside the program ---

PIXELS = np.broadcast_to(
    np.arange(11)[:, None, None, None] + np.array([0, 100]), (11, 3, 2, 2)
).astype(np.uint8)
# Of two channels
FRAMES = dataset_of([2, 5, 1], [True, False, True])._replace(observation=jnp.asarray(PIXELS))
STACK = 3


def slow_stack(row):
    """The stack that ends at a row; the first frame of the episode replaces older ones."""
    begins = [0, 3, 9]
    first = max(begin for begin in begins if begin <= row)
    return np.concatenate(
        [np.asarray(FRAMES.observation[max(row - age, first)]) for age in (2, 1, 0)], axis=-1
    )


def test_windows_of_stacks_equal_a_slow_reference_at_starts_and_ends_of_episodes():
    sampler = memory.Windows(11, 4, frame_stack=STACK)
    batch = jax.jit(lambda dataset, rows: sampler.finish(sampler.gather(dataset, rows)))(
        FRAMES, jnp.arange(11)
    )
    assert (batch.observation.shape, batch.observation.dtype) == ((11, 5, 3, 2, 6), jnp.uint8)
    for row in range(11):
        for at in range(5):
            # The last observation repeats
            expected = slow_stack(min(row + at, int(FRAMES.episode_end[row])))
            np.testing.assert_array_equal(batch.observation[row, at], expected)


def test_transitions_of_stacks_equal_a_slow_reference():
    sampler = memory.Transitions(8, frame_stack=STACK)
    batch = jax.jit(lambda dataset, rows: sampler.finish(sampler.gather(dataset, rows)))(
        FRAMES, FRAMES.starts
    )
    assert batch.observation.dtype == batch.next_observation.dtype == jnp.uint8
    for index, row in enumerate(np.asarray(FRAMES.starts)):
        np.testing.assert_array_equal(batch.observation[index], slow_stack(row))
        np.testing.assert_array_equal(batch.next_observation[index], slow_stack(row + 1))


@pytest.mark.parametrize(
    "sampler", [memory.Windows(64, 4, frame_stack=STACK), memory.Transitions(64, frame_stack=STACK)]
)
def test_a_sampler_is_its_gather_then_its_finish_and_the_gather_has_each_frame_once(sampler):
    batch = jax.jit(sampler)(FRAMES, None, jax.random.key(0))
    frames = jax.eval_shape(sampler.gather, FRAMES, jnp.zeros(64, jnp.int32)).observation
    assert frames.shape[1] == STACK - 1 + (
        batch.observation.shape[1] if batch.observation.ndim == 5 else 2
    )
    first = np.asarray(batch.observation).reshape(64, -1, 3, 2, 2 * STACK)[:, 0]
    np.testing.assert_array_equal(
        first, np.stack([slow_stack(row) for row in first[:, 0, 0, -2].tolist()])
    )


@pytest.mark.parametrize("frame_stack", [1, STACK])
@pytest.mark.parametrize("start_on_final", [False, True])
def test_rows_of_the_host_are_gathered_as_on_the_device(frame_stack, start_on_final):
    rows = np.arange(11, dtype=np.int32) if start_on_final else np.asarray(FRAMES.starts)
    host = jax.tree.map(np.asarray, FRAMES)
    for sampler in (
        memory.Windows(len(rows), 4, frame_stack=frame_stack),
        memory.Transitions(len(rows), frame_stack=frame_stack),
    ):
        if start_on_final and isinstance(sampler, memory.Transitions):
            continue
        expected = sampler.gather(FRAMES, jnp.asarray(rows))
        gathered = sampler.gather(host, rows)
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(gathered))
        jax.tree.map(np.testing.assert_array_equal, gathered, expected)
        assert jax.tree.map(lambda leaf: leaf.dtype, gathered) == jax.tree.map(
            lambda leaf: leaf.dtype, expected
        )


@pytest.mark.parametrize("sampler", [memory.Windows(8, 4), memory.Transitions(8)])
def test_without_stacking_nothing_is_done_to_what_was_gathered(sampler):
    dataset = dataset_of([2, 5, 1], [True, False, True])
    gathered = sampler.gather(dataset, dataset.starts)
    assert sampler.finish(gathered) is gathered


def test_a_last_row_of_the_table_has_no_next_row_to_take_frames_from():
    window = memory.window(FRAMES, jnp.int32(10), length=3, frame_stack=2)
    np.testing.assert_array_equal(window.observation[:, 0, 0, [0, 2]], [[9, 10]] * 4)


# --- layouts of the user's own arrays ---

FOUR = {"observations": [[0.0], [1.0], [10.0], [11.0]], "actions": [0] * 4, "rewards": [0.0] * 4}


def test_a_next_observation_that_the_next_row_does_not_show_ends_the_episode_there():
    following = [[1.0], [2.0], [11.0], [12.0]]
    dataset = Dataset.from_arrays(
        FOUR | {"terminals": [0, 0, 0, 1], "next_observations": following}
    )
    np.testing.assert_array_equal(dataset.observation[:, 0], [0, 1, 2, 10, 11, 12])
    np.testing.assert_array_equal(dataset.observation[dataset.starts + 1, 0], [1, 2, 11, 12])
    np.testing.assert_array_equal(dataset.discount[dataset.starts], [1, 1, 1, 0])
    np.testing.assert_array_equal(dataset.episode_end, [2, 2, 2, 5, 5, 5])


def test_a_single_transition_with_its_next_observation_is_one_episode():
    arrays = {
        "observation": [[0.0]],
        "action": [0],
        "reward": [1.0],
        "is_terminal": [0],
        "next_observation": [[5.0]],
    }
    dataset = Dataset.from_arrays(arrays)
    np.testing.assert_array_equal(dataset.observation[:, 0], [0, 5])
    np.testing.assert_array_equal(dataset.starts, [0])


def test_equal_nans_do_not_end_an_episode():
    nan = np.array([[0.0], [np.nan], [2.0]])
    following = np.array([[np.nan], [2.0], [3.0]])
    records = steps.from_transitions(
        {
            "observation": nan,
            "next_observation": following,
            "action": np.zeros(3),
            "reward": np.zeros(3),
            "is_terminal": np.zeros(3, bool),
        }
    )
    np.testing.assert_array_equal(records["is_last"], [False, False, False, True])


def test_a_shuffled_table_of_transitions_is_kept_transition_by_transition():
    order = np.random.default_rng(0).permutation(20)
    dataset = Dataset.from_arrays(
        {
            "observation": order[:, None].astype(float),
            "next_observation": order[:, None] + 1.0,
            "action": np.zeros(20, int),
            "reward": order.astype(float),
            "is_terminal": order == 19,
        }
    )
    starts = dataset.starts
    np.testing.assert_array_equal(dataset.observation[starts, 0], dataset.reward[starts])
    np.testing.assert_array_equal(dataset.observation[starts + 1, 0], dataset.reward[starts] + 1)
    np.testing.assert_array_equal(dataset.discount[starts], dataset.reward[starts] != 19)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"terminals": [0] * 4, "timeouts": [0] * 4, "is_first": [1, 0, 0, 0]},
            "use one of the two layouts",
        ),
        ({"is_last": [0, 0, 0, 1], "next_observations": [[1.0]] * 4}, "use one of the two layouts"),
        (
            {"dones": [0, 0, 0, 1], "timeouts": [0] * 4},
            "does not distinguish terminals from time limits",
        ),
        ({"terminals": [0] * 4, "observation": [[0.0]] * 4}, "are both the observation"),
        ({"terminals": [0] * 4, "next_observations": [[1.0, 2.0]] * 4}, "must be the same"),
        ({"terminals": [0] * 4, "next_observations": {"a": [[1.0]] * 4}}, "must be the same"),
        (
            {"terminals": [0] * 4, "next_observations": [[1.0], [1.0, 2.0], [1.0], [1.0]]},
            "different shapes",
        ),
        ({"terminals": [0, 0, 2.5, 1]}, "flags must be 0 or 1"),
        ({"terminals": [0] * 4, "rewards": [0.0, 1e300, 0.0, 0.0]}, "not finite at row 1"),
    ],
)
def test_arrays_that_contradict_themselves_are_refused(fields, message):
    with pytest.raises(UsageError, match=message):
        Dataset.from_arrays(FOUR | fields)


def test_the_next_action_is_the_logged_one_and_unknown_at_the_end_of_an_episode():
    dataset = dataset_of([2, 3], [True, False])
    batch = memory.Transitions(4, with_next_action=True).gather(dataset, jnp.array([0, 1, 4, 5]))
    np.testing.assert_array_equal(
        batch.extras["next_action"] * batch.extras["has_next_action"], [1, 0, 5, 0]
    )
    np.testing.assert_array_equal(batch.extras["has_next_action"], [1, 0, 1, 0])
