"""The likelihood study: its settings, its runs and their table, its intervals, and what is written from it."""

import re

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from experiments.benchmarks import rows as table
from experiments.benchmarks.likelihood import findings as nll_findings
from experiments.benchmarks.likelihood import main as dynamics_nll
from experiments.benchmarks.likelihood import report as nll_report
from experiments.benchmarks.likelihood import runs as nll_runs
from experiments.benchmarks.likelihood import settings
from experiments.benchmarks.likelihood.settings import Architecture, Setting
from offline_mbrl.data import memory, normalize
from offline_mbrl.data.catalog.load import Loaded
from offline_mbrl.data.specs import spec_of
from offline_mbrl.types import UsageError

TASK = "cartpole_swingup"
QUICK = settings.PRESETS["quick"]
TINY = QUICK._replace(
    tasks=(TASK,), seeds=1, seconds=0.1, short_tasks={}, grid_seconds=0.1, widths={"feedforward": 8, "masked": 8},
    curve=(), hidden=(8,), depth=(2,), learning_rate=(1e-3,), most_judged=40, batch_size=8, num_scores=2,
    rate_seconds=0.01, rate_rounds=1)  # fmt: skip


def made(size=5, num=400):
    """A linear system with two episodes; the last entry of the state is constant."""
    rng = np.random.default_rng(0)
    action = rng.uniform(-1, 1, (num, 1)).astype(np.float32)
    state = np.zeros((num, size), np.float32)
    for t in range(1, num):
        state[t, :-1] = (
            0.9 * state[t - 1, :-1] + 0.3 * action[t - 1] + 0.05 * rng.normal(size=size - 1)
        )
    last = np.isin(np.arange(num), (num // 2 - 1, num - 1))
    columns = {"observation": state, "action": action, "reward": state[:, 0]}
    dataset = memory.Dataset.from_arrays(columns | {"is_last": last, "is_terminal": 0 * last})
    return Loaded(
        "made", dataset, None, spec_of(dataset), normalize.statistics(dataset), "", None, None
    )


@pytest.fixture
def tiny(monkeypatch):
    """A preset that takes seconds, on made data, at a speed that is not measured."""
    asked = []
    monkeypatch.setattr(
        dynamics_nll.datasets, "load", lambda name, console: asked.append(name) or made()
    )
    monkeypatch.setattr(dynamics_nll.compilation, "enable", lambda: None)
    monkeypatch.setitem(settings.PRESETS, "quick", TINY)
    rate = lambda architectures, data, preset: [
        nll_runs.Rate(*one, 8, 200.0) for one in architectures
    ]  # noqa: E731
    monkeypatch.setattr(nll_runs, "measure_rates", rate)
    return asked


def row(one, seed, nll, study="time", **given):
    """A made-up run."""
    zeros = dict.fromkeys(nll_runs.Row._fields, 0)
    figures = {name: nll for name in ("selection_z", "nll_z", "median_z", "nll_unit", "nll_raw")}
    texts = {"study": study, "failure": "", "revision": "abc", "command": "python x"}
    figures["parameters"] = settings.num_parameters(dynamics_nll.architecture(one))
    return nll_runs.Row(**zeros | one._asdict() | figures | texts | {"seed": seed} | given)


def rows_of(levels, preset=QUICK, tasks=None):
    """Rows of study `time`: family -> level of NLL; seeds differ by 0.01."""
    return [row(settings.equal_time(preset, task)[family], seed, level + 0.01 * seed)
            for task in tasks or preset.tasks for family, level in levels.items() for seed in range(3)]  # fmt: skip


# --- settings ---


def test_the_sources_figures_are_the_published_ones():
    gaps = [round(one.top_1[0] - one.top_1[1], 2) for one in settings.TASKS.values()]
    assert gaps == [1.46, 0.33, 0.40, 0.56, 0.30, 0.76, 0.21, 0.88, 1.39]
    assert all(one.top_5[1] < one.top_1[0] for one in settings.TASKS.values())


@pytest.mark.parametrize("task", QUICK.tasks)
def test_models_that_are_compared_at_equal_size_have_as_many_parameters(task):
    for family, of in settings.curves(QUICK, task).items():
        for like, one in of.items():
            counts = [settings.num_parameters(Architecture(task, *which, 3))
                      for which in (("feedforward", like), (family, one.hidden))]  # fmt: skip
            assert 0.85 < counts[1] / counts[0] < 1.15, (
                family,
                like,
            )  # widths are multiples of the entries
    assert settings.equal_width(QUICK, task, "masked", 256) not in (256, 512)


def test_a_sweep_has_8_configurations_in_the_quick_preset_and_36_in_the_full_one():
    for preset, count in ((QUICK, 8), (settings.PRESETS["full"], 36)):
        sweep = settings.sweep(preset, "walker_walk", "masked")
        assert len(set(sweep)) == count
        assert {one.seconds for one in sweep} == {preset.grid_seconds}  # equal time for all


def test_every_run_is_done_once_and_the_quick_preset_fits_its_time():
    pieces = list(settings.pieces(QUICK, settings.TITLES))
    assert len({piece[1:] for piece in pieces}) == len(pieces)
    assert {(one, seed) for study in settings.TITLES for one, seed in settings.wanted(QUICK, study)} == {
        piece[1:] for piece in pieces}  # fmt: skip
    architectures = {dynamics_nll.architecture(one) for _, one, _ in pieces}
    assert dynamics_nll.estimate(pieces) + dynamics_nll.RATE_SECONDS * len(architectures) < 90 * 60


# --- runs ---


def options(folder, **given):
    return dynamics_nll.Options(folder=folder, **({"studies": "time"} | given))


def test_a_tiny_study_runs_stops_goes_on_and_reports(tmp_path, tiny, monkeypatch):
    real, calls = nll_runs.run, []

    def once(*args, **kwargs):
        if calls:
            raise KeyboardInterrupt
        calls.append(args)
        return real(*args, **kwargs)

    monkeypatch.setattr(nll_runs, "run", once)
    with pytest.raises(KeyboardInterrupt):
        dynamics_nll.main(options(tmp_path))
    kept = table.read(tmp_path, nll_runs.Row)
    assert len(kept) == 1
    monkeypatch.setattr(
        nll_runs, "run", lambda *args, **kwargs: calls.append(args) or real(*args, **kwargs)
    )
    assert dynamics_nll.main(options(tmp_path)) == 0
    rows = table.read(tmp_path, nll_runs.Row)
    assert rows[0] == kept[0]
    assert [one.family for one in rows] == ["feedforward", "masked"]
    assert len(calls) == 2  # the finished piece did not run again
    assert set(tiny) == {f"local/control/{TASK}"}
    for one in rows:
        assert (
            one.updates == 21
        )  # 0.1 s at 200 updates a second in two parts, and the one after the last score
        assert one.held_out == 30  # of 39 held out, 9 select
        assert one.constant == 1
        assert np.isfinite(
            [one.nll_unit, one.nll_z, one.nll_raw, one.p99_z, one.reward_z, one.floor_z]
        ).all()
        assert one.floor_z < one.nll_z <= one.p99_z
        assert 0 < one.coverage_50 < one.coverage_90 <= 1
        assert one.cpu_seconds > one.train_seconds > 0
        assert not one.failure
    before = (tmp_path / "time.md").read_text()
    assert dynamics_nll.main(options(tmp_path, report_only=True)) == 0
    assert (tmp_path / "time.md").read_text() == before
    assert len(calls) == 2


def test_no_time_means_no_run(tmp_path, tiny):
    dynamics_nll.main(options(tmp_path, max_minutes=1e-9))
    assert table.read(tmp_path, nll_runs.Row) == []
    assert not tiny


def test_the_parts_of_the_data_share_no_transition_and_statistics_are_of_the_first():
    data = nll_runs.split(made(), TASK, TINY)
    parts = [
        set(np.asarray(part).tolist())
        for part in (data.dataset.starts, data.dataset.held_out, data.judged)
    ]
    assert [len(part) for part in parts] == [359, 9, 30]
    assert len(set.union(*parts)) == sum(map(len, parts))
    known = data.statistics.transitions
    np.testing.assert_allclose(
        known.reward_mean, data.dataset.reward[data.dataset.starts].mean(), rtol=1e-5
    )


def test_data_of_other_sizes_are_refused_in_one_line():
    with pytest.raises(
        UsageError,
        match=r"made has observations and actions of sizes \(4, 1\), but cartpole_swingup",
    ):
        nll_runs.split(made(size=4), TASK, TINY)


def test_speeds_are_measured_once_for_all_that_are_missing(tmp_path, tiny, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setitem(settings.PRESETS, "quick", TINY)
    data = nll_runs.split(made(), TASK, TINY)
    found = nll_runs.measure_rates([Architecture(TASK, "feedforward", 8, 2)], data, TINY)
    assert found[0].updates_per_second > 1
    assert found[0].batch_size == TINY.batch_size
    table.append(tmp_path / "rates", nll_runs.Rate, found)
    assert nll_runs.rates(tmp_path / "rates") == {
        (Architecture(TASK, "feedforward", 8, 2), 8): found[0][-1]
    }


@pytest.mark.parametrize(
    ("given", "left", "rates"),
    [({}, set(), set()), ({"tasks": "cheetah_run"}, {("time", TASK), ("grid", TASK)}, {TASK}),
     ({"studies": "time"}, {("grid", TASK), ("grid", "cheetah_run")}, {TASK, "cheetah_run"}),
     ({"studies": "grid", "tasks": TASK}, {("time", TASK), *((study, "cheetah_run") for study in ("time", "grid"))},
      {TASK, "cheetah_run"})],
)  # fmt: skip
def test_what_is_forgotten_is_what_was_named(tmp_path, monkeypatch, given, left, rates):
    monkeypatch.setattr(dynamics_nll, "work", lambda *rest: None)
    monkeypatch.setattr(nll_report, "write", lambda *rest, **named: None)
    monkeypatch.setattr(dynamics_nll.compilation, "enable", lambda: None)
    tasks = (TASK, "cheetah_run")
    rows = [row(settings.sweep(QUICK, task, "masked")[0], 0, -1.0, "grid") for task in tasks]
    table.append(tmp_path, nll_runs.Row, [*rows, *rows_of({"feedforward": -2.0}, tasks=tasks)])
    (tmp_path / "rates").mkdir()
    table.append(
        tmp_path / "rates",
        nll_runs.Rate,
        [nll_runs.Rate(task, "masked", 8, 2, 8, 1.0) for task in tasks],
    )
    with pytest.raises(UsageError, match="unknown task 'hopper'"):
        dynamics_nll.main(options(tmp_path, fresh=True, tasks="hopper"))
    dynamics_nll.main(dynamics_nll.Options(folder=tmp_path, fresh=True, **given))
    assert {(one.study, one.task) for one in table.read(tmp_path, nll_runs.Row)} == left
    assert {one.task for one in table.read(tmp_path / "rates", nll_runs.Rate)} == rates


def test_options_that_differ_from_a_preset_need_another_folder():
    with pytest.raises(
        UsageError, match="--grid-seconds differs from the preset: give a --folder as well"
    ):
        dynamics_nll.preset_of(dynamics_nll.Options(grid_seconds=1.0))
    with pytest.raises(UsageError, match="unknown task 'hopper'"):
        dynamics_nll.chosen("task", "hopper", list(QUICK.tasks))


def test_progress_tells_what_was_run():
    Console(quiet=True).print(dynamics_nll.describe(row(Setting(TASK, "masked", 8), 0, -1.5)))
    assert "masked 3 x 8 lr 0.001 seed 0: NLL -1.500" in dynamics_nll.describe(
        row(Setting(TASK, "masked", 8), 0, -1.5)
    )


# --- findings ---


def test_intervals_are_students():
    worse, better = np.array([1.0, 1.2, 1.1]), np.array([0.5, 0.8, 0.6])
    expected = stats.ttest_ind(worse, better).confidence_interval(0.95)
    found = nll_findings.gap(worse, better)
    np.testing.assert_allclose([found.low, found.high], [expected.low, expected.high], rtol=1e-9)
    mean = nll_findings.interval(worse)
    np.testing.assert_allclose(
        [mean.low, mean.high], stats.ttest_1samp(worse, 0).confidence_interval(0.95), rtol=1e-9
    )
    borrowed = nll_findings.gap(worse[:1], better[:1], [worse, better])
    np.testing.assert_allclose(
        borrowed.high - borrowed.value, (found.high - found.value) * 3**0.5, rtol=1e-9
    )
    assert np.isnan(nll_findings.gap(worse[:1], better[:1]).low)


@pytest.mark.parametrize(
    ("masked", "at_least"), [(-3.0, "holds"), (-2.2, "does not hold"), (-2.305, "cannot be told")]
)
def test_the_gate_is_judged_by_the_whole_interval(masked, at_least):
    runs = nll_runs.finished(rows_of({"feedforward": -2.0, "masked": masked}))
    told = {one.claim: one.verdict for one in nll_findings.of_time(runs, QUICK, "cheetah_run")
            if "masked" in one.text}  # fmt: skip
    assert told == {"better": "holds", "size": at_least}


def test_configurations_are_ranked_by_other_transitions_than_those_reported():
    sweep = settings.sweep(QUICK, TASK, "masked")
    rows = [row(one, 0, -float(i), "grid", selection_z=float(i)) for i, one in enumerate(sweep)]
    ranked = nll_findings.ranked(nll_runs.finished(rows), QUICK, TASK, "masked")
    assert nll_findings.top(ranked, 1) == [0.0]
    assert nll_findings.top(ranked, 5).mean() == -2.0
    assert nll_findings.ranked(nll_runs.finished(rows[:4]), QUICK, TASK, "masked") == []


def test_a_single_feedforward_run_with_more_parameters_is_judged_by_the_others_spread():
    wide = settings.curves(QUICK, TASK)["feedforward"][512]
    runs = nll_runs.finished(
        [*rows_of({"feedforward": -2.0, "shared": -3.0}), row(wide, 0, -2.5, "parameters")]
    )
    told = [
        one for one in nll_findings.of_sizes(runs, QUICK, TASK) if one.verdict != "not measured"
    ]
    assert [one.verdict for one in told] == ["holds", "holds"]
    np.testing.assert_allclose([one.gap.value for one in told], [1.0, 0.49], atol=1e-9)


# --- reports ---


def test_a_report_is_made_of_the_table_alone_and_says_what_the_numbers_say(tmp_path):
    table.append(
        tmp_path, nll_runs.Row, rows_of({"feedforward": -2.0, "masked": -2.5, "shared": -1.9})
    )
    dynamics_nll.main(options(tmp_path, studies="", report_only=True))
    page = (tmp_path / "time.md").read_text()
    assert re.search(
        r"\| cheetah_run \| masked autoregressive, 3 x 512 \| 0.50 \| 0.4\d to 0.5\d \|.*\| 1.46 \|",
        page,
    )
    holds, fails = (next(line for line in page.splitlines() if line.startswith(which))
                    for which in ("- Holds here", "- Does not hold here"))  # fmt: skip
    assert "cheetah_run: masked autoregressive, 3 x 512" in holds
    assert "walker_walk: shared autoregressive, 3 x 256" in fails
    assert (tmp_path / "time.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "grid.png").exists()
    summary = (tmp_path / nll_report.SUMMARY).read_text()
    size = next(line for line in summary.splitlines() if "at least 0.3" in line)
    assert "| holds (2 of 2 cases) |" in size
    assert "`python x`" in summary
    assert "code: abc" in summary


def test_a_sweep_is_shown_beside_the_sources_figures(tmp_path):
    rows = [row(one, 0, -3.0 - 0.1 * i, "grid") for family in ("feedforward", "masked")
            for i, one in enumerate(settings.sweep(QUICK, TASK, family))]  # fmt: skip
    table.append(tmp_path, nll_runs.Row, rows)
    dynamics_nll.main(options(tmp_path, studies="grid", report_only=True))
    page = (tmp_path / "grid.md").read_text()
    assert f"| {TASK} | masked autoregressive | -3.70 | -3.50 | -7.21 | -7.14 |" in page
    assert (tmp_path / "grid.png").exists()


def test_failures_are_named_and_count_nowhere(tmp_path):
    one = settings.equal_time(QUICK, TASK)["masked"]
    failed = row(one, 0, float("nan"))._replace(failure="loss/total became non-finite at update 3")
    table.append(tmp_path, nll_runs.Row, [failed, row(one, 1, -2.0)])
    dynamics_nll.main(options(tmp_path, report_only=True))
    assert "became non-finite at update 3" in (tmp_path / nll_report.SUMMARY).read_text()
    assert "| -2.00 | one run | -2.00 |" in (tmp_path / "time.md").read_text()
