"""The column store: nothing is lost, nothing damaged is read, nothing half-written is seen."""

import json
from pathlib import Path

import numpy as np
import pytest
from data_examples import episode, episodes, read_everything, source

from offline_mbrl.data import specs
from offline_mbrl.data.sources import ingest
from offline_mbrl.data.store import read as store
from offline_mbrl.data.store import write as columns
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
        expected = [
            records for index, records in enumerate(listed) if columns.held_out(index) == held_out
        ]
        assert len(part.episode_ends) == len(expected)
        for field in ("observation", "reward"):
            np.testing.assert_array_equal(
                part.columns[field], np.concatenate([e[field] for e in expected])
            )


def test_every_row_of_a_split_is_found_in_the_source():
    lengths = np.random.default_rng(0).integers(2, 9, 70)
    held_out = np.array([columns.held_out(index) for index in range(70)])
    rows = np.arange(lengths.sum())
    of_episode = np.repeat(np.arange(70), lengths)
    ends = {
        "train": np.cumsum(lengths[~held_out]) - 1,
        "validation": np.cumsum(lengths[held_out]) - 1,
    }
    for split, chosen in (("train", ~held_out), ("validation", held_out)):
        expected = rows[chosen[of_episode]]
        positions = columns.locate(ends, split, range(len(expected)))
        assert [position.row for position in positions] == expected.tolist()
        assert [position.episode for position in positions] == of_episode[expected].tolist()
        starts = (np.cumsum(lengths) - lengths)[of_episode[expected]]
        assert [position.step for position in positions] == (expected - starts).tolist()


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
            (ingest.Batch(e, np.array([len(e["reward"])])) for e in listed), records=records
        )
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
        with pytest.raises(UsageError, match=r"damaged|format") as refused:
            read_everything(built)
        assert file.stem in str(refused.value)
        dataset = "NAME" if file.stem == "manifest" else "test"
        assert f"offline-mbrl data build {dataset} --force" in str(refused.value)
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
    return {
        name: value
        for name, value in (episode(length=3, terminal=True) | changes).items()
        if value is not None
    }


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
    wide = broken(observation=np.zeros((4, 3)))
    more = broken(extra=np.zeros(4))
    for pair in ((broken(), wide), (broken(), more), (more, broken())):
        batches = [ingest.Batch(records, np.array([4])) for records in pair]
        with pytest.raises(UsageError, match="changes on the way"):
            ingest.ingest(ingest.Source(batches, {}), tmp_path / "store", name="test")
