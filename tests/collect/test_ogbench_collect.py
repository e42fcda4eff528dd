"""Data of OGBench's environments: scripts, records, seeds, and labels of tasks."""

import numpy as np
import pytest
from control_suite_marks import needs_control_suite

from offline_mbrl.collect.ogbench import episodes, manipulation, mazes, playing
from offline_mbrl.data.catalog import load as catalog
from offline_mbrl.data.catalog import names, official
from offline_mbrl.data.catalog import ogbench as facts
from offline_mbrl.environments import ogbench
from offline_mbrl.types import UsageError

NAVIGATE = "pointmaze-medium-navigate"
STITCH = "pointmaze-medium-stitch"
SIZES = {  # of observations, actions, and `qpos`; buttons
    "cube-double-noisy": (37, 5, 28, None),
    "puzzle-3x3-noisy": (55, 5, 23, 9),
    "scene-noisy": (40, 5, 25, 2),
    NAVIGATE: (2, 2, 2, None),
}


def run(name, num_steps, seed=0):
    return list(episodes.collect(name, num_steps=num_steps, seed=seed))


def content(dataset):
    return b"".join(
        column.tobytes() for episode in dataset for _, column in sorted(episode["steps"].items())
    )


# --- records and seeds ---


@needs_control_suite
@pytest.mark.parametrize("name", sorted(SIZES))
def test_an_episode_has_a_record_more_than_steps_and_is_truncated(name):
    observation_size, action_size, state_size, buttons = SIZES[name]
    (episode,) = run(name, 12)
    steps = episode["steps"]
    assert steps["observation"].shape == (13, observation_size)
    assert steps["action"].shape == (13, action_size)
    assert steps["qpos"].shape == (13, state_size)
    assert ("button_states" in steps) == bool(buttons)
    if buttons:
        assert steps["button_states"].shape == (13, buttons)
    np.testing.assert_array_equal(steps["is_first"], np.arange(13) == 0)
    np.testing.assert_array_equal(steps["is_last"], np.arange(13) == 12)
    assert not steps["is_terminal"].any()
    assert not steps["reward"].any()
    assert (steps["discount"] == 1).all()
    assert (np.abs(steps["action"]) <= 1).all()
    assert len(np.unique(steps["observation"], axis=0)) == 13


@needs_control_suite
def test_a_seed_fixes_everything_and_a_longer_dataset_begins_with_a_shorter_one():
    short = run(STITCH, 300)
    long = run(STITCH, 450)
    assert [len(episode["steps"]["reward"]) - 1 for episode in long] == [200, 200, 50]
    assert content(long[:1]) == content(short[:1])
    np.testing.assert_array_equal(
        long[1]["steps"]["observation"][:101], short[1]["steps"]["observation"]
    )
    assert content(run(STITCH, 300)) == content(short)
    assert content(run(STITCH, 300, seed=1)) != content(short)
    assert content(run("cube-single-noisy", 20)) == content(run("cube-single-noisy", 20))


@needs_control_suite
def test_numpys_generator_is_left_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    run(NAVIGATE, 10)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_an_unknown_name_is_refused():
    with pytest.raises(UsageError, match=r"cube-single-play"):
        run("cube-octuple-play", 10)
    for name in ("local/ogbench/cube", "local/catch-singletask-task1"):
        with pytest.raises(UsageError, match="unknown dataset"):
            names.lookup(name)


# --- scripts ---


def released_play(seed, num_steps):
    """Observations of the released script's loop: `generate_manipspace.py` on `cube-single`."""
    from ogbench.manipspace.oracles.plan import cube_plan

    environment = ogbench.make(
        "cube-single", terminate_at_goal=False, mode="data_collection", max_episode_steps=1001
    )
    agent = cube_plan.CubePlanOracle(env=environment, noise=0.1, noise_smoothing=0.5)
    observations = []
    new_targets = 0
    with ogbench.global_generator(np.random.RandomState(seed)):
        observation, info = environment.reset(seed=seed)
        agent.reset(observation, info)
        for _ in range(num_steps):
            action = np.clip(np.array(agent.select_action(observation, info)), -1, 1)
            observations.append(observation)
            observation, _, _, _, info = environment.step(action.astype(np.float32))
            if agent.done:
                new_targets += 1
                agent.reset(*environment.unwrapped.set_new_target(p_stack=0.0))
    return np.stack(observations), new_targets


@needs_control_suite
def test_play_is_what_the_released_script_plays():
    expected, new_targets = released_play(5, 150)
    played = manipulation.player("cube-single", "play")(5, 150)
    assert new_targets >= 1
    np.testing.assert_array_equal(played.observation[:-1], expected.astype(np.float32))


@needs_control_suite
def test_the_stored_actions_lead_to_the_stored_observations():
    played = manipulation.player("cube-single", "noisy")(3, 40)
    environment = ogbench.make(
        "cube-single", terminate_at_goal=False, mode="data_collection", max_episode_steps=-1
    )
    observation, _ = environment.reset(seed=3)
    observations = [observation, *(environment.step(action)[0] for action in played.action)]
    np.testing.assert_array_equal(played.observation, np.stack(observations).astype(np.float32))
    qpos = environment.unwrapped.data.qpos.astype(np.float32)
    np.testing.assert_array_equal(played.state["qpos"][-1], qpos)


def test_an_episode_that_is_not_kept_is_played_again():
    class Counter:
        """Counts its resets; observations are their number."""

        resets = 0
        action_space = type("Space", (), {"seed": lambda self, seed: None})()

        @property
        def unwrapped(self):
            return self

        def step(self, action):
            state = np.float64([self.resets])
            return state, 0.0, False, False, {"qpos": state, "prev_qpos": state}

    environment = Counter()
    seeds = []

    def start(seed, draws):
        seeds.append(seed)
        environment.resets += 1
        return playing.Script(
            observation=np.float64([environment.resets]),
            info={},
            choose=lambda observation, info: np.float64([2.0]),
            proceed=lambda info: None,
        )

    play = playing.player(environment, start, keep=lambda played: played.observation[0, 0] == 3)
    played = play(11, 2)
    assert seeds == [11, None, None]
    np.testing.assert_array_equal(played.observation, np.full((3, 1), 3, np.float32))
    np.testing.assert_array_equal(played.action, np.ones((2, 1)))


@pytest.mark.parametrize(
    ("place", "in_sight"),
    [
        ((0.4, 0.0, 0.02), True),
        ((0.4, 0.29, 0.02), False),  # beyond the right
        ((0.4, -0.31, 0.02), False),  # beyond the left
        ((0.4, -0.31, 0.07), True),  # in the drawer
    ],
)
def test_scenes_whose_cube_leaves_the_picture_are_not_kept(place, in_sight):
    qpos = np.zeros((4, 25), np.float32)
    qpos[1, manipulation.CUBE] = place
    played = playing.Played(np.zeros((4, 1)), np.zeros((3, 1)), {"qpos": qpos})
    assert manipulation.cube_in_sight(played) == in_sight


MAP = np.array(
    [
        [1, 1, 1, 1, 1],
        [1, 0, 0, 0, 1],
        [1, 0, 1, 0, 1],
        [1, 0, 1, 0, 1],
        [1, 1, 1, 1, 1],
    ]
)


def test_cells_of_a_maze():
    assert mazes.free_cells(MAP) == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 3), (3, 1), (3, 3)]
    hallways = [cell for cell in mazes.free_cells(MAP) if mazes.is_hallway(MAP, cell)]
    assert hallways == [(1, 2), (2, 1), (2, 3)]
    assert mazes.cells_at(MAP, (1, 2), 0) == [(1, 2)]
    assert set(mazes.cells_at(MAP, (1, 2), 3)) == {(3, 1), (3, 3)}
    assert mazes.cells_at(MAP, (1, 2), 4) == []


@needs_control_suite
def test_the_point_reaches_goals_and_goes_on_to_others_or_stays():
    (navigated,) = run(NAVIGATE, 400)
    (stitched,) = run(STITCH, 200)
    travelled = [
        np.linalg.norm(np.ptp(episode["steps"]["observation"][-100:], axis=0))
        for episode in (navigated, stitched)
    ]
    assert travelled[0] > 6 > travelled[1]


# --- datasets by name ---


def collect(name, **settings):
    return episodes.collect(name.removeprefix("ogbench/"), **settings)


@needs_control_suite
def test_tasks_label_the_same_steps_and_rewards_in_are_rewards_out():
    plain = catalog.load(f"local/ogbench/{NAVIGATE}-steps2400", collect=collect)
    assert plain.simulator is None
    assert not plain.dataset.reward.any()
    sums = []
    for task in (2, 5):
        name = f"local/ogbench/{NAVIGATE}-singletask-task{task}-steps2400"
        loaded = catalog.load(name)  # what was collected is there
        assert loaded.name == name
        assert loaded.simulator == f"ogbench/pointmaze-medium-singletask-task{task}"
        np.testing.assert_array_equal(loaded.dataset.observation, plain.dataset.observation)
        np.testing.assert_array_equal(loaded.dataset.action, plain.dataset.action)
        goal = np.asarray(
            ogbench.make(f"pointmaze-medium-singletask-task{task}").unwrapped.task_infos[task - 1][
                "goal_xy"
            ]
        )
        count = 0
        for part in (loaded.dataset, loaded.validation):
            rows = part.starts
            solved = np.linalg.norm(part.observation[rows] - goal, axis=1) <= 1
            np.testing.assert_array_equal(part.reward[rows], solved - 1.0)
            np.testing.assert_array_equal(part.discount[rows], 1.0 - solved)
            count += int(solved.sum())
        sums.append(count)
    assert sums[0] != sums[1]
    assert min(sums) > 0


@needs_control_suite
def test_two_builds_are_equal_byte_for_byte(tmp_path, monkeypatch):
    name = "local/ogbench/cube-single-play-singletask-task2-steps30"
    prints = []
    for folder in ("first", "second"):
        monkeypatch.setenv("OFFLINE_MBRL_DATA", str(tmp_path / folder))
        opened = catalog.open_named(name, collect=collect)
        (shard,) = (tmp_path / folder / "rlds").rglob("*.array_record-*")
        prints.append((opened.manifest["fingerprint"], shard.read_bytes()))
    assert prints[0] == prints[1]
    assert shard.parent.name == "cube-single-play-steps30"  # of all tasks


def test_every_dataset_that_is_collected_has_a_name_and_its_tasks_simulators():
    for dataset in facts.COLLECTED:
        assert dataset in facts.DATASETS
        entry = names.lookup(f"local/ogbench/{dataset}-singletask-task5-seed3-steps70")
        assert entry.name == f"local/ogbench/{dataset}-singletask-task5-seed3-steps70"
        assert (entry.location, entry.task) == (f"ogbench/{dataset}", 5)
        assert entry.simulator == f"ogbench/{facts.environment(dataset)}-singletask-task5"
        assert entry.horizon == official.LOCAL_OGBENCH[entry.location].horizon
