"""RLDS datasets are read as they were written, and damage is detected; test_tfds.py has more."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data_examples import episode, episodes, source, written

from offline_mbrl.data.sources import ingest, rlds_writer, tfds
from offline_mbrl.data.store import read as store
from offline_mbrl.types import BoundedActions, DiscreteActions, UsageError


def write(directory, listed, **options):
    options = {"action": DiscreteActions(3), "metadata": {"seed": 7}} | options
    return rlds_writer.write_rlds(directory, written(listed), **options)


def stored(directory, target):
    ingest.ingest(tfds.directory_source(directory), target, name="test")
    return store.open_store(target)


def test_rlds_and_back_is_the_same_store_as_from_the_episodes_themselves(tmp_path):
    listed = episodes(60)
    write(tmp_path / "rlds", listed)
    opened = stored(tmp_path / "rlds", tmp_path / "store")
    ingest.ingest(source(listed), tmp_path / "direct", name="test")
    direct = store.open_store(tmp_path / "direct")
    assert opened.manifest["fingerprint"] == direct.manifest["fingerprint"]
    assert opened.manifest["counts"] == direct.manifest["counts"]


def test_shards_keep_the_order(tmp_path, monkeypatch):
    monkeypatch.setattr(rlds_writer, "SHARD_BYTES", 2000)
    write(tmp_path / "rlds", episodes(60))
    assert len(list((tmp_path / "rlds").glob("*array_record*"))) > 3
    observation = store.aligned(stored(tmp_path / "rlds", tmp_path / "store"), "train").columns[
        "observation"
    ]
    assert (np.diff(observation[:, 0]) > 0).all()


def test_nested_observations_frames_and_bounds_survive(tmp_path):
    plain = episode(length=4, terminal=False)
    frames = np.random.default_rng(0).integers(0, 256, (5, 6, 6, 1)).astype(np.uint8)
    state = {"position": plain["observation"], "upright": np.arange(5.0)}
    action = np.linspace(-2, 2, 10).reshape(5, 2).astype(np.float32)
    plain |= {
        "observation": {"state": state, "frame": frames},
        "action": action,
        "log_prob": np.arange(5.0),
    }
    bounds = BoundedActions((-2.0, -2.0), (2.0, 3.0))
    write(tmp_path / "rlds", [plain, plain], action=bounds, gamma=0.5, horizon=4)
    opened = stored(tmp_path / "rlds", tmp_path / "store")
    columns = store.aligned(opened, "train").columns
    np.testing.assert_array_equal(columns["observation"]["frame"], frames)
    np.testing.assert_array_equal(columns["observation"]["state"]["upright"], np.arange(5))
    np.testing.assert_array_equal(columns["log_prob"][:4], np.arange(4))
    # Raw units in the store
    np.testing.assert_array_equal(columns["action"][:4], plain["action"][:4])
    assert opened.manifest["spec"]["action"] == {"minimum": [-2.0, -2.0], "maximum": [2.0, 3.0]}
    assert (opened.manifest["spec"]["gamma"], opened.manifest["spec"]["horizon"]) == (0.5, 4)


def test_records_are_those_that_tfds_itself_would_write():
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    steps = episode(length=4, terminal=True) | {
        "observation": {"a": np.ones((5, 2, 3)), "b": np.arange(5)}
    }
    (example,) = rlds_writer._checked(
        iter([{"steps": steps, "metadata": {"name": "x", "number": 3, "pair": [1.5, 2.5]}}])
    )
    features = rlds_writer._features(example)
    fast = ExampleSerializer(features.get_serialized_info()).serialize_example(example)
    assert fast == features.serialize_example(example)


def test_origin_is_noted_beside_the_data(tmp_path):
    write(tmp_path / "rlds", episodes(3))
    sidecar = json.loads((tmp_path / "rlds" / rlds_writer.SIDECAR).read_text())
    assert sidecar["seed"] == 7
    assert sidecar["versions"]["offline_mbrl"]
    assert all(len(file["sha256"]) == 64 for file in sidecar["files"].values())
    provenance = stored(tmp_path / "rlds", tmp_path / "store").manifest["provenance"]
    assert provenance["written_by"]["seed"] == 7


def test_twenty_truncations_of_array_record_are_all_found(tmp_path):
    write(tmp_path / "rlds", episodes(30))
    file = next((tmp_path / "rlds").glob("*array_record*"))
    content = file.read_bytes()
    for length in np.random.default_rng(0).integers(0, len(content), 20):
        file.write_bytes(content[:length])
        with pytest.raises(UsageError, match=f"has {length} bytes instead of {len(content)}"):
            tfds.directory_source(tmp_path / "rlds")
    assert not (tmp_path / "store").exists()


def test_truncations_are_found_by_count_where_others_wrote_the_data(tmp_path):
    write(tmp_path / "rlds", episodes(30))
    (tmp_path / "rlds" / rlds_writer.SIDECAR).unlink()
    file = next((tmp_path / "rlds").glob("*array_record*"))
    content = file.read_bytes()
    for length in np.random.default_rng(1).integers(0, len(content), 20):
        file.write_bytes(content[:length])
        with pytest.raises(
            UsageError, match=r"incomplete|cannot be read to its end|cannot be opened"
        ):
            stored(tmp_path / "rlds", tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_bit_flips_in_our_rlds_files_are_found(tmp_path):
    write(tmp_path / "rlds", episodes(10))
    rng = np.random.default_rng(0)
    for file in (tmp_path / "rlds").iterdir():
        if file.name == rlds_writer.SIDECAR:
            continue
        content = bytearray(file.read_bytes())
        for _ in range(5):
            changed = content.copy()
            changed[rng.integers(len(content))] ^= 1 << rng.integers(8)
            file.write_bytes(changed)
            with pytest.raises(UsageError, match="its sha256 does not match"):
                tfds.directory_source(tmp_path / "rlds")
        file.write_bytes(content)
    tfds.directory_source(tmp_path / "rlds")


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ([], "no episodes"),
        ([{"observation": np.zeros(3)}], "episode 0 lacks the field 'action'"),
        (
            [*episodes(1), episodes(1)[0] | {"reward": np.zeros(2)}],
            "episode 1 has fields of different lengths",
        ),
        (
            [*episodes(1), episode(length=1, terminal=True) | {"extra": np.zeros(2)}],
            "episode 1 has other fields",
        ),
        (
            [*episodes(1), episode(length=3, terminal=True) | {"observation": np.zeros((4, 5))}],
            "episode 1",
        ),
    ],
)
def test_unsuitable_episodes_are_refused_and_leave_nothing(tmp_path, listed, message):
    with pytest.raises(UsageError, match=message):
        write(tmp_path / "rlds", listed)
    assert not (tmp_path / "rlds").exists()


def test_only_datasets_that_are_generated_here_are_told_to_be_built_again(tmp_path, monkeypatch):
    monkeypatch.setenv("OFFLINE_MBRL_DATA", str(tmp_path / "data"))
    for directory, remedy in (
        (tmp_path / "mine", "restore the files from a copy, or write the dataset again"),
        (
            tmp_path / "data" / "rlds" / "local" / "catch-seed3",
            "`offline-mbrl data build local/catch-seed3 --force`",
        ),
    ):
        write(directory, episodes(3))
        (directory / rlds_writer.DATASET_INFO).write_text("{}")
        with pytest.raises(UsageError, match=remedy) as refused:
            rlds_writer.verify(directory)
        assert ("--force" in str(refused.value)) == ("local" in remedy)


def test_an_rlds_dataset_is_written_once_unless_forced(tmp_path):
    assert write(tmp_path / "rlds", episodes(3))
    assert not write(tmp_path / "rlds", episodes(4))
    assert write(tmp_path / "rlds", episodes(4), force=True)
    assert stored(tmp_path / "rlds", tmp_path / "store").manifest["counts"]["episodes"] == 4


def test_directories_without_a_dataset_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"no dataset_info.json there, and none below it"):
        tfds.directory_source(tmp_path)
    for name in ("a", "b"):
        write(tmp_path / name, episodes(2))
    with pytest.raises(UsageError, match="2 below it"):
        tfds.directory_source(tmp_path)
    assert tfds.find(tmp_path / "a").name == "a"


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from data_examples import episodes, written
from offline_mbrl.data.sources import ingest, rlds_writer, tfds
from offline_mbrl.types import DiscreteActions, UsageError
root = Path(sys.argv[2])
rlds_writer.write_rlds(root / "rlds", written(episodes(3)), action=DiscreteActions(3), metadata={})
ingest.ingest(tfds.directory_source(root / "rlds"), root / "store", name="test")
assert not {"tensorflow", "rlds", "torch"} & set(sys.modules), "TensorFlow was loaded"
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    rlds_writer.write_rlds(
        root / "full", written(episodes(500)), action=DiscreteActions(3), metadata={}
    )
except UsageError as error:
    print(error)
"""


def test_writing_and_reading_array_record_needs_no_tensorflow_and_a_full_disk_is_one_line(tmp_path):
    arguments = [
        sys.executable,
        "-c",
        SCRIPT,
        str(Path(__file__).parents[2] / "examples"),
        str(tmp_path),
    ]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert "cannot write" in done.stdout, done.stdout + done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".full.lock",
        ".rlds.lock",
        ".store.lock",
        "rlds",
        "store",
    ]
