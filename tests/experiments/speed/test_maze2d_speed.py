"""Speeds of mazes: the script itself."""

from test_learner_speed import scripts

__all__ = ["scripts"]  # a fixture


def test_the_script_prints_the_steps_of_each_number_of_balls(scripts, monkeypatch, capsys):
    maze2d = scripts("maze2d")
    monkeypatch.setattr(scripts("stopwatch"), "one_core", lambda core: 0)
    maze2d.main(maze2d.Options(balls=(4, 16), policy_layers=(4,), rounds=1, seconds=0.01))
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    shown = {row[0]: [float(rate) for rate in row[1:]] for row in rows if row and row[0].isdigit()}
    assert set(shown) == {"4", "16"}
    assert all(len(rates) == 2 and min(rates) >= 0 for rates in shown.values())
