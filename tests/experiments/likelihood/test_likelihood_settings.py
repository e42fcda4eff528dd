"""The models and runs that the likelihood study compares."""

import pytest

from experiments.benchmarks.likelihood import settings
from experiments.benchmarks.likelihood.settings import Architecture

QUICK = settings.PRESETS["quick"]


def test_the_sources_figures_are_the_published_ones():
    gaps = [round(task.top_1[0] - task.top_1[1], 2) for task in settings.TASKS.values()]
    assert gaps == [1.46, 0.33, 0.40, 0.56, 0.30, 0.76, 0.21, 0.88, 1.39]
    assert all(task.top_5[1] < task.top_1[0] for task in settings.TASKS.values())


@pytest.mark.parametrize("task", QUICK.tasks)
def test_models_that_are_compared_at_equal_size_have_as_many_parameters(task):
    for family, curve in settings.curves(QUICK, task).items():
        for like, setting in curve.items():
            base = settings.num_parameters(Architecture(task, "feedforward", like, 3))
            own = settings.num_parameters(Architecture(task, family, setting.hidden, 3))
            assert 0.85 < own / base < 1.15, (family, like)  # widths are multiples of the entries
    assert settings.equal_width(QUICK, task, "masked", 256) not in (256, 512)


def test_named_families_are_compared_with_feedforward_in_every_study():
    preset = settings.only(QUICK, ["coupled"])
    pieces = settings.pieces(preset, settings.TITLES)
    assert {piece.setting.family for piece in pieces} == {"feedforward", "coupled"}
    assert {piece.study for piece in pieces} == set(settings.TITLES)
    own = settings.equal_time(preset, "walker_walk")
    assert own["feedforward"] == settings.equal_time(QUICK, "walker_walk")["feedforward"]
    wide = settings.curves(preset, "walker_walk")["coupled"][256]
    count = settings.num_parameters(settings.architecture(wide))
    like = settings.num_parameters(Architecture("walker_walk", "feedforward", 256, 3))
    assert 0.9 < count / like < 1.1


@pytest.mark.parametrize(("preset", "count"), [("quick", 8), ("full", 36)])
def test_all_configurations_of_a_sweep_have_equal_time(preset, count):
    preset = settings.PRESETS[preset]
    sweep = settings.sweep(preset, "walker_walk", "masked")
    assert len(set(sweep)) == count
    assert {setting.seconds for setting in sweep} == {preset.grid_seconds}


def test_every_run_is_done_once_and_the_quick_preset_trains_for_less_than_75_minutes():
    pieces = settings.pieces(QUICK, settings.TITLES)
    planned = {(piece.setting, piece.seed) for piece in pieces}
    assert len(planned) == len(pieces)
    read = {run for study in settings.TITLES for run in settings.runs_of(QUICK, study)}
    assert planned == read
    assert sum(piece.setting.seconds for piece in pieces) < 75 * 60


def test_a_run_that_two_studies_read_belongs_to_the_same_one_whichever_are_asked_for():
    alone = settings.pieces(QUICK, ["parameters"])
    assert {piece.study for piece in alone} == {"time", "parameters"}
    assert set(alone) <= set(settings.pieces(QUICK, settings.TITLES))
