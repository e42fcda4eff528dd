import numpy as np
import pytest

from offline_mbrl.collect import atari, atari_scripts
from offline_mbrl.data.catalog import atari as facts
from offline_mbrl.data.catalog import load as catalog
from offline_mbrl.data.catalog import names
from offline_mbrl.data.store import read as store
from offline_mbrl.types import DiscreteActions, UsageError


def run(game="Breakout", **settings):
    return list(atari.collect(game, **({"num_steps": 1500, "seed": 0} | settings)))


def content(episodes):
    return b"".join(
        column.tobytes() for episode in episodes for _, column in sorted(episode["steps"].items())
    )


@pytest.fixture(scope="module")
def breakout():
    return run()


def test_same_seed_gives_identical_bytes_and_another_seed_others(breakout):
    few = breakout[:2]
    assert content(run(num_episodes=2)) == content(few)
    assert content(run(num_episodes=2, seed=1)) != content(few)


def test_records_have_the_layout_of_the_official_data(breakout):
    dtypes = {
        "observation": np.uint8,
        "action": np.int64,
        "reward": np.float32,
        "unclipped_reward": np.float32,
        "discount": np.float32,
        "is_first": bool,
        "is_last": bool,
        "is_terminal": bool,
        "behavior_log_prob": np.float32,
    }
    for number, episode in enumerate(breakout):
        steps = episode["steps"]
        metadata = episode["metadata"]
        size = len(steps["reward"])
        assert {name: column.dtype for name, column in steps.items()} == dtypes
        assert steps["observation"].shape == (size, 84, 84, 1)
        np.testing.assert_array_equal(steps["is_first"], np.arange(size) == 0)
        np.testing.assert_array_equal(steps["is_last"], np.arange(size) == size - 1)
        ended = number < len(breakout) - 1  # the last one is cut
        np.testing.assert_array_equal(steps["is_terminal"], (np.arange(size) == size - 1) & ended)
        np.testing.assert_array_equal(steps["discount"], np.arange(size) < size - 1 - ended)
        assert metadata["epsilon"] == facts.EPSILONS[number % 4]
        assert metadata["episode_return"] == steps["reward"].sum()
        assert metadata["unclipped_return"] == steps["unclipped_reward"].sum()


def test_steps_are_exactly_as_many_as_asked_and_the_last_episode_is_a_truncation(breakout):
    assert sum(len(episode["steps"]["reward"]) - 1 for episode in breakout) == 1500
    assert not breakout[-1]["steps"]["is_terminal"].any()


def test_rewards_are_clipped_and_kept_beside_as_they_were():
    steps = run("Qbert", num_steps=400)[0]["steps"]
    assert steps["unclipped_reward"].max() >= 25
    np.testing.assert_array_equal(steps["reward"], np.clip(steps["unclipped_reward"], -1, 1))


def test_frames_are_those_before_the_action(breakout):
    from offline_mbrl import environments

    steps = breakout[0]["steps"]
    simulation = environments.make("atari/Breakout", seed=0)
    frames = [simulation.reset().observation]
    frames += [simulation.step(int(action)).observation for action in steps["action"][:100]]
    np.testing.assert_array_equal(np.stack(frames)[..., -1:], steps["observation"][:101])


def test_logged_probability_is_that_of_the_mixture(breakout):
    for episode in breakout[:-1]:
        epsilon = episode["metadata"]["epsilon"]
        frequency = np.exp(episode["steps"]["behavior_log_prob"][:-1])
        chosen = 1 - epsilon + epsilon / 4
        other = epsilon / 4
        assert (
            np.isclose(frequency, chosen, atol=1e-6) | np.isclose(frequency, other, atol=1e-6)
        ).all()
        share = np.isclose(frequency, chosen, atol=1e-6).mean()  # of the script's action
        assert share == pytest.approx(chosen, abs=0.12) or epsilon == 1
        assert episode["steps"]["behavior_log_prob"][-1] == 0


@pytest.mark.parametrize("epsilon", [0.3, 1.0])
def test_probabilities_of_actions_are_their_frequencies(epsilon):
    rng = np.random.default_rng(0)
    drawn = [atari.epsilon_greedy(2, 5, epsilon, rng) for _ in range(20_000)]
    share = np.bincount([action for action, _ in drawn], minlength=5) / 20_000
    log_probs = dict(drawn)
    expected = [np.exp(log_probs[action]) for action in range(5)]
    np.testing.assert_allclose(share, expected, atol=0.015)
    assert sum(np.exp(value) for value in log_probs.values()) == pytest.approx(1)


def test_games_without_a_script_repeat_the_previous_action():
    episodes = run("Freeway", num_steps=4300)
    steps = episodes[1]["steps"]
    repeated = np.isclose(np.exp(steps["behavior_log_prob"][1:-1]), 0.5 + 0.5 / 3, atol=1e-6)
    np.testing.assert_array_equal(repeated, steps["action"][1:-1] == steps["action"][:-2])
    assert repeated.mean() == pytest.approx(2 / 3, abs=0.05)


def test_the_script_plays_breakout_better_than_chance():
    def mean_return(epsilon):
        return np.mean(
            [
                episode["metadata"]["episode_return"]
                for number, episode in enumerate(LONG)
                if atari.EPSILONS[number % 4] == epsilon
            ]
        )

    LONG = run(num_steps=5000)[:-1]
    assert mean_return(0.1) > mean_return(1.0) + 8


def test_progress_counts_steps(breakout):
    done = []
    run(num_episodes=1, progress=lambda number, total: done.append((number, total)))
    assert done[0] == (100, 1500)
    assert done[-1] == (len(breakout[0]["steps"]["reward"]) - 1, 1500)


# --- the script ---


def picture(game, ball, paddle):
    """A frame with a ball at (along, across) and a paddle of seven pixels around `paddle`."""
    field = atari_scripts.FIELDS[game]
    frame = np.full((84, 84), field.background, np.uint8)
    frame[paddle - 3 : paddle + 4, field.line] = 200
    if ball:
        frame[ball] = 255
    return frame if field.vertical else frame.T


def decide(game, previous, current, paddle):
    return atari_scripts.act(
        game, np.stack([picture(game, previous, paddle), picture(game, current, paddle)], axis=-1)
    )


@pytest.mark.parametrize("game", ["Pong", "Breakout"])
def test_the_paddle_goes_to_where_the_ball_will_arrive(game):
    field = atari_scripts.FIELDS[game]
    position = field.line - 20
    assert decide(game, (30, position - 1), (30, position), 30) == 0
    # The ball arrives 20 pixels further on.
    assert decide(game, (30, position - 1), (31, position), 30) == field.forward
    assert decide(game, (30, position - 1), (29, position), 30) == field.back
    assert decide(game, None, None, 30) == field.lost
    # It goes away: the paddle follows
    assert decide(game, (31, position), (30, position - 1), 60) == field.back


def test_walls_reflect():
    assert [atari_scripts.reflected(position, 10, 20) for position in (15, 21, 9, 29.5, 32, 0)] == [
        15,
        19,
        11,
        10.5,
        12,
        20,
    ]


# --- as a dataset ---


def test_a_local_dataset_is_built_with_stacks_and_says_how_it_was_made(tmp_path, monkeypatch):
    monkeypatch.setenv("OFFLINE_MBRL_DATA", str(tmp_path))

    def collect(environment, **settings):
        return atari.collect(environment.removeprefix("atari/"), **settings)

    loaded = catalog.load("local/atari/Breakout-steps300-seed3", collect=collect)
    assert loaded.dataset.observation.shape[1:] == (84, 84, 1)
    assert loaded.dataset.observation.dtype == np.uint8
    assert (loaded.spec.observation.shape, loaded.spec.frame_stack) == ((84, 84, 4), 4)
    assert (loaded.spec.action, loaded.spec.horizon) == (DiscreteActions(4), 27_000)
    assert (loaded.simulator, loaded.reference) == ("atari/Breakout", (1.3, 157.9))
    assert set(loaded.dataset.extras) == {"behavior_log_prob"}
    opened = catalog.open_named("local/atari/Breakout-steps300-seed3")
    assert opened.manifest["counts"]["transitions"] == 300
    assert "unclipped_reward" in store.aligned(opened, "train").columns
    origin = opened.manifest["provenance"]["written_by"]
    assert (origin["steps"], origin["seed"], origin["simulator"]) == (300, 3, "atari/Breakout")
    assert origin["behavior"] == facts.behavior("Breakout")
    assert "nothing is learned" in origin["behavior"]
    assert "the previous action is repeated" in facts.behavior("Qbert")
    assert set(facts.TRACKED) == set(atari_scripts.FIELDS)


@pytest.mark.parametrize(
    ("name", "canonical", "variant"),
    [
        ("local/atari/Pong", "local/atari/Pong", (0, 0, 50_000)),
        ("local/atari/Pong-seed1-steps30000", "local/atari/Pong-seed1-steps30000", (0, 1, 30_000)),
        ("local/atari/Qbert-episodes5-steps50000", "local/atari/Qbert-episodes5", (5, 0, 50_000)),
    ],
)
def test_variants_are_written_into_the_name(name, canonical, variant):
    entry = names.lookup(name)
    assert (entry.name, entry.simulator) == (
        canonical,
        f"atari/{entry.location.removeprefix('atari/')}",
    )
    assert names.recipe(entry) == dict(
        zip(("num_episodes", "seed", "num_steps"), variant, strict=True)
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("local/atari/Pnog", r"did you mean local/atari/Pong, local/atari/(?!Pong,)"),
        ("local/atari/qbert", "did you mean local/atari/Qbert"),
        ("local/atari/Pong-steps0", "steps must be from 1"),
        ("local/atari/Pong-noise0.1", "has no variant 'noise'; it has: steps, episodes, seed"),
        (
            "local/catch-steps10",
            "local/catch has no variant 'steps'; it has: noise, fraction, episodes, seed",
        ),
    ],
)
def test_what_cannot_be_generated_is_one_line(name, message):
    with pytest.raises(UsageError, match=message) as refused:
        names.lookup(name)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("game", "settings", "message"),
    [("Pnog", {}, "atari/Pong"), ("Pong", {"num_steps": 0}, "num_steps")],
)
def test_bad_input_is_refused_before_anything_runs(game, settings, message):
    with pytest.raises(UsageError, match=message):
        atari.collect(game, **({"num_steps": 10} | settings))
