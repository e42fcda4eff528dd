"""Percentile cloning: which episodes it clones, and what it reduces to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transition_rows import SPEC, differs

from offline_mbrl.data import stream
from offline_mbrl.data.memory import Dataset
from offline_mbrl.learners import bc, percentile_bc
from offline_mbrl.types import Context, UsageError


def dataset(returns=(3.0, -1.0, 7.0, 5.0)) -> Dataset:
    """Episodes of two steps with these returns; actions are the episode's number."""
    count = len(returns)
    ends = np.tile([False, True], count)
    return Dataset.from_arrays(
        {
            "observation": np.zeros((2 * count, 3), np.float32),
            "action": np.repeat(np.arange(count, dtype=np.float32), 2)[:, None],
            "reward": np.repeat(np.asarray(returns, np.float32) / 2, 2),
            "is_terminal": ends,
        }
    )


def cloned(data, fraction) -> list[int]:
    """The episodes that are cloned, one number for each transition."""
    best = percentile_bc.prepare(percentile_bc.Config(fraction=fraction), data)
    return np.asarray(data.action)[np.asarray(best.starts), 0].tolist()


def test_the_best_episodes_are_cloned_whole():
    assert cloned(dataset(), 0.5) == [2, 2, 3, 3]
    assert cloned(dataset(), 0.75) == [0, 0, 2, 2, 3, 3]


def test_at_least_one_episode_is_cloned_and_of_equals_the_earlier():
    assert cloned(dataset(), 0.01) == [2, 2]
    assert cloned(dataset((1.0, 4.0, 4.0)), 0.34) == [1, 1]


def test_columns_are_shared_and_held_out_rows_left():
    data = dataset()._replace(held_out=np.array([0, 1], np.int32))
    best = percentile_bc.best_episodes(data, 0.5)
    assert best.observation is data.observation
    np.testing.assert_array_equal(best.held_out, data.held_out)


def test_data_on_the_disk_are_selected_alike_and_stay_there():
    def on_disk(column):
        column = np.asarray(column)
        return stream.Column(read=lambda rows: column[rows], shape=column.shape, dtype=column.dtype)

    data = dataset()
    columns = jax.tree.map(on_disk, data)
    best = percentile_bc.best_episodes(columns, 0.5)
    np.testing.assert_array_equal(best.starts, percentile_bc.best_episodes(data, 0.5).starts)
    assert stream.on_disk(best)


def test_a_stream_of_batches_is_refused():
    batches = stream.bind(dataset(), bc.make(bc.Config(batch_size=2), SPEC).sample)
    with pytest.raises(UsageError, match="percentile_bc selects whole episodes"):
        percentile_bc.prepare(percentile_bc.Config(), batches)


def test_all_episodes_are_what_cloning_sees():
    density = bc.ContinuousConfig(layers=(8,))
    data = dataset()
    everything = percentile_bc.prepare(percentile_bc.Config(fraction=1.0), data)
    np.testing.assert_array_equal(everything.starts, data.starts)
    ours = percentile_bc.make(percentile_bc.Config(continuous=density), SPEC)
    plain = bc.make(bc.Config(continuous=density), SPEC)
    example = data._replace(action=jnp.zeros((len(data.reward), 2)))
    states = []
    for learner in (ours, plain):
        batch = learner.sample(example, None, jax.random.key(1))
        state = learner.init(jax.random.key(0), batch, Context())
        states.append(learner.step(state, Context(), batch, jax.random.key(2))[0])
    assert not differs(*states)


def test_a_share_of_none_is_refused():
    with pytest.raises(UsageError, match="percentile_bc: fraction must be above 0"):
        percentile_bc.make(percentile_bc.Config(fraction=0.0), SPEC)
