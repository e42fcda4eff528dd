import ast
import inspect
import random
import re
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from offline_mbrl.training import checkpoint, manifest
from offline_mbrl.types import UsageError


class Nested(NamedTuple):
    first: object
    second: object = ()


def make_state(scale=1.0):
    params = {
        f"layer_{i}": {"w": scale * jnp.arange(6.0).reshape(2, 3) + i, "b": jnp.ones(3)}
        for i in range(12)
    }
    return Nested(
        first={
            "params": params,
            "opt_state": optax.chain(optax.clip(1.0), optax.adam(1e-3)).init(params),
            "half": jnp.linspace(0, 1, 5).astype(jnp.bfloat16),
            "keys": jax.random.split(jax.random.key(1), 3),
            "other key": jax.random.key(2, impl="rbg"),
            "count": jnp.int32(3),
            "alive": jnp.array([True, False]),
            "frames": jnp.arange(8, dtype=jnp.uint8),
            "empty": jnp.zeros((0, 4)),
            "odd": jnp.array([jnp.nan, jnp.inf, -0.0]),
            "list": [jnp.float32(i) for i in range(12)],
        }
    )


STATE = make_state()
METADATA = {
    "config": {"batch_size": 32, "model": {"sizes": (64, 64)}, "limit": float("nan")},
    "cursor": 7,
}


@pytest.fixture
def two(tmp_path):
    """A folder with checkpoints of steps 100 and 200."""
    checkpoint.save(tmp_path, 100, make_state(1.0), METADATA)
    checkpoint.save(tmp_path, 200, make_state(2.0), METADATA)
    return tmp_path


def bits(tree):
    return jax.tree.map(
        lambda leaf: (str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes()),
        jax.tree.map(
            lambda leaf: jax.random.key_data(leaf) if manifest.is_key(leaf) else leaf, tree
        ),
    )


# --- round trip ---


@pytest.mark.parametrize("template", [STATE, jax.eval_shape(make_state)], ids=["arrays", "shapes"])
def test_the_round_trip_is_exact(tmp_path, template):
    checkpoint.save(tmp_path, 5, STATE, METADATA)
    restored = checkpoint.restore(tmp_path, template, expect=METADATA["config"])
    assert jax.tree.structure(restored.state) == jax.tree.structure(STATE)
    assert bits(restored.state) == bits(STATE)
    assert restored.state.first["other key"].dtype == STATE.first["other key"].dtype
    assert restored.step == 5
    assert restored.metadata["config"]["model"] == {"sizes": [64, 64]}
    assert restored.messages == []
    assert checkpoint.sha256(restored.state) == checkpoint.sha256(STATE)


def test_a_state_without_elements_can_be_saved(tmp_path):
    checkpoint.save(tmp_path, 0, {"a": jnp.zeros((0, 2)), "b": ()}, {})
    assert checkpoint.restore(tmp_path, {"a": jnp.zeros((0, 2)), "b": ()}).state["a"].shape == (
        0,
        2,
    )


def test_the_digest_sees_a_single_bit_a_name_and_a_dtype():
    base = {"a": jnp.zeros(3), "b": jnp.ones(3)}
    others = [
        {"a": jnp.array([0.0, 0.0, -0.0]), "b": jnp.ones(3)},
        {"a": jnp.zeros(3), "c": jnp.ones(3)},
        {"a": jnp.zeros(3, jnp.int32), "b": jnp.ones(3)},
        {"a": jnp.zeros((3, 1)), "b": jnp.ones(3)},
    ]
    assert len({checkpoint.sha256(state) for state in [base, *others]}) == 5
    assert checkpoint.sha256(base) == checkpoint.sha256({"b": jnp.ones(3), "a": jnp.zeros(3)})


def test_nothing_is_pickled():
    for module in (checkpoint, manifest):
        imported = {
            name.name
            for node in ast.walk(ast.parse(inspect.getsource(module)))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in node.names
        }
        assert not imported & {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def test_a_small_state_is_saved_quickly(tmp_path):
    state = [jnp.ones((5, 14_000)) for _ in range(4)]
    checkpoint.save(tmp_path, 0, state, {})
    seconds = []
    for step in range(1, 6):
        began = time.perf_counter()
        checkpoint.save(tmp_path, step, state, {})
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.3


# --- which checkpoints there are ---


def test_the_last_ones_are_kept(tmp_path):
    for step in (10, 20, 30, 40):
        checkpoint.save(tmp_path, step, STATE, {}, keep=3)
    assert checkpoint.steps(tmp_path) == [20, 30, 40]
    checkpoint.save(tmp_path, 50, STATE, {}, keep=1)
    assert checkpoint.steps(tmp_path) == [50]
    assert [path.name for path in tmp_path.iterdir()] == ["000000050"]


def test_saving_an_earlier_step_removes_the_later_ones(two):
    checkpoint.save(two, 150, STATE, {})
    assert checkpoint.steps(two) == [100, 150]


def test_a_step_can_be_saved_again(two):
    checkpoint.save(two, 200, make_state(3.0), METADATA)
    assert checkpoint.steps(two) == [100, 200]
    assert checkpoint.sha256(checkpoint.restore(two, STATE).state) == checkpoint.sha256(
        make_state(3.0)
    )


def test_one_step_can_be_asked_for(two):
    assert checkpoint.restore(two, STATE, step=100).step == 100
    assert checkpoint.read_metadata(two)["cursor"] == 7
    with pytest.raises(UsageError, match=r"no checkpoint of step 150 .* 100, 200"):
        checkpoint.restore(two, STATE, step=150)


def test_an_absent_folder_has_no_checkpoint(tmp_path):
    assert checkpoint.latest(tmp_path / "absent") is None
    assert checkpoint.steps(tmp_path / "absent") == []
    for read in (
        lambda: checkpoint.restore(tmp_path, STATE),
        lambda: checkpoint.read_metadata(tmp_path),
    ):
        with pytest.raises(UsageError, match="no checkpoint in"):
            read()


# --- damage ---


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_fifty_flipped_bits_are_all_detected_and_the_one_before_is_used(two, tmp_path_factory):
    generator = random.Random(0)
    good = checkpoint.sha256(make_state(1.0))
    files = files_of(two / "000000200")
    for trial in range(50):
        path = files[trial % len(files)]
        before = path.read_bytes()
        place = generator.randrange(8 * len(before))
        damaged = bytearray(before)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        if trial < len(files):  # once for each file in full; the rest stops before the arrays
            restored = checkpoint.restore(two, STATE)
            assert restored.step == 100
            assert checkpoint.sha256(restored.state) == good
            assert str(path) in restored.messages[0]
        with pytest.raises(manifest.Damaged, match=re.escape(str(path))):
            manifest.verified(two / "000000200")
        path.write_bytes(before)
    assert checkpoint.restore(two, STATE).step == 200


def test_truncated_missing_and_foreign_files_are_detected(two):
    folder = two / "000000200"
    for path in files_of(folder):
        before = path.read_bytes()
        path.write_bytes(before[:-1])
        with pytest.raises(manifest.Damaged, match=re.escape(str(path))):
            manifest.verified(folder)
        path.unlink()
        with pytest.raises(manifest.Damaged, match=re.escape(str(path))):
            manifest.verified(folder)
        path.write_bytes(before)
    (folder / "state" / manifest.NAME).write_text("{}")
    with pytest.raises(manifest.Damaged, match="does not belong"):
        manifest.verified(folder)


def test_when_no_good_checkpoint_is_left_the_files_are_named(two):
    for step in ("000000100", "000000200"):
        path = files_of(two / step)[0]
        path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(
        UsageError, match=r"000000200.*000000100.*no good checkpoint is left"
    ) as error:
        checkpoint.restore(two, STATE)
    assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="does not match"):
        checkpoint.restore(two, STATE, step=200)


def test_a_leaf_that_is_read_back_otherwise_is_refused(two, monkeypatch):
    honest = manifest.describe
    monkeypatch.setattr(manifest, "describe", lambda leaf: [*honest(leaf)[:2], "0" * 64])
    with pytest.raises(UsageError, match="was not read back"):
        checkpoint.restore(two, STATE)


# --- other settings, other machines ---


def test_another_config_is_refused_naming_the_setting(two):
    config = {**METADATA["config"], "batch_size": 64}
    with pytest.raises(UsageError, match=r"batch_size = 32.* 64; use the same settings"):
        checkpoint.restore(two, STATE, expect=config)
    config = {**METADATA["config"], "model": {"sizes": [64, 32]}}
    with pytest.raises(UsageError, match=r"model.sizes = \[64, 64\].* \[64, 32\]"):
        checkpoint.restore(two, STATE, expect=config)
    with pytest.raises(UsageError, match=r"new = absent"):
        checkpoint.restore(two, STATE, expect={**METADATA["config"], "new": 1})
    with pytest.raises(UsageError, match=r"limit = NaN, and this run has absent"):
        checkpoint.restore(two, STATE, expect={"batch_size": 32, "model": {"sizes": [64, 64]}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": jnp.zeros(2, jnp.int32)}, r"leaf .*count.* int32\[\] there and int32\[2\] here"),
        ({"half": jnp.zeros(5)}, r"leaf .*half.* bfloat16\[5\] there and float32\[5\] here"),
        (
            {"keys": jax.random.split(jax.random.key(0), 2)},
            r"leaf .*keys.* uint32\[3, 2\] there and uint32\[2, 2\]",
        ),
        ({"extra": jnp.zeros(2)}, r"leaf .*extra.* is missing from the checkpoint"),
        ({"params": {}}, r"leaf .*params.*layer_0.* is only in the checkpoint"),
    ],
)
def test_another_structure_is_refused_naming_the_leaf(two, change, message):
    with pytest.raises(UsageError, match=message):
        checkpoint.restore(two, STATE._replace(first={**STATE.first, **change}))


def test_another_environment_is_said_but_accepted(two, monkeypatch):
    recorded = manifest.environment()
    monkeypatch.setattr(
        manifest, "environment", lambda: {**recorded, "jaxlib": "9.9", "devices": 3}
    )
    messages = checkpoint.restore(two, STATE).messages
    assert len(messages) == 2
    assert any(
        "jaxlib" in message and "'9.9'" in message and "bit-identical" in message
        for message in messages
    )
