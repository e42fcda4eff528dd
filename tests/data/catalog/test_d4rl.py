"""D4RL's names, references and simulators."""

import numpy as np
import pytest

from offline_mbrl.data.catalog import d4rl, names, official
from offline_mbrl.evaluation import aggregate

# name: returns of the normalized scores 0 and 1
CONSTANTS = {
    "halfcheetah-medium-v2": (-280.178953, 12135.0),
    "hopper-medium-replay-v0": (-20.272305, 3234.3),
    "walker2d-full-replay-v2": (1.629008, 4592.3),
    "ant-expert-v2": (-325.6, 3879.7),
    "antmaze-large-play-v2": (0, 1),
    "maze2d-open-v0": (0.01, 20.66),
    "maze2d-open-dense-v0": (11.17817, 27.166538620695782),
    "maze2d-umaze-v1": (23.85, 161.86),
    "maze2d-umaze-dense-v1": (68.537689, 193.66285642381482),
    "maze2d-medium-v1": (13.13, 277.39),
    "maze2d-medium-dense-v1": (44.264742, 297.4552547777125),
    "maze2d-large-v1": (6.7, 273.99),
    "maze2d-large-dense-v1": (30.569041, 303.4857382709002),
    "maze2d-umaze-v0": (0.94, 62.6),
    "maze2d-umaze-dense-v0": (23.249793, 81.78995240126592),
    "maze2d-medium-v0": (5.77, 85.14),
    "maze2d-medium-dense-v0": (19.477620, 96.03474232952358),
    "maze2d-large-v0": (4.83, 191.99),
    "maze2d-large-dense-v0": (27.388310, 215.09965671563742),
    "pen-human-v1": (96.262799, 3076.8331017826877),
    "hammer-cloned-v1": (-274.856578, 12794.134825156867),
    "door-expert-v0": (-56.512833, 2880.5693087298737),
    "relocate-human-v0": (-6.425911, 4233.877797728884),
    "kitchen-mixed-v0": (0, 4),
}


@pytest.mark.parametrize(("name", "returns"), CONSTANTS.items())
def test_references_are_the_published_ones(name, returns):
    reference = d4rl.by_file(name).reference
    assert tuple(reference) == returns
    assert aggregate.normalized_score(np.array(returns), *reference).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("simulator", "episode_return", "score"),
    [
        ("gym/Hopper-v4", 1500, 46.7119),
        ("gym/HalfCheetah-v4", 5000, 42.5300),
        ("gym/Walker2d-v4", 3000, 65.3144),
    ],
)
def test_scores_by_simulator(simulator, episode_return, score):
    reference = official.REFERENCES[simulator]
    normalized = 100 * aggregate.normalized_score(np.float64(episode_return), *reference)
    np.testing.assert_allclose(normalized, score, atol=5e-5)


def test_every_dataset_of_a_task_has_its_reference():
    tasks = d4rl.MUJOCO_REFERENCES | d4rl.ADROIT_REFERENCES
    assert len({dataset.name for dataset in d4rl.OFFICIAL}) == len(d4rl.OFFICIAL)
    for dataset in d4rl.OFFICIAL:
        if dataset.family in ("mujoco", "adroit"):
            assert dataset.reference == tasks[dataset.name.split("-")[0]]


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("hopper-medium-v2", "hopper-medium-v2"),
        ("hopper_medium-v2", "hopper-medium-v2"),
        ("hopper_medium_expert-v2", "hopper-medium-expert-v2"),
        ("hopper_medium", "hopper-medium-v0"),
        ("walker_mixed", "walker2d-medium-replay-v0"),
        ("halfcheetah_mixed", "halfcheetah-medium-replay-v0"),
        ("pen-v0_demos_clipped", "pen-human-v0"),
        ("door-demos-v0-bc-combined", "door-cloned-v0"),
        ("relocate-cloned-v1", "relocate-cloned-v1"),
        ("Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse", "antmaze-umaze-v0"),
        (
            "Ant_maze_hardest-maze_noisy_multistart_True_multigoal_True_sparse_fixed",
            "antmaze-large-diverse-v2",
        ),
        ("antmaze-umaze-v2", "antmaze-umaze-v2"),
        ("maze2d-umaze-sparse-v1", "maze2d-umaze-v1"),
        ("maze2d-large-dense", "maze2d-large-dense-v0"),
        ("kitchen_microwave_kettle_light_slider-v0", "kitchen-partial-v0"),
        ("mini_kitchen_microwave_kettle_light_slider-v0", "kitchen-complete-v0"),
    ],
)
def test_files_are_recognised_by_their_whole_name(stem, name):
    assert d4rl.by_file(stem).name == name


@pytest.mark.parametrize(
    "stem",
    [
        "my-hopper-medium-v2",
        "hopper-medium-v2-mine",
        "hopper-medium-v3",
        "Hopper-medium-v2",
        "antmaze-umaze",
        "antmaze",
        "ant",
        "hopper",
        "pen-human",
        "medium-v2",
        "",
    ],
)
def test_a_part_of_a_name_decides_nothing(stem):
    assert d4rl.by_file(stem) is None


def test_files_and_tfds_have_the_same_facts(tmp_path):
    for dataset in d4rl.OFFICIAL:
        path = tmp_path / f"{dataset.name}.hdf5"
        path.touch()
        by_file = names.lookup(str(path))
        assert (by_file.kind, by_file.location) == ("hdf5", str(path))
        if dataset.tfds:
            by_tfds = names.lookup(dataset.tfds)
            same = {"name": by_file.name, "kind": by_file.kind, "location": by_file.location}
            assert by_tfds._replace(**same) == by_file


def test_what_has_no_simulator_says_why():
    for dataset in d4rl.OFFICIAL:
        reasons = [line for line in d4rl.semantics(dataset) if line.startswith("no simulator")]
        assert len(reasons) == (dataset.simulator is None)
