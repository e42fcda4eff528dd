"""Data of gymnasium's MuJoCo tasks: records, densities, who acts, and the levels of policies."""

import jax
import numpy as np
import pytest

from offline_mbrl import environments
from offline_mbrl.collect import policy_set, policy_training
from offline_mbrl.collect.mujoco import episodes as mujoco
from offline_mbrl.collect.mujoco import policies
from offline_mbrl.data.catalog import load as catalog
from offline_mbrl.data.catalog import names, official
from offline_mbrl.types import BoundedActions, UsageError

TASKS = sorted(official.MUJOCO_REFERENCES)


def run(name="hopper-full-replay", num_steps=4_800, seed=0):
    return list(mujoco.collect(name, num_steps=num_steps, seed=seed))


@pytest.fixture(scope="module")
def episodes():
    return run()


def content(dataset):
    return b"".join(
        column.tobytes() for episode in dataset for _, column in sorted(episode["steps"].items())
    )


def made_up(returns, random_return=0.0):
    count = len(returns)
    return policy_set.PolicySet(
        params={"layer_0": {"kernel": np.arange(count, dtype=np.float32)[:, None, None]}},
        run=np.zeros(count, np.int32),
        step=np.arange(count, dtype=np.int32),
        mean_return=np.array(returns, np.float32),
        stderr=np.zeros(count, np.float32),
        role=np.array(["behavior"] * count),
        random_return=np.float32(random_return),
    )


# --- the levels ---


@pytest.mark.parametrize(
    ("returns", "random_return", "medium", "expert"),
    [
        ([0, 30, 50, 90], 0, 1, 3),
        ([0, 30, 32, 90, 31], 0, 2, 3),  # the last one near the level, before the expert
        ([0, 10, 60, 90], 0, 1, 3),  # none is near it: the closest
        ([-100, -80, -70, -10], -100, 2, 3),  # returns count from that of uniform actions
        ([90, 30], 0, 0, 0),
    ],
)
def test_a_medium_policy_is_at_a_third_of_the_experts_return(
    returns, random_return, medium, expert
):
    snapshots = made_up(returns, random_return)
    assert (policies.medium(snapshots), policies.expert(snapshots)) == (medium, expert)


def test_each_kind_has_its_policies_in_the_order_of_training():
    snapshots = made_up([0, 20, 30, 60, 90, 80])
    rows = {kind: mujoco.simulator_rows(kind, snapshots) for kind in official.MUJOCO_KINDS}
    assert set(rows["random"]) == {-1}
    assert set(rows["medium"]) == {2}
    assert set(rows["expert"]) == {4}
    np.testing.assert_array_equal(rows["medium-replay"], [0, 1, 2])
    np.testing.assert_array_equal(rows["full-replay"], range(6))
    np.testing.assert_array_equal(np.unique(rows["medium-expert"], return_counts=True)[1], [5, 5])


@pytest.mark.parametrize("task", TASKS)
def test_a_tasks_shipped_policies_have_the_levels_of_the_catalog(task):
    snapshots = policies.policies(task)
    assert (np.diff(snapshots.step) > 0).all()
    reference = official.LOCAL_MUJOCO[f"mujoco/{task}-expert"].reference
    expert = snapshots.mean_return[policies.expert(snapshots)]
    medium = snapshots.mean_return[policies.medium(snapshots)]
    way = reference.expert - reference.random
    assert (expert - reference.random) / way == pytest.approx(1, abs=0.1)
    assert (medium - reference.random) / way == pytest.approx(1 / 3, abs=0.15)


# --- records ---


def test_falling_is_a_terminal_and_the_end_of_the_time_is_not(episodes):
    ended = [bool(episode["steps"]["is_terminal"][-1]) for episode in episodes]
    assert {True, False} == set(ended)
    for number, episode in enumerate(episodes):
        steps = episode["steps"]
        length = len(steps["reward"]) - 1
        assert {name: column.dtype.name for name, column in steps.items()} == {
            **dict.fromkeys(("observation", "action", "reward", "discount"), "float32"),
            "behavior_log_prob": "float32",
            **dict.fromkeys(("is_first", "is_last", "is_terminal"), "bool"),
        }
        assert steps["observation"].shape == (length + 1, 11)
        np.testing.assert_array_equal(steps["is_first"], np.arange(length + 1) == 0)
        np.testing.assert_array_equal(steps["is_last"], np.arange(length + 1) == length)
        np.testing.assert_array_equal(
            steps["discount"][:-1] == 0, (np.arange(length) == length - 1) & ended[number]
        )
        assert episode["metadata"]["episode_id"] == number


def test_the_steps_are_those_that_were_asked_for_and_shared_evenly():
    dataset = run("hopper-medium-expert", num_steps=2_003)
    lengths = [len(episode["steps"]["reward"]) - 1 for episode in dataset]
    assert sum(lengths) == 2_003
    snapshots = policies.policies("hopper")
    by_step = {}
    for episode, length in zip(dataset, lengths, strict=True):
        step = episode["metadata"]["policy_step"]
        by_step[step] = by_step.get(step, 0) + length
    levels = (policies.medium(snapshots), policies.expert(snapshots))
    assert by_step.keys() == {int(snapshots.step[row]) for row in levels}
    assert max(by_step.values()) - min(by_step.values()) <= 10


def test_reward_and_next_observation_stand_with_the_action_that_caused_them():
    steps = run("pendulum-random", num_steps=400)[0]["steps"]
    simulator = environments.make("gym/Pendulum-v1", seed=0)
    simulator.reset()
    pendulum = simulator._environment._environment.unwrapped  # type: ignore[attr-defined]
    for t in (0, 1, 20, 39):
        cos, sin, velocity = steps["observation"][t].astype(np.float64)
        pendulum.state = np.array([np.arctan2(sin, cos), velocity])
        timestep = simulator.step(steps["action"][t])
        np.testing.assert_allclose(timestep.observation, steps["observation"][t + 1], atol=1e-4)
        assert timestep.reward == pytest.approx(steps["reward"][t], abs=1e-4)


def test_same_seed_gives_identical_bytes_and_another_seed_others(episodes):
    assert content(run()) == content(episodes)
    assert content(run(seed=1)) != content(episodes)


def test_the_logged_density_is_that_of_the_snapshot_that_played(episodes):
    snapshots = policies.policies("hopper")
    policy = policy_training.policy(snapshots.params)
    density = jax.jit(policy.log_prob)
    for episode in episodes[:: len(episodes) // 4]:
        (row,) = np.flatnonzero(snapshots.step == episode["metadata"]["policy_step"])
        assert episode["metadata"]["policy_return"] == snapshots.mean_return[row]
        params = jax.tree.map(lambda leaf, row=row: leaf[row], snapshots.params)
        steps = episode["steps"]
        expected = density(params, steps["observation"][0], steps["action"][0])
        np.testing.assert_allclose(steps["behavior_log_prob"][0], expected, atol=1e-4)


def test_uniform_actions_have_the_uniform_density():
    for episode in run("hopper-random", num_steps=300):
        steps = episode["steps"]
        assert episode["metadata"]["policy_run"] == -1
        np.testing.assert_allclose(steps["behavior_log_prob"][:-1], -3 * np.log(2), rtol=1e-6)
        assert np.abs(steps["action"]).max() <= 1


# --- the catalog ---


@pytest.mark.parametrize("task", TASKS)
def test_the_catalogs_facts_are_those_of_the_simulator(task):
    entry = names.lookup(f"local/mujoco/{task}-medium-steps500")
    assert entry.simulator is not None
    spec = environments.spec(entry.simulator)
    facts = official.LOCAL_MUJOCO[f"mujoco/{task}-medium"]
    assert spec.horizon == facts.horizon == entry.horizon
    assert isinstance(spec.action, BoundedActions)
    assert isinstance(facts.action, BoundedActions)
    assert spec.action.size == facts.action.size  # data have entries in [-1, 1]


def test_a_dataset_is_built_from_its_name_and_says_who_played():
    name = "local/mujoco/hopper-medium-replay-steps650"
    loaded = catalog.flattened(
        catalog.load(name, collect=lambda name, **settings: mujoco.collect(name[7:], **settings))
    )
    assert loaded.name == name
    assert (loaded.spec.horizon, loaded.spec.observation.shape) == (1000, (11,))
    assert (loaded.simulator, loaded.reference) == (
        "gym/Hopper-v5",
        official.MUJOCO_REFERENCES["hopper"],
    )
    assert set(loaded.dataset.extras) == {"behavior_log_prob"}
    noted = catalog.open_named(name).manifest["provenance"]["written_by"]
    snapshots = policies.policies("hopper")
    steps = snapshots.step[: policies.medium(snapshots) + 1]
    assert noted["policies"].keys() == {f"run 0, step {step}" for step in steps}
    assert noted["steps"] == 650


@pytest.mark.parametrize("name", ["hopper-best", "swimmer-medium", "hopper"])
def test_an_unknown_name_is_refused(name):
    with pytest.raises(UsageError, match="unknown"):
        run(name)
    with pytest.raises(UsageError, match="unknown dataset"):
        names.lookup(f"local/mujoco/{name}")


def test_a_task_without_policies_says_how_they_are_trained():
    with pytest.raises(UsageError, match=r"python -m offline_mbrl.collect.mujoco.policies ant"):
        run("ant-medium")


def test_fewer_steps_than_policies_are_refused():
    with pytest.raises(UsageError, match="give as many steps"):
        run("hopper-full-replay", num_steps=5)
