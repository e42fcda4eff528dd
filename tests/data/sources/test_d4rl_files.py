"""Small files in the layout of D4RL's, by its names."""

import h5py
import numpy as np
import pytest

from offline_mbrl import cli
from offline_mbrl.data.catalog import d4rl
from offline_mbrl.data.catalog import load as catalog
from offline_mbrl.data.sources import hdf5, ingest
from offline_mbrl.data.store import read as store
from offline_mbrl.types import UsageError


@pytest.fixture(autouse=True)
def _root(tmp_path, monkeypatch):
    monkeypatch.setenv("OFFLINE_MBRL_DATA", str(tmp_path / "data"))


def write(path, *, ends, terminals, next_observations=False, timeouts=True, attributes=()):
    """Episodes that end after the rows `ends`; observations count 0, 1, ... across them.

    An episode's last next observation is 1000 + the row: no row of the file holds it.
    """
    size = ends[-1] + 1
    rows = np.arange(size)
    observation = np.stack([rows, rows % 7, np.ones(size)], axis=1).astype(np.float32)
    following = observation + np.float32([1, 0, 0])
    following[:-1] = observation[1:]
    following[ends, 0] = 1000 + np.array(ends)
    with h5py.File(path, "w") as file:
        file["observations"] = observation
        file["actions"] = np.random.default_rng(0).uniform(-1, 1, (size, 2)).astype(np.float32)
        file["rewards"] = np.random.default_rng(1).normal(size=size).astype(np.float32)
        file["terminals"] = np.isin(rows, terminals)
        if timeouts:
            file["timeouts"] = np.isin(rows, ends) & ~np.isin(rows, terminals)
        if next_observations:
            file["next_observations"] = following
        file["infos/qpos"] = np.zeros((size, 5))
        file["infos/action_log_probs"] = np.zeros(size)
        file["metadata/algorithm"] = np.bytes_("SAC")
        file["metadata/iteration"] = 100
        file["metadata/policy/fc0/weight"] = np.zeros((3, 3))
        file.attrs.update(dict(attributes))
        return file["rewards"][:]


def columns(path):
    """All columns of a file's store in the source's order, and its manifest."""
    target = path.with_suffix(".store")
    ingest.ingest(hdf5.hdf5_source(path), target, name="test")
    opened = store.open_store(target)
    parts = [part for part in (store.aligned(opened, split) for split in store.SPLITS) if part]
    first = np.concatenate([part.columns["observation"][:, 0] for part in parts])
    # Ends that the file lacks elsewhere (1000 + row) belong behind their row.
    order = np.argsort(np.where(first >= 1000, first - 999.5, first), kind="stable")
    names = ("observation", "reward", "discount")
    joined = {name: np.concatenate([part.columns[name] for part in parts])[order] for name in names}
    return joined, opened.manifest


# --- MuJoCo ---


def test_v2_keeps_every_step_and_tells_terminals_from_time_limits(tmp_path):
    path = tmp_path / "hopper_medium-v2.hdf5"
    rewards = write(path, ends=[2, 5, 8], terminals=[2], next_observations=True)
    read, manifest = columns(path)
    observation = [0, 1, 2, 1002, 3, 4, 5, 1005, 6, 7, 8, 1008]
    np.testing.assert_array_equal(read["observation"][:, 0], observation)
    np.testing.assert_array_equal(read["discount"], [1, 1, 0] + [1] * 9)
    np.testing.assert_allclose(read["reward"].sum(), rewards.sum(), rtol=1e-6)
    assert manifest["counts"]["transitions"] == manifest["counts"]["steps"] == 9
    assert manifest["provenance"]["d4rl"] == "hopper-medium-v2"
    assert (manifest["spec"]["gamma"], manifest["spec"]["horizon"]) == (0.99, 1000)


def test_the_reset_after_a_time_limit_is_nobodys_next_state(tmp_path):
    path = tmp_path / "hopper_medium-v1.hdf5"
    rewards = write(path, ends=[2, 5, 8], terminals=[2])
    read, manifest = columns(path)
    np.testing.assert_array_equal(read["observation"][:, 0], [0, 1, 2, 2, 3, 4, 5, 6, 7, 8])
    np.testing.assert_array_equal(read["discount"], [1, 1, 0] + [1] * 7)
    # Steps 5 and 8 have no outcome.
    np.testing.assert_allclose(read["reward"].sum(), np.delete(rewards, [5, 8]).sum(), rtol=1e-6)
    assert manifest["counts"]["without_outcome"] == 2


def limited(monkeypatch, name, horizon):
    official = d4rl.by_file(name)._replace(horizon=horizon)
    monkeypatch.setitem(d4rl._BY_FILE, name, official)


def test_v0_without_timeouts_is_cut_at_the_fixed_limit(tmp_path, monkeypatch):
    limited(monkeypatch, "hopper_medium", 3)
    write(tmp_path / "hopper_medium.hdf5", ends=[1, 4, 7, 8], terminals=[1], timeouts=False)
    write(tmp_path / "marked.hdf5", ends=[1, 4, 7, 8], terminals=[1])
    recovered, manifest = columns(tmp_path / "hopper_medium.hdf5")
    marked, _ = columns(tmp_path / "marked.hdf5")
    for name, column in marked.items():
        np.testing.assert_array_equal(recovered[name], column)
    assert "the limit, 3" in manifest["provenance"]["semantics"][0]


def test_a_file_of_ones_own_can_state_its_limit(tmp_path):
    limit = {"max_episode_steps": 3}
    write(tmp_path / "mine.hdf5", ends=[1, 4, 7], terminals=[1], timeouts=False, attributes=limit)
    read, manifest = columns(tmp_path / "mine.hdf5")
    np.testing.assert_array_equal(read["observation"][:, 0], [0, 1, 1, 2, 3, 4, 5, 6, 7])
    assert (manifest["counts"]["episodes"], manifest["spec"]["horizon"]) == (3, 3)
    write(tmp_path / "mine.hdf5", ends=[8], terminals=[], attributes={"max_episode_steps": -1})
    with pytest.raises(UsageError, match="'max_episode_steps' must be a number of steps, got -1"):
        hdf5.hdf5_source(tmp_path / "mine.hdf5")


@pytest.mark.parametrize("name", ["antmaze-umaze-v0", "pen-human-v1", "maze2d-umaze-v1"])
def test_ends_that_cannot_be_recovered_are_refused(tmp_path, name):
    path = tmp_path / f"{name}.hdf5"
    write(path, ends=[2, 5, 8], terminals=[2], timeouts=False)
    with pytest.raises(UsageError, match=f"D4RL's {name} by its name, but it has neither"):
        hdf5.hdf5_source(path)


# --- AntMaze and the kitchen ---


def write_antmaze(path, *, position, terminals, timeouts):
    size = len(position)
    rows = np.arange(size)
    observation = np.zeros((size, 29), np.float32)
    observation[:, 0] = position
    observation[:, 2] = rows
    with h5py.File(path, "w") as file:
        file["observations"] = observation
        file["actions"] = np.zeros((size, 8), np.float32)
        file["rewards"] = np.isin(rows, terminals).astype(np.float32)
        file["terminals"] = np.isin(rows, terminals).astype(np.float32)
        file["timeouts"] = np.isin(rows, timeouts)
        file["infos/goal"] = np.zeros((size, 2), np.float32)


def transitions(path):
    """{row: (reward, discount, next row)}."""
    target = path.with_suffix(".store")
    ingest.ingest(hdf5.hdf5_source(path), target, name="test")
    opened = store.open_store(target)
    listed = {}
    for part in (store.aligned(opened, split) for split in store.SPLITS):
        for row in np.setdiff1d(np.arange(len(part.columns["reward"])), part.episode_ends):
            current, following = part.columns["observation"][row : row + 2, 2].tolist()
            reward, discount = (float(part.columns[key][row]) for key in ("reward", "discount"))
            listed[int(current)] = (reward, discount, int(following))
    return listed, opened.manifest


ANTMAZE = "Ant_maze_big-maze_noisy_multistart_True_multigoal_False_sparse"


@pytest.mark.parametrize("batch", [2**16, 1])
def test_antmaze_goes_on_after_the_goal(tmp_path, monkeypatch, batch):
    # Two episodes, 0-5 with the goal at 3 and 4, and 6-9; no state is invented.
    monkeypatch.setattr(ingest, "BATCH_RECORDS", batch)
    path = tmp_path / f"{ANTMAZE}_fixed.hdf5"
    position = [0, 0.5, 1, 1.5, 1.6, 1.7, 9, 9.1, 9.2, 9.3]
    write_antmaze(path, position=position, terminals=[2, 3], timeouts=[5, 9])
    listed, manifest = transitions(path)
    assert listed == {
        0: (0, 1, 1),
        1: (0, 1, 2),
        2: (1, 0, 3),
        3: (1, 0, 4),
        4: (0, 1, 5),
        6: (0, 1, 7),
        7: (0, 1, 8),
        8: (0, 1, 9),
    }
    assert manifest["counts"]["dropped"] == {hdf5.WITHOUT_OUTCOME: 2}
    assert manifest["provenance"]["d4rl"] == "antmaze-medium-play-v2"


def test_antmaze_v0_resets_where_the_ant_jumps_whatever_the_timeouts_say(tmp_path):
    # The timeout stands three rows late: the ant is elsewhere from row 3 on.
    path = tmp_path / f"{ANTMAZE}.hdf5"
    position = [0, 0.5, 1, 20, 20.1, 20.2, 20.3]
    write_antmaze(path, position=position, terminals=[2], timeouts=[5])
    listed, _ = transitions(path)
    # The terminal before the reset is kept, its next state is unknown.
    assert listed == {
        0: (0, 1, 1),
        1: (0, 1, 2),
        2: (1, 0, 2),
        3: (0, 1, 4),
        4: (0, 1, 5),
    }


def test_the_kitchens_demonstrations_end_at_their_terminals(tmp_path):
    path = tmp_path / "kitchen-mixed-v0.hdf5"
    rewards = write(path, ends=[3, 7], terminals=[3, 7], timeouts=False)
    with h5py.File(path, "a") as file:
        del file["infos"]
        file["infos"] = np.zeros(8, int)  # of demonstrations: no group
    read, manifest = columns(path)
    np.testing.assert_allclose(read["reward"].sum(), rewards.sum(), rtol=1e-6)
    assert manifest["counts"]["episodes"] == 2


# --- by name ---


@pytest.mark.parametrize("stem", ["hopper_medium-v2", "hopper-medium-v2"])
def test_an_official_file_has_the_reference_and_the_simulator_of_its_name(tmp_path, stem):
    path = tmp_path / f"{stem}.hdf5"
    write(path, ends=[2, 5, 8], terminals=[2], next_observations=True)
    loaded = catalog.load(str(path))
    assert loaded.simulator == "gym/Hopper-v4"
    assert tuple(loaded.reference) == (-20.272305, 3234.3)
    assert loaded.spec.horizon == 1000


def test_a_file_of_another_name_has_neither(tmp_path):
    path = tmp_path / "my-hopper-medium-v2.hdf5"
    write(path, ends=[2, 5, 8], terminals=[2], next_observations=True)
    loaded = catalog.load(str(path))
    assert (loaded.simulator, loaded.reference) == (None, None)


def test_adroit_has_a_reference_without_a_simulator(tmp_path):
    path = tmp_path / "pen-human-v1.hdf5"
    write(path, ends=[2, 5, 8], terminals=[])
    loaded = catalog.load(str(path))
    assert loaded.simulator is None
    assert tuple(loaded.reference) == (96.262799, 3076.8331017826877)


def test_audit_and_info_name_the_semantics(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    path = tmp_path / "hopper_medium-v1.hdf5"
    write(path, ends=[2, 5, 8], terminals=[2])
    for command in ("audit", "info"):
        cli.main(["data", command, str(path)])
        out = capsys.readouterr().out
        assert "rewards and terminals belong to the next state" in out
        assert "timeouts are time limits, and their steps have no outcome" in out
