"""Scripts for a GPU: slices that go on, rows that are not made twice, and the folder of data."""

import itertools

import jax
import numpy as np
import pytest

from experiments.benchmarks import rows
from experiments.gpu import data, likelihood, measured, speed
from experiments.gpu.measured import Case, Program
from offline_mbrl.training import fit
from offline_mbrl.types import UsageError

TASK = "cartpole_swingup"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("data")
    options = data.Options(folder=place, tasks=TASK, small=True)
    assert data.main(options) == 0
    return place


# --- speed ---


def case(name, made):
    def make():
        made.append(name)
        return Program(run=lambda count: None, flops=2e9, work=4.0)

    return Case(name=name, precision="float32", seeds=4, unit="updates", make=make)


def test_what_is_in_the_table_is_not_measured_again(tmp_path, monkeypatch):
    made = []
    clock = itertools.count()
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(speed, "enough", lambda run, seconds: 1)
    options = speed.Options(folder=tmp_path, small=True, max_minutes=0)
    for _ in range(2):
        cases = [case(speed.PRODUCT, made), case("learner", made)]
        assert speed.carry_out(cases, options, "script", "page.md") == 0
    assert made == [speed.PRODUCT, "learner"]
    first, second = rows.read(tmp_path, speed.Row)
    assert (second.rate, second.gflop, second.tflops) == (4.0, 0.5, 0.002)  # in a second
    assert first.device == jax.devices()[0].device_kind
    assert "100.0%" in (tmp_path / "page.md").read_text()
    large = speed.Options(folder=tmp_path, max_minutes=0)
    speed.carry_out([case("learner", made)], large, "script", "page.md")
    assert made == [speed.PRODUCT, "learner", "learner"]


def test_nothing_is_begun_when_the_time_is_up(tmp_path):
    made = []
    options = speed.Options(folder=tmp_path, small=True, max_minutes=1e-9)
    speed.carry_out([case("learner", made)], options, "script", "page.md")
    assert not made


def test_both_precisions_of_every_case_and_windows_of_128_and_512():
    for cases in (measured.speed_cases(measured.LARGE), measured.atari_cases(measured.LARGE)):
        named = {(case.name, case.seeds) for case in cases}
        assert len(cases) == 2 * len(named)
    names = {case.name for case in cases}
    assert {"rosmo on atari, 128 windows", "rosmo on atari, 512 windows"} < names


def test_a_product_takes_two_operations_an_entry():
    program = measured.product(measured.SMALL, "bfloat16", 1)
    assert program.flops == 2 * measured.SMALL.product**3


# --- data ---


def test_whole_episodes_come_back_as_they_were(folder):
    dataset = data.read(folder, TASK)
    columns = data.whole_episodes(dataset, 250)
    assert len(columns["reward"]) == 200  # two episodes of a hundred steps
    columns["is_terminal"] = columns["is_last"]
    again = data.memory.Dataset.from_arrays(columns)
    assert np.array_equal(again.observation, dataset.observation[:200])
    assert np.array_equal(again.starts, dataset.starts[: len(again.starts)])
    terminal = data.whole_episodes(again, 200)
    assert np.array_equal(terminal["is_terminal"], terminal["is_last"])
    with pytest.raises(UsageError, match="more than 50 steps"):
        data.whole_episodes(dataset, 50)


def test_a_folder_that_is_too_large_or_missing_is_refused(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"settings.json is missing"):
        data.about(tmp_path)
    monkeypatch.setattr(data, "MOST_BYTES", 1)
    with pytest.raises(UsageError, match="give fewer --steps"):
        data.main(data.Options(folder=tmp_path, tasks=TASK, small=True))


# --- likelihood ---


def options_of(folder, results, minutes):
    return likelihood.Options(
        data=folder, folder=results, families="feedforward", max_minutes=minutes, small=True
    )


def test_a_run_in_slices_ends_as_an_undisturbed_one(folder, tmp_path, monkeypatch):
    steps = []

    def fitted(*arguments, start, **more):
        steps.append(0 if start is None else int(start.step))
        return plain(*arguments, start=start, **more)

    plain = fit.fit
    monkeypatch.setattr(fit, "fit", fitted)
    monkeypatch.setattr(likelihood.compilation, "enable", lambda: None)
    whole, sliced = tmp_path / "whole", tmp_path / "sliced"
    likelihood.main(options_of(folder, whole, minutes=10.0))
    likelihood.main(options_of(folder, sliced, minutes=0.0))  # up after the first block
    assert not rows.read(sliced, likelihood.Row)
    (unfinished,) = (sliced / "unfinished").iterdir()
    reached = likelihood.checkpoint.latest(unfinished)
    assert 0 < reached < 61
    likelihood.main(options_of(folder, sliced, minutes=10.0))
    first, second = (
        [row._replace(train_seconds=0.0) for row in rows.read(place, likelihood.Row)]
        for place in (whole, sliced)
    )
    assert [row.seed for row in first] == [0, 1]
    assert second == first
    assert steps == [0, 0, reached]
    assert not unfinished.exists()


def test_an_unfinished_run_of_other_settings_is_refused(folder, tmp_path):
    options = options_of(folder, tmp_path, 0.0)
    (piece,) = likelihood.pieces(options, [TASK])
    kept = tmp_path / "kept"
    state = {"x": np.zeros(1)}
    likelihood.checkpoint.save(kept, 1, state, {"config": likelihood.identity(piece)})
    assert likelihood.restored(kept, state, piece)[0] is not None
    with pytest.raises(UsageError):
        likelihood.restored(kept, state, piece._replace(updates=7))


def test_random_numbers_are_not_judged_as_data(folder, tmp_path):
    with pytest.raises(UsageError, match="give --small"):
        likelihood.main(likelihood.Options(data=folder, folder=tmp_path))
