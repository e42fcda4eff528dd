"""Speeds of an epoch with imagined rows: the table's arithmetic, and the script itself."""

import sys
from pathlib import Path

import pytest
from rich.console import Console
from test_learner_speed import scripts

__all__ = ["scripts"]  # a fixture

TINY = {
    "transitions": 50,
    "updates": 2,
    "starts": 4,
    "horizon": 2,
    "batch_size": 40,
    "layers": (8,),
    "model_layers": (8, 8, 8, 8),
    "rounds": 1,
    "seconds": 0.01,
}
ANSWERING = """
import json, sys
for line in sys.stdin:
    request = json.loads(line)
    assert request["starts"] == 4 and request["members"] == 7
    seconds = {"updates": 1.0, "refresh": 2.0}[request["way"]] * request["count"]
    print(json.dumps({"seconds": seconds}), flush=True)
"""


@pytest.fixture(scope="module")
def imagination(scripts):
    return scripts("imagination")


def lines(table):
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    shown = [line.replace("│", " ").split() for line in capture.get().splitlines()]
    return [line for line in shown if line]


def test_an_epoch_is_its_updates_and_a_refresh(imagination):
    options = imagination.Options(updates=1_000, starts=5_000, horizon=5)
    rows = lines(imagination.table({"fast": (0.001, 1.0), "slow": (0.004, 4.0)}, options))
    # updates a second, imagined steps a second, the refresh, its share, the epoch, how much faster
    assert ["fast", "1,000", "25,000", "1.00", "50%", "2.00", "4.00"] in rows
    assert ["slow", "250", "6,250", "4.00", "50%", "8.00", "1.00"] in rows


def test_the_script_prints_an_epoch_of_ours_and_of_the_kit(
    imagination, scripts, tmp_path, monkeypatch, capsys
):
    script = tmp_path / "answering.py"
    script.write_text(ANSWERING)
    monkeypatch.setattr(scripts("peer"), "OFFLINERL_KIT", script)
    monkeypatch.setattr(scripts("stopwatch"), "one_core", lambda core: 0)
    ours = {name: imagination.OURS[name] for name in ("mopo, members jointly",)}
    monkeypatch.setattr(imagination, "OURS", ours)
    options = imagination.Options(peer_python=Path(sys.executable), kit=tmp_path, **TINY)
    imagination.main(options)
    shown = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    (mopo,) = [line for line in shown if line[:1] == ["mopo,"]]
    (kit,) = [line for line in shown if line[:1] == ["OfflineRL-Kit"]]
    assert kit[1:] == ["1", "4", "2.00", "50%", "4.00", "1.00"]
    assert float(mopo[-1]) > 1  # a second an update is slow


def test_every_case_is_an_algorithm_with_these_settings(imagination, scripts):
    cases = scripts("cases")
    data = cases.on_device(cases.arrays(50))
    options = imagination.Options(**TINY)
    for name, (algorithm, changes) in imagination.OURS.items():
        stages = imagination.own_stages(algorithm, changes, data, options)
        assert [*stages] == ["model", "train"], name
        assert stages["train"].learner.refresh is not None
