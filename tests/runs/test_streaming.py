"""`train --stream`: what it says, what it keeps, and that a killed run ends like one that was
not."""

import json

import pytest
import running
from test_resume import terminate_at

from offline_mbrl.runs import folder as folders
from offline_mbrl.runs import memory as process_memory
from offline_mbrl.runs import stages as commands

STREAM = ("--stream", "always")


@pytest.fixture(scope="module")
def streamed(data_root, tmp_path_factory):
    """An undisturbed streaming run, and what it printed."""
    folder = tmp_path_factory.mktemp("streamed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OFFLINE_MBRL_DATA", str(data_root))
        assert running.train(folder, *STREAM) == 0
    return folder


def test_a_streaming_run_says_so_and_tells_its_memory(tmp_path, capsys):
    assert running.train(tmp_path / "run", *STREAM, "--episodes", "0") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"Streaming {running.DATASET}" in shown
    assert "resident memory, largest while training:" in shown
    measured = json.loads((tmp_path / "run/evaluation.json").read_text())["resident_bytes"]
    assert 2**20 < measured["anonymous"] < 2**34
    assert measured["file_backed"] > 0


def test_a_streaming_run_that_was_terminated_ends_like_one_that_was_not(
    tmp_path, streamed, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        terminate_at(patch, folders, "append_rows", 2)
        assert running.train(tmp_path / "run", *STREAM) == 143
    assert running.train(tmp_path / "run", *STREAM) == 0
    assert "Resuming train from update 40." in capsys.readouterr().out
    running.assert_same(tmp_path / "run", streamed)
    assert any("validation/loss/total" in row for row in running.rows(streamed))


def test_streamed_batches_are_not_those_drawn_from_memory_and_going_on_with_the_other_is_said(
    tmp_path, finished, streamed, monkeypatch, capsys
):
    assert running.leaves(streamed) != running.leaves(finished)
    with monkeypatch.context() as patch:
        terminate_at(patch, folders, "append_rows", 2)
        assert running.train(tmp_path / "run", *STREAM) == 143
    capsys.readouterr()
    assert running.train(tmp_path / "run", "--stream", "never") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "saved with streamed batches, resumed with batches drawn from memory" in shown


def test_auto_streams_what_exceeds_the_bound(tmp_path, finished, streamed, monkeypatch):
    assert running.train(tmp_path / "small", "--stream", "auto") == 0
    assert running.leaves(tmp_path / "small") == running.leaves(finished)
    monkeypatch.setitem(commands.STREAM_ABOVE, "auto", 1000)
    assert running.train(tmp_path / "large") == 0
    assert running.leaves(tmp_path / "large") == running.leaves(streamed)


def test_every_stage_streams_with_continuous_actions(tmp_path):
    data = running.write_hdf5(tmp_path / "mine.hdf5", actions=running.continuous())
    assert running.train(tmp_path / "run", *STREAM, algorithm="skeleton", dataset=str(data)) == 0
    assert {row["stage"] for row in running.rows(tmp_path / "run")} == {"model", "train"}


def test_resident_memory_is_read_off_the_system():
    held = bytearray(b"x" * 2**26)
    watch, largest = process_memory.watching()
    assert largest().anonymous > len(held)
    watch(None)
    assert largest().anonymous >= process_memory.now().anonymous - 2**24
    assert (
        process_memory.describe(process_memory.Resident(3 * 2**29, 5 * 2**20))
        == "1.5 GiB anonymous, 5 MiB of files"
    )
