"""Atari results stand on two scales: the online DQN's, and beside it the human one."""

import io

import numpy as np
from rich.console import Console

from offline_mbrl.data.catalog import official
from offline_mbrl.evaluation.episodes import Evaluation
from offline_mbrl.runs import playing
from offline_mbrl.runs.report import tables

REFERENCE = official.REFERENCES["atari/Pong"]


def outcome(human):
    played = Evaluation(
        np.array([[-20.3, -20.3], [14.6, 14.6]]), np.ones((2, 2), np.int32), True, ""
    )
    summary = playing.summarize({"greedy": played, "sampled": played}, REFERENCE, human)
    return {"step": 1, "seeds": [0, 1], "failures": {}, "evaluation": summary}


def shown(result):
    console = Console(width=200, file=io.StringIO())
    console.print(tables.table({"algorithm": "bc", "dataset": "local/atari/Pong"}, result))
    return console.file.getvalue()


def test_both_scales_are_computed_from_the_same_returns():
    one = outcome(official.human_reference("atari/Pong?max_steps=100"))["evaluation"]["sampled"]
    np.testing.assert_allclose(one["scores"], [0, 34.9 / 38.5])
    np.testing.assert_allclose(one["human_scores"], [0.4 / 35.3, 1])
    assert one["human_interquartile_mean"] == np.mean(one["human_scores"])


def test_the_human_scale_is_a_column_of_its_own_where_there_is_one():
    result = outcome(official.human_reference("atari/Pong"))
    text, page = shown(result), "\n".join(tables.markdown(result))
    assert text.count(" human ") == 2  # columns
    assert "1.000" in text
    assert (
        "| seed | greedy: normalized score | sampled: normalized score | greedy: human-normalized |"
        in page
    )
    assert len({line.count("|") for line in page.splitlines()}) == 1


def test_nothing_changes_where_there_is_no_human_scale():
    assert official.human_reference("bsuite/catch") is None
    result = outcome(official.human_reference("atari/Pooyan"))
    assert "human" not in shown(result) + "\n".join(tables.markdown(result))
    assert "human_scores" not in result["evaluation"]["greedy"]
