"""Building a store: once, locked, whole or not at all."""

import multiprocessing
import os
import resource
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from data_examples import episode, episodes, read_everything, source

from offline_mbrl.data.sources import ingest
from offline_mbrl.data.store import atomic
from offline_mbrl.data.store import read as store
from offline_mbrl.types import UsageError


def processes():
    """Clean processes that fork from one which has imported the package but started no threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["offline_mbrl.data.sources.ingest", "data_examples"])
    return context


def build_slowly(directory: Path, log: Path, results) -> None:
    def opened():
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.3)
        return source(episodes(20))

    ingest.ingest(opened, directory, name="test")
    results.put(store.open_store(directory).manifest["fingerprint"])


def test_eight_processes_that_ask_at_once_get_one_build(tmp_path):
    context = processes()
    results = context.Queue()
    workers = [
        context.Process(target=build_slowly, args=(tmp_path / "store", tmp_path / "log", results))
        for _ in range(8)
    ]
    for worker in workers:
        worker.start()
    outcomes = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 8
    assert len(set(outcomes)) == 1
    assert len((tmp_path / "log").read_text().split()) == 1


def build_forever(directory: Path) -> None:
    def batches():
        yield ingest.Batch(episode(length=5, terminal=True), np.array([6]))
        (directory.parent / "started").touch()
        time.sleep(600)

    ingest.ingest(ingest.Source(batches(), {}), directory, name="test")


def test_a_killed_build_leaves_nothing_that_the_next_one_does_not_remove(tmp_path):
    worker = processes().Process(target=build_forever, args=(tmp_path / "store",))
    worker.start()
    while not (tmp_path / "started").exists():
        time.sleep(0.01)
    os.kill(worker.pid or 0, signal.SIGKILL)
    worker.join()
    assert not (tmp_path / "store").exists()
    assert any(path.name.startswith(".store.building-") for path in tmp_path.iterdir())
    assert ingest.ingest(source(episodes(5)), tmp_path / "store", name="test")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".store.lock", "started", "store"]
    read_everything(tmp_path / "store")


def test_a_failed_build_leaves_nothing(tmp_path):
    def batches():
        yield ingest.Batch(episode(length=5, terminal=True), np.array([6]))
        raise RuntimeError("the source breaks")

    with pytest.raises(RuntimeError, match="the source breaks"):
        ingest.ingest(ingest.Source(batches(), {}), tmp_path / "store", name="test")
    assert [path.name for path in tmp_path.iterdir()] == [".store.lock"]


def test_an_existing_store_is_kept_unless_forced(tmp_path):
    assert ingest.ingest(source(episodes(5)), tmp_path / "store", name="first")
    assert not ingest.ingest(source(episodes(5)), tmp_path / "store", name="second")
    assert store.open_store(tmp_path / "store").manifest["name"] == "first"
    assert ingest.ingest(source(episodes(5)), tmp_path / "store", name="third", force=True)
    assert store.open_store(tmp_path / "store").manifest["name"] == "third"


def fill_disk(directory: Path, results) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    try:
        ingest.ingest(source(episodes(500)), directory, name="test")
    except Exception as error:
        results.put((type(error).__name__, str(error), os.listdir(directory.parent)))


def test_a_full_disk_is_one_clear_line_and_leaves_nothing(tmp_path):
    context = processes()
    results = context.Queue()
    worker = context.Process(target=fill_disk, args=(tmp_path / "store", results))
    worker.start()
    kind, message, left = results.get(timeout=60)
    worker.join()
    assert kind == "UsageError"
    assert "cannot write" in message
    assert "OFFLINE_MBRL_DATA" in message
    assert left == [".store.lock"]


def test_a_place_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"cannot write .*OFFLINE_MBRL_DATA"):
        ingest.ingest(source(episodes(5)), tmp_path / "file" / "store", name="test")


def test_the_data_root_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("OFFLINE_MBRL_DATA", str(tmp_path))
    assert atomic.root() == tmp_path
    monkeypatch.delenv("OFFLINE_MBRL_DATA")
    assert atomic.root() == Path.home() / ".cache" / "offline_mbrl"
