"""The column store: nothing is lost, nothing damaged is read, nothing half-written is seen."""

import json
import multiprocessing
import os
import resource
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from data_examples import episode, episodes, source

from offline_mbrl.data import atomic, columns, ingest, specs, store
from offline_mbrl.types import UsageError


@pytest.fixture
def built(tmp_path):
    directory = tmp_path / "store"
    ingest.ingest(source(episodes(50)), directory, name="test")
    return directory


def test_every_step_is_in_the_store_or_counted_as_dropped(tmp_path):
    listed = [*episodes(45), episode(length=0, terminal=True), episode(length=3, terminal=False)]
    ingest.ingest(source(listed), tmp_path / "store", name="test")
    counts = store.open_store(tmp_path / "store").manifest["counts"]
    assert counts["steps"] == sum(len(records["reward"]) for records in listed)
    assert counts["dropped"] == {"episodes of a single record": 1}
    assert counts["steps"] + counts["added"] == counts["records"] + 1
    assert (counts["episodes"], counts["source_episodes"]) == (46, 47)
    assert counts["transitions"] == sum(len(records["reward"]) - 1 for records in listed)


def test_the_splits_hold_all_episodes_unchanged(built):
    listed = episodes(50)
    opened = store.open_store(built)
    for split, held_out in (("train", False), ("validation", True)):
        part = store.aligned(opened, split)
        expected = [records for index, records in enumerate(listed) if columns.held_out(index) == held_out]
        assert len(part.episode_ends) == len(expected)
        for field in ("observation", "reward"):
            np.testing.assert_array_equal(part.columns[field], np.concatenate([e[field] for e in expected]))


def test_one_episode_of_twenty_is_held_out_and_two_suffice():
    held_out = np.array([columns.held_out(index) for index in range(2000)])
    np.testing.assert_array_equal(held_out.reshape(100, 20).sum(axis=1), 1)
    assert len(set(np.argmax(held_out.reshape(100, 20), axis=1))) > 10
    assert held_out[1]
    assert not held_out[0]


def test_batches_make_no_difference(tmp_path):
    listed = episodes(60)
    fingerprints = set()
    for records in (1, 50, 10**6):
        batches = ingest.grouped(
            (ingest.Batch(e, np.array([len(e["reward"])])) for e in listed), records=records)  # fmt: skip
        ingest.ingest(ingest.Source(batches, {}), tmp_path / str(records), name="test")
        fingerprints.add(store.open_store(tmp_path / str(records)).manifest["fingerprint"])
    assert len(fingerprints) == 1


def test_the_fingerprint_follows_the_content(tmp_path):
    names = []
    for index, listed in enumerate((episodes(5), episodes(5), episodes(5, seed=1))):
        ingest.ingest(source(listed), tmp_path / str(index), name=f"name {index}")
        names.append(store.open_store(tmp_path / str(index)).manifest["fingerprint"])
    assert names[0] == names[1] != names[2]


def test_the_spec_comes_back(built):
    spec = specs.from_json(store.open_store(built).manifest["spec"])
    assert (spec.observation.shape, spec.observation.dtype) == ((2,), np.float32)
    assert spec.action.num_actions == 3
    assert specs.from_json(json.loads(json.dumps(specs.to_json(spec)))) == spec


# --- damage ---


def flip_bit(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def read_everything(directory: Path) -> None:
    opened = store.open_store(directory)
    for split in store.SPLITS:
        store.aligned(opened, split)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(store, "CHUNK", 512)


def test_fifty_random_bit_flips_are_all_found(small_chunks, built):
    rng = np.random.default_rng(0)
    files = sorted(built.iterdir())
    for _ in range(50):
        file = files[rng.integers(len(files))]
        bit = int(rng.integers(8 * file.stat().st_size))
        flip_bit(file, bit)
        with pytest.raises(UsageError, match=r"damaged|format") as found:
            read_everything(built)
        assert file.stem in str(found.value)
        dataset = "NAME" if file.stem == "manifest" else "test"
        assert f"offline-mbrl data build {dataset} --force" in str(found.value)
        flip_bit(file, bit)
    read_everything(built)


def test_a_damaged_chunk_is_named_and_only_found_when_it_is_touched(monkeypatch, tmp_path):
    monkeypatch.setattr(store, "CHUNK", 512)
    ingest.ingest(source(episodes(100)), tmp_path / "store", name="test")
    opened = store.open_store(tmp_path / "store")
    column = opened.columns["train"]["columns", "observation"]
    flip_bit(column.file, 8 * 1100)  # chunk 2
    store.read(column, 0, 128)  # 128 rows of 8 bytes: chunks 0 and 1
    with pytest.raises(UsageError, match=r"observation' of .* chunk 2 of \d+"):
        store.read(column, 128, 129)
    assert column.verified == {0, 1}
    with pytest.raises(UsageError, match="chunk 2"):
        store.verify_all(opened)


def test_fields_that_are_not_read_are_not_checked(built):
    opened = store.open_store(built)
    flip_bit(opened.columns["train"]["columns", "action"].file, 0)
    store.aligned(opened, "train", fields=("observation", "reward", "discount"))
    with pytest.raises(UsageError, match="action"):
        store.aligned(opened, "train")


def test_missing_and_cut_column_files_are_found(built):
    file = store.open_store(built).columns["train"]["columns", "reward"].file
    content = file.read_bytes()
    file.write_bytes(content[:-4])
    with pytest.raises(UsageError, match=f"has {len(content) - 4} bytes instead of {len(content)}"):
        store.open_store(built)
    file.unlink()
    with pytest.raises(UsageError, match="is missing"):
        store.open_store(built)


# --- sources that do not keep what they promise ---


@pytest.mark.parametrize("facts", [{"episodes": 51}, {"steps": 10**6}])
def test_a_source_that_is_shorter_than_it_says_is_refused(tmp_path, facts):
    with pytest.raises(UsageError, match="incomplete"):
        ingest.ingest(source(episodes(50), **facts), tmp_path / "store", name="test")
    assert not (tmp_path / "store").exists()


def broken(**changes):
    return {name: value for name, value in (episode(length=3, terminal=True) | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ([], "no transition"),
        ([episode(length=0, terminal=True)], "no transition"),
        ([broken(reward=np.zeros((4, 1)))], "'reward' must have one axis"),
        ([broken(action=np.zeros((4, 1), int))], "'action' has dtype"),
        ([broken(action=np.zeros(4))], "'action' has dtype"),
        ([broken(action=None)], "no field 'action'"),
        ([broken(observation=np.array(["a"] * 4))], "'observation' has dtype"),
        ([broken(observation=np.zeros((3, 2)))], "'observation' has shape"),
        ([broken(observation=np.zeros((4, 0)))], "'observation' has shape"),
        ([broken(action=np.array([0, -1, 0, 0]))], "actions count from 0"),
        ([broken(), broken(observation=np.zeros((4, 3)))], "cannot be joined"),
        ([broken(), broken(extra=np.zeros(4))], "different fields"),
    ],
)
def test_unsuitable_sources_are_refused_in_one_line(tmp_path, listed, message):
    with pytest.raises(UsageError, match=message) as refused:
        ingest.ingest(source(listed), tmp_path / "store", name="test")
    assert "\n" not in str(refused.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".store.lock"]


def test_fields_that_change_between_batches_are_refused(tmp_path):
    wide, more = broken(observation=np.zeros((4, 3))), broken(extra=np.zeros(4))
    for pair in ((broken(), wide), (broken(), more), (more, broken())):
        batches = [ingest.Batch(records, np.array([4])) for records in pair]
        with pytest.raises(UsageError, match="changes on the way"):
            ingest.ingest(ingest.Source(batches, {}), tmp_path / "store", name="test")


# --- building ---


def processes():
    """Clean processes that fork from one which has imported the package but started no threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["offline_mbrl.data.ingest", "data_examples"])
    return context


def build_slowly(directory: Path, log: Path, results) -> None:
    def opened():
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.3)
        return source(episodes(20))

    ingest.ingest(opened, directory, name="test")
    results.put(store.open_store(directory).manifest["fingerprint"])


def test_eight_processes_that_ask_at_once_get_one_build(tmp_path):
    context = processes()
    results = context.Queue()
    workers = [
        context.Process(target=build_slowly, args=(tmp_path / "store", tmp_path / "log", results)) for _ in range(8)
    ]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 8
    assert len(set(found)) == 1
    assert len((tmp_path / "log").read_text().split()) == 1


def build_forever(directory: Path) -> None:
    def batches():
        yield ingest.Batch(episode(length=5, terminal=True), np.array([6]))
        (directory.parent / "started").touch()
        time.sleep(600)

    ingest.ingest(ingest.Source(batches(), {}), directory, name="test")


def test_a_killed_build_leaves_nothing_that_the_next_one_does_not_remove(tmp_path):
    worker = processes().Process(target=build_forever, args=(tmp_path / "store",))
    worker.start()
    while not (tmp_path / "started").exists():
        time.sleep(0.01)
    os.kill(worker.pid or 0, signal.SIGKILL)
    worker.join()
    assert not (tmp_path / "store").exists()
    assert any(path.name.startswith(".store.building-") for path in tmp_path.iterdir())
    assert ingest.ingest(source(episodes(5)), tmp_path / "store", name="test")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".store.lock", "started", "store"]
    read_everything(tmp_path / "store")


def test_a_failed_build_leaves_nothing(tmp_path):
    def batches():
        yield ingest.Batch(episode(length=5, terminal=True), np.array([6]))
        raise RuntimeError("the source breaks")

    with pytest.raises(RuntimeError, match="the source breaks"):
        ingest.ingest(ingest.Source(batches(), {}), tmp_path / "store", name="test")
    assert [path.name for path in tmp_path.iterdir()] == [".store.lock"]


def test_an_existing_store_is_kept_unless_forced(tmp_path):
    assert ingest.ingest(source(episodes(5)), tmp_path / "store", name="first")
    assert not ingest.ingest(source(episodes(5)), tmp_path / "store", name="second")
    assert store.open_store(tmp_path / "store").manifest["name"] == "first"
    assert ingest.ingest(source(episodes(5)), tmp_path / "store", name="third", force=True)
    assert store.open_store(tmp_path / "store").manifest["name"] == "third"


def fill_disk(directory: Path, results) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    try:
        ingest.ingest(source(episodes(500)), directory, name="test")
    except Exception as error:
        results.put((type(error).__name__, str(error), os.listdir(directory.parent)))


def test_a_full_disk_is_one_clear_line_and_leaves_nothing(tmp_path):
    context = processes()
    results = context.Queue()
    worker = context.Process(target=fill_disk, args=(tmp_path / "store", results))
    worker.start()
    kind, message, left = results.get(timeout=60)
    worker.join()
    assert kind == "UsageError"
    assert "cannot write" in message
    assert "OFFLINE_MBRL_DATA" in message
    assert left == [".store.lock"]


def test_a_place_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"cannot write .*OFFLINE_MBRL_DATA"):
        ingest.ingest(source(episodes(5)), tmp_path / "file" / "store", name="test")


def test_the_data_root_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("OFFLINE_MBRL_DATA", str(tmp_path))
    assert atomic.root() == tmp_path
    monkeypatch.delenv("OFFLINE_MBRL_DATA")
    assert atomic.root() == Path.home() / ".cache" / "offline_mbrl"
