"""A ring holds the last rows that are valid, whatever stands between them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offline_mbrl.data import ring
from offline_mbrl.types import Transition

KEY = jax.random.key(0)
STORE = jax.jit(ring.store)
SAMPLE = jax.jit(ring.sample, static_argnums=1)


def rows(values):
    column = np.asarray(values, np.float32)
    return Transition(
        observation={"frame": np.full((column.size, 2), 7, np.uint8)},
        action=column[:, None],
        reward=column,
        discount=np.ones_like(column),
        next_observation={"frame": np.full((column.size, 2), 7, np.uint8)},
    )


def empty(capacity):
    return ring.empty(jax.tree.map(lambda leaf: leaf[0], rows([0.0])), capacity)


def held(buffer):
    """Rewards of the rows that it holds, oldest first."""
    stored = int(buffer.num_stored)
    room = ring.capacity(buffer)
    order = [index % room for index in range(max(stored - room, 0), stored)]
    return np.asarray(buffer.transitions.reward)[order].tolist()


def test_exactly_the_last_valid_rows_are_held_in_order_and_never_zeros():
    generator = np.random.default_rng(0)
    buffer = empty(12)
    valid_rows = []
    value = 0
    for _ in range(40):
        values = np.arange(value + 1, value + 9)
        valid = generator.random(8) < 0.6
        buffer = STORE(buffer, rows(values), valid)
        valid_rows += values[valid].tolist()
        value += 8
        assert held(buffer) == valid_rows[-12:]
        assert ring.size(buffer) == min(len(valid_rows), 12)
        assert buffer.num_stored < 24  # it never grows out of its type
        if valid_rows:
            sampled = SAMPLE(buffer, 30, KEY).reward
            assert set(sampled.tolist()) <= set(valid_rows[-12:])


def test_rows_that_are_all_valid_are_those_without_a_mask():
    plain = STORE(empty(5), rows([1, 2, 3]))
    masked = STORE(empty(5), rows([1, 2, 3]), jnp.ones(3))
    jax.tree.map(np.testing.assert_array_equal, plain, masked)


@pytest.mark.parametrize("values", [[1.0, 2.0], [1.0, 2.0, 3.0, 4.0]])
def test_no_valid_row_changes_nothing(values):
    before = STORE(empty(4), rows(values))
    after = STORE(before, rows([8, 9]), jnp.zeros(2))
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_columns_keep_their_types():
    buffer = STORE(empty(4), rows([1]))
    assert buffer.transitions.observation["frame"].dtype == jnp.uint8
    assert SAMPLE(buffer, 3, KEY).observation["frame"].tolist() == [[7, 7]] * 3
