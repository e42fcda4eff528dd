"""The measurement of how often intervals hold the truth: what is done again, what is refused, what stays."""

import dataclasses

import pytest

from experiments.benchmarks import rows as table
from experiments.benchmarks.ope import coverage as ope_coverage
from experiments.benchmarks.ope.coverage_report import Row
from offline_mbrl.types import UsageError


@pytest.fixture
def faked(monkeypatch):
    """Logs and fits replaced by made-up rows; which pieces were done is recorded."""
    done = []

    def run(piece, options, logs, *, revision, command):
        done.append(piece)
        return [
            Row(
                piece,
                piece,
                1.0,
                options.repeats,
                options.fits,
                5.0,
                0.95,
                *[0.0] * 6,
                2.5,
                revision,
                command,
            )
        ]

    monkeypatch.setattr(ope_coverage, "logged", lambda repeats: None)
    monkeypatch.setattr(ope_coverage, "run", run)
    return done


def options(folder, **given):
    return ope_coverage.Options(
        **({"folder": folder, "estimators": "fqe,vpm", "repeats": 10} | given)
    )


def test_what_is_done_is_not_redone_and_fresh_forgets_what_was_named(tmp_path, faked):
    for _ in range(2):
        assert ope_coverage.main(options(tmp_path)) == 0
        assert faked == ["fqe", "vpm"]
    assert "logged 10 times" in (tmp_path / "summary.md").read_text()
    ope_coverage.main(options(tmp_path, estimators="vpm", fresh=True))
    assert faked == ["fqe", "vpm", "vpm"]
    assert [row.piece for row in table.read(tmp_path, Row)] == ["fqe", "vpm"]


@pytest.mark.parametrize(
    "given", [{"repeats": 20}, {"fits": 8}, {"fits": 8, "estimators": "vpm", "fresh": True}]
)
def test_other_counts_than_those_of_the_table_are_refused_and_leave_it_alone(
    tmp_path, faked, given
):
    ope_coverage.main(options(tmp_path))
    before = (tmp_path / table.TABLE).read_text()
    asked = dataclasses.replace(options(tmp_path), **given)
    told = f"has fqe from 10 repeats and 4 fits, not from {asked.repeats} and {asked.fits}: choose another --folder"
    with pytest.raises(UsageError, match=told):
        ope_coverage.main(asked)
    assert (tmp_path / table.TABLE).read_text() == before
    assert faked == ["fqe", "vpm"]
    ope_coverage.main(dataclasses.replace(asked, estimators="", fresh=True))
    assert {(row.repeats, row.fits) for row in table.read(tmp_path, Row)} == {
        (asked.repeats, asked.fits)
    }


@pytest.mark.parametrize("given", [{"repeats": 10}, {"fits": 8}, {"repeats": 10, "fresh": True}])
def test_the_committed_results_keep_their_counts(tmp_path, faked, given, monkeypatch):
    monkeypatch.setattr(ope_coverage, "RESULTS", tmp_path)
    with pytest.raises(
        UsageError, match=f"--{next(iter(given))} differs from the committed results"
    ):
        ope_coverage.main(ope_coverage.Options(**given))
    assert not faked


def test_the_committed_rows_are_of_the_default_counts():
    rows = table.read(ope_coverage.RESULTS, Row)
    assert {(row.repeats, row.fits) for row in rows} == {(ope_coverage.REPEATS, ope_coverage.FITS)}
    assert {row.piece for row in rows} == set(ope_coverage.WORK)
