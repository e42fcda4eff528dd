"""What the studies are made of."""

import dataclasses

import pytest

from experiments.benchmarks.bsuite import findings, grid
from experiments.benchmarks.bsuite import main as bsuite
from experiments.benchmarks.bsuite import runs as study
from offline_mbrl import registry
from offline_mbrl.types import UsageError

QUICK, FULL = grid.PRESETS["quick"], grid.PRESETS["full"]
SIZE = study.Size(10, 8, 20)


@pytest.mark.parametrize("preset", [QUICK, FULL])
def test_no_piece_comes_twice_and_every_study_has_its_settings(preset):
    found = grid.studies(preset)
    pieces = list(grid.pieces(preset, found))
    assert len({setting for _, setting in pieces}) == len(pieces)
    wanted = {setting for one in found.values() for setting in grid.all_settings(one)}
    assert len(pieces) == len(wanted) * len(preset.environments)


def test_a_study_alone_brings_the_settings_that_it_shares_under_the_study_that_owns_them():
    pieces = list(grid.pieces(QUICK, ["noise"]))
    assert {setting for _, setting in pieces} == set(grid.all_settings(grid.studies(QUICK)["noise"]))
    owners = {setting.noise: owner for owner, setting in pieces if setting.arm == "muzero"}
    assert owners == {0.0: "coverage", 0.3: "noise", 0.5: "noise"}


def test_cheap_settings_come_first_within_a_study():
    costs = [grid.milliseconds(setting, 128) for owner, setting in grid.pieces(QUICK, ["coverage"])]
    assert costs == sorted(costs)


def test_every_claim_is_about_settings_that_the_full_grid_runs():
    for preset in (QUICK, FULL):
        there = {setting for one in grid.studies(preset).values() for setting in grid.all_settings(one)}
        for claim in findings.claims(preset):
            assert there.issuperset(claim.settings), claim.text


def test_arms_differ_in_operator_and_behavior_term_alone():
    arms = [arm for arm, one in grid.ARMS.items() if one.algorithm == "rosmo"]
    configs = [study.configure(grid.Setting(arm, simulations=4, depth=2), SIZE) for arm in arms]
    common = [dataclasses.replace(one, search=configs[0].search, behavior_coef=0.0) for one in configs]
    assert all(one == common[0] for one in common)
    searches = [dataclasses.replace(one.search, operator="", depth=0, max_depth=0) for one in configs]
    assert all(one == searches[0] for one in searches)
    assert len({(one.search.operator, one.behavior_coef) for one in configs}) == len(configs)


def test_every_arm_makes_a_learner_and_its_unroll_length_is_that_of_the_setting():
    for arm, one in grid.ARMS.items():
        setting = grid.Setting(arm, simulations=4 if one.tree else 0, depth=2, unroll=5)
        config = study.configure(setting, SIZE)
        assert isinstance(config, registry.lookup(one.algorithm).config)
        assert getattr(config, "unroll_steps", 5) == 5


@pytest.mark.parametrize(("options", "message"), [
    (bsuite.Options(studies="coverage,nois"), "unknown study 'nois'"),
    (bsuite.Options(arms="muzer"), "unknown arm 'muzer'"),
    (bsuite.Options(updates=10), "--updates differs from the preset: give a --folder as well"),
])  # fmt: skip
def test_bad_options_are_refused_in_one_line(options, message, tmp_path, monkeypatch):
    monkeypatch.setattr(bsuite, "RESULTS", tmp_path)
    with pytest.raises(UsageError, match=message):
        bsuite.main(options)
