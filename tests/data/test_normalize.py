"""Statistics, and observations as one vector."""

import jax
import numpy as np
import pytest

from offline_mbrl.data import action_bounds, memory, normalize, specs, trees
from offline_mbrl.types import BoundedActions, DiscreteActions, EnvironmentSpec, UsageError


def dataset(observation, action=None):
    size = len(jax.tree.leaves(observation)[0])
    last = np.arange(size) == size - 1
    action = np.zeros(size, int) if action is None else action
    return memory.Dataset.from_arrays(
        {
            "observation": observation,
            "action": action,
            "reward": np.zeros(size),
            "is_last": last,
            "is_terminal": last,
        }
    )


def test_normalized_observations_have_mean_zero_and_deviation_one(monkeypatch):
    monkeypatch.setattr(normalize, "CHUNK_ROWS", 7)
    rng = np.random.default_rng(0)
    data = dataset(
        {
            "a": rng.normal(3, 2, (50, 4)),
            "b": np.full((50,), 5.0),
            "frame": np.ones((50, 2, 2), np.uint8),
        }
    )
    stats = normalize.statistics(data)
    scaled = normalize.normalize(stats, data.observation)
    np.testing.assert_allclose(scaled["a"].mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(scaled["a"].std(axis=0), 1, rtol=1e-5)
    np.testing.assert_array_equal(scaled["b"], 0)  # a constant is shifted, not divided by zero
    np.testing.assert_array_equal(scaled["frame"], 1)  # frames are left alone
    back = normalize.denormalize(stats, scaled)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), back, data.observation)


def test_large_offsets_keep_their_deviation():
    values = 1e4 + np.tile([[-1.0], [1.0]], (1000, 1))
    np.testing.assert_allclose(normalize.statistics(dataset(values)).std, 1, rtol=1e-3)


def test_canonical_flattening_sorts_keys_and_reads_each_entry_in_c_order():
    state = {
        "velocity": np.array([7.0]),
        "arm": np.arange(4.0).reshape(2, 2),
        "height": np.float64(9),
    }
    vector = trees.observation_vector(state)
    np.testing.assert_array_equal(vector, [0, 1, 2, 3, 9, 7])
    assert vector.dtype == np.float32
    nested = {"b": {"y": np.ones(1), "x": np.zeros(1)}, "a": np.full(1, 5)}
    np.testing.assert_array_equal(trees.observation_vector(nested), [5, 0, 1])


def test_flattened_data_fit_the_flattened_spec():
    data = dataset({"b": np.arange(10.0), "a": np.zeros((10, 2, 3))})
    flat = trees.flatten_dataset(data)
    spec = specs.spec_of(data)
    assert trees.is_state(spec.observation)
    assert flat.observation.shape == (10, *trees.flatten_spec(spec).observation.shape)
    np.testing.assert_array_equal(flat.observation[:, 6], np.arange(10))
    array = EnvironmentSpec(jax.ShapeDtypeStruct((4, 4), np.float32), DiscreteActions(2))
    assert trees.flatten_spec(array) is array


def test_trees_come_back_from_their_paths():
    tree = {"a": {"b": 1, "c": 2}, "d": 3}
    assert trees.unflatten(trees.flatten(tree)) == tree
    assert trees.unflatten(trees.flatten(5)) == 5
    assert trees.flatten((7, {"x": 8})) == {("0",): 7, ("1", "x"): 8}


def test_the_spec_of_own_data():
    # The last record does not begin a step, so its action does not count.
    spec = specs.spec_of(dataset(np.zeros((4, 2)), np.array([0, 2, 1, 9])), horizon=3)
    assert spec == EnvironmentSpec(
        observation=jax.ShapeDtypeStruct((2,), np.float32), action=DiscreteActions(3), horizon=3
    )
    assert specs.spec_of(dataset(np.zeros((4, 2))), num_actions=5).action == DiscreteActions(5)
    continuous = specs.spec_of(dataset(np.zeros((4, 2)), np.zeros((4, 3))))
    assert continuous.action == BoundedActions((-1.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize(
    ("action", "num_actions", "message"),
    [
        (np.array([0, 3, 0, 0]), 3, "'action', row 1: 3 is outside 0 .. 2"),
        (np.array([0, -1, 0, 0]), None, "row 1: -1 is outside"),
        (np.full((4, 2), 1.5), None, r"row 0: .* is outside .-1, 1."),
        (np.zeros(4), None, "discrete actions must be integers"),
        (np.zeros((4, 1), int), None, "discrete actions must be integers"),
        (np.zeros((4, 2)), 3, "num_actions=3 was given"),
    ],
)
def test_actions_that_do_not_fit_are_refused(action, num_actions, message):
    with pytest.raises(UsageError, match=message):
        specs.spec_of(dataset(np.zeros((4, 2)), action), num_actions=num_actions)


def test_actions_are_scaled_to_unit_bounds():
    kind = BoundedActions((-2.0, 0.0, -np.inf), (2.0, 1.0, np.inf))
    scaled = action_bounds.to_unit_bounds(
        kind, np.array([[-2.0, 0.25, 5.0], [1.0, 1.0, -3.0]], np.float32)
    )
    np.testing.assert_allclose(scaled, [[-1, -0.5, 5], [0.5, 1, -3]])
    assert not specs.has_unit_bounds(kind)
    assert specs.has_unit_bounds(BoundedActions((-1.0,), (1.0,)))
