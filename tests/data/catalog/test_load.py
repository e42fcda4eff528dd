"""Datasets by name: what names say, and what loading gives."""

import re
import subprocess
import sys

import h5py
import numpy as np
import pytest
from data_examples import collect, episodes, written

from offline_mbrl.data.catalog import load as catalog
from offline_mbrl.data.catalog import names, official
from offline_mbrl.data.sources import rlds_writer
from offline_mbrl.data.store import read as store
from offline_mbrl.types import BoundedActions, DiscreteActions, UsageError


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("OFFLINE_MBRL_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


# --- names ---


def test_every_listed_name_is_known():
    listed = names.names()
    generated = 2 * 3 + 2 + 9 + 4 * 6 + 18 + 4 * 2
    official = 9 + 4 * 17 + 12 + 4 * 6 + 2 * 230 + 6 * 47
    assert len(listed) == len(set(listed)) == generated + official
    assert [names.lookup(name).name for name in listed] == listed


@pytest.mark.parametrize(
    ("name", "canonical", "variant", "simulator"),
    [
        ("local/catch", "local/catch", (0.0, 100, 2000, 0, 0), "bsuite/catch"),
        (
            "local/catch-noise0.10",
            "local/catch-noise0.1",
            (0.1, 100, 2000, 0, 0),
            "bsuite/catch?noise=0.1",
        ),
        (
            "local/catch-seed1-fraction10-noise0.1-episodes200",
            "local/catch-noise0.1-fraction10-episodes200-seed1",
            (0.1, 10, 200, 1, 0),
            "bsuite/catch?noise=0.1",
        ),
        (
            "local/mountain_car-episodes500-seed0",
            "local/mountain_car",
            (0.0, 100, 500, 0, 0),
            "bsuite/mountain_car",
        ),
        ("local/catch-random", "local/catch-random", (0.0, 100, 300, 0, 0), "bsuite/catch"),
        (
            "local/cartpole-random-seed2-noise0.1-episodes50",
            "local/cartpole-random-noise0.1-episodes50-seed2",
            (0.1, 100, 50, 2, 0),
            "bsuite/cartpole?noise=0.1",
        ),
        (
            "local/control/cheetah_run-seed1-episodes30",
            "local/control/cheetah_run-episodes30-seed1",
            (0.0, 100, 30, 1, 0),
            "control/cheetah_run",
        ),
        (
            "local/control/finger_turn_hard-episodes500",
            "local/control/finger_turn_hard",
            (0.0, 100, 500, 0, 0),
            "control/finger_turn_hard",
        ),
    ],
)
def test_variants_are_written_into_the_name(name, canonical, variant, simulator):
    entry = names.lookup(name)
    assert (entry.name, tuple(entry.variant), entry.simulator) == (canonical, variant, simulator)
    assert names.lookup(canonical) == entry


@pytest.mark.parametrize(
    ("name", "simulator", "reference"),
    [
        ("rlu_control_suite/cartpole_swingup", "control/cartpole_swingup", None),
        ("rlu_control_suite/finger_turn_hard", None, None),
        ("rlu_atari/Pong_run_1", "atari/Pong", (-20.3, 18.2)),
        ("rlu_atari_checkpoints_ordered/MsPacman_run_5", "atari/MsPacman", (248, 4172)),
        ("d4rl_mujoco_hopper/v2-medium", "gym/Hopper-v4", (-20.272305, 3234.3)),
        ("d4rl_mujoco_ant/v2-expert", None, (-325.6, 3879.7)),
        ("d4rl_antmaze/umaze-v0", None, (0.0, 1.0)),
        ("d4rl_adroit_pen/v1-human", None, (96.262799, 3076.8331017826877)),
    ],
)
def test_official_names_know_their_simulator(name, simulator, reference):
    entry = names.lookup(name)
    assert (entry.kind, entry.simulator, entry.reference) == ("tfds", simulator, reference)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("local/cach", "did you mean local/catch"),
        ("catch", "did you mean local/catch"),
        ("local/catch-nois0.1", "did you mean local/catch"),
        ("rlu_atari/Pong_run_6", "did you mean rlu_atari/Pong_run_"),
        ("d4rl_mujoco_hopper/medium-v2", "did you mean d4rl_mujoco_hopper/"),
        ("zzzzzz", "data list"),
        ("local/catch-noise2", "noise must be from 0 to 1, got 2"),
        (
            "local/catch-fraction0",
            "fraction must divide 100 (1, 2, 4, 5, 10, 20, 25, 50, 100), got 0",
        ),
        (
            "local/catch-fraction60",
            "fraction must divide 100 (1, 2, 4, 5, 10, 20, 25, 50, 100), got 60",
        ),
        ("local/catch-episodes0", "episodes must be from 1"),
        ("local/catch-random-fraction10", "has no variant 'fraction'; it has: noise, episodes"),
        ("local/catch-seed0.5", "whole numbers"),
        ("local/control/cheetah_runs", "did you mean local/control/cheetah_run"),
        ("local/control/cheetah_run-noise0.1", "has no variant 'noise'; it has: episodes, seed"),
        ("local/control/cheetah_run-episodes0", "episodes must be from 1"),
        ("./nothing.hdf5", "there is no file or directory ./nothing.hdf5"),
        ("/nowhere/at/all", "there is no file or directory"),
        (__file__, "unknown kind"),
    ],
)
def test_unknown_names_are_one_line_with_a_hint(name, message):
    with pytest.raises(UsageError, match=re.escape(message)) as refused:
        catalog.load(name)
    assert "\n" not in str(refused.value)


# --- loading ---


def test_a_local_dataset_is_generated_once_and_loaded_with_everything_that_training_needs(root):
    loaded = catalog.load("local/catch-episodes40", collect=collect)
    assert loaded.name == "local/catch-episodes40"
    assert loaded.spec.action == DiscreteActions(3)
    assert (loaded.spec.observation.shape, loaded.spec.gamma, loaded.spec.horizon) == (
        (2,),
        0.99,
        9,
    )
    assert (loaded.simulator, loaded.reference) == ("bsuite/catch", official.Reference(-0.667, 1.0))
    assert len(np.unique(loaded.dataset.episode_end)) == 38
    assert len(np.unique(loaded.validation.episode_end)) == 2
    assert loaded.statistics.mean.shape == (2,)
    again = catalog.load("local/catch-episodes40", verify="full")  # without a collector
    assert again.fingerprint == loaded.fingerprint
    np.testing.assert_array_equal(again.dataset.observation, loaded.dataset.observation)
    assert rlds_writer.is_rlds(root / "rlds" / "local" / "catch-episodes40")


def test_the_collector_is_told_what_the_name_says():
    arguments = {}

    def listen(environment, **options):
        arguments.update(options, environment=environment)
        return written(episodes(3))

    catalog.build("local/cartpole-noise0.3-fraction20-seed4", collect=listen)
    assert arguments == {
        "environment": "cartpole",
        "num_episodes": 1000,
        "noise": 0.3,
        "fraction": 20,
        "seed": 4,
    }


def test_control_suite_datasets_have_the_official_tasks_and_sizes_and_their_discount():
    sizes = {name: official.local(f"control/{name}").num_episodes for name in official.CONTROL}
    assert list(sizes.values()) == [40, 300, 500, 200, 3000, 1500, 1500, 200, 200]
    for task in official.CONTROL:
        entries = names.lookup(f"local/control/{task}"), names.lookup(f"rlu_control_suite/{task}")
        assert [(entry.gamma, entry.horizon) for entry in entries] == [(0.995, 1000)] * 2
        assert names.recipe(entries[0]) == {"num_episodes": sizes[task], "seed": 0}


def test_a_store_is_made_again_from_the_rlds_files_without_collecting(root):
    first = catalog.load("local/catch-episodes30", collect=collect).fingerprint
    directory = root / "store" / "local" / "catch-episodes30"
    for file in directory.iterdir():
        file.unlink()
    assert catalog.load("local/catch-episodes30").fingerprint == first


def test_force_collects_again(root):
    catalog.build("local/catch-episodes30", collect=collect)

    def other(environment, **options):
        return written(episodes(30, seed=5))

    first = catalog.load("local/catch-episodes30").fingerprint
    catalog.build("local/catch-episodes30", collect=other)
    assert catalog.load("local/catch-episodes30").fingerprint == first
    catalog.build("local/catch-episodes30", collect=other, force=True)
    assert catalog.load("local/catch-episodes30").fingerprint != first


def test_absent_datasets_say_how_to_build_them():
    with pytest.raises(UsageError, match="offline-mbrl data build local/catch"):
        catalog.load("local/catch")
    with pytest.raises(UsageError, match="offline-mbrl data build local/catch"):
        catalog.load("local/catch", build=False, collect=collect)


@pytest.mark.parametrize("options", [{"verify": "some"}, {"on_nonfinite": "ignore"}])
def test_unknown_options_are_refused(options):
    with pytest.raises(UsageError, match="choose one of"):
        catalog.load("local/catch", collect=collect, **options)


def test_a_damaged_store_is_refused_on_loading(root):
    catalog.build("local/catch-episodes30", collect=collect)
    opened = catalog.open_named("local/catch-episodes30")
    file = opened.columns["validation"]["columns", "reward"].file
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)
    with pytest.raises(UsageError, match=r"'validation\.\d+\.reward' .* damaged: chunk 0 of 1"):
        catalog.load("local/catch-episodes30")


def write_hdf5(path, *, scale=1.0, bad_rows=(), bounds=None):
    rng = np.random.default_rng(0)
    reward = rng.normal(size=200)
    reward[list(bad_rows)] = np.nan
    with h5py.File(path, "w") as file:
        file["observations"] = rng.normal(size=(200, 3))
        file["rewards"] = reward
        file["actions"] = rng.uniform(-scale, scale, (200, 2))
        file["terminals"] = np.arange(200) % 10 == 9
        if bounds:
            file.attrs["action_minimum"], file.attrs["action_maximum"] = bounds


def test_data_by_path_trains_without_a_simulator(tmp_path):
    write_hdf5(tmp_path / "mydata.hdf5")
    loaded = catalog.load(str(tmp_path / "mydata.hdf5"))
    assert (loaded.simulator, loaded.reference) == (None, None)
    assert loaded.spec.action == BoundedActions((-1.0, -1.0), (1.0, 1.0))
    assert len(np.unique(loaded.dataset.episode_end)) == 19


def test_a_file_that_changes_is_read_again(tmp_path):
    write_hdf5(tmp_path / "mydata.hdf5")
    first = catalog.load(str(tmp_path / "mydata.hdf5")).fingerprint
    write_hdf5(tmp_path / "mydata.hdf5", scale=0.1)
    assert catalog.load(str(tmp_path / "mydata.hdf5")).fingerprint != first


def test_an_rlds_directory_by_path_keeps_its_simulator(tmp_path):
    rlds_writer.write_rlds(
        tmp_path / "mine",
        written(episodes(5)),
        action=DiscreteActions(4),
        metadata={"simulator": "bsuite/catch?noise=0.1"},
    )
    loaded = catalog.load(str(tmp_path / "mine"))
    assert loaded.simulator == "bsuite/catch?noise=0.1"
    assert loaded.reference == official.LOCAL["catch"].reference
    assert loaded.spec.action == DiscreteActions(4)


def test_continuous_actions_are_scaled_to_unit_bounds_on_loading_only(tmp_path):
    write_hdf5(tmp_path / "mydata.hdf5", scale=3.0, bounds=(-3.0, 3.0))
    name = str(tmp_path / "mydata.hdf5")
    loaded = catalog.load(name)
    raw = store.aligned(catalog.open_named(name), "train").columns["action"]
    assert np.abs(raw).max() > 2.5
    np.testing.assert_allclose(loaded.dataset.action, raw / 3, atol=1e-6)
    assert loaded.spec.action == BoundedActions((-3.0, -3.0), (3.0, 3.0))


def test_actions_outside_their_range_are_refused(tmp_path):
    write_hdf5(tmp_path / "mydata.hdf5", scale=3.0)
    with pytest.raises(
        UsageError, match=r"field 'action' .* is outside \[-1, 1\] at step \d+ of episode \d+"
    ):
        catalog.load(str(tmp_path / "mydata.hdf5"))


def test_nonfinite_data_are_refused_and_dropped_only_on_request(tmp_path):
    # Episodes 3 and 17; 1 and one more are held out
    write_hdf5(tmp_path / "mydata.hdf5", bad_rows=(34, 35, 172))
    name = str(tmp_path / "mydata.hdf5")
    with pytest.raises(
        UsageError, match=r"field 'reward' is not finite \(nan\) at step 4 of episode 3 \("
    ):
        catalog.load(name)
    loaded = catalog.load(name, on_nonfinite="drop-episode")
    assert np.isfinite(loaded.dataset.reward).all()
    assert len(np.unique(loaded.dataset.episode_end)) == 17
    write_hdf5(tmp_path / "good.hdf5")
    good = str(tmp_path / "good.hdf5")
    unfiltered = catalog.load(good)
    same = catalog.load(good, on_nonfinite="drop-episode")
    assert unfiltered.fingerprint == same.fingerprint != loaded.fingerprint
    kept = np.delete(np.arange(20), [1, 3, 17])
    rows = np.concatenate([np.arange(11 * e, 11 * e + 11) for e in kept])
    everything = np.zeros((220, 3))
    for split, part in (("train", unfiltered.dataset), ("validation", unfiltered.validation)):
        held_out = np.repeat(np.arange(20) == 1, 11)
        everything[held_out if split == "validation" else ~held_out] = part.observation
    np.testing.assert_array_equal(loaded.dataset.observation, everything[rows].astype(np.float32))


def test_nothing_left_after_dropping_is_one_line(tmp_path):
    write_hdf5(tmp_path / "mydata.hdf5", bad_rows=range(200))
    with pytest.raises(UsageError, match="no training episode is left"):
        catalog.load(str(tmp_path / "mydata.hdf5"), on_nonfinite="drop-episode")


def test_nested_states_can_be_had_as_one_vector(tmp_path):
    with h5py.File(tmp_path / "nested.h5", "w") as file:
        file["observations/b"] = np.arange(20.0)
        file["observations/a"] = np.zeros((20, 2, 2))
        file["actions"] = np.zeros(20, int)
        file["rewards"] = np.zeros(20)
        file["terminals"] = np.arange(20) % 5 == 4
    loaded = catalog.load(str(tmp_path / "nested.h5"))
    assert set(loaded.dataset.observation) == {"a", "b"}
    flat = catalog.flattened(loaded)
    assert (
        flat.dataset.observation.shape[1:]
        == flat.spec.observation.shape
        == flat.statistics.mean.shape
        == (5,)
    )
    np.testing.assert_array_equal(flat.dataset.observation[:, 4], loaded.dataset.observation["b"])
    assert flat.validation.observation.shape[1:] == (5,)
    assert catalog.flattened(flat) is flat


SCRIPT = """
import sys, time
from offline_mbrl.data.catalog import load as catalog
start = time.process_time()
catalog.load("local/catch-episodes40")
print(time.process_time() - start)
heavy = {
    "tensorflow", "tensorflow_datasets", "rlds", "bsuite", "torch", "h5py", "minari", "array_record"
}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""


def test_loading_an_existing_store_is_quick_and_imports_no_reader(root):
    catalog.build("local/catch-episodes40", collect=collect)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.3
