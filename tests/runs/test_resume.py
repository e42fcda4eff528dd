"""A run that was stopped at any moment ends like one that was not, bit for bit."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import running

from offline_mbrl import cli
from offline_mbrl.runs import folder as folders
from offline_mbrl.runs import playing, recording, results, stopping
from offline_mbrl.runs.report import page
from offline_mbrl.training import checkpoint
from offline_mbrl.types import UsageError


def terminate_at(monkeypatch, module, name, number):
    """Sends SIGTERM to this process when `module.name` is called for the `number`-th time."""
    calls, function = [], getattr(module, name)

    def wrapped(*args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return function(*args, **kwargs)

    monkeypatch.setattr(module, name, wrapped)


def test_sigterm_saves_the_block_and_the_same_command_goes_on_bit_identically(
    tmp_path, finished, monkeypatch, capsys
):
    run, before = tmp_path / "run", signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        terminate_at(patch, folders, "append_rows", 2)
        assert running.train(run, "--checkpoint-seconds", "1000") == 128 + signal.SIGTERM
    assert "Terminated after update 40 of train" in capsys.readouterr().out
    assert checkpoint.latest(run / "checkpoints/train") == 40
    assert signal.getsignal(signal.SIGTERM) == before
    assert running.train(run) == 0
    assert "Resuming train from update 40." in capsys.readouterr().out
    running.assert_same(run, finished)


def test_sigterm_during_the_last_evaluation_stops_at_once_and_loses_nothing(
    tmp_path, finished, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        terminate_at(patch, playing, "summarize", 1)
        assert running.train(tmp_path / "run") == 128 + signal.SIGTERM
    assert not (tmp_path / "run/evaluation.json").exists()
    assert running.train(tmp_path / "run") == 0
    running.assert_same(tmp_path / "run", finished)


def test_sigterm_outside_of_training_raises_and_inside_waits():
    with stopping.on_sigterm(), pytest.raises(stopping.Terminated):
        os.kill(os.getpid(), signal.SIGTERM)
    with stopping.on_sigterm() as asked, asked.deferred():
        assert not asked.requested()
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.requested()


class Killed(BaseException):
    """Stands in for SIGKILL where a process of its own would take too long."""


POINTS = {
    "before run.json": (folders, "write_json", 1),
    "between rows and checkpoint": (recording, "_save", 2),
    "between checkpoint and policy": (recording, "save_policy", 3),
    "between evaluation.json and report": (page, "write", 1),
    "between report and page": (page, "draw", 1),
    "before evaluation": (results, "finish", 1),
}


@pytest.mark.parametrize("point", POINTS)
def test_a_run_killed_at_any_point_goes_on(point, tmp_path, finished, monkeypatch):
    module, name, number = POINTS[point]
    calls, function = [], getattr(module, name)

    def killed(*args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            raise Killed
        return function(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, killed)
        with pytest.raises(Killed):
            running.train(tmp_path / "run")
    assert running.train(tmp_path / "run") == 0
    running.assert_same(tmp_path / "run", finished)


def test_the_stages_of_a_killed_run_keep_their_rows(tmp_path, monkeypatch):
    data = running.write_hdf5(tmp_path / "mine.hdf5", actions=running.continuous())
    assert running.train(tmp_path / "whole", algorithm="skeleton", dataset=data) == 0
    with monkeypatch.context() as patch:
        terminate_at(patch, folders, "append_rows", 5)
        assert running.train(tmp_path / "run", algorithm="skeleton", dataset=data) == 143
    assert running.train(tmp_path / "run", algorithm="skeleton", dataset=data) == 0
    assert running.rows(tmp_path / "run") == running.rows(tmp_path / "whole")
    assert running.leaves(tmp_path / "run") == running.leaves(tmp_path / "whole")


# --- SIGKILL, in processes of their own ---

KILL = """
import os, signal, sys
from offline_mbrl import cli
from offline_mbrl.runs import folder, recording, results, stages
module = {"recording": recording, "results": results, "folder": folder}[sys.argv[1]]
name = sys.argv[2]
number, calls, function = int(sys.argv[3]), [], getattr(module, name)

def killed(*args, **kwargs):
    calls.append(1)
    if len(calls) == number:
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*args, **kwargs)

setattr(module, name, killed)
sys.exit(cli.main(sys.argv[4:]))
"""


def test_two_sigkills_leave_no_trace(tmp_path, finished):
    command = [*running.TRAIN, "--run-dir", str(tmp_path / "run")]
    for point in (("recording", "_save", "2"), ("folder", "append_rows", "2")):
        done = subprocess.run(
            [sys.executable, "-c", KILL, *point, *command], capture_output=True, check=False
        )
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    killed = running.rows(tmp_path / "run")
    # The second process had gone on from update 20
    assert [row["step"] for row in killed] == [20, 20, 40, 40]
    assert cli.main(command) == 0
    running.assert_same(tmp_path / "run", finished)


# --- damage ---


def test_a_damaged_checkpoint_is_passed_over_with_a_message(
    tmp_path, finished, monkeypatch, capsys
):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        terminate_at(patch, folders, "append_rows", 2)
        assert running.train(run) == 143
    newest = run / "checkpoints/train/000000040"
    victim = max(
        (path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    capsys.readouterr()
    assert running.train(run) == 0
    shown = capsys.readouterr().out
    assert "is damaged and was passed over" in shown
    assert "Resuming train from update 20." in shown
    running.assert_same(run, finished)


def test_a_half_written_row_is_dropped_and_a_damaged_one_is_named(tmp_path):
    folders.append_rows(tmp_path, [{"stage": "train", "step": 1, "seed": 0, "loss": float("nan")}])
    path = tmp_path / "metrics.jsonl"
    whole = path.read_text()
    assert json.loads(whole)["loss"] is None
    path.write_text(whole + '{"stage": "tr')
    assert len(folders.read_rows(tmp_path)) == 1
    folders.rewind(tmp_path, "train", 1)
    assert path.read_text() == whole
    folders.rewind(tmp_path, "other", 0)
    assert path.read_text() == whole
    folders.rewind(tmp_path, "train", 0)
    assert path.read_text() == ""
    path.write_bytes(whole.encode() + b"\xff\x00\n")
    with pytest.raises(ValueError, match=r"metrics.jsonl is damaged in line 2"):
        folders.read_rows(tmp_path)


def test_the_measured_block_length_is_kept_before_the_first_row(tmp_path, finished, monkeypatch):
    command = [argument for argument in running.TRAIN if argument not in ("--block-updates", "20")]

    class Stop(BaseException):
        pass

    def stop(*args):
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(folders, "append_rows", stop)
        with pytest.raises(Stop):
            cli.main([*command, "--run-dir", str(tmp_path / "run")])
    measured = json.loads((tmp_path / "run/blocks.json").read_text())["train"]
    # a slower machine would have measured this
    folders.write_json(tmp_path / "run/blocks.json", {"train": 30})
    assert measured >= 1
    assert cli.main([*command, "--run-dir", str(tmp_path / "run")]) == 0
    assert sorted({row["step"] for row in running.rows(tmp_path / "run")}) == [30, 60]
    assert running.leaves(tmp_path / "run") == running.leaves(finished)


def test_a_second_process_is_kept_out(tmp_path, capsys):
    with folders.opened(tmp_path / "run", dict.fromkeys(folders.IDENTITY)):
        assert running.train(tmp_path / "run") == 2
    assert "another process is training in" in capsys.readouterr().err
    assert Path(tmp_path / "run/run.json").exists()


def test_a_folder_from_before_precisions_is_float32(tmp_path):
    now = dict.fromkeys(folders.IDENTITY, "x") | {"precision": "float32"}
    before = {name: value for name, value in now.items() if name != "precision"}
    with folders.opened(tmp_path, before):
        pass
    with folders.opened(tmp_path, now):
        pass
    with (
        pytest.raises(UsageError, match='precision = "float32"'),
        folders.opened(tmp_path, now | {"precision": "bfloat16"}),
    ):
        pass
