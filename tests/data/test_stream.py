"""Streaming: the order of windows, values as in memory, shares of processes, damaged files."""

import itertools

import jax
import numpy as np
import pytest
from data_examples import episode, episodes, source

from offline_mbrl.data import memory, stream, trees
from offline_mbrl.data.sources import ingest
from offline_mbrl.data.store import read as store
from offline_mbrl.streams import BatchRequest, Shard
from offline_mbrl.types import UsageError

WORDS = np.array([1, 2], np.uint32)
FIELDS = ("observation", "action", "reward", "discount")
ALONE = Shard(index=0, count=1)


def order(size, epoch=0, seed_words=WORDS):
    return stream.permuted(np.arange(size), size, np.full(size, epoch), seed_words)


# --- the order ---


def read(bound, *, seed_words=WORDS, first=0, count, capacity, shard=ALONE):
    request = BatchRequest(
        seed_words=seed_words,
        first_update=first,
        num_updates=count,
        capacity=capacity,
        shard=shard,
    )
    return bound.read(request)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 31, 32, 33, 1000])
def test_an_epoch_has_every_window_once_and_the_next_has_another_order(size):
    orders = [order(size, epoch) for epoch in range(4)]
    for permutation in orders:
        np.testing.assert_array_equal(np.sort(permutation), np.arange(size))
    if size > 4:
        assert all(
            (permutation != other).any() for permutation, other in itertools.combinations(orders, 2)
        )
        assert (orders[0] != order(size, seed_words=np.array([1, 3], np.uint32))).any()


def test_a_large_range_stays_in_bounds_and_without_repetition():
    size = 2**20 + 7
    index = np.random.default_rng(0).choice(size, 200_000, replace=False)
    places = stream.permuted(index, size, np.zeros_like(index), WORDS)
    assert 0 <= places.min() <= places.max() < size
    assert len(np.unique(places)) == len(places)
    assert abs(np.corrcoef(index, places)[0, 1]) < 0.01
    assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < 0.01


def test_elements_of_several_epochs_are_permuted_each_by_its_own():
    epoch = np.arange(300) % 3
    together = stream.permuted(np.arange(300) // 3, 100, epoch, WORDS)
    for number in range(3):
        np.testing.assert_array_equal(together[epoch == number], order(100, number))


@pytest.mark.parametrize("size", [3, 4, 5])
def test_all_orders_of_a_few_are_about_equally_frequent(size):
    index = np.tile(np.arange(size), 6000)
    draws = np.repeat(np.arange(6000), size)
    orders = stream.permuted(index, size, draws, WORDS).reshape(6000, size)
    _, counts = np.unique(orders, axis=0, return_counts=True)
    number = int(np.prod(np.arange(1, size + 1)))
    assert len(counts) == number
    statistic = np.sum((counts - 6000 / number) ** 2) / (6000 / number)
    assert statistic < number + 4 * np.sqrt(2 * number)  # chi squared: its mean is number - 1


# --- the values ---


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    directory = tmp_path_factory.mktemp("stream") / "store"
    ingest.ingest(source(episodes(40)), directory, name="test")
    return directory


def in_memory(directory, chosen=None):
    part = store.aligned(store.open_store(directory), "train", fields=FIELDS)
    assert part is not None
    if chosen is not None:
        part = ingest.columns.take_episodes(part, chosen)
    return memory.from_columns(part)


def streamed(directory, **options):
    return stream.open_split(store.open_store(directory), "train", fields=FIELDS, **options)


SAMPLERS = [
    memory.Windows(16, 5),
    memory.Windows(16, 5, start_on_final=True),
    memory.Transitions(16),
    memory.Windows(16, 5, frame_stack=3),
    memory.Transitions(16, frame_stack=3),
]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("some_dropped", [False, True])
def test_an_epoch_is_the_in_memory_samplers_windows_each_once(built, sampler, some_dropped):
    chosen = np.arange(38) % 5 != 2 if some_dropped else None
    dataset = in_memory(built, chosen)
    on_disk = streamed(built, chosen=chosen)
    final = isinstance(sampler, memory.Windows) and sampler.start_on_final
    rows = np.arange(len(dataset.reward)) if final else dataset.starts
    updates = -(-len(rows) // 16)
    batches = read(stream.bind(on_disk, sampler), count=updates, capacity=updates)
    streamed_rows = jax.tree.map(
        lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[: len(rows)], batches
    )
    drawn = rows[order(len(rows))]
    expected = jax.jit(sampler.gather)(jax.tree.map(jax.numpy.asarray, dataset), drawn)
    assert jax.tree.structure(streamed_rows) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, streamed_rows, expected)
    assert jax.tree.map(lambda leaf: leaf.dtype, streamed_rows) == jax.tree.map(
        lambda leaf: leaf.dtype, expected
    )
    np.testing.assert_array_equal(np.sort(drawn), rows)


def test_a_dataset_on_the_disk_has_the_shapes_and_rows_of_the_one_in_memory(built):
    dataset = in_memory(built)
    on_disk = streamed(built)
    assert stream.on_disk(on_disk)
    assert not stream.on_disk(dataset)
    for name in ("observation", "action", "reward", "discount", "episode_end", "starts"):
        column = getattr(on_disk, name)
        expected = getattr(dataset, name)
        assert column.shape == expected.shape
        np.testing.assert_array_equal(column[3:17], expected[3:17])
        np.testing.assert_array_equal(
            column[np.array([[5, 2], [8, 5]])], expected[[[5, 2], [8, 5]]]
        )


def test_the_batch_of_an_update_does_not_depend_on_how_many_are_read():
    dataset = jax.tree.map(np.asarray, memory.from_columns(_aligned()))
    bound = stream.bind(dataset, memory.Windows(8, 3))
    seed_words = np.array([[1, 2], [3, 4]], np.uint32)
    batches = read(bound, seed_words=seed_words, count=10, capacity=10)
    assert batches.observation.shape[:3] == (10, 2, 8)
    for first, count in ((0, 1), (3, 4), (9, 1)):
        part = read(bound, seed_words=seed_words, first=first, count=count, capacity=6)
        for actual, expected in zip(jax.tree.leaves(part), jax.tree.leaves(batches), strict=True):
            np.testing.assert_array_equal(actual[:count], expected[first : first + count])
    alone = read(bound, seed_words=seed_words[1], count=10, capacity=10)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[:, 1]), alone, batches)


def _aligned():
    from offline_mbrl.data import steps

    listed = episodes(9)
    joined = {name: np.concatenate([records[name] for records in listed]) for name in listed[0]}
    return steps.align(joined)


def test_the_parts_of_the_processes_are_the_whole_batch():
    bound = stream.bind(memory.from_columns(_aligned()), memory.Windows(12, 3))
    batches = read(bound, first=5, count=3, capacity=3)
    parts = [read(bound, first=5, count=3, capacity=3, shard=Shard(index, 3)) for index in range(3)]
    assert parts[0].reward.shape[:2] == (3, 4)
    jax.tree.map(
        lambda leaf, *part: np.testing.assert_array_equal(np.concatenate(part, axis=1), leaf),
        batches,
        *parts,
    )
    with pytest.raises(UsageError, match="batch of 12 cannot be split over 5 processes"):
        read(bound, count=1, capacity=1, shard=Shard(0, 5))


def test_what_is_gathered_in_pieces_equals_what_is_gathered_at_once(monkeypatch):
    bound = stream.bind(memory.from_columns(_aligned()), memory.Windows(12, 3))
    batches = read(bound, count=4, capacity=5)
    monkeypatch.setattr(stream, "GATHER_BYTES", 300)
    jax.tree.map(np.testing.assert_array_equal, read(bound, count=4, capacity=5), batches)


def test_a_dict_of_observations_becomes_one_vector_as_in_memory(tmp_path):
    listed = episodes(30)
    for records in listed:
        records["observation"] = {
            "b": records["observation"],
            "a": records["observation"][:, :1] * 2,
        }
    ingest.ingest(source(listed), tmp_path / "store", name="test")
    on_disk = stream.flattened(streamed(tmp_path / "store"))
    dataset = in_memory(tmp_path / "store")
    expected = trees.flatten_dataset(dataset).observation
    assert on_disk.observation.shape == expected.shape == (len(expected), 3)
    np.testing.assert_array_equal(on_disk.observation[:], expected)
    np.testing.assert_array_equal(on_disk.observation[np.array([[4, 1]])], expected[[[4, 1]]])


def test_a_learner_with_a_sampler_of_its_own_is_refused():
    with pytest.raises(UsageError, match=r"function of its own.*memory\.Windows.*--stream never"):
        stream.bind(memory.from_columns(_aligned()), lambda dataset, key: dataset)


def test_a_column_is_not_loaded_by_accident(built):
    dataset = streamed(built)
    for load in (np.asarray, lambda column: memory.Windows(4, 2)(dataset, None, jax.random.key(0))):
        with pytest.raises(UsageError, match=r"stays on the disk: train on `stream\.bind"):
            load(dataset.observation)


# --- damage ---


@pytest.fixture
def chunked(tmp_path, monkeypatch):
    """A store of many chunks, and the file of its observations."""
    monkeypatch.setattr(store, "CHUNK", 512)
    listed = [episode(length=99, terminal=True, seed=index) for index in range(20)]
    ingest.ingest(source(listed), tmp_path / "store", name="test")
    return tmp_path / "store", next((tmp_path / "store").glob("train.*.observation.bin"))


def test_only_touched_chunks_are_checked_and_a_damaged_one_never_gives_a_number(chunked):
    directory, file = chunked
    content = bytearray(file.read_bytes())
    content[512 * 7 + 3] ^= 1  # rows 448 to 511
    file.write_bytes(content)
    dataset = streamed(directory)
    dataset.observation[np.array([0, 447, 512])]
    with pytest.raises(UsageError, match=r"observation.*chunk 7 of .*data build test --force"):
        dataset.observation[np.array([3, 470])]
    with pytest.raises(UsageError, match="chunk 7"):
        streamed(directory).observation[400:460]
    bound = stream.bind(streamed(directory), memory.Windows(64, 3))
    with pytest.raises(UsageError, match="chunk 7"):
        read(bound, count=30, capacity=30)


def test_rows_longer_than_a_chunk_are_checked_whole(chunked):
    directory, _ = chunked
    opened = store.open_store(directory)
    column = opened.columns["train"]["columns", "observation"]
    wide = column._replace(shape=(column.shape[0] // 200, 200, 2))
    store.reader(wide)(np.array([1]))
    assert column.verified == {3, 4, 5, 6}  # bytes 1600 to 3199


def test_a_missing_or_short_file_is_refused(chunked):
    directory, file = chunked
    content = file.read_bytes()
    for change in (lambda: file.write_bytes(content[:-8]), file.unlink):
        change()
        with pytest.raises(UsageError, match=r"observation' of test (has|is missing)"):
            streamed(directory)
