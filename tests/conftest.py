"""Settings that every test runs under; they are set here so that pytest really sees them."""

import os

# Eight pretended devices. Tests run few steps of many programs: compiling fast matters more than running fast. The
# older emitters compile what is fused in half the time, and each program is one module: workers use all cores already.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MUJOCO_GL", "disabled")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

pytest_plugins = ["command_fixtures"]


# Their tests take long: were they last, one worker would wait for the other.
FIRST = ("test_notebooks.py", "test_learners.py", "bsuite/test_runs.py", "test_likelihood_main.py")


def pytest_collection_modifyitems(items):
    """A worker works through its share from the front, and others steal from the end."""
    items.sort(key=lambda item: not item.path.as_posix().endswith(FIRST))


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
