"""evaluate, export, report, and what a person watches."""

import io
import json

import jax
import numpy as np
import running
from rich.console import Console

import offline_mbrl
from offline_mbrl import cli
from offline_mbrl.commands import datasets
from offline_mbrl.runs import display, playing


def test_a_run_and_its_export_are_evaluated_alike(finished, tmp_path, capsys):
    assert cli.main(["export", str(finished), str(tmp_path / "both")]) == 0
    assert "offline_mbrl.load_policy" in capsys.readouterr().out
    assert cli.main(["evaluate", str(finished), "--episodes", "10"]) == 0
    of_run = capsys.readouterr()
    assert cli.main(["evaluate", str(tmp_path / "both"), "--episodes", "10"]) == 0
    assert capsys.readouterr().out == of_run.out
    assert of_run.err == ""
    assert "IQM" in of_run.out
    assert "update 60" in of_run.out
    assert "evaluation 40/40 episodes" in of_run.out


def test_one_seed_is_exported_and_acts_in_three_lines(finished, tmp_path, capsys):
    assert cli.main(["export", str(finished), str(tmp_path / "one"), "--seed", "1"]) == 0
    policy = offline_mbrl.load_policy(tmp_path / "one")
    both = offline_mbrl.load_policy(finished / "policy", seed=1)
    rng = np.random.default_rng(0)
    for index in range(5):
        observation = rng.normal(size=(10, 5))
        assert int(policy(observation)) == int(both(observation))
        key = jax.random.key(index)
        assert int(policy(observation, key)) == int(both(observation, key))


def test_two_runs_are_reported_in_one_table(finished, tmp_path, capsys):
    assert running.train(tmp_path / "other", "--first-seed", "7") == 0
    capsys.readouterr()
    (finished / "report.md").unlink()
    assert cli.main(["report", str(finished), str(tmp_path / "other")]) == 0
    shown = capsys.readouterr().out
    rows = [line for line in shown.splitlines() if "local/catch" in line]
    assert [row.split("│")[1].strip() for row in rows] == ["run", "other"]
    assert str(tmp_path / "other" / "report.md") in shown
    assert (finished / "report.md").exists()


def test_a_killed_report_is_written_by_the_next_command(finished, capsys):
    (finished / "report.md").unlink()
    assert running.train(finished) == 0
    assert (finished / "report.md").exists()


def test_the_rows_of_a_run_are_what_its_curve_shows(finished):
    from offline_mbrl.runs.report import page

    run = json.loads((finished / "run.json").read_text())
    curves = page._curves(running.rows(finished), run["seeds"], run["reference"])
    steps, values = curves["greedy"]
    assert steps.tolist() == [20, 40, 60]
    returns = [
        [row["evaluation/greedy"] for row in running.rows(finished) if row["step"] == step]
        for step in steps
    ]
    np.testing.assert_allclose(values, (np.array(returns) + 0.667) / 1.667)


def test_lines_come_at_every_tenth_and_not_more():
    out = io.StringIO()
    with display.bar(Console(file=out), "train", 1000, done=500) as show:
        for step in range(501, 1001):
            show(step, "")
    assert out.getvalue().splitlines() == [
        f"train {step}/1000" for step in (600, 700, 800, 900, 1000)
    ]


def test_a_terminal_gets_a_bar_from_start_to_end():
    out = io.StringIO()
    with display.bar(Console(file=out, force_terminal=True, width=100), "train", 10) as show:
        show(0, "compiling")
        show(10, "total 0.5")
    assert "10/10" in out.getvalue()
    assert "total 0.5" in out.getvalue()


def test_the_console_prints_brackets_as_they_are(capsys):
    display.console(plain=True).print("seed [bold] :smile: of runs[3]")
    assert capsys.readouterr().out == "seed [bold] :smile: of runs[3]\n"


def test_generating_a_dataset_shows_its_episodes(monkeypatch):
    def collect(environment, *, num_episodes, progress):
        for episode in range(num_episodes):
            progress(episode + 1, num_episodes)
            yield {"environment": environment}

    from offline_mbrl.collect import bsuite

    monkeypatch.setattr(bsuite, "collect", collect)
    out = io.StringIO()
    made = list(datasets.collector(Console(file=out))("catch", num_episodes=20))
    assert len(made) == 20
    assert out.getvalue().splitlines()[-1] == "Generating catch 20/20 episodes"
    assert len(out.getvalue().splitlines()) == 10


def test_a_seed_that_finished_no_episode_has_no_mean():
    returns = np.array([[1.0, 3.0], [np.nan, np.nan], [np.nan, 5.0]])
    played = playing.episodes.Evaluation(returns, np.array([[1, 1], [0, 0], [0, 2]]), False, "hung")
    np.testing.assert_array_equal(playing.mean_returns(played), [2.0, np.nan, 5.0])
    summary = playing.summarize({"greedy": played}, (1.0, 3.0))["greedy"]
    assert summary["scores"] == [0.5, None, 2.0]
    assert summary["episodes"] == [2, 0, 1]
    assert summary["interquartile_mean"] is None
