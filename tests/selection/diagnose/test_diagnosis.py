"""A whole diagnosis: its sentences, JSON and pictures."""

import functools
import json

import diagnosed_models as known
import numpy as np
import pytest
from matplotlib.collections import LineCollection

from offline_mbrl.selection import diagnose
from offline_mbrl.selection.diagnose import pictures
from offline_mbrl.types import UsageError


@functools.cache
def diagnosis(dimensions=(), **settings):
    sources = {"held out": known.dataset(), "policy": known.dataset(seed=1)}
    chosen = diagnose.Settings(
        num_windows=16, num_transitions=200, num_rollouts=1, dimensions=dimensions
    )
    return diagnose.diagnose(
        known.model(),
        known.params(**settings),
        sources,
        gamma=0.9,
        settings=chosen,
        penalties={"true": known.true_error()},
    )


def said(**settings):
    return "\n".join(diagnose.advice(diagnosis(**settings)))


def test_a_perfect_model_is_said_to_be_exact():
    advice = said()
    assert "held out: the model's error is below 0.001 standard deviations up to 30 steps" in advice
    assert "too high" not in advice
    assert "no penalty could be compared" in advice


def test_a_biased_model_is_said_how_far_to_go():
    biased = diagnosis(bias=0.2)
    steps = diagnose.trusted_steps(biased.sources["held out"].errors)
    advice = said(bias=0.2)
    assert f"held out: beyond {steps} steps the model's error exceeds" in advice
    assert "too high on average" in advice
    assert "too low" in said(bias=-0.2)


def test_confidence_penalties_and_ends_are_said():
    assert "it is overconfident" in said(bias=0.2, std=0.05)
    assert "it is less certain than it could be" in said()
    assert "true ranks its true errors best (1.00)" in said(slope=0.1)
    assert "best (1.00), 95% interval 1.00 to 1.00" in said(slope=0.1)
    assert "it ends 100% of episodes" in said(end=1.0)
    assert "even one step ahead its error exceeds" in said(bias=30.0)


@pytest.mark.parametrize(
    ("low", "high", "ending"),
    [
        (0.1, 0.6, ", 95% interval 0.10 to 0.60"),
        (-0.1, 0.6, ", 95% interval -0.10 to 0.60: it may be chance"),
        (np.nan, np.nan, "; episodes are too few for an interval"),
    ],
)
def test_what_may_be_chance_is_said(low, high, ending):
    whole = diagnosis(slope=0.1)
    rank = diagnose.Correlation(value=0.4, low=low, high=high)
    source = whole.sources["held out"]._replace(correlations={"true": rank})
    sentences = diagnose.advice(whole._replace(sources={"held out": source}))
    assert sentences[-1].endswith(f"true ranks its true errors best (0.40){ending}")


def test_the_picture_of_penalties_has_the_ends_of_their_intervals():
    whole = diagnosis(slope=0.1)
    ranks = {
        "true": diagnose.Correlation(value=0.4, low=0.1, high=0.6),
        "constant": diagnose.Correlation(value=np.nan, low=np.nan, high=np.nan),
    }
    source = whole.sources["held out"]._replace(correlations=ranks)
    figure = pictures.penalties(whole._replace(sources={"held out": source}))
    (axes,) = figure.axes
    (lines,) = [part for part in axes.collections if isinstance(part, LineCollection)]
    assert lines.get_segments()[0][:, 0].tolist() == [0.1, 0.6]
    assert [bar.get_width() for bar in axes.patches] == [0.4, 0.0]


def test_what_could_not_be_judged_and_the_expected_horizon_are_said():
    rows = [{"step": 0, "seed": 0, "value": 0.5}, {"step": 10, "seed": 0, "value": 2.0}]
    noted = diagnosis()._replace(notes=("no simulator",), expected_horizon=tuple(rows))
    sentences = diagnose.advice(noted)
    assert sentences[-1] == "no simulator"
    assert "looked 0.5 steps ahead at first and 2 at the end" in sentences[-2]


def test_the_json_is_strict_and_holds_every_part():
    text = json.dumps(diagnose.to_json(diagnosis(slope=0.1)), allow_nan=False)
    content = json.loads(text)["sources"]["policy"]
    assert content["horizons"]["steps"] == [1, 2, 3, 5, 10, 20, 30]
    assert len(content["horizons"]["error"]) == 7
    rank = content["rank_correlations"]["true"]
    assert rank == pytest.approx({"value": 1.0, "low": 1.0, "high": 1.0}, abs=1e-3)
    assert (content["confidence"], content["num_episodes"]) == (0.95, 8)
    assert set(content["map"]["values"]) == {"error", "true"}
    assert len(content["calibration"]["coverage"]) == len(content["calibration"]["level"])


def test_the_pictures_are_drawn_and_those_of_nothing_left_out(tmp_path):
    whole = diagnosis(slope=0.1)
    names = [path.name for path in diagnose.draw(whole, tmp_path)]
    assert names == ["horizons.png", "calibration.png", "penalties.png", "trust_map.png"]
    assert all((tmp_path / name).stat().st_size > 1_000 for name in names)
    row = {"step": 0, "seed": 0, "value": 0.5}
    names = [path.name for path in diagnose.draw(whole._replace(expected_horizon=(row,)), tmp_path)]
    assert names[-1] == "expected_horizon.png"


def test_maps_have_the_axes_of_the_first_source_or_those_that_are_chosen():
    sources = diagnosis(slope=0.1).sources
    assert sources["held out"].map.names == sources["policy"].map.names
    assert diagnosis(dimensions=(1, 0)).sources["policy"].map.names == ("entry 1", "entry 0")


def test_bad_input_is_refused():
    arguments = known.model(), known.params()
    with pytest.raises(UsageError, match="at least one set of episodes"):
        diagnose.diagnose(*arguments, {}, gamma=0.9)
    sources = {"held out": known.dataset()}
    single = diagnose.Settings(dimensions=(1,))
    with pytest.raises(UsageError, match="a map has two axes"):
        diagnose.diagnose(*arguments, sources, gamma=0.9, settings=single)
