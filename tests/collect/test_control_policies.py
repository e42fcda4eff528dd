"""Sets of policies as files, and the training that makes them."""

import dataclasses

import jax
import numpy as np
import pytest
from control_suite_marks import needs_control_suite

from offline_mbrl.collect import control_policies, policy_set, policy_training, train_policies
from offline_mbrl.collect.policy_set import PolicySet
from offline_mbrl.types import UsageError


def policies(returns, role="behavior"):
    count = len(returns)
    kernels = np.random.default_rng(0).normal(size=(count, 3, 4)).astype(np.float32)
    return PolicySet(
        params={"layer_0": {"kernel": kernels, "bias": np.zeros((count, 4), np.float32)}},
        run=np.arange(count, dtype=np.int32),
        step=10 * np.arange(count, dtype=np.int32),
        mean_return=np.array(returns, np.float32),
        stderr=np.ones(count, np.float32),
        role=np.full(count, role),
        random_return=np.float32(2),
    )


def same(first, second):
    return all(
        np.array_equal(*pair)
        for pair in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    )


def test_a_file_gives_back_what_was_saved(tmp_path):
    saved = policy_set.join([policies([1, 5, 3]), policies([4], "target")])
    policy_set.save(tmp_path / "deep" / "set.npz", saved)
    loaded = policy_set.load(tmp_path / "deep" / "set.npz")
    assert same(loaded, saved)
    assert jax.tree.structure(loaded) == jax.tree.structure(saved)
    assert policy_set.with_role(loaded, "target").mean_return.tolist() == [4]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["set.npz"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda columns: columns.pop("role"), "lacks role"),
        (
            lambda columns: [
                columns.pop(name) for name in list(columns) if name.startswith("params")
            ],
            "lacks params",
        ),
        (lambda columns: columns.update(step=columns["step"][:2]), "differ in length"),
        (
            lambda columns: columns.update(
                {"params/layer_0/bias": np.full((3, 4), np.nan, np.float32)}
            ),
            "finite float32",
        ),
        (
            lambda columns: columns.update({"params/layer_0/bias": np.zeros((3, 4))}),
            "finite float32",
        ),
        (
            lambda columns: columns.update(run=np.array([{}, 1, 2], object)),
            "damaged or no file of policies",
        ),
    ],
)
def test_a_file_that_is_no_set_of_policies_is_one_clear_line(tmp_path, damage, message):
    path = tmp_path / "set.npz"
    policy_set.save(path, policies([1, 5, 3]))
    with np.load(path) as file:
        columns = dict(file)
    damage(columns)
    np.savez(path, **columns)
    with pytest.raises(UsageError, match=message) as refused:
        policy_set.load(path)
    assert "\n" not in str(refused.value)


def test_absent_and_cut_files_are_one_clear_line(tmp_path):
    with pytest.raises(UsageError, match="there is no file of policies"):
        policy_set.load(tmp_path / "none.npz")
    policy_set.save(tmp_path / "set.npz", policies([1, 5, 3]))
    content = (tmp_path / "set.npz").read_bytes()
    for part in (content[:-30], content[:10], b""):
        (tmp_path / "set.npz").write_bytes(part)
        with pytest.raises(UsageError, match="damaged or no file"):
            policy_set.load(tmp_path / "set.npz")


def test_chosen_policies_are_spread_over_the_returns_from_weak_to_strong():
    spread = policy_set.spread(policies([100, 0, 49, 1, 52, 99, 98]), 3)
    assert spread.mean_return.tolist() == [0, 49, 100]
    assert spread.run.tolist() == [1, 2, 0]
    assert policy_set.spread(policies([3, 1, 2]), 3).mean_return.tolist() == [1, 2, 3]
    with pytest.raises(UsageError, match="4 policies were asked for, but there are 3"):
        policy_set.spread(policies([3, 1, 2]), 4)


# --- training ---

TINY = control_policies.Plan(
    num_steps=256, behavior_runs=1, target_runs=1, num_snapshots=2, updates_per_step=0.1
)


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    monkeypatch.setenv("OFFLINE_MBRL_DATA", str(tmp_path))
    monkeypatch.setattr(policy_training, "EPISODES", 2)
    monkeypatch.setattr(policy_training, "RANDOM_EPISODES", 2)
    monkeypatch.setattr(
        control_policies,
        "SAC",
        dataclasses.replace(control_policies.SAC, actor_layers=(8, 6), critic_layers=(8,)),
    )


@needs_control_suite
def test_a_task_without_policies_trains_them_once_and_goes_on_after_a_stop(
    tiny, monkeypatch, tmp_path
):
    monkeypatch.setitem(control_policies.PLANS, "walker_stand", TINY)
    train_run = control_policies.train_run
    lines = []
    trained = []

    def stopping(*args, run, **settings):
        if run == 1 and "stopped" not in trained:
            trained.append("stopped")
            raise KeyboardInterrupt
        trained.append(run)
        return train_run(*args, run=run, **settings)

    monkeypatch.setattr(control_policies, "train_run", stopping)
    with pytest.raises(KeyboardInterrupt):
        control_policies.policies("walker_stand", lines.append)
    assert not (tmp_path / "policies" / "walker_stand.npz").exists()
    policies = control_policies.policies("walker_stand", lines.append)
    again = control_policies.policies("walker_stand")
    assert trained == [0, "stopped", 1]
    assert same(policies, again)
    assert len(lines) == 4
    assert "walker_stand run 1 (target) step 256: return" in lines[-1]
    assert policies.role.tolist() == ["behavior"] * 2 + ["target"] * 2
    assert policies.step.tolist() == [128, 256] * 2
    assert jax.tree.map(np.shape, policies.params)["layer_2"] == {
        "bias": (4, 12),
        "kernel": (4, 6, 12),
    }
    policy = policy_training.policy(policies.params)
    params = jax.tree.map(lambda leaf: leaf[0], policies.params)
    assert policy.mode(params, np.zeros(24, np.float32)).shape == (6,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--task", "walker_run"],
            "unknown task 'walker_run': expected one of cartpole_swingup, cheetah_run",
        ),
        (["--task", "walker_walk", "--behavior-runs", "0"], "at least 1 behavior run"),
        (["--task", "walker_walk", "--steps", "3"], "at least 10 steps"),
    ],
)
def test_the_command_refuses_bad_input_in_one_line(capsys, options, message):
    assert train_policies.main(options) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1


@needs_control_suite
def test_the_command_writes_the_tasks_file(tiny, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(
        control_policies.PLANS, "cartpole_swingup", dataclasses.replace(TINY, target_runs=0)
    )
    assert (
        train_policies.main(
            ["--task", "cartpole_swingup", "--steps", "128", "--out", str(tmp_path / "mine.npz")]
        )
        == 0
    )
    assert policy_set.load(tmp_path / "mine.npz").step.tolist() == [64, 128]
    assert f"wrote {tmp_path / 'mine.npz'}" in capsys.readouterr().out
