"""HDF5 files and Minari datasets, written here by the libraries that define them."""

import re
import sys
import types

import gymnasium
import h5py
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from offline_mbrl.data.catalog import d4rl
from offline_mbrl.data.catalog import load as catalog
from offline_mbrl.data.sources import hdf5, ingest, tfds
from offline_mbrl.data.sources import minari as minari_files
from offline_mbrl.data.store import read as store
from offline_mbrl.types import BoundedActions, DiscreteActions, UsageError


def stored(source, target):
    ingest.ingest(source, target, name="test")
    return store.open_store(target)


def both_splits(opened, field):
    """A field of all episodes in the source's order, for observations that count on."""
    parts = [store.aligned(opened, split) for split in store.SPLITS]
    order = np.concatenate([part.columns["observation"][:, 0] for part in parts if part])
    return np.concatenate([part.columns[field] for part in parts if part])[
        np.argsort(order, kind="stable")
    ]


# --- HDF5 ---

# three episodes of three steps: terminal, cut by the time limit, and cut by the end of the file
TERMINALS = np.isin(np.arange(9), 2)
TIMEOUTS = np.isin(np.arange(9), 5)


def write_hdf5(path, **changes):
    fields = {
        "observations": np.arange(9.0)[:, None],
        "actions": np.full((9, 2), 0.5),
        "rewards": np.arange(9.0),
        "terminals": TERMINALS,
        "timeouts": TIMEOUTS,
        "infos/qpos": np.zeros((9, 3)),
        "metadata/algorithm": "SAC",
    } | changes
    with h5py.File(path, "w") as file:
        for name, value in fields.items():
            if value is not None:
                file[name] = value


def test_hdf5_without_next_observations(tmp_path):
    write_hdf5(tmp_path / "data.hdf5")
    opened = stored(hdf5.hdf5_source(tmp_path / "data.hdf5"), tmp_path / "store")
    np.testing.assert_array_equal(
        both_splits(opened, "observation")[:, 0], [0, 1, 2, 2, 3, 4, 5, 6, 7, 8]
    )
    np.testing.assert_array_equal(both_splits(opened, "discount"), [1, 1, 0, 1, 1, 1, 1, 1, 1, 1])
    np.testing.assert_array_equal(both_splits(opened, "reward"), [0, 1, 2, 0, 3, 4, 0, 6, 7, 0])
    counts = opened.manifest["counts"]
    assert (counts["steps"], counts["added"], counts["records"], counts["transitions"]) == (
        9,
        1,
        10,
        7,
    )
    # 9 steps in = 7 transitions + 2 whose outcome is not in the file
    assert counts["without_outcome"] == 2
    assert set(store.aligned(opened, "train").columns) == {
        "observation",
        "action",
        "reward",
        "discount",
    }


def test_hdf5_whose_episodes_nothing_ends_is_told_as_one(tmp_path):
    write_hdf5(tmp_path / "data.hdf5", terminals=np.zeros(9), timeouts=None)
    with pytest.warns(UserWarning, match="no row ends an episode: all 9 steps are taken as one"):
        opened = stored(hdf5.hdf5_source(tmp_path / "data.hdf5"), tmp_path / "store")
    assert opened.manifest["counts"]["episodes"] == 1


def test_hdf5_with_next_observations_keeps_every_step(tmp_path):
    following = np.arange(9.0) + np.where(np.arange(9) % 3 == 2, 0.9, 1.0)
    write_hdf5(tmp_path / "data.hdf5", next_observations=following[:, None])
    opened = stored(hdf5.hdf5_source(tmp_path / "data.hdf5"), tmp_path / "store")
    np.testing.assert_allclose(
        both_splits(opened, "observation")[:, 0],
        [0, 1, 2, 2.9, 3, 4, 5, 5.9, 6, 7, 8, 8.9],
        rtol=1e-6,
    )
    np.testing.assert_array_equal(
        both_splits(opened, "discount"), [1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    )
    counts = opened.manifest["counts"]
    assert (counts["transitions"], counts["added"], counts["without_outcome"]) == (9, 3, 0)


def test_hdf5_is_read_in_pieces_of_whole_episodes(tmp_path, monkeypatch):
    write_hdf5(tmp_path / "data.hdf5")
    single_batch = stored(hdf5.hdf5_source(tmp_path / "data.hdf5"), tmp_path / "whole")
    monkeypatch.setattr(ingest, "BATCH_RECORDS", 2)
    pieces = list(hdf5.hdf5_source(tmp_path / "data.hdf5").batches)
    assert [batch.records["observation"][0, 0] for batch in pieces] == [0, 3, 6]
    cut = stored(hdf5.hdf5_source(tmp_path / "data.hdf5"), tmp_path / "pieces")
    assert cut.manifest["fingerprint"] == single_batch.manifest["fingerprint"]


def test_hdf5_with_nested_observations_discrete_actions_and_column_rewards(tmp_path):
    write_hdf5(
        tmp_path / "data.hdf5",
        **{
            "observations": None,
            "observations/b": np.arange(9.0),
            "observations/a": np.zeros((9, 2)),
            "actions": np.arange(9) % 4,
            "rewards": np.zeros((9, 1)),
            "timeouts": None,
        },
    )
    opened = stored(hdf5.hdf5_source(tmp_path / "data.hdf5"), tmp_path / "store")
    assert opened.manifest["spec"]["action"] == {"num_actions": 4}
    assert opened.manifest["spec"]["observation"] == [
        [["a"], [2], "float32"],
        [["b"], [], "float32"],
    ]
    assert opened.manifest["counts"]["episodes"] == 2


def test_hdf5_attributes_give_the_bounds(tmp_path):
    write_hdf5(tmp_path / "data.hdf5")
    with h5py.File(tmp_path / "data.hdf5", "a") as file:
        file.attrs["action_minimum"] = -2.0
        file.attrs["action_maximum"] = [2.0, 3.0]
    source = hdf5.hdf5_source(tmp_path / "data.hdf5")
    assert source.action == BoundedActions((-2.0, -2.0), (2.0, 3.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actions": None}, "no field 'actions'"),
        ({"terminals": None}, "no field 'terminals'"),
        ({"rewards": np.zeros(8)}, "has 9 rows, but 'rewards' has 8"),
        ({"actions": np.zeros(9)}, "'action' has dtype"),
        ({"next_observations": np.zeros((8, 1))}, "'next_observations' has 8 rows"),
        (
            {"next_observations": np.zeros((9, 5))},
            r"'next_observations' has shape \[9, 5\], but 'observations' has shape \[9, 1\]",
        ),
        (
            {"next_observations/a": np.zeros((9, 1))},
            "'next_observations' is absent|'next_observations/a' has shape",
        ),
        (
            {"timeouts": np.array([0, 0, 1, 0, np.nan, 2.5, 0, 0, 0])},
            "'timeouts' must hold 0 or 1, but row 4 holds nan",
        ),
        (
            {"terminals": np.array([0, 0, 1, 0, 0, 2.5, 0, 0, 0])},
            "'terminals' must hold 0 or 1, but row 5 holds 2.5",
        ),
        ({"rewards": np.float64(1.0)}, "'rewards'"),
    ],
)
def test_unsuitable_hdf5_files_are_refused(tmp_path, changes, message):
    write_hdf5(tmp_path / "data.hdf5", **changes)
    with pytest.raises(UsageError, match=message):
        stored(hdf5.hdf5_source(tmp_path / "data.hdf5"), tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_twenty_truncations_of_hdf5_are_all_found(tmp_path):
    path = tmp_path / "data.hdf5"
    with h5py.File(path, "w") as file:
        for name, value in {
            "observations": np.ones((500, 3)),
            "actions": np.zeros((500, 2)),
            "rewards": np.ones(500),
            "terminals": np.zeros(500, bool),
        }.items():
            file.create_dataset(name, data=value, chunks=True, compression="gzip")
    content = path.read_bytes()
    for length in np.random.default_rng(0).integers(0, len(content), 20):
        path.write_bytes(content[:length])
        with pytest.raises(UsageError, match=r"data.hdf5 cannot be read"):
            stored(hdf5.hdf5_source(path), tmp_path / "store")
    assert not (tmp_path / "store").exists()


# --- Minari ---


def buffer(index, *, length, terminal, observation):
    t = np.arange(length)
    return EpisodeBuffer(
        id=index,
        observations=observation(index * 100 + np.arange(length + 1)),
        actions=np.full((length, 2), 0.25, np.float32),
        rewards=t.astype(float),
        terminations=terminal & (t == length - 1),
        truncations=np.full(length, False) | (not terminal) & (t == length - 1),
        infos={},
    )


@pytest.fixture
def minari_root(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


def create(name="test/own-v0", *, nested=False, **facts):
    box = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    space = gymnasium.spaces.Dict({"b": box, "a": box}) if nested else box
    attributes = ("algorithm_name", "author", "author_email", "code_permalink", "description")

    def observation(values):
        vector = np.asarray(values, float)[:, None]
        return {"a": vector, "b": -vector} if nested else vector

    return minari.create_dataset_from_buffers(
        name,
        [
            buffer(0, length=3, terminal=True, observation=observation),
            buffer(1, length=2, terminal=False, observation=observation),
        ],
        observation_space=space,
        action_space=gymnasium.spaces.Box(-2.0, 2.0, (2,), np.float32),
        **dict.fromkeys(attributes, "none"),
        **facts,
    )


@pytest.mark.filterwarnings("ignore")
def test_minari_by_id_and_by_path(minari_root, tmp_path):
    create()
    by_id = stored(minari_files.minari_source("test/own-v0"), tmp_path / "by_id")
    by_path = stored(
        minari_files.minari_source(minari_root / "test" / "own-v0"), tmp_path / "by_path"
    )
    assert by_id.manifest["fingerprint"] == by_path.manifest["fingerprint"]
    np.testing.assert_array_equal(
        both_splits(by_id, "observation")[:, 0], [0, 1, 2, 3, 100, 101, 102]
    )
    np.testing.assert_array_equal(both_splits(by_id, "reward"), [0, 1, 2, 0, 0, 1, 0])
    np.testing.assert_array_equal(both_splits(by_id, "discount"), [1, 1, 0, 1, 1, 1, 1])
    assert by_id.manifest["spec"]["action"] == {"minimum": [-2.0, -2.0], "maximum": [2.0, 2.0]}
    counts = by_id.manifest["counts"]
    assert (counts["steps"], counts["added"], counts["transitions"], counts["episodes"]) == (
        5,
        2,
        5,
        2,
    )


@pytest.mark.filterwarnings("ignore")
def test_minari_with_nested_observations(minari_root, tmp_path):
    create(nested=True)
    opened = stored(minari_files.minari_source(minari_root / "test" / "own-v0"), tmp_path / "store")
    columns = store.aligned(opened, "train").columns
    np.testing.assert_array_equal(columns["observation"]["b"][:, 0], [0, -1, -2, -3])


@pytest.mark.filterwarnings("ignore")
def test_truncated_minari_files_are_found(minari_root, tmp_path):
    create()
    file = minari_root / "test" / "own-v0" / "data" / "main_data.hdf5"
    content = file.read_bytes()
    for length in np.random.default_rng(0).integers(0, len(content), 20):
        file.write_bytes(content[:length])
        with pytest.raises(UsageError, match="cannot be"):
            stored(minari_files.minari_source("test/own-v0"), tmp_path / "store")


def test_an_absent_minari_dataset_is_refused(minari_root):
    with pytest.raises(UsageError, match="cannot be opened"):
        minari_files.minari_source("test/nothing-v0")


def test_action_spaces_that_no_learner_takes_are_refused():
    spaces = gymnasium.spaces
    assert minari_files._actions(spaces.Discrete(4)) == DiscreteActions(4)
    for space in (
        spaces.MultiDiscrete([2, 3]),
        spaces.Box(-1, 1, (2, 2)),
        spaces.Discrete(3, start=1),
    ):
        with pytest.raises(UsageError, match=r"not supported|must start at 0"):
            minari_files._actions(space)


@pytest.mark.filterwarnings("ignore")
def test_the_catalog_knows_minari_by_id_and_by_path(minari_root, tmp_path, monkeypatch):
    monkeypatch.setenv("OFFLINE_MBRL_DATA", str(tmp_path / "data"))
    create(nested=True)
    loaded = [
        catalog.load(name) for name in ("minari:test/own-v0", str(minari_root / "test" / "own-v0"))
    ]
    assert loaded[0].fingerprint == loaded[1].fingerprint
    # 0.25 of bounds [-2, 2]
    np.testing.assert_allclose(np.asarray(loaded[0].dataset.action)[:3], 0.125)
    assert catalog.flattened(loaded[1]).spec.observation.shape == (2,)


@pytest.mark.filterwarnings("ignore")
def test_minari_keeps_the_time_limit_of_its_simulator(minari_root, tmp_path, monkeypatch):
    monkeypatch.setenv("OFFLINE_MBRL_DATA", str(tmp_path / "data"))
    for name, limit, simulator in (
        ("a", 77, "gym/Hopper-v4?max_steps=77"),
        ("b", None, "gym/Hopper-v4"),
    ):
        env = gymnasium.envs.registration.EnvSpec(
            "Hopper-v4", "gymnasium.envs.classic_control:CartPoleEnv", max_episode_steps=limit
        )
        create(f"test/{name}-v0", env=env)
        loaded = catalog.load(f"minari:test/{name}-v0")
        assert (loaded.simulator, loaded.spec.horizon) == (simulator, limit or 0)
        assert loaded.reference == d4rl.MUJOCO_REFERENCES["hopper"]


# --- optional libraries ---


@pytest.mark.parametrize(
    ("library", "read", "extra"),
    [
        ("minari", lambda path: minari_files.minari_source("any/id-v0"), "offline_mbrl[minari]"),
        (
            "tensorflow_datasets",
            lambda path: tfds.builder_source("any", gamma=1.0, horizon=0),
            "offline_mbrl[data]",
        ),
        ("rlds", lambda path: tfds._rlds(), "offline_mbrl[tfrecord]"),
    ],
)
def test_a_missing_library_is_one_line_that_names_the_extra(
    monkeypatch, tmp_path, library, read, extra
):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UsageError, match=re.escape(f"pip install '{extra}'")):
        read(tmp_path)


def test_a_module_that_tfds_misses_on_the_way_is_named(monkeypatch):
    def prepare(self):
        raise ModuleNotFoundError("No module named 'mlcroissant'", name="mlcroissant")

    builder = type("Builder", (), {"download_and_prepare": prepare})
    monkeypatch.setattr(
        tfds, "_tfds", lambda: types.SimpleNamespace(builder=lambda name: builder())
    )
    with pytest.raises(
        UsageError, match=r"needs the module 'mlcroissant': pip install 'offline_mbrl\[data\]'"
    ):
        tfds.builder_source("any", gamma=1.0, horizon=0)
