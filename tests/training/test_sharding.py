import jax
import jax.numpy as jnp
import linear_learner
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from offline_mbrl.training import sharding
from offline_mbrl.training.fit import fit, validation
from offline_mbrl.types import UsageError

KEY = jax.random.key(7)
MESH = sharding.mesh()


@pytest.fixture(autouse=True, scope="module")
def _compiled_once(tmp_path_factory):
    with linear_learner.compilation_cache(tmp_path_factory.getbasetemp() / "xla"):
        yield


def assert_close(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, other)


def test_the_mesh_has_one_axis_over_all_devices():
    assert MESH.shape == {"data": 8}
    assert sharding.mesh(jax.devices()[:2]).size == 2


@pytest.mark.parametrize("seeds", [None, [3, 5, 7]])
def test_eight_devices_equal_one(seeds):
    learner = linear_learner.make(refresh=linear_learner.refresh, refresh_every=15)
    options = {"key": KEY, "num_updates": 40, "block_updates": 20, "seeds": seeds}
    data = linear_learner.dataset()
    one, eight = (fit(learner, data, mesh=mesh, **options).state for mesh in (None, MESH))
    assert_close(jax.device_get(one), jax.device_get(eight))
    assert eight.learner.params["w"].sharding.is_fully_replicated
    assert len(eight.learner.params["w"].devices()) == 8
    one, eight = (
        validation(learner, data, key=KEY, num_batches=3, mesh=mesh)(one) for mesh in (None, MESH)
    )
    assert_close(one, eight)


@pytest.mark.parametrize("vmapped", [False, True])
def test_a_batch_is_split_on_its_own_leading_axis(vmapped):
    split = sharding.split_batch(MESH)
    function = jax.vmap(split) if vmapped else split
    batch = {
        "a": jnp.zeros((3, 16, 2) if vmapped else (16, 2)),
        "none": jnp.zeros(3 if vmapped else ()),
    }
    placed = jax.jit(function)(batch)
    expected = PartitionSpec(None, "data") if vmapped else PartitionSpec("data")
    assert placed["a"].sharding.is_equivalent_to(
        jax.sharding.NamedSharding(MESH, expected), placed["a"].ndim
    )


def test_each_device_computes_only_its_share():
    options = {"key": KEY, "num_updates": 1, "block_updates": 1, "seeds": [0]}
    one, eight = (
        fit(
            linear_learner.make(8192), linear_learner.dataset(), mesh=mesh, **options
        ).flops_per_update
        for mesh in (None, MESH)
    )
    assert one is not None
    assert eight is not None
    assert eight < one / 4


def test_a_batch_that_does_not_divide_is_refused_with_both_numbers():
    with pytest.raises(UsageError, match=r"leading axis 12 .* 8 devices"):
        fit(
            linear_learner.make(12),
            linear_learner.dataset(),
            key=KEY,
            num_updates=1,
            block_updates=1,
            mesh=MESH,
        )


def test_without_a_mesh_nothing_is_constrained():
    batch = {"a": jnp.ones(3)}
    assert sharding.split_batch(None)(batch) is batch
    assert sharding.replicated(None) is None


def test_replication_keeps_values_and_typed_keys():
    tree = {"a": np.arange(4), "key": jax.random.key(3)}
    placed = sharding.replicate(tree, MESH)
    np.testing.assert_array_equal(placed["a"], tree["a"])
    np.testing.assert_array_equal(
        jax.random.key_data(placed["key"]), jax.random.key_data(tree["key"])
    )
    assert all(len(leaf.devices()) == 8 for leaf in jax.tree.leaves(placed))
