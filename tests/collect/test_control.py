"""Datasets of the control suite: records, behavior, densities, and the policies to evaluate."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from control_suite_marks import needs_control_suite

from offline_mbrl import environments
from offline_mbrl.collect import control, control_policies, online, policy_set, policy_training
from offline_mbrl.data import trees
from offline_mbrl.data.catalog import load as catalog
from offline_mbrl.data.catalog import official
from offline_mbrl.data.sources import rlds_writer
from offline_mbrl.types import BoundedActions, Policy, UsageError

SHIPPED = ("cartpole_swingup", "cheetah_run", "walker_walk")
TASK = "cartpole_swingup"
NAME = "local/control/cartpole_swingup-episodes3"


def run(seed=0):
    return list(control.collect(TASK, num_episodes=3, seed=seed))


@pytest.fixture(scope="module")
def episodes():
    return run()


def content(dataset):
    return b"".join(
        column.tobytes() for episode in dataset for _, column in sorted(episode["steps"].items())
    )


def made_up(returns, runs, steps):
    count = len(returns)
    return policy_set.PolicySet(
        params={"layer_0": {"kernel": np.arange(count, dtype=np.float32)[:, None, None]}},
        run=np.array(runs, np.int32),
        step=np.array(steps, np.int32),
        mean_return=np.array(returns, np.float32),
        stderr=np.zeros(count, np.float32),
        role=np.array(["behavior"] * count),
        random_return=np.float32(1),
    )


# --- records ---


@needs_control_suite
def test_records_have_the_rlds_layout_and_the_time_limit_is_no_terminal(episodes):
    for number, episode in enumerate(episodes):
        steps = episode["steps"]
        assert {name: (column.shape, column.dtype.name) for name, column in steps.items()} == {
            "observation": ((1001, 5), "float32"),
            "action": ((1001, 1), "float32"),
            "reward": ((1001,), "float32"),
            "discount": ((1001,), "float32"),
            "behavior_log_prob": ((1001,), "float32"),
            **dict.fromkeys(("is_first", "is_last", "is_terminal"), ((1001,), "bool")),
        }
        np.testing.assert_array_equal(steps["is_first"], np.arange(1001) == 0)
        np.testing.assert_array_equal(steps["is_last"], np.arange(1001) == 1000)
        assert not steps["is_terminal"].any()
        assert (steps["discount"] == 1).all()
        assert steps["reward"][-1] == 0
        assert episode["metadata"]["episode_id"] == number
        assert episode["metadata"]["episode_return"] == pytest.approx(
            steps["reward"].sum(), rel=1e-4
        )


@needs_control_suite
def test_reward_and_next_observation_stand_with_the_action_that_caused_them(episodes):
    steps = episodes[-1]["steps"]
    replayed = environments.make(f"control/{TASK}", seed=0)
    physics = replayed._environment.physics  # type: ignore[attr-defined]
    replayed.reset()
    for t in (0, 1, 500, 999):
        x, cos, sin, *velocity = steps["observation"][t].astype(np.float64)
        with physics.reset_context():
            physics.data.qpos[:] = (x, np.arctan2(sin, cos))
            physics.data.qvel[:] = velocity
        timestep = replayed.step(steps["action"][t])
        np.testing.assert_allclose(timestep.observation, steps["observation"][t + 1], atol=1e-4)
        assert timestep.reward == pytest.approx(steps["reward"][t], abs=1e-4)


@needs_control_suite
def test_same_seed_gives_identical_bytes_and_another_seed_others(episodes):
    assert content(run()) == content(episodes)
    assert content(run(seed=1)) != content(episodes)


@needs_control_suite
def test_the_logged_density_is_that_of_the_mixture_under_the_snapshot_that_played(episodes):
    shipped = policy_set.load(control_policies.location(TASK))
    policy = policy_training.policy(shipped.params)
    for episode in episodes:
        steps = episode["steps"]
        metadata = episode["metadata"]
        (row,) = np.flatnonzero(
            (shipped.run == metadata["policy_run"]) & (shipped.step == metadata["policy_step"])
        )
        assert metadata["policy_return"] == shipped.mean_return[row]
        params = jax.tree.map(lambda leaf, row=row: leaf[row], shipped.params)
        log_prob = jax.jit(jax.vmap(policy.log_prob, (None, 0, 0)))(
            params, steps["observation"], steps["action"]
        )
        expected = np.log(0.95 * np.exp(np.float64(log_prob)) + 0.05 * 0.5)
        np.testing.assert_allclose(steps["behavior_log_prob"][:-1], expected[:-1], atol=1e-4)
        assert steps["behavior_log_prob"][:-1].min() > np.log(0.05 * 0.5) - 1e-4


def test_one_action_in_twenty_is_uniform_and_the_mixtures_density_integrates_to_one():
    def log_prob(params, observation, action):  # uniform on [0.5, 0.6] in each entry
        return jnp.where(jnp.all((action >= 0.5) & (action <= 0.6)), 2 * jnp.log(10.0), -jnp.inf)

    policy = Policy(
        sample=lambda params, observation, key: jnp.full(2, 0.55),
        mode=lambda params, observation: jnp.zeros(2),
        log_prob=log_prob,
    )
    keys = jax.random.split(jax.random.key(0), 4000)
    actions, log_probs = jax.jit(
        jax.vmap(lambda key: control.mixed(policy, (), jnp.zeros(1), key))
    )(keys)
    uniform = np.any(np.asarray(actions) != np.float32(0.55), axis=1)
    assert uniform.mean() == pytest.approx(0.05, abs=0.011)
    assert np.ptp(actions[uniform]) > 1.8
    inside = np.asarray(jnp.all((actions >= 0.5) & (actions <= 0.6), axis=1))
    values = np.exp(np.asarray(log_probs))
    np.testing.assert_allclose(values[~inside], 0.05 / 4, rtol=1e-5)
    np.testing.assert_allclose(values[inside], 0.05 / 4 + 0.95 * 100, rtol=1e-5)
    assert 0.01 * values[inside][0] + (4 - 0.01) * values[~inside][0] == pytest.approx(1, rel=1e-5)


# --- who plays ---


def test_episodes_go_through_training_and_successful_snapshots_get_a_third():
    policies = made_up([10, 100, 20, 81, 30, 79], [0, 0, 1, 1, 2, 2], [5, 9, 5, 9, 5, 9])
    order = control.schedule(policies, 140)
    np.testing.assert_array_equal(np.bincount(order), [30, 10, 30, 10, 30, 30])
    assert (np.diff(policies.step[order]) >= 0).all()
    np.testing.assert_array_equal(np.unique(control.schedule(policies, 3)), [0, 4, 5])


@pytest.mark.parametrize("task", SHIPPED)
def test_every_shipped_snapshot_that_makes_data_plays(task):
    behavior = policy_set.with_role(
        policy_set.load(control_policies.location(task)), policy_set.BEHAVIOR
    )
    episodes, _ = official.CONTROL_SIZES[task]
    counts = np.bincount(control.schedule(behavior, episodes), minlength=len(behavior.run))
    assert counts.sum() == episodes
    assert (counts > 0).mean() > 0.9


def test_bad_input_is_refused_before_anything_runs():
    with pytest.raises(
        UsageError, match="unknown task 'cheetah_jump': expected one of cartpole_swingup"
    ):
        control.collect("cheetah_jump", num_episodes=1)
    with pytest.raises(UsageError, match="num_episodes must be at least 1"):
        control.collect(TASK, num_episodes=0)
    with pytest.raises(UsageError, match="unknown task"):
        control.target_policies("cheetah_jump")


# --- from its name ---


@needs_control_suite
@pytest.mark.parametrize("task", ["finger_turn_hard", "walker_walk"])
def test_a_simulators_state_and_a_record_of_it_are_the_same_vector(tmp_path, task):
    from dm_control import suite

    domain, _, name = task.partition("_")
    raw = suite.load(domain, name, task_kwargs={"random": 3})
    ours = environments.make(f"control/{task}", seed=3)
    size = ours.action_spec().shape[0]
    states = [raw.reset().observation]
    vectors = [ours.reset().observation]
    for action in np.random.default_rng(0).uniform(-1, 1, (4, size)):
        states.append(raw.step(action).observation)
        vectors.append(ours.step(action).observation)
    columns = {
        key: np.stack([np.asarray(state[key], np.float32) for state in states]) for key in states[0]
    }
    flags = {
        "is_first": np.arange(5) == 0,
        "is_last": np.arange(5) == 4,
        "is_terminal": np.zeros(5, bool),
    }
    records = {
        "observation": columns,
        "action": np.zeros((5, size), np.float32),
        "reward": np.zeros(5),
        "discount": np.ones(5),
        **flags,
    }
    rlds_writer.write_rlds(
        tmp_path / "mine",
        iter([{"steps": records}] * 2),
        metadata={},
        action=BoundedActions((-1.0,) * size, (1.0,) * size),
    )
    loaded = catalog.flattened(catalog.load(str(tmp_path / "mine")))
    np.testing.assert_array_equal(loaded.dataset.observation, np.stack(vectors))
    np.testing.assert_array_equal(
        trees.observation_vector(columns, batch_axes=1), np.stack(vectors)
    )
    assert vectors[0].shape == {"finger_turn_hard": (12,), "walker_walk": (24,)}[task]


@needs_control_suite
def test_a_dataset_is_built_from_its_name_and_says_how_far_its_behavior_was_trained():
    loaded = catalog.flattened(
        catalog.load(NAME, collect=lambda name, **settings: control.collect(name[8:], **settings))
    )
    assert loaded.name == NAME
    assert (loaded.spec.gamma, loaded.spec.horizon, loaded.spec.observation.shape) == (
        0.995,
        1000,
        (5,),
    )
    assert loaded.spec.action == BoundedActions((-1.0,), (1.0,))
    assert (loaded.simulator, loaded.reference) == (
        f"control/{TASK}",
        official.CONTROL_REFERENCES[TASK],
    )
    assert set(loaded.dataset.extras) == {"behavior_log_prob"}
    assert loaded.statistics.transitions is not None
    noted = catalog.open_named(NAME).manifest["provenance"]["written_by"]
    assert (
        sum(policy["episodes"] for policy in noted["policies"].values()) == noted["episodes"] == 3
    )
    shipped = policy_set.load(control_policies.location(TASK))
    for name, policy in noted["policies"].items():
        run, step = (int(word.split(" ")[1]) for word in name.split(", "))
        (row,) = np.flatnonzero((shipped.run == run) & (shipped.step == step))
        assert policy["mean_return"] == pytest.approx(shipped.mean_return[row], abs=0.06)


# --- the shipped policies ---


@pytest.mark.parametrize("task", SHIPPED)
def test_shipped_files_are_small_and_the_references_are_theirs(task):
    path = control_policies.COMMITTED / f"{task}.npz"
    shipped = policy_set.load(path)
    behavior = policy_set.with_role(shipped, policy_set.BEHAVIOR)
    assert path.stat().st_size < 1.5e6
    returns = (float(shipped.random_return), float(behavior.mean_return.max()))
    assert official.CONTROL_REFERENCES[task] == pytest.approx(returns, abs=1e-3)


@needs_control_suite
@pytest.mark.parametrize(("task", "count"), [("cartpole_swingup", 16), ("cheetah_run", 12)])
def test_target_policies_come_from_other_runs_and_are_spread_over_the_returns(task, count):
    targets = control.target_policies(task, count)
    shipped = policy_set.load(control_policies.location(task))
    assert len(targets.names) == len(set(targets.names)) == count
    assert not set(targets.info.run) & set(shipped.run[shipped.role == policy_set.BEHAVIOR])
    returns = targets.info.mean_return
    best = shipped.mean_return.max()
    assert (np.diff(returns) >= 0).all()
    assert returns[0] < 0.2 * best
    assert returns[-1] > 0.9 * best
    assert np.diff(returns).max() < 0.3 * best
    assert len(control.target_policies(task).names) >= count
    spec = environments.spec(f"control/{task}")
    keys = jax.random.split(jax.random.key(0), count)
    act = jax.jit(jax.vmap(targets.policy.sample, (0, None, 0)))
    actions = act(targets.params, np.ones(spec.observation.shape, np.float32), keys)
    assert actions.shape == (count, spec.action.size)  # type: ignore[union-attr]
    assert len(np.unique(actions, axis=0)) == count


@needs_control_suite
def test_a_shipped_policy_returns_what_its_file_says():
    targets = control.target_policies(TASK)
    params = jax.tree.map(lambda leaf: leaf[-1], targets.params)
    running = online.simulators(f"control/{TASK}", 2, entropy=[0])
    act = online.acting(targets.policy, jax.random.key(0))
    returns = policy_training.returns(running, functools.partial(act, params), 1000)
    assert returns.mean() == pytest.approx(targets.info.mean_return[-1], abs=100)


def test_tasks_without_target_policies_say_how_to_train_some():
    with pytest.raises(
        UsageError, match=r"walker_walk has no target policies .* --task walker_walk --target-runs"
    ):
        control.target_policies("walker_walk")
