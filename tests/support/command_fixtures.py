"""One data root, one compilation cache and one finished run for all tests of commands and runs."""

import os

import jax
import numpy as np
import pytest
import running

from offline_mbrl.data.catalog import load as catalog
from offline_mbrl.data.sources import ingest
from offline_mbrl.environments import simulators


@pytest.fixture(scope="session")
def data_root(tmp_path_factory):
    """Holds `running.DATASET`: 30 episodes of a uniform policy under the name of generated ones."""
    root = tmp_path_factory.mktemp("commands") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OFFLINE_MBRL_DATA", str(root))
        entry = catalog.lookup(running.DATASET)
        facts = {"simulator": entry.simulator, "horizon": entry.horizon, "gamma": entry.gamma}
        batches = ingest.grouped(_episodes(entry.simulator, 30))
        source = ingest.Source(
            batches, {"source": "test"}, simulators.spec(entry.simulator).action, **facts
        )
        ingest.ingest(source, catalog.store_directory(entry), name=entry.name)
    return root


def _episodes(simulator, number):
    environment, rng = simulators.make(simulator, seed=0), np.random.default_rng(0)
    for _ in range(number):
        timestep, records = environment.reset(), []
        while not timestep.last():
            action = int(rng.integers(3))
            following = environment.step(action)
            records.append((timestep.observation, action, following.reward, following.discount))
            timestep = following
        records.append((timestep.observation, 0, 0.0, 0.0))
        observation, action, reward, discount = zip(*records, strict=True)
        last = np.arange(len(records)) == len(records) - 1
        yield ingest.Batch(
            {
                "observation": np.stack(observation).astype(np.float32),
                "action": np.array(action, np.int32),
                "reward": np.array(reward, np.float32),
                "discount": np.array(discount, np.float32),
                "is_first": np.arange(len(records)) == 0,
                "is_last": last,
                "is_terminal": last,
            },
            np.array([len(records)]),
        )


@pytest.fixture
def place(data_root, tmp_path, monkeypatch):
    """Every test has a folder of its own to run in, and subprocesses share the compilation
    cache."""
    monkeypatch.setenv("OFFLINE_MBRL_DATA", str(data_root))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(jax.config.jax_compilation_cache_dir))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.chdir(tmp_path)
    # Subprocesses have the same devices, so that results are bit-identical
    assert "XLA_FLAGS" in os.environ


@pytest.fixture(scope="session")
def finished(data_root, tmp_path_factory):
    """An undisturbed run of `running.TRAIN`."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OFFLINE_MBRL_DATA", str(data_root))
        assert running.train(folder) == 0
    return folder
