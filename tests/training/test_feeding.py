"""Training from a stream: bit-reproducible, resumed in the middle of an epoch, bounded in memory,
no thread left."""

import json
import os
import subprocess
import sys
import threading
from typing import Any

import chex
import jax
import jax.numpy as jnp
import linear_learner
import numpy as np
import pytest
import sparse_store

from offline_mbrl.data import memory, stream
from offline_mbrl.data.sources import ingest
from offline_mbrl.data.store import read as store
from offline_mbrl.streams import BatchRequest, Shard
from offline_mbrl.training import blocks, feeding, sharding
from offline_mbrl.training.checkpoint import sha256
from offline_mbrl.training.fit import fit, init, keys_for, template, validation
from offline_mbrl.types import Context, UsageError

KEY = jax.random.key(7)
DATA = linear_learner.dataset(640)  # 640 transitions in batches of 16: an epoch is 40 updates
FIELDS = ("observation", "action", "reward", "discount")
BATCH_BYTES = 16 * (3 + 1 + 1 + 1 + 3) * 4  # of a batch's fields, observations twice


@pytest.fixture(autouse=True, scope="module")
def _compiled_once(tmp_path_factory):
    with linear_learner.compilation_cache(tmp_path_factory.getbasetemp() / "xla"):
        yield


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def streamed(learner, dataset=DATA, updates=3, seeds=1):
    """The stream of this learner whose stacks hold so many updates."""
    return stream.bind(dataset, learner.sample, block_bytes=updates * seeds * BATCH_BYTES)


def run(learner=None, *, updates: Any = 3, dataset: Any = DATA, **options) -> Any:
    learner = learner or linear_learner.make()
    settings: dict[str, Any] = {
        "key": KEY,
        "num_updates": 50,
        "block_updates": 20,
        "seeds": [3, 5, 7],
        **options,
    }
    return fit(
        learner, streamed(learner, dataset, updates, len(settings["seeds"] or [0])), **settings
    )


# --- the same bits ---


@pytest.mark.parametrize("seeds", [None, [3, 5, 7]])
def test_resuming_in_the_middle_of_an_epoch_equals_not_stopping_bit_for_bit(seeds):
    whole = run(seeds=seeds, num_updates=20)
    assert sha256(run(seeds=seeds, num_updates=20).state) == sha256(whole.state)
    half = run(seeds=seeds, num_updates=7)
    assert half.num_updates == 7
    resumed = run(seeds=seeds, num_updates=20, start=jax.device_get(half.state), block_updates=6)
    assert resumed.num_updates == 13
    assert sha256(resumed.state) == sha256(whole.state)


@pytest.mark.parametrize("updates", [1, 5, 1000])
def test_the_result_does_not_depend_on_how_many_updates_are_read_at_once(updates):
    assert sha256(run(updates=updates).state) == sha256(run().state)


def test_another_key_or_seed_draws_other_batches():
    digests = {
        sha256(run(**options).state)
        for options in ({}, {"key": jax.random.key(8)}, {"seeds": [3, 5, 8]})
    }
    assert len(digests) == 3


def test_the_loop_equals_updates_written_out_over_more_than_an_epoch():
    learner = linear_learner.make()
    one, keys = streamed(learner), keys_for(KEY, None)
    drawing, example = feeding.source(learner, one)
    state = init(learner, one, key=KEY).learner
    assert sha256(state) == sha256(init(drawing, example, key=KEY).learner)
    words = np.asarray(jax.random.key_data(keys[1]))
    step = jax.jit(
        lambda state, batch, key: blocks.update(drawing, state, Context(), batch, (), key)[0]
    )
    for t in range(45):
        batch = jax.tree.map(
            lambda leaf: leaf[0], one.read(BatchRequest(words, t, 1, 1, Shard(0, 1)))
        )
        state = step(state, batch, jax.random.fold_in(keys[1], t))
    result = run(seeds=None, num_updates=45)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        result.state.learner,
        state,
    )


def test_an_epoch_of_training_sees_every_transition_once():
    def step(state, context, batch, key):
        del context, key
        w = state.params["w"] + batch.observation.sum(axis=0)
        return state._replace(params={"w": w, "b": jnp.zeros(())}), {}

    learner = linear_learner.make(step=step)
    after = run(learner, seeds=None, num_updates=40).state.learner.params["w"]
    # One batch, for the parameters at the start
    before = run(learner, seeds=None, num_updates=1, start=None).state
    start = init(learner, streamed(learner), key=KEY).learner.params["w"]
    np.testing.assert_allclose(after - start, DATA.observation[DATA.starts].sum(axis=0), rtol=1e-3)
    assert not np.allclose(before.learner.params["w"], after)


def test_vmap_over_seeds_equals_the_loop_over_seeds():
    together = run(num_updates=20).state.learner
    for index, seed in enumerate([3, 5, 7]):
        alone = run(num_updates=20, seeds=[seed]).state.learner
        of_seed = jax.tree.map(lambda leaf, i=index: leaf[i : i + 1], together)
        chex.assert_trees_all_close(of_seed, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seeds", [None, [3, 5, 7]])
def test_eight_devices_equal_one(seeds):
    one, eight = (
        jax.device_get(run(seeds=seeds, mesh=mesh).state) for mesh in (None, sharding.mesh())
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, eight)


def test_stacked_batches_are_split_over_the_devices():
    placed = sharding.split_stack({"a": np.zeros((2, 3, 16, 4))}, sharding.mesh(), axis=2)["a"]
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 3, 2, 4)}
    with pytest.raises(UsageError, match=r"leading axis 12 .* 8 devices"):
        run(linear_learner.make(12), mesh=sharding.mesh())


def test_the_template_has_the_shapes_of_the_state():
    learner = linear_learner.make()
    shapes = template(learner, streamed(learner), key=KEY, seeds=[1, 2])
    state = run(seeds=[1, 2], num_updates=1).state
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), shapes) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), state
    )


# --- blocks ---


def explode(*updates):
    return Context(upstream={"explode_at": np.array(updates)})


def test_step_is_traced_once_and_hooks_come_at_the_ends_of_blocks():
    traces, rows = [], []

    def step(*arguments):
        traces.append(1)
        return linear_learner.step(*arguments)

    learner = linear_learner.make(step=step, refresh=linear_learner.refresh, refresh_every=15)
    state = run(
        learner, hooks=[lambda p: rows.append((p.step, p.num_updates, p.metrics["count"].tolist()))]
    ).state
    assert [row[:2] for row in rows] == [(15, 15), (20, 5), (30, 10), (40, 10), (45, 5), (50, 5)]
    np.testing.assert_allclose(
        [row[2] for row in rows], np.repeat([[7], [17], [24.5], [34.5], [42], [47]], 3, axis=1)
    )
    assert len(traces) == 1
    np.testing.assert_array_equal(state.learner.refreshed[0], [0, 15, 30, 45, -1, -1, -1, -1])


def test_a_refresh_that_reads_the_dataset_is_refused():
    def refresh(state, context, dataset, cache, update, key):
        return state._replace(best=dataset.reward), cache, {}

    learner = linear_learner.make(refresh=refresh, refresh_every=15)
    with pytest.raises(UsageError, match=r"refresh reads the dataset \('reward'\).*--stream never"):
        run(learner)


def test_a_failing_seed_is_put_back_to_the_start_of_its_piece_and_the_others_do_not_notice():
    never = linear_learner.UNTIL_NEVER
    result = run(context=explode(never, 31, never))
    healthy = run(context=explode(never, never, never))
    assert result.failures == {
        5: "loss/value became non-finite at update 32 (between updates 29 and 32)"
    }
    assert int(result.state.learner.count[1]) == 29
    np.testing.assert_array_equal(
        result.state.learner.params["w"][2], healthy.state.learner.params["w"][2]
    )


def test_when_all_seeds_failed_the_run_stops_within_the_block():
    calls = []
    result = run(context=explode(2, 2, 25), hooks=[lambda progress: calls.append(progress.step)])
    assert calls == [20, 26]
    assert "loss/value became non-finite at update 26" in (result.stopped or "")


def test_a_measured_block_does_not_change_the_result():
    measured = run(block_updates=None, block_seconds=0.01)
    assert measured.block_updates in {size * 10**power for size in (1, 2, 5) for power in range(7)}
    assert sha256(measured.state) == sha256(run().state)


def test_validation_takes_the_same_batches_each_time_and_needs_no_dataset():
    learner = linear_learner.make()
    result = run(learner)
    before = sha256(result.state)
    one = streamed(learner, linear_learner.dataset())
    measure = validation(learner, one, key=KEY, num_batches=3)
    figures, again = measure(result.state), measure(result.state)
    assert sha256(result.state) == before
    np.testing.assert_array_equal(figures["loss/value"], again["loss/value"])
    batches = one.read(BatchRequest(np.asarray(jax.random.key_data(KEY)), 0, 3, 3, Shard(0, 1)))
    measure_batch = jax.jit(linear_learner.validate)
    state = jax.tree.map(lambda leaf: leaf[2], result.state.learner)
    expected = []
    for index, key in enumerate(jax.random.split(KEY, 3)):
        batch = jax.tree.map(lambda leaf, i=index: leaf[i], batches)
        metrics = measure_batch(state, Context(), batch, jax.random.split(key)[1])
        expected.append(metrics["loss/value"])
    np.testing.assert_allclose(figures["loss/value"][2], np.mean(expected), rtol=1e-5)
    split = validation(learner, one, key=KEY, num_batches=3, mesh=sharding.mesh())(result.state)
    np.testing.assert_allclose(split["loss/value"], figures["loss/value"], rtol=1e-5)


# --- the thread ---


def test_results_come_in_order_and_at_most_one_waits():
    started, release = [], threading.Event()

    def double(number):
        started.append(number)
        return 2 * number

    with feeding.prefetch(double, range(6)) as results:
        assert next(results) == 0
        release.wait(0.05)
        assert started == [0, 1]
        assert list(results) == [2, 4, 6, 8, 10]
    with feeding.prefetch(double, []) as results:
        assert list(results) == []


def test_an_error_in_the_thread_is_raised_where_its_result_is_asked_for():
    def fails(number):
        if number == 2:
            raise UsageError("no such number")
        return number

    with feeding.prefetch(fails, range(5)) as results:
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(UsageError, match="no such number"):
            next(results)


class Interrupt(BaseException):
    pass


@pytest.mark.parametrize("error", [ValueError, Interrupt])
def test_no_thread_is_left_when_a_hook_raises_or_stops(error):
    def hook(progress):
        assert any("prefetch" in thread.name for thread in threading.enumerate())
        if progress.step == 40:
            raise error
        return None

    with pytest.raises(error):
        run(num_updates=10_000, hooks=[hook])
    assert run(num_updates=10_000, hooks=[lambda progress: "enough"]).stopped == "enough"
    assert not any("prefetch" in thread.name for thread in threading.enumerate())


def stored(directory):
    """A store of 20 episodes of 99 transitions."""
    rng, last = np.random.default_rng(0), np.arange(100) == 99
    flags = {"is_first": np.arange(100) == 0, "is_last": last, "is_terminal": last}
    batches = [
        ingest.Batch(
            {
                "observation": rng.normal(size=(100, 3)).astype(np.float32),
                "action": np.zeros(100, np.int32),
                "reward": rng.normal(size=100).astype(np.float32),
                **flags,
            },
            np.array([100]),
        )
        for _ in range(20)
    ]
    ingest.ingest(
        ingest.Source(ingest.grouped(batches), {"source": "test"}), directory, name="test"
    )
    return directory


def test_a_damaged_chunk_ends_the_run_with_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "CHUNK", 512)
    file = next(stored(tmp_path / "store").glob("train.*.observation.bin"))
    content = bytearray(file.read_bytes())
    content[9000] ^= 1
    file.write_bytes(content)
    dataset = stream.open_split(store.open_store(tmp_path / "store"), "train", fields=FIELDS)
    with pytest.raises(
        UsageError, match=r"column 'train.*observation' of test is damaged: chunk 17"
    ):
        run(dataset=dataset, num_updates=10_000)


def test_a_dataset_of_the_host_is_streamed_like_one_of_the_disk(tmp_path):
    opened = store.open_store(stored(tmp_path / "store"))
    part = store.aligned(opened, "train", fields=FIELDS)
    assert part is not None
    in_memory, on_disk = (
        memory.from_columns(part),
        stream.open_split(opened, "train", fields=FIELDS),
    )
    assert sha256(run(dataset=in_memory).state) == sha256(run(dataset=on_disk).state)


# --- memory ---


def test_training_from_a_store_of_20_gib_takes_less_than_1_gib_of_memory(tmp_path):
    file = sparse_store.write(tmp_path / "store/local/catch-seed20", "local/catch-seed20")
    assert file.stat().st_size > 20 * 2**30 - 7056
    assert file.stat().st_blocks * 512 < 2**20  # nothing of it is on the disk
    command = [sys.executable, sparse_store.__file__, "local/catch-seed20", "32", "8"]
    environment = {**os.environ, "OFFLINE_MBRL_DATA": str(tmp_path), "XLA_FLAGS": ""}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    measured = json.loads(done.stdout)
    print(measured)
    assert 2**26 < measured["anonymous"] < 2**30  # JAX, and a few stacks of 12 MiB
    assert measured["file_backed"] > 2**29  # what was read belongs to the kernel
