"""How often intervals hold the truth: what is refused, what stays, what is counted."""

import dataclasses

import numpy as np
import pytest

from experiments.benchmarks import command, rows
from experiments.benchmarks.ope import coverage, coverage_report
from experiments.benchmarks.ope.coverage_report import Row
from experiments.benchmarks.ope.coverage_work import ESTIMATORS, MODEL_MEMBERS
from offline_mbrl.types import Estimate, UsageError

COMMITTED = command.RESULTS / "ope" / "coverage"


def row(piece, *, repeats=10, fits=4):
    figures = (5.0, 0.95, *[0.0] * 6)
    return Row(piece, piece, 1.0, repeats, fits, *figures, 2.5, "abc", "python x")


def options(folder, **fields):
    return coverage.Options(**({"folder": folder, "repeats": 10} | fields))


def make(options):
    return coverage.make(options, options.folder, None)


def test_an_interval_covers_where_the_error_is_below_1_96_standard_errors():
    value = np.array([[1.0, 2.0], [1.3, 2.0]])  # two repeats of two policies
    stderr = np.full((2, 2), 0.1)
    diagnostics = {"low_support": np.array([[0.0, 1.0], [1.0, 1.0]])}
    measured = coverage_report.measure(Estimate(value, stderr, None, diagnostics), np.array([1, 3]))
    np.testing.assert_allclose(measured.covered, [0.5, 0.0])
    np.testing.assert_allclose(measured.low_support, [0.5, 1.0])
    np.testing.assert_allclose(measured.either, [1.0, 1.0])
    np.testing.assert_allclose(measured.bias, [0.15, -1.0])
    np.testing.assert_allclose(measured.rmse, [0.3 / 2**0.5, 1.0])


def test_pieces_with_rows_are_done_and_fresh_forgets_those_that_were_named(tmp_path):
    rows.append(tmp_path, Row, [row("fqe"), row("vpm")])
    study = make(options(tmp_path, estimators="vpm", fresh=True))
    assert study.is_done("fqe")
    assert study.is_done("vpm")
    assert not study.is_done("importance")
    study.forget()
    assert [own.piece for own in rows.read(tmp_path, Row)] == ["fqe"]
    assert "logged 10 times" in study.report().read_text()


@pytest.mark.parametrize(
    "fields", [{"repeats": 20}, {"fits": 8}, {"fits": 8, "estimators": "vpm", "fresh": True}]
)
def test_other_counts_than_those_of_the_table_are_refused_and_leave_it_alone(tmp_path, fields):
    rows.append(tmp_path, Row, [row("fqe"), row("vpm")])
    asked = options(tmp_path, **fields)
    message = (
        f"has fqe from 10 repeats and 4 fits, not from {asked.repeats} and {asked.fits}: "
        "choose another --folder"
    )
    with pytest.raises(UsageError, match=message):
        make(asked)
    assert len(rows.read(tmp_path, Row)) == 2
    make(dataclasses.replace(asked, estimators="", fresh=True)).forget()
    assert rows.read(tmp_path, Row) == []


@pytest.mark.parametrize("fields", [{"repeats": 10}, {"fits": 8}, {"repeats": 10, "fresh": True}])
def test_the_committed_results_keep_their_counts(fields):
    name = next(iter(fields))
    with pytest.raises(UsageError, match=f"--{name} differs from the committed results"):
        coverage.main(coverage.Options(**fields))


def test_the_committed_page_is_what_the_code_makes_of_the_committed_rows(tmp_path):
    table = rows.read(COMMITTED, Row)
    counts = {(own.repeats, own.fits) for own in table}
    assert counts == {(coverage.REPEATS, coverage.FITS)}
    assert {own.piece for own in table} == set(ESTIMATORS)
    rows.append(tmp_path, Row, table)
    page = coverage_report.write(tmp_path, members=MODEL_MEMBERS)
    assert page.read_text() == (COMMITTED / "summary.md").read_text()
