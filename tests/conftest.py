"""Settings that every test runs under; they are set here so that pytest really sees them."""

import os

# Eight pretended devices. Tests run few steps of many programs: compiling fast matters more than running fast.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MUJOCO_GL", "disabled")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session", autouse=True)
def _compilation_cache(tmp_path_factory):
    """Programs that several tests run are compiled once a session, by whichever worker comes first."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    jax.config.update("jax_compilation_cache_dir", str(shared / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture(autouse=True)
def _data_root(tmp_path_factory, monkeypatch):
    """No test reads or writes the user's own datasets."""
    monkeypatch.setenv("OFFLINE_MBRL_DATA", str(tmp_path_factory.getbasetemp() / "data"))


@pytest.fixture
def debug_nans():
    """Makes every NaN produced under jit an error."""
    with jax.debug_nans(True):
        yield
