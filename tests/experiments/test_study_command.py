"""Studies go on where they were stopped, and processes share the work."""

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from rich.console import Console

from experiments.benchmarks import command, rows
from offline_mbrl.types import UsageError

SILENT = Console(quiet=True)
ROOT = Path(__file__).resolve().parents[2]


class Row(NamedTuple):
    piece: int
    worker: str


def study(folder, *, stop_at=None, count=4, worker="first"):
    """Pieces that add their number to the table; `stop_at` interrupts."""

    def run(piece):
        if piece == stop_at:
            raise KeyboardInterrupt
        rows.append(folder, Row, [Row(piece, worker)])
        return f"piece {piece}"

    return command.Study(
        pieces=range(count),
        is_done=lambda piece: any(row.piece == piece for row in rows.read(folder, Row)),
        run=run,
        forget=lambda: rows.clear(folder),
        report=lambda: folder / "summary.md",
    )


def done(folder):
    return [row.piece for row in rows.read(folder, Row)]


def test_a_stopped_study_goes_on_with_what_is_missing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        command.share_work(study(tmp_path, stop_at=2), tmp_path, SILENT)
    assert done(tmp_path) == [0, 1]
    for _ in range(2):
        command.share_work(study(tmp_path), tmp_path, SILENT)
        assert done(tmp_path) == [0, 1, 2, 3]


def test_a_piece_that_another_process_has_is_left_to_it(tmp_path):
    with rows.locked(tmp_path, repr(1)):
        command.share_work(study(tmp_path), tmp_path, SILENT)
    assert done(tmp_path) == [0, 2, 3]


def test_no_time_means_no_work(tmp_path):
    command.share_work(study(tmp_path), tmp_path, SILENT, max_minutes=1e-9)
    assert done(tmp_path) == []


WORKER = """
import sys, time
from pathlib import Path
sys.path[:0] = ["tests/experiments", "."]
import test_study_command as test
folder = Path(sys.argv[1])
work = test.study(folder, count=8, worker=sys.argv[2])
def run(piece):
    time.sleep(0.2)
    return work.run(piece)
(folder / sys.argv[2]).touch()
while len(list(folder.glob("worker*"))) < 2:
    time.sleep(0.01)
test.command.share_work(work._replace(run=run), folder, test.SILENT)
"""


def test_two_processes_share_the_work_and_no_piece_is_done_twice(tmp_path):
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path), name], cwd=ROOT)
        for name in ("worker-a", "worker-b")
    ]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    assert sorted(done(tmp_path)) == list(range(8))
    assert {row.worker for row in rows.read(tmp_path, Row)} == {"worker-a", "worker-b"}


def test_a_choice_keeps_the_order_of_what_there_is():
    assert command.chosen("study", "", ["a", "b", "c"]) == ["a", "b", "c"]
    assert command.chosen("study", "c,a", ["a", "b", "c"]) == ["a", "c"]
    with pytest.raises(UsageError, match="unknown study 'd': choose from a, b, c"):
        command.chosen("study", "a,d", ["a", "b", "c"])


class Options(NamedTuple):
    seeds: int | None = None
    batch_size: int | None = None


def test_what_differs_from_a_preset_needs_a_folder_of_its_own(tmp_path):
    names = ("seeds", "batch_size")
    assert command.changes(Options(), names, folder=None) == {}
    assert command.changes(Options(batch_size=8), names, folder=tmp_path) == {"batch_size": 8}
    with pytest.raises(UsageError, match="--batch-size differs from the preset: give a --folder"):
        command.changes(Options(batch_size=8), names, folder=None)
