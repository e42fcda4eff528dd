"""Metrics and claims of the benchmark of estimators, and the pages made of its tables."""

import dataclasses
import zlib

import numpy as np
from estimator_rows import NAMES, QUICK, TASKS, VALUES, estimated, truth, write

from experiments.benchmarks import command, pages, rows
from experiments.benchmarks.ope import report, runs
from offline_mbrl.collect import control
from offline_mbrl.selection import metrics


def written(folder, preset=QUICK):
    """The summary, and the page of the first task."""
    summary = report.write(folder, preset, preset_name="quick").read_text()
    return summary, (folder / f"{TASKS[0]}.md").read_text()


def cells(page, name, number=0):
    """Cells of an estimator in one of a page's tables, by heading."""
    lines = page.splitlines()
    header = [line for line in lines if line.startswith("| estimator")][number]
    line = [line for line in lines if line.startswith(f"| `{name}`")][number]
    pairs = zip(header.split("|"), line.split("|"), strict=True)
    return {heading.strip(): cell.strip() for heading, cell in pairs}


def test_metrics_are_of_the_estimates_beside_the_true_values(tmp_path):
    table = []
    for seed in range(3):
        table += estimated("fqe", VALUES + 1.0, seed=seed)
        table += estimated("model_ff", -VALUES, seed=seed, group="model_ff", low_support=1.0)
    _, page = written(write(tmp_path, table))
    fqe = cells(page, "fqe")
    model = cells(page, "model_ff")
    assert fqe["rank correlation"].startswith("1.00 [")
    assert fqe["normalized error"] == "0.25 [0.25, 0.25]"  # 1 over the range of 4
    assert fqe["rank correlation of each seed"] == "1.00, 1.00, 1.00"
    assert model["rank correlation"].startswith("-1.00 [")
    assert (fqe["low support"], model["low support"]) == ("0%", "100%")


def test_means_and_deviations_over_resamples_are_shown_for_each_task_and_over_tasks(tmp_path):
    estimates = [2.0, 1.0, 3.5, 4.0]
    scores = {}
    for task in TASKS:
        own = metrics.score(VALUES, estimates, seed=zlib.crc32(task.encode()))
        scores[task] = own._replace(metrics={name: own.metrics[name] for name in report.METRICS})
    table = [row for task in TASKS for row in estimated("fqe", estimates, task=task)]
    summary, page = written(write(tmp_path, table, [*truth(), *truth(TASKS[1])]))
    for text, expected in ((page, scores[TASKS[0]]), (summary, metrics.aggregate(scores))):
        shown = list(cells(text, "fqe", 1).values())[2:]
        assert shown == [f"{own.mean:.2f} ± {own.std:.2f}" for own in expected.metrics.values()]


def test_estimators_of_a_task_share_draws_of_policies_and_tasks_do_not():
    def draws(task, shift):
        estimates = report.Estimates(*np.broadcast_to(VALUES[::-1] + shift, (5, 2, 4)))
        return report.score(truth(task), estimates).over_seeds.metrics["bias"].replicates

    first = draws(TASKS[0], 0.0)
    np.testing.assert_allclose(draws(TASKS[0], 1.0), first + 1.0)
    assert abs(np.corrcoef(draws(TASKS[1], 0.0), first)[0, 1]) < 0.1


def test_claims_are_judged_by_the_difference_and_left_open_where_it_may_be_none(tmp_path):
    names = {"fqe": VALUES + 0.01, "best_dice": VALUES[::-1], "doubly_robust": VALUES + 0.01}
    table = [
        row
        for task in TASKS
        for name, values in names.items()
        for row in estimated(name, values, task=task)
    ]
    write(tmp_path, table, [*truth(), *truth(TASKS[1])])
    summary, _ = written(tmp_path, dataclasses.replace(QUICK, seeds=1))
    lines = [line for line in summary.splitlines() if line.startswith("- ")]
    dice = next(line for line in lines if "DICE" in line and "absolute error" in line)
    assert "**holds**" in dice
    robust = next(line for line in lines if "doubly robust" in line and "rank corr" in line)
    assert "**cannot be told**; ahead by 0.00" in robust
    assert any("feedforward ones" in line and line.endswith("not run.") for line in lines)


def test_claims_about_estimators_that_have_not_settled_say_so(tmp_path):
    flags = {
        "fqe": [0.0, 0.0, 0.0],
        "best_dice": [1.0, 1.0, 0.0],
        "fqe_distributional": [1.0, 0.0, np.nan],
        "model_ar": [np.nan] * 3,
    }
    table = [
        row
        for name, seeds in flags.items()
        for seed, flag in enumerate(seeds)
        for row in estimated(name, VALUES + seed, seed=seed, unsettled=flag)
    ]
    summary, page = written(write(tmp_path, table))
    shown = {name: cells(page, name)["unsettled"] for name in flags}
    assert shown == {
        "fqe": "0%",
        "best_dice": "67%",
        "fqe_distributional": "50%",
        "model_ar": "-",
    }
    judged = [line for line in summary.splitlines() if line.startswith("- ") and "ahead by" in line]
    flagged = [line for line in judged if "has not settled" in line]
    assert len(flagged) == 2
    assert flagged == [line for line in judged if "DICE" in line]
    note = "]; `best_dice` says of 67% of its estimates that it has not settled."
    assert all(line.endswith(note) for line in flagged)
    assert "the rows do not say whether these have: `model_ar`." in summary


def test_the_seconds_of_a_group_are_counted_once(tmp_path):
    table = [
        row._replace(cpu_seconds=60.0)
        for name in ("fqe", "magic")
        for row in estimated(name, VALUES)
    ]
    summary, _ = written(write(tmp_path, table))
    assert "- 4 CPU minutes of fits" in summary


def test_estimates_of_other_settings_do_not_count(tmp_path):
    other = dataclasses.replace(QUICK.settings, fqe_updates=5)
    key = runs.settings_key(other)
    table = [*estimated("fqe", VALUES), *estimated("vpm", VALUES, group="vpm", settings=key)]
    summary, page = written(write(tmp_path, table))
    assert "`fqe`" in page
    assert "`vpm`" not in page
    assert "vpm" not in summary.split("## What")[0]


def test_missing_estimates_are_counted(tmp_path):
    values = np.where(np.arange(len(NAMES)) == 1, np.nan, VALUES)
    _, page = written(write(tmp_path, estimated("fqe", values)))
    assert cells(page, "fqe")["missing"] == "1"


def test_the_committed_pages_are_what_the_code_makes_of_the_committed_rows(tmp_path):
    folder = command.RESULTS / "ope" / "quick"
    write(tmp_path, rows.read(folder, runs.Row), runs.truths(folder))
    summary, _ = written(tmp_path)
    for task in TASKS:
        name = f"{task}.md"
        assert (tmp_path / name).read_text() == (folder / name).read_text()
    committed = (folder / pages.SUMMARY).read_text()
    # The last line tells of this machine.
    assert summary.split("- reported on")[0] == committed.split("- reported on")[0]


def test_the_committed_rows_are_complete():
    folder = command.RESULTS / "ope" / "quick"
    policies, table = report.read(folder, QUICK)
    for task in TASKS:
        targets = control.target_policies(task, QUICK.fewer.get(task, QUICK.policies))
        assert tuple(row.name for row in policies[task]) == targets.names
        assert list(table[task]) == report.all_estimators()
        shapes = {estimates.values.shape for estimates in table[task].values()}
        assert shapes == {(QUICK.seeds, len(targets.names))}
