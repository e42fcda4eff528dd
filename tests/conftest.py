"""Settings that every test runs under; they are set here so that pytest really sees them."""

import ctypes
import gc
import os
import resource
import subprocess
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MUJOCO_GL", "disabled")

import jax
import psutil
import pytest

DEVICES = "--xla_force_host_platform_device_count=8"
# Tests run few steps of many programs: compiling fast matters more than running fast. The older
# emitters compile what is fused in half the time, and each program is one module: workers use all
# cores already.
FAST_COMPILATION = (
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)


def _flags_of_this_xla(flags):
    """Those of the flags that the installed XLA has. It ends at an unknown flag, and names it."""
    program = "from jaxlib import xla_client; xla_client.make_cpu_client()"
    attempt = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "XLA_FLAGS": " ".join(flags)},
        capture_output=True,
        text=True,
        check=False,
    )
    if attempt.returncode == 0:
        return list(flags)
    return [flag for flag in flags if flag not in attempt.stderr]


if DEVICES not in os.environ.get("XLA_FLAGS", ""):  # workers have the flags of their parent
    os.environ["XLA_FLAGS"] = " ".join(
        [os.environ.get("XLA_FLAGS", ""), DEVICES, *_flags_of_this_xla(FAST_COMPILATION)]
    ).strip()
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_traceback_in_locations_limit", 0)  # programs are lowered sooner
gc.set_threshold(100_000, 20, 20)  # traces make many objects, few of them garbage

pytest_plugins = ["command_fixtures"]


# Their tests take long: were they last, one worker would wait for the other.
FIRST = ("test_notebooks.py", "test_learners.py", "test_bsuite_runs.py", "test_likelihood_runs.py")


# The checks of one learner follow each other, so that its programs are compiled once and released.
BY_LEARNER = "contract/test_learners.py"


def pytest_collection_modifyitems(items):
    """A worker works through its share from the front, and others steal from the end."""

    def rank(item):
        path = item.path.as_posix()
        if path.endswith(BY_LEARNER) and hasattr(item, "callspec"):
            return False, item.callspec.params["name"]
        return not path.endswith(FIRST), ""

    items.sort(key=rank)


def pytest_configure(config):
    """Programs are compiled once by any worker, process or notebook, and kept for the next run."""
    if "PYTEST_XDIST_WORKER" not in os.environ and hasattr(config, "cache"):
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(config.cache.mkdir("programs")))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    shortest = float(os.environ.get("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05"))
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", shortest)


RELEASE_ABOVE = 1.6e9  # bytes; below it, modules share their programs


@pytest.fixture(scope="module", autouse=True)
def _resident():
    """Releases programs at the end of a module; what takes long to compile is on disk."""
    resident = {"after release": _resident_bytes()}
    yield resident
    if _resident_bytes() > RELEASE_ABOVE:
        _release_programs()


@pytest.fixture(autouse=True)
def _bounded_growth(_resident):
    """Releases programs within a module of many."""
    yield
    if _resident_bytes() > _resident["after release"] + 1e9:
        _release_programs()
        _resident["after release"] = _resident_bytes()


def _resident_bytes():
    return psutil.Process().memory_info().rss


def _release_programs():
    jax.clear_caches()
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)  # more than half of what compilers freed would stay with the process


@pytest.fixture(autouse=True)
def _data_root(tmp_path_factory, monkeypatch):
    """No test reads or writes the user's own datasets."""
    monkeypatch.setenv("OFFLINE_MBRL_DATA", str(tmp_path_factory.getbasetemp() / "data"))


@pytest.fixture
def debug_nans():
    """Makes every NaN produced under jit an error."""
    with jax.debug_nans(True):
        yield


# --- the memory of the workers, in the last lines of a run ---

PEAKS = pytest.StashKey()


def _peak_gigabytes():
    """The largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # KiB on Linux


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["peak_gigabytes"] = _peak_gigabytes()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    peaks = node.config.stash.setdefault(PEAKS, {})
    peaks[node.gateway.id] = getattr(node, "workeroutput", {}).get("peak_gigabytes")


def pytest_terminal_summary(terminalreporter, config):
    peaks = config.stash.get(PEAKS, {}) or {"this process": _peak_gigabytes()}
    text = ", ".join(f"{name} {peak:.1f} GB" for name, peak in peaks.items() if peak is not None)
    terminalreporter.write_line(f"peak memory: {text}")
