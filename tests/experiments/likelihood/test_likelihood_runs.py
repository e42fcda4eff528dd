"""Runs of the likelihood study, their data, speeds and tables."""

import numpy as np
import pytest
from likelihood_rows import QUICK, TASK, rows_of_sweep, rows_of_time
from rich.console import Console

from experiments.benchmarks import command, rows
from experiments.benchmarks.likelihood import main, runs, settings
from experiments.benchmarks.likelihood.settings import Architecture
from offline_mbrl.data import memory, normalize
from offline_mbrl.data.catalog.load import Loaded
from offline_mbrl.data.specs import spec_of
from offline_mbrl.types import UsageError

TINY = QUICK._replace(
    tasks=(TASK,),
    seeds=1,
    seconds=0.1,
    short_tasks={},
    grid_seconds=0.1,
    widths={"feedforward": 8, "masked": 8},
    curve=(),
    hidden=(8,),
    depth=(2,),
    learning_rate=(1e-3,),
    most_judged=40,
    batch_size=8,
    num_scores=2,
    rate_seconds=0.01,
    rate_rounds=1,
)


def linear_system(name=f"local/control/{TASK}", *, size=5, num=400):
    """A linear system with two episodes; the last entry of the state is constant."""
    rng = np.random.default_rng(0)
    action = rng.uniform(-1, 1, (num, 1)).astype(np.float32)
    state = np.zeros((num, size), np.float32)
    for t in range(1, num):
        noise = 0.05 * rng.normal(size=size - 1)
        state[t, :-1] = 0.9 * state[t - 1, :-1] + 0.3 * action[t - 1] + noise
    last = np.isin(np.arange(num), (num // 2 - 1, num - 1))
    columns = {"observation": state, "action": action, "reward": state[:, 0]}
    dataset = memory.Dataset.from_arrays(columns | {"is_last": last, "is_terminal": 0 * last})
    statistics = normalize.statistics(dataset)
    return Loaded(name, dataset, None, spec_of(dataset), statistics, "", None, None)


def study(folder, preset=TINY, load=linear_system, **options):
    options = main.Options(folder=folder, **options)
    return main.make(options, preset, folder, load)


def test_a_tiny_study_runs_goes_on_and_reports(tmp_path):
    silent = Console(quiet=True)
    rates = [
        runs.Rate(**settings.architecture(setting)._asdict(), batch_size=8, updates_per_second=200)
        for setting in settings.equal_time(TINY, TASK).values()
    ]
    rows.append(tmp_path / main.RATES, runs.Rate, rates)
    work = study(tmp_path, studies="time")
    command.share_work(work._replace(pieces=work.pieces[:1]), tmp_path, silent)
    kept = rows.read(tmp_path, runs.Row)
    command.share_work(work, tmp_path, silent)
    table = rows.read(tmp_path, runs.Row)
    assert table[:1] == kept  # the finished run did not run again
    assert [row.family for row in table] == ["feedforward", "masked"]
    for row in table:
        # 0.1 s at 200 updates a second in two parts, and the update after the last score.
        assert row.updates == 21
        assert row.held_out == 30  # of 39 held out, 9 select
        assert row.constant == 1
        assert np.isfinite([row.nll_unit, row.nll_z, row.nll_raw, row.p99_z, row.reward_z]).all()
        assert row.floor_z < row.nll_z <= row.p99_z
        assert 0 < row.coverage_50 < row.coverage_90 <= 1
        assert row.cpu_seconds > row.train_seconds > 0
        assert not row.failure
    work.report()
    page = (tmp_path / "time.md").read_text()
    study(tmp_path, studies="time", load=None).report()
    assert (tmp_path / "time.md").read_text() == page  # from the table alone


def test_speeds_are_measured_once(tmp_path):
    data = runs.split(linear_system(), TASK, TINY)
    model = Architecture(TASK, "feedforward", 8, 2)
    measured = main.rates(tmp_path, [model], data, TINY)
    assert measured[model] > 1
    assert main.rates(tmp_path, [model], None, TINY) == measured
    assert [row.batch_size for row in rows.read(tmp_path, runs.Rate)] == [TINY.batch_size]


def test_the_parts_of_the_data_share_no_transition_and_statistics_are_of_the_first():
    data = runs.split(linear_system(), TASK, TINY)
    dataset = data.dataset
    parts = [
        set(np.asarray(part).tolist()) for part in (dataset.starts, dataset.held_out, data.judged)
    ]
    assert [len(part) for part in parts] == [359, 9, 30]
    assert len(set.union(*parts)) == sum(map(len, parts))
    mean = data.context.statistics.transitions.reward_mean
    np.testing.assert_allclose(mean, dataset.reward[dataset.starts].mean(), rtol=1e-5)


def test_data_of_other_sizes_are_refused_in_one_line():
    message = r"observations and actions of sizes \(4, 1\), but cartpole_swingup has \(5, 1\)"
    with pytest.raises(UsageError, match=message):
        runs.split(linear_system(size=4), TASK, TINY)


OTHER = "cheetah_run"


@pytest.mark.parametrize(
    ("options", "left", "rates"),
    [
        ({}, set(), set()),
        ({"tasks": OTHER}, {("time", TASK), ("grid", TASK)}, {TASK}),
        ({"studies": "time"}, {("grid", TASK), ("grid", OTHER)}, {TASK, OTHER}),
        (
            {"studies": "grid", "tasks": TASK},
            {("time", TASK), ("time", OTHER), ("grid", OTHER)},
            {TASK, OTHER},
        ),
    ],
)
def test_the_rows_that_are_forgotten_are_those_that_were_named(tmp_path, options, left, rates):
    tasks = (TASK, OTHER)
    rows.append(tmp_path, runs.Row, rows_of_sweep(tasks, ["masked"]))
    rows.append(tmp_path, runs.Row, rows_of_time({"feedforward": -2.0}, tasks))
    table = [runs.Rate(task, "masked", 8, 2, 8, 1.0) for task in tasks]
    rows.append(tmp_path / main.RATES, runs.Rate, table)
    with pytest.raises(UsageError, match="unknown task 'hopper'"):
        study(tmp_path, QUICK, tasks="hopper")
    study(tmp_path, QUICK, **options).forget()
    assert {(row.study, row.task) for row in rows.read(tmp_path, runs.Row)} == left
    assert {row.task for row in rows.read(tmp_path / main.RATES, runs.Rate)} == rates
