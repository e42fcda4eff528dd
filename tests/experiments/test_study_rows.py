"""The table of finished work: whole or not at all, readable later, shared by processes."""

from typing import NamedTuple

import filelock
import pytest

from experiments.benchmarks import rows
from offline_mbrl import files
from offline_mbrl.types import UsageError


class Setting(NamedTuple):
    arm: str
    noise: float = 0.0


class Row(NamedTuple):
    arm: str
    noise: float
    seed: int
    score: float
    flag: float = -1.0


def row(seed=0, score=0.5, **values):
    return Row(**{"arm": "a, b", "noise": 0.3, "seed": seed, "score": score} | values)


def test_rows_survive_the_table_unchanged(tmp_path):
    table = [row(seed, score=0.1 * seed) for seed in range(3)]
    rows.append(tmp_path, Row, table[:2])
    rows.append(tmp_path, Row, table[2:])
    assert rows.read(tmp_path, Row) == table


def test_runs_are_grouped_by_setting_and_the_last_row_of_a_run_counts():
    table = [row(0, 0.1), row(1, 0.2), row(0, 0.3), row(0, 0.4, noise=0.0)]
    runs = rows.by_setting(table, Setting)
    assert runs == {
        Setting("a, b", 0.3): {0: table[2], 1: table[1]},
        Setting("a, b", 0.0): {0: table[3]},
    }


def test_a_process_that_ends_while_it_writes_leaves_the_old_table(tmp_path, monkeypatch):
    rows.append(tmp_path, Row, [row()])

    def end(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "flush", end)
        with pytest.raises(KeyboardInterrupt):
            rows.append(tmp_path, Row, [row(1)])
    assert rows.read(tmp_path, Row) == [row()]
    rows.append(tmp_path, Row, [row(1)])
    assert rows.read(tmp_path, Row) == [row(), row(1)]


def test_a_damaged_table_is_refused_in_one_line_and_can_be_cleared(tmp_path):
    rows.append(tmp_path, Row, [row()])
    path = tmp_path / rows.TABLE
    path.write_text(path.read_text().replace("0.5", "half"))
    for use in (rows.read, lambda folder, kind: rows.discard(folder, kind, bool)):
        with pytest.raises(UsageError, match=r"is not a table of runs .* start over with --fresh"):
            use(tmp_path, Row)
    rows.clear(tmp_path)
    assert rows.read(tmp_path, Row) == []


def test_a_table_from_before_there_was_a_column_can_be_read_and_added_to(tmp_path):
    rows.append(tmp_path, Row, [row(flag=1.0)])
    path = tmp_path / rows.TABLE
    lines = path.read_text().splitlines()
    path.write_text("".join(line.rpartition(",")[0] + "\n" for line in lines))
    rows.append(tmp_path, Row, [row(1, flag=1.0)])
    assert [old.flag for old in rows.read(tmp_path, Row)] == [-1.0, 1.0]
    path.write_text(path.read_text().replace("noise", "sound"))  # this column has no default
    with pytest.raises(UsageError, match="is not a table of runs"):
        rows.read(tmp_path, Row)


def test_only_the_discarded_rows_go(tmp_path):
    rows.append(tmp_path, Row, [row(seed) for seed in range(3)])
    rows.discard(tmp_path, Row, lambda own: own.seed == 1)
    assert [own.seed for own in rows.read(tmp_path, Row)] == [0, 2]
    rows.discard(tmp_path, Row, lambda own: True)
    assert not (tmp_path / rows.TABLE).exists()


def test_a_lock_is_held_by_one_at_a_time(tmp_path):
    with rows.locked(tmp_path, "piece"):
        with pytest.raises(filelock.Timeout):
            rows.locked(tmp_path, "piece")
        with rows.locked(tmp_path, "another piece"):
            pass
    with rows.locked(tmp_path, "piece"):
        pass  # free again
