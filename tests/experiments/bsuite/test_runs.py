"""Runs, their table, and what is written from it."""

import re

import numpy as np
import pytest
from rich.console import Console

from experiments.benchmarks import rows as table
from experiments.benchmarks.bsuite import grid, report
from experiments.benchmarks.bsuite import main as bsuite
from experiments.benchmarks.bsuite import runs as study
from offline_mbrl import environments
from offline_mbrl.data import memory, normalize
from offline_mbrl.data.catalog.load import Loaded, lookup
from offline_mbrl.types import UsageError

SIZE = study.Size(20, 8, 10)


def row(arm="bc", seed=0, greedy=0.5, **given):
    """A made-up run."""
    setting = grid.Setting(arm, **given)
    return study.Row("coverage", *setting, seed, *SIZE, greedy, greedy, 0.0, 0.0, 1.0, 1.0, "", "abc", "python x")


def options(folder, **given):
    """Of a tiny study."""
    return bsuite.Options(
        folder=folder, studies="noise", seeds=2, updates=SIZE.updates, batch_size=SIZE.batch_size,
        episodes=SIZE.episodes, **given)  # fmt: skip


@pytest.fixture
def data(monkeypatch):
    """Thirty episodes of a uniform policy in catch, whatever dataset is asked for."""
    entry, rng, rows = lookup("local/catch"), np.random.default_rng(0), []
    environment = environments.make(entry.simulator, seed=0)
    for _ in range(30):
        timestep = environment.reset()
        while not timestep.last():
            action = int(rng.integers(3))
            following = environment.step(action)
            rows.append((timestep.observation, action, following.reward, False, False))
            timestep = following
        rows.append((timestep.observation, 0, 0.0, True, True))
    observation, action, reward, last, terminal = (np.array(column) for column in zip(*rows, strict=True))
    dataset = memory.Dataset.from_arrays({
        "observation": observation.astype(np.float32), "action": action.astype(np.int32),
        "reward": reward.astype(np.float32), "is_last": last, "is_terminal": terminal})  # fmt: skip
    loaded = Loaded(
        entry.name, dataset, None, environments.spec(entry.simulator), normalize.statistics(dataset), "",
        entry.simulator, entry.reference)  # fmt: skip
    monkeypatch.setattr(bsuite.datasets, "load", lambda name, console: loaded)
    monkeypatch.setattr(bsuite.compilation, "enable", lambda: None)
    monkeypatch.setitem(grid.PRESETS, "quick", grid.PRESETS["quick"]._replace(noises=(0.0,)))


# --- the table ---


def test_rows_survive_the_table_unchanged(tmp_path):
    rows = [row(seed=seed, greedy=0.25 * seed, noise=0.3) for seed in range(3)]
    table.append(tmp_path, study.Row, rows[:2])
    table.append(tmp_path, study.Row, rows[2:])
    assert table.read(tmp_path, study.Row) == rows
    assert study.finished(rows, SIZE)[study.setting_of(rows[0])].keys() == {0, 1, 2}
    assert study.finished(rows, SIZE._replace(updates=21)) == {}


def test_a_process_killed_while_it_writes_leaves_the_old_table(tmp_path, monkeypatch):
    table.append(tmp_path, study.Row, [row()])

    def die(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(table.files, "flush", die)
        with pytest.raises(KeyboardInterrupt):
            table.append(tmp_path, study.Row, [row(seed=1)])
    assert table.read(tmp_path, study.Row) == [row()]
    table.append(tmp_path, study.Row, [row(seed=1)])
    assert len(table.read(tmp_path, study.Row)) == 2


def test_a_damaged_table_is_refused_in_one_line(tmp_path):
    table.append(tmp_path, study.Row, [row()])
    text = (tmp_path / table.TABLE).read_text()
    (tmp_path / table.TABLE).write_text(text.replace("0.5", "half"))
    with pytest.raises(UsageError, match="is not a table of runs"):
        table.read(tmp_path, study.Row)


def test_a_claimed_piece_is_left_to_the_process_that_has_it(tmp_path):
    with table.locked(tmp_path, "piece"), pytest.raises(table.filelock.Timeout):
        table.locked(tmp_path, "piece")
    with table.locked(tmp_path, "piece"):
        pass  # free again


def test_seeds_of_a_tree_search_run_one_after_the_other_and_all_others_together():
    assert study.groups(grid.Setting("muzero"), [0, 2]) == [[0], [2]]
    assert study.groups(grid.Setting("rosmo"), [0, 2]) == [[0, 2]]
    assert study.groups(grid.Setting("rosmo"), []) == []


# --- runs ---


def test_a_tiny_study_runs_stops_goes_on_and_reports(tmp_path, data, monkeypatch):
    arms = "bc,rosmo"
    real, calls = study.run, []

    def once(*args, **kwargs):
        if calls:
            raise KeyboardInterrupt
        calls.append(args)
        return real(*args, **kwargs)

    monkeypatch.setattr(study, "run", once)
    with pytest.raises(KeyboardInterrupt):
        bsuite.main(options(tmp_path, arms=arms))
    kept = table.read(tmp_path, study.Row)
    assert len(kept) == 2  # both seeds of the first piece
    monkeypatch.setattr(study, "run", lambda *args, **kwargs: calls.append(args) or real(*args, **kwargs))
    assert bsuite.main(options(tmp_path, arms=arms)) == 0
    rows = table.read(tmp_path, study.Row)
    assert rows[:2] == kept
    assert len(rows) == 4
    assert len(calls) == 2  # bc and rosmo: the finished piece did not run again
    assert all(np.isfinite([one.greedy, one.sampled]).all() and one.cpu_seconds > 0 for one in rows)
    assert not any(one.failure for one in rows)
    before = (tmp_path / "noise.md").read_text()
    assert bsuite.main(options(tmp_path, arms=arms, report_only=True)) == 0
    assert (tmp_path / "noise.md").read_text() == before
    assert len(calls) == 2


def test_no_time_means_no_run(tmp_path, data):
    bsuite.main(options(tmp_path, max_minutes=1e-9))
    assert table.read(tmp_path, study.Row) == []


def test_a_seed_trained_alone_is_the_seed_trained_with_others(data):
    setting = grid.Setting("bc")
    prepared = study.prepare(setting, SIZE, lambda name: bsuite.datasets.load(name, Console()))
    together = study.run(prepared, "coverage", [0, 1], SIZE, revision="", command="")
    alone = study.run(prepared, "coverage", [1], SIZE, revision="", command="")
    scores = [(one.seed, one.greedy, one.sampled) for one in (together[1], alone[0])]
    assert scores[0] == scores[1]


def test_an_evaluation_that_does_not_finish_is_no_result(data, monkeypatch):
    prepared = study.prepare(grid.Setting("bc"), SIZE, lambda name: bsuite.datasets.load(name, Console()))
    broken = study.episodes.Evaluation(np.array([np.nan]), np.array([0]), False, "the simulator hung")
    prepared = prepared._replace(evaluators=dict.fromkeys(study.WAYS, lambda params, *, seed: broken))
    with pytest.raises(UsageError, match="the simulator hung"):
        study.score(prepared, (), 0, "")
    reference = prepared.data.reference.random
    assert study.score(prepared, (), 0, "loss became non-finite")[2:] == [reference, reference]


# --- reports ---


def test_a_report_is_made_of_the_table_alone_and_says_what_the_numbers_say(tmp_path):
    levels = {"muzero": {0.0: 0.9, 0.5: 0.1}, "rosmo": {0.0: 0.9, 0.5: 0.85}}
    table.append(tmp_path, study.Row, [
        row(arm, seed, level + 0.01 * seed, noise=noise, simulations=4 if arm == "muzero" else 0)
        for arm, of in levels.items() for noise, level in of.items() for seed in range(2)])  # fmt: skip
    bsuite.main(options(tmp_path, report_only=True))
    page = (tmp_path / "noise.md").read_text()
    holds = next(line for line in page.splitlines() if line.startswith("- Holds here"))
    assert "from noise 0 to 0.5 tree, visits (MuZero), N = 4 loses more than one-step exact + behavior term" in holds
    assert "(+0.75, +0.7" in holds
    assert re.search(r"\| tree, visits \(MuZero\), N = 4 \| 0.5 \| 0.1\d \| 0.10 to 0.11 \| 0.10, 0.11 \|", page)
    assert (tmp_path / "noise.png").read_bytes().startswith(b"\x89PNG")
    summary = (tmp_path / report.SUMMARY).read_text()
    assert (
        "| 5. one-step lookahead holds up under noise | holds in part (of 6 claims: 3 holds, 3 not measured)" in summary
    )
    assert "`python x`" in summary
    assert "code: abc" in summary


def test_an_empty_table_reports_that_nothing_was_measured(tmp_path):
    bsuite.main(options(tmp_path, report_only=True))
    assert "not measured" in (tmp_path / report.SUMMARY).read_text()
    assert not (tmp_path / "noise.png").exists()


def test_a_run_in_one_environment_of_several_waits_for_the_others(tmp_path):
    preset = grid.PRESETS["full"]._replace(seeds=2)
    rows = [row(seed=seed, environment=one) for seed in range(2) for one in preset.environments[: 2 + seed]]
    scores = report.complete_scores(study.finished(rows, SIZE), preset, "greedy")
    assert scores[grid.Setting("bc")].shape == (1, 3)  # seed 1 alone has all three


def test_failures_are_named_in_the_summary(tmp_path):
    table.append(tmp_path, study.Row, [row()._replace(failure="loss/total became non-finite at update 3")])
    bsuite.main(options(tmp_path, report_only=True))
    assert "failed: bc, catch, seed 0: loss/total became non-finite at update 3" in (
        tmp_path / report.SUMMARY).read_text()  # fmt: skip
