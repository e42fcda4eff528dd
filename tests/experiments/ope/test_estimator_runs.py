"""Pieces of the benchmark of estimators, their rows, and the key of their settings."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from estimator_rows import NAMES, QUICK, TASKS, VALUES, estimated, truth, write
from rich.console import Console

from experiments.benchmarks import command, rows
from experiments.benchmarks.ope import main, runs
from offline_mbrl.collect import control, control_policies, policy_set
from offline_mbrl.problems import known
from offline_mbrl.selection import estimators
from offline_mbrl.types import Estimate, UsageError

ORIGIN = command.Origin(revision="abc", command="python x")


def test_policies_to_evaluate_are_of_other_training_runs_than_the_data():
    for task in TASKS:
        targets = control.target_policies(task, QUICK.fewer.get(task, QUICK.policies))
        policies = policy_set.load(control_policies.location(task))
        behavior = policy_set.with_role(policies, policy_set.BEHAVIOR)
        assert not set(targets.info.run) & set(behavior.run)


def test_true_values_come_first_and_every_group_once_for_each_task_and_seed():
    groups = list(estimators.GROUPS)
    pieces = runs.pieces(QUICK, groups)
    assert len(set(pieces)) == len(pieces) == len(TASKS) * (1 + QUICK.seeds * len(groups))
    for task in TASKS:
        own = [piece for piece in pieces if piece.task == task]
        assert own[0].group == runs.TRUTH
        assert [piece.seed for piece in own] == sorted(piece.seed for piece in own)


# --- the key of the settings ---


@dataclasses.dataclass(frozen=True)
class LaterSettings(estimators.Settings):
    """The settings with a field that came later."""

    temperature: float = 1.0


def test_the_committed_rows_have_the_key_of_the_quick_preset():
    table = rows.read(command.RESULTS / "ope" / "quick", runs.Row)
    assert {row.settings for row in table} == {runs.settings_key(QUICK.settings)}


def test_a_newer_setting_enters_the_key_where_it_differs_from_its_default():
    values = dataclasses.asdict(QUICK.settings)
    key = runs.settings_key(QUICK.settings)
    assert runs.settings_key(LaterSettings(**values)) == key
    warmer = runs.settings_key(LaterSettings(**values, temperature=2.0))
    assert warmer == f"{key[:-1]}, temperature=2.0)"
    longer = dataclasses.replace(QUICK.settings, fqe_updates=5)
    assert runs.settings_key(longer) != key


def test_rows_of_other_settings_leave_a_piece_undone(tmp_path):
    write(tmp_path, estimated("fqe", VALUES))
    piece = runs.Piece(TASKS[0], "fqe", 0)
    assert runs.is_done(tmp_path, piece, QUICK)
    assert not runs.is_done(tmp_path, piece._replace(seed=1), QUICK)
    longer = dataclasses.replace(QUICK.settings, fqe_updates=5)
    assert not runs.is_done(tmp_path, piece, dataclasses.replace(QUICK, settings=longer))
    assert runs.is_done(tmp_path, runs.Piece(TASKS[0], runs.TRUTH, 0), QUICK)
    assert not runs.is_done(tmp_path, runs.Piece(TASKS[1], runs.TRUTH, 0), QUICK)


# --- the work ---


@pytest.fixture(scope="module")
def ready():
    """Four policies of the linear-Gaussian system in place of a task's."""
    problem = known.linear_gaussian(0)
    params = problem.target_params[:4]
    stacked = {name: np.stack([own[name] for own in params]) for name in params[0]}
    return runs.Prepared(
        task=TASKS[0],
        targets=control.Targets(problem.policy, stacked, NAMES, None),
        data=estimators.prepare(problem.dataset, problem.spec),
        simulator="none",
    )


def test_estimates_of_a_group_are_rows_and_a_stopped_benchmark_goes_on(tmp_path, ready):
    rows.append(tmp_path / runs.TRUTH, runs.Truth, truth())
    silent = Console(quiet=True)
    settings = dataclasses.replace(QUICK.settings, clone_updates=20, clone_layers=(8,))
    preset = dataclasses.replace(QUICK, settings=settings, seeds=2)
    options = main.Options(tasks=TASKS[0], groups="importance", folder=tmp_path)
    study = main.make(options, preset, tmp_path, lambda task: ready)
    assert [piece.group for piece in study.pieces] == [runs.TRUTH, "importance", "importance"]
    command.share_work(study._replace(pieces=study.pieces[:2]), tmp_path, silent)
    kept = rows.read(tmp_path, runs.Row)
    command.share_work(study, tmp_path, silent)
    table = rows.read(tmp_path, runs.Row)
    assert list(map(repr, table[: len(kept)])) == list(map(repr, kept))  # NaN equals itself
    names = estimators.GROUPS["importance"].names
    assert len(table) == 2 * len(names) * 4
    assert {(row.seed, row.estimator, row.policy) for row in table} == {
        (seed, name, policy) for seed in range(2) for name in names for policy in range(4)
    }
    logged = [row for row in table if row.estimator == "weighted_is_logged"]
    assert np.isfinite([row.value for row in logged]).all()


def test_true_values_of_other_policies_are_refused(tmp_path, ready):
    rows.append(tmp_path / runs.TRUTH, runs.Truth, truth(names=("a", "b", "c", "d")))
    with pytest.raises(UsageError, match="are of other policies"):
        runs.run(tmp_path, runs.Piece(TASKS[0], "importance", 0), ready, QUICK, ORIGIN)
    assert rows.read(tmp_path, runs.Row) == []


@pytest.mark.parametrize(
    ("diagnostics", "low", "unsettled"),
    [
        ({}, np.nan, np.nan),
        ({"low_support": 0.0, "updates_too_few": 1.0}, 0.0, 1.0),
        ({"low_support": 0.0, "unlikely_actions": 0.9}, 1.0, np.nan),
        ({"visited_share": 0.01}, 1.0, np.nan),
        ({"low_support": 1.0, "visited_share": 0.9, "updates_too_few": 0.0}, 1.0, 0.0),
        ({"drift": 3.0}, np.nan, np.nan),
    ],
)
def test_support_is_low_by_any_sign_and_unknown_without_one(diagnostics, low, unsettled):
    stacked = {name: jnp.full(3, value) for name, value in diagnostics.items()}
    estimate = Estimate(jnp.zeros(3), jnp.zeros(3), jnp.zeros((3, 2)), stacked)
    np.testing.assert_array_equal(runs.flags(estimate), [[low] * 3, [unsettled] * 3])


# --- what is forgotten ---

OTHER = TASKS[1]


@pytest.mark.parametrize(
    ("tasks", "groups", "left", "truths"),
    [
        ((), (), set(), set()),
        (TASKS[:1], (), {(OTHER, "fqe"), (OTHER, "vpm")}, {OTHER}),
        ((), ("vpm",), {(task, "fqe") for task in TASKS}, set(TASKS)),
        (
            TASKS[:1],
            ("fqe",),
            {(TASKS[0], "vpm"), (OTHER, "fqe"), (OTHER, "vpm")},
            set(TASKS),
        ),
    ],
)
def test_the_rows_that_are_forgotten_are_those_that_were_named(
    tmp_path, tasks, groups, left, truths
):
    table = [
        row
        for task in TASKS
        for name in ("fqe", "vpm")
        for row in estimated(name, VALUES, task=task, group=name)
    ]
    main.forget(write(tmp_path, table, [*truth(), *truth(OTHER)]), tasks, groups)
    assert {(row.task, row.group) for row in rows.read(tmp_path, runs.Row)} == left
    assert {row.task for row in runs.truths(tmp_path)} == truths


def test_a_damaged_table_goes_whole_or_not_at_all(tmp_path):
    (tmp_path / rows.TABLE).write_text("no table\n1\n")
    with pytest.raises(UsageError, match="start over with --fresh"):
        main.forget(tmp_path, (), ["vpm"])  # the others' rows would be lost
    main.forget(tmp_path, (), ())
    assert rows.read(tmp_path, runs.Row) == []
