"""The settings of the studies on BSuite."""

import dataclasses

import pytest

from experiments.benchmarks.bsuite import grid, runs
from offline_mbrl import environments, registry
from offline_mbrl.data.catalog.load import lookup

QUICK = grid.PRESETS["quick"]
SIZE = runs.Size(updates=10, batch_size=8, episodes=20)


@pytest.mark.parametrize("preset", grid.PRESETS.values())
def test_every_setting_of_every_study_is_run_once_for_every_seed_and_environment(preset):
    studies = grid.studies(preset)
    pieces = grid.pieces(preset, studies)
    runs_of_pieces = [(piece.setting, seed) for piece in pieces for seed in piece.seeds]
    shown = {setting for study in studies.values() for setting in grid.all_settings(study)}
    assert len(set(runs_of_pieces)) == len(runs_of_pieces)
    assert len(runs_of_pieces) == len(shown) * len(preset.environments) * preset.seeds


def test_a_shared_setting_belongs_to_the_same_study_whichever_are_asked_for():
    pieces = grid.pieces(QUICK, ["noise"])
    shown = set(grid.all_settings(grid.studies(QUICK)["noise"]))
    assert {piece.setting for piece in pieces} == shown
    owners = {piece.setting.noise: piece.study for piece in pieces if piece.setting.arm == "muzero"}
    assert owners == {0.0: "coverage", 0.3: "noise", 0.5: "noise"}


def test_seeds_of_a_tree_search_are_trained_one_after_the_other_and_all_others_together():
    assert grid.groups(grid.Setting("muzero"), 2) == [(0,), (1,)]
    assert grid.groups(grid.Setting("rosmo"), 2) == [(0, 1)]


def test_arms_differ_in_operator_and_behavior_term_alone():
    arms = [name for name, arm in grid.ARMS.items() if arm.algorithm == "rosmo"]
    configs = [runs.configure(grid.Setting(arm, simulations=4, depth=2), SIZE) for arm in arms]
    common = [
        dataclasses.replace(config, search=configs[0].search, behavior_coef=0.0)
        for config in configs
    ]
    assert all(config == common[0] for config in common)
    searches = [
        dataclasses.replace(config.search, operator="", depth=0, max_depth=0) for config in configs
    ]
    assert all(search == searches[0] for search in searches)
    arms_of = {(config.search.operator, config.behavior_coef) for config in configs}
    assert len(arms_of) == len(configs)


def test_every_setting_makes_a_learner_with_its_unroll_length():
    spec = environments.spec(lookup("local/catch").simulator)
    for preset in grid.PRESETS.values():
        studies = grid.studies(preset).values()
        for setting in {own for study in studies for own in grid.all_settings(study)}:
            algorithm = registry.lookup(grid.ARMS[setting.arm].algorithm)
            config = runs.configure(setting, SIZE)
            algorithm.make(config, spec)
            assert getattr(config, "unroll_steps", setting.unroll) == setting.unroll
