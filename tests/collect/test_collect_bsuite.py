import numpy as np
import pytest

from offline_mbrl.collect.bsuite import collect, collect_random, kept_episodes
from offline_mbrl.types import UsageError


def run(environment="catch", **settings):
    return list(collect(environment, **({"num_episodes": 60, "seed": 0} | settings)))


def content(episodes):
    return b"".join(
        column.tobytes() for episode in episodes for _, column in sorted(episode["steps"].items())
    )


@pytest.fixture(scope="module")
def plain():
    return run()


def test_same_seed_gives_identical_bytes_and_another_seed_others(plain):
    assert content(run()) == content(plain)
    assert content(run(seed=1)) != content(plain)


def test_records_have_the_rlds_layout(plain):
    dtypes = {
        "observation": np.float32,
        "action": np.int32,
        "executed_action": np.int32,
        "reward": np.float32,
        "discount": np.float32,
        "is_first": bool,
        "is_last": bool,
        "is_terminal": bool,
        "behavior_log_prob": np.float32,
    }
    for number, episode in enumerate(plain):
        steps = episode["steps"]
        metadata = episode["metadata"]
        assert {name: column.dtype for name, column in steps.items()} == dtypes
        assert steps["observation"].shape == (10, 10, 5)
        assert all(len(column) == 10 for column in steps.values())
        np.testing.assert_array_equal(steps["is_first"], np.arange(10) == 0)
        np.testing.assert_array_equal(steps["is_last"], np.arange(10) == 9)
        np.testing.assert_array_equal(steps["is_terminal"], np.arange(10) == 9)
        np.testing.assert_array_equal(steps["discount"], np.arange(10) < 8)
        assert metadata == {"episode_id": number, "episode_return": steps["reward"].sum()}


def test_action_and_reward_stand_with_the_observation_they_were_taken_at(plain):
    for episode in plain:
        steps = episode["steps"]
        # On the last record the ball may share its row
        paddle = steps["observation"][:, -1].argmax(-1)
        moved = np.clip(paddle[:-2] + steps["action"][:-2] - 1, 0, 4)
        np.testing.assert_array_equal(paddle[1:-1], moved)
        assert abs(steps["reward"][-2]) == 1
        assert steps["reward"][-1] == 0


def test_logged_probability_is_that_of_an_epsilon_greedy_policy(plain):
    probabilities = np.exp(
        np.concatenate([episode["steps"]["behavior_log_prob"][:-1] for episode in plain])
    )
    greedy = np.isclose(probabilities, 0.95 + 0.05 / 3, atol=1e-6)
    assert np.isclose(probabilities[~greedy], 0.05 / 3, atol=1e-6).all()
    assert 0.93 < greedy.mean() < 1


def test_without_noise_the_executed_action_is_the_intended_one(plain):
    assert all(
        (episode["steps"]["action"] == episode["steps"]["executed_action"]).all()
        for episode in plain
    )


def test_noise_changes_the_executed_action_and_not_the_logged_one():
    episodes = run(noise=0.5)
    intended, executed = (
        np.concatenate([episode["steps"][name][:-1] for episode in episodes])
        for name in ("action", "executed_action")
    )
    assert np.mean(intended != executed) == pytest.approx(0.5 * 2 / 3, abs=0.06)
    steps = episodes[0]["steps"]
    paddle = steps["observation"][:-1, -1].argmax(-1)
    np.testing.assert_array_equal(
        paddle[1:], np.clip(paddle[:-1] + steps["executed_action"][:-2] - 1, 0, 4)
    )


def test_fraction_takes_episodes_of_the_whole_run_unchanged(plain):
    part = run(fraction=10)
    numbers = [episode["metadata"]["episode_id"] for episode in part]
    assert [number // 10 for number in numbers] == list(range(6))
    assert content(part) == content([plain[number] for number in numbers])


@pytest.mark.parametrize(
    ("num_episodes", "fraction", "expected"),
    [(2000, 1, 20), (2000, 10, 200), (7, 100, 7), (5, 25, 2)],
)
def test_fraction_takes_one_episode_of_every_block(num_episodes, fraction, expected):
    kept = kept_episodes(num_episodes, fraction, seed=0)
    assert kept.sum() == expected
    assert (np.add.reduceat(kept, np.arange(0, num_episodes, 100 // fraction)) == 1).all()


def test_chosen_episodes_are_not_always_the_first_of_their_block():
    assert len(set(np.flatnonzero(kept_episodes(2000, 1, seed=0)) % 100)) > 10


def test_agent_learns_catch_and_reports_progress():
    done = []
    episodes = run(
        num_episodes=800, seed=0, progress=lambda number, total: done.append((number, total))
    )
    returns = np.array([episode["metadata"]["episode_return"] for episode in episodes])
    assert returns[:100].mean() < 0
    assert returns[-100:].mean() > 0.5
    assert done == [(number, 800) for number in range(1, 801)]


@pytest.fixture(scope="module")
def uniform():
    return list(collect_random("catch", num_episodes=300))


def test_uniform_actions_are_as_often_and_as_likely_as_each_other(uniform):
    actions = np.concatenate([episode["steps"]["action"][:-1] for episode in uniform])
    stderr = np.sqrt(2 / 9 / len(actions))
    np.testing.assert_allclose(
        np.bincount(actions, minlength=3) / len(actions), 1 / 3, atol=4 * stderr
    )
    logged = np.concatenate([episode["steps"]["behavior_log_prob"][:-1] for episode in uniform])
    np.testing.assert_allclose(logged, -np.log(3), rtol=1e-6)
    returns = np.array([episode["metadata"]["episode_return"] for episode in uniform])
    assert returns.mean() == pytest.approx(-0.6, abs=0.15)  # 0.8 / 2 misses: 1 in 5 balls caught


def test_uniform_episodes_have_the_records_of_the_run_and_are_those_of_their_seed(uniform, plain):
    layout = [
        {name: (column.dtype, column.shape) for name, column in episodes[0]["steps"].items()}
        for episodes in (uniform, plain)
    ]
    assert layout[0] == layout[1]
    numbers = [episode["metadata"]["episode_id"] for episode in uniform]
    assert numbers == list(range(300))
    again, other = (list(collect_random("catch", num_episodes=3, seed=seed)) for seed in (0, 1))
    assert content(again) == content(uniform[:3])
    assert content(other) != content(uniform[:3])


def test_noise_replaces_uniform_actions_too():
    (episode,) = collect_random("mountain_car", num_episodes=1, noise=0.5)
    steps = episode["steps"]
    assert len(steps["action"]) == 1_001
    differing = np.mean(steps["action"][:-1] != steps["executed_action"][:-1])
    assert differing == pytest.approx(0.5 * 2 / 3, abs=0.06)


@pytest.mark.parametrize(
    ("environment", "settings", "message"),
    [("cacth", {}, "unknown environment"), ("catch", {"num_episodes": 0}, "num_episodes")],
)
def test_bad_input_of_uniform_episodes_is_refused_before_anything_runs(
    environment, settings, message
):
    with pytest.raises(UsageError, match=message):
        collect_random(environment, **({"num_episodes": 1} | settings))


@pytest.mark.parametrize(
    ("environment", "settings", "message"),
    [
        ("cacth", {}, "unknown environment"),
        ("catch", {"num_episodes": 0}, "num_episodes"),
        ("catch", {"noise": 1.5}, "noise"),
        ("catch", {"fraction": 0}, "fraction"),
        (
            "catch",
            {"fraction": 60},
            r"fraction must divide 100 \(1, 2, 4, 5, 10, 20, 25, 50, 100\), got 60",
        ),
    ],
)
def test_bad_input_is_refused_before_anything_runs(environment, settings, message):
    with pytest.raises(UsageError, match=message):
        collect(environment, **({"num_episodes": 1} | settings))
