"""What the command would choose among the benchmark's policies, from rows."""

import numpy as np
from estimator_rows import QUICK, TASKS, truth

from experiments.benchmarks.ope import choices

VALUES = np.array([1.0, 2.0, 3.0, 5.0])
PLAIN = np.zeros((3, 4))


def columns(values, stderr=0.01, low=PLAIN, unsettled=PLAIN):
    values = np.asarray(values, float)
    return choices.Columns(
        values=values,
        stderr=np.full(values.shape, stderr),
        low_support=low,
        unsettled=unsettled,
        seconds=np.ones(values.shape),
    )


def rows(*seeds):
    return columns([np.asarray(seed, float) for seed in seeds])


def section(**table):
    return choices.section(QUICK, {TASKS[0]: truth(values=VALUES)}, {TASKS[0]: table})


def cells(text):
    return [cell.strip() for cell in text.splitlines()[2].strip("|").split("|")]


def test_right_estimates_choose_without_regret_and_cover():
    seeds = [VALUES + shift for shift in (-0.1, 0.0, 0.1)]
    assert cells(section(model_ff=rows(*seeds))) == [
        TASKS[0],
        "1.00",
        "0.000",
        "100% of 4",
        "100%",
        "100%",
        "0.000",
        "100% of 500",
    ]


def test_wrong_estimates_regret_and_do_not_cover():
    own = cells(section(model_ff=rows(*[-VALUES] * 3)))
    assert own[1:5] == ["-1.00", "1.000", "0% of 4", "0%"]
    assert own[7] == "0% of 500"


def test_estimates_that_say_themselves_that_they_do_not_know_have_no_vote():
    flagged = columns([-VALUES] * 3, low=np.ones((3, 4)))
    unsettled = columns([-VALUES] * 3, unsettled=np.ones((3, 4)))
    assert cells(section(model_ff=flagged, fqe=unsettled))[1] == "no estimator may vote"
    silent = columns([VALUES] * 3, low=np.full((3, 4), np.nan))
    assert cells(section(model_ff=flagged, fqe=silent))[2] == "0.000"


def test_fits_that_saw_a_resample_are_wider():
    seeds = columns([VALUES, VALUES + 1, VALUES - 1])
    once = choices.combined("fqe", seeds, bootstrap=False)
    resampled = choices.combined("fqe", seeds, bootstrap=True)
    np.testing.assert_allclose(
        [float(wide.stderr / narrow.stderr) for wide, narrow in zip(resampled, once, strict=True)],
        2.0,
        rtol=1e-3,  # sqrt((1 + 1 / 3) / (1 / 3))
    )
    model = choices.combined("model_ff", seeds, bootstrap=True)
    np.testing.assert_allclose(model[0].stderr, once[0].stderr)


def test_coverage_counts_the_policies_whose_interval_holds_the_truth():
    estimates = choices.combined("fqe", columns([VALUES + np.array([0, 0, 0, 9])]), bootstrap=False)
    assert choices.coverage(truth(values=VALUES), estimates) == 0.75
