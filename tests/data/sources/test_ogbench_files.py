"""OGBench's own files: splits, masks apart from terminals, and ogbench's own labels."""

import functools
import io

import numpy as np
import pytest
from control_suite_marks import needs_control_suite
from rich.console import Console

from offline_mbrl.commands import data as command
from offline_mbrl.data import audit
from offline_mbrl.data.catalog import load as catalog
from offline_mbrl.data.catalog import names
from offline_mbrl.data.catalog import ogbench as facts
from offline_mbrl.data.store import read as store
from offline_mbrl.data.store import write as columns
from offline_mbrl.types import UsageError

NAME = "ogbench/cube-double-play"
TASK = 2
STEM = "cube-double-play-v0"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("OFFLINE_MBRL_DATA", str(tmp_path))
    monkeypatch.setattr(facts, "OWN_FOLDER", str(tmp_path / "own"))
    (tmp_path / facts.FOLDER).mkdir()
    return tmp_path / facts.FOLDER


@functools.cache
def goals():
    import gymnasium
    import ogbench  # noqa: F401

    gymnasium.logger.min_level = gymnasium.logger.ERROR
    environment = gymnasium.make("cube-double-v0").unwrapped
    return environment.task_infos[TASK - 1]["goal_xyzs"]


def table(lengths, seed, near):
    """A file's arrays; the cubes are at their goals on the rows `near`, else far away."""
    rng = np.random.default_rng(seed)
    size = sum(lengths)
    qpos = rng.normal(size=(size, 28)).astype(np.float32)
    qpos[:, [14, 21]] += 50
    for cube, goal in enumerate(goals()):
        qpos[near, 14 + 7 * cube : 17 + 7 * cube] = goal
    return {
        "observations": rng.normal(size=(size, 37)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (size, 5)).astype(np.float32),
        "terminals": np.isin(np.arange(size), np.cumsum(lengths) - 1),
        "qpos": qpos,
        "qvel": np.zeros((size, 3), np.float32),
    }


@pytest.fixture
def files(folder):
    train = table((5, 6), 0, near=[1, 2, 9])  # the last step of the second episode is solved
    validation = table((5,), 1, near=[0])
    np.savez(folder / f"{STEM}.npz", **train)
    np.savez(folder / f"{STEM}-val.npz", **validation)
    return train, validation


@needs_control_suite
def test_the_two_files_are_the_two_splits_and_labels_are_ogbenchs_own(files, folder):
    import ogbench

    loaded = catalog.load(f"{NAME}-singletask-task{TASK}")
    assert loaded.simulator == f"ogbench/cube-double-singletask-task{TASK}"
    official = ogbench.make_env_and_datasets(
        f"cube-double-play-singletask-task{TASK}-v0", dataset_dir=str(folder)
    )[1:]
    for part, expected in zip((loaded.dataset, loaded.validation), official, strict=True):
        rows = part.starts
        np.testing.assert_array_equal(part.observation[rows], expected["observations"])
        np.testing.assert_array_equal(part.observation[rows + 1], expected["next_observations"])
        np.testing.assert_array_equal(part.action[rows], expected["actions"])
        np.testing.assert_array_equal(part.reward[rows], expected["rewards"])
        np.testing.assert_array_equal(part.discount[rows], expected["masks"])
        np.testing.assert_array_equal(rows + 1 == part.episode_end[rows], expected["terminals"])
    assert set(loaded.dataset.reward[loaded.dataset.starts]) == {-2.0, 0.0}


@needs_control_suite
def test_masks_stay_apart_from_terminals(files):
    opened = catalog.open_named(f"{NAME}-singletask-task{TASK}")
    part = store.aligned(opened, "train")
    np.testing.assert_array_equal(part.episode_ends, [4, 10])
    np.testing.assert_array_equal(np.flatnonzero(part.columns["discount"] == 0), [1, 2, 9])
    np.testing.assert_array_equal(audit.ends_terminal(part), [False, True])
    assert audit.masked(part) == 2
    assert audit.terminals_at_limit(part, 5) == []
    assert set(part.columns) == {"observation", "action", "reward", "discount"}


@needs_control_suite
def test_rewards_in_are_rewards_out(files):
    opened = catalog.open_named(f"{NAME}-singletask-task{TASK}")
    expected = 0
    for part in files:
        happened = ~part["terminals"]  # the row that ends an episode holds an observation alone
        expected += np.sum(np.where(np.abs(part["qpos"][:, 14]) > 5, -2, 0)[happened])
    total = sum(
        audit.episode_returns(store.aligned(opened, split)).sum() for split in opened.columns
    )
    assert total == expected == -18


@needs_control_suite
def test_without_a_task_nothing_is_rewarded_and_nothing_ends(files):
    loaded = catalog.load(f"{NAME}-v0")
    assert loaded.name == NAME
    assert loaded.simulator is None
    assert not loaded.dataset.reward.any()
    assert (loaded.dataset.discount == 1).all()


@needs_control_suite
def test_info_and_audit_name_the_meaning_of_rewards_and_ends(files):
    console = Console(file=io.StringIO(), width=500)
    name = f"{NAME}-singletask-task{TASK}"
    assert command.run_audit(command.Audit(name), console) == 0
    text = console.file.getvalue()
    assert "reward of the state before the action" in text
    assert "masks: 0 on every step from a solved state, also inside episodes" in text
    assert "episodes end at ogbench's terminals, which are truncations unless" in text
    assert command.run_audit(command.Audit(NAME), console) == 0
    assert "no task and no reward" in console.file.getvalue()
    noted = catalog.open_named(name).manifest["provenance"]
    assert noted["labels"].startswith("ogbench 1.")
    assert noted["task"] == TASK


@needs_control_suite
def test_a_fault_is_placed_in_the_source(files, folder):
    _, validation = files
    validation["observations"][2, 0] = np.nan
    np.savez(folder / f"{STEM}-val.npz", **validation)
    with pytest.raises(UsageError, match=r"step 2 of episode 2 "):
        catalog.load(NAME)


def test_missing_files_are_named_with_their_place(folder):
    with pytest.raises(UsageError) as error:
        catalog.load(NAME)
    for part in (f"{STEM}.npz", f"{STEM}-val.npz", str(folder), "local/ogbench/cube-double-play"):
        assert part in str(error.value)


@needs_control_suite
@pytest.mark.parametrize("fault", ["cut short", "other fields", "no state"])
def test_a_damaged_file_is_refused(files, folder, fault):
    path = folder / f"{STEM}.npz"
    if fault == "cut short":
        path.write_bytes(path.read_bytes()[:500])
    elif fault == "other fields":
        np.savez(path, observations=np.zeros((3, 2)))
    else:
        np.savez(path, **{name: files[0][name] for name in files[0] if name != "qpos"})
    with pytest.raises(UsageError, match=rf"{STEM}\.npz .*(cannot be read|no field 'qpos')"):
        catalog.load(NAME)


def test_names_are_understood_with_and_without_the_version():
    assert names.lookup(f"{NAME}-singletask-task2-v0") == names.lookup(f"{NAME}-singletask-task2")
    assert len(facts.names()) == len(set(facts.names())) == 6 * len(facts.DATASETS)
    for wrong in (f"{NAME}-singletask-task6", "ogbench/cube-double", "ogbench/cube-tower-play"):
        with pytest.raises(UsageError, match=r"unknown dataset.*did you mean"):
            names.lookup(wrong)


def test_the_validation_split_is_what_follows_the_training_episodes():
    rule = columns.held_out_after(3)
    assert [rule(episode) for episode in range(5)] == [False, False, False, True, True]
    assert columns.held_out_after(None) is columns.held_out
