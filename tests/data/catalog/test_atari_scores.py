"""The published table of Atari scores reproduces the aggregates that were published with it."""

import numpy as np
import pytest

from offline_mbrl.data.catalog import atari_scores, official
from offline_mbrl.evaluation import aggregate
from offline_mbrl.types import UsageError

# arXiv:2104.06294: median and mean over 46 games, percent; the interquartile means follow from the
# same table.
PUBLISHED = {
    "bc": (53.3, 48.5, 54.5),
    "bcq": (107.5, 120.0, 103.1),
    "iqn": (100.8, 96.1, 95.6),
    "rem": (107.9, 113.5, 106.8),
    "crr": (155.6, 271.2, 170.3),
    "mzu": (265.3, 595.5, 289.1),
}
STATISTICS = (aggregate.median, aggregate.mean, aggregate.interquartile_mean)


def percent(method, games=tuple(atari_scores.GAMES)):
    scores = atari_scores.dqn_normalized(atari_scores.column(method, games), games)
    return [100 * statistic(scores[None]) for statistic in STATISTICS]


@pytest.mark.parametrize("method", PUBLISHED)
def test_the_table_reproduces_the_published_aggregates(method):
    np.testing.assert_allclose(percent(method), PUBLISHED[method], atol=0.3)


@pytest.mark.parametrize(("method", "expected"), [("bc", 49.0), ("crr", 165.3), ("mzu", 345.4)])
def test_the_table_reproduces_the_interquartile_means_of_the_tuning_games(method, expected):
    assert percent(method, atari_scores.TUNING_GAMES)[2] == pytest.approx(expected, abs=0.3)


def test_games_are_divided_into_nine_for_tuning_and_the_rest_for_testing():
    assert len(atari_scores.GAMES) == 46
    assert len(atari_scores.TUNING_GAMES) == 9
    assert set(atari_scores.TUNING_GAMES) | set(atari_scores.TESTING_GAMES) == set(
        atari_scores.GAMES
    )
    assert len(atari_scores.TESTING_GAMES) == 37


def test_the_two_normalizations_have_their_own_ends():
    games = ["Pong", "Carnival"]
    at_dqn, at_human = (atari_scores.column(name, games) for name in ("dqn", "human"))
    np.testing.assert_allclose(atari_scores.dqn_normalized(at_dqn, games), 1)
    np.testing.assert_array_equal(atari_scores.human_normalized(at_human, games), [1, np.nan])
    np.testing.assert_allclose(
        atari_scores.human_normalized(np.array([[-20.7, 0], [-3.05, 0]]), games)[:, 0], [0, 0.5]
    )


def test_both_random_policies_score_nothing_in_the_same_games():
    silent = [
        [game for game in atari_scores.GAMES if getattr(atari_scores.GAMES[game], name) == 0]
        for name in ("random", "ale_random")
    ]
    assert silent[0] == silent[1] == ["Enduro", "Freeway"]


@pytest.mark.parametrize(
    ("game", "random", "human"),  # dqn_zoo, atari_data.py
    [("VideoPinball", 16256.9, 17667.9), ("FishingDerby", -91.7, -38.7), ("Qbert", 163.9, 13455.0)],
)
def test_the_human_scale_is_that_of_dqn_zoo(game, random, human):
    scores = np.array([[random], [human]])
    scale = atari_scores.human_normalized(scores, [game])
    np.testing.assert_allclose(scale[:, 0], [0, 1], atol=1e-3)


def test_single_games_of_mzu_have_their_published_scores():
    scores = atari_scores.dqn_normalized(atari_scores.column("mzu"))
    by_game = dict(zip(atari_scores.GAMES, scores, strict=True))
    assert by_game["Alien"] == pytest.approx(2.39, abs=0.005)
    assert by_game["WizardOfWor"] == pytest.approx(36.29, abs=0.005)
    assert by_game["Atlantis"] == pytest.approx(0.92, abs=0.005)


def test_every_game_of_the_benchmark_has_references():
    for game in official.ATARI_GAMES:
        row = atari_scores.GAMES[game]
        assert official.REFERENCES[f"atari/{game}"] == (row.random, row.dqn)
    humans = official.HUMAN_REFERENCES
    assert set(f"atari/{game}" for game in official.ATARI_GAMES) - set(humans) == {
        "atari/Carnival",
        "atari/Pooyan",
    }
    assert humans["atari/Pong"] == (-20.7, 14.6)


def test_an_unknown_game_is_one_line():
    with pytest.raises(UsageError, match=r"no published scores for the Atari game 'Tetris'"):
        atari_scores.column("random", ["Tetris"])
