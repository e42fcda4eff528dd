"""What importing and starting loads, seen from clean processes."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import offline_mbrl

HEAVY = (
    "tensorflow",
    "tensorflow_datasets",
    "torch",
    "bsuite",
    "dm_control",
    "gymnasium",
    "ale_py",
    "mujoco",
    "minari",
)
SHOW = "import sys; print(' '.join(sorted({name.split('.')[0] for name in sys.modules})))"


def modules(program, *, cwd=None):
    """Top-level modules that a program has loaded at its end."""
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\n{SHOW}"],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_importing_the_package_loads_next_to_nothing():
    loaded = modules("import offline_mbrl")
    assert not loaded & {*HEAVY, "jax", "numpy", "flax"}


def test_importing_every_module_loads_neither_tensorflow_nor_a_simulator():
    package = Path(offline_mbrl.__file__).parent
    names = [
        ".".join(path.relative_to(package.parent).with_suffix("").parts)
        for path in package.rglob("*.py")
    ]
    lines = [f"import {name.removesuffix('.__init__')}" for name in sorted(names)]
    assert not modules("\n".join(lines)) & set(HEAVY)


def test_the_help_of_the_command_line_does_without_jax():
    loaded = modules("from offline_mbrl import cli; cli.main(['--help'])")
    assert not loaded & {*HEAVY, "jax", "numpy", "tyro", "rich"}


HELP = """
from offline_mbrl import cli
try: cli.main(["train", "rosmo", "--help"])
except SystemExit: pass
"""


def test_the_help_of_train_does_without_what_trains():
    assert not modules(HELP) & {*HEAVY, "orbax", "matplotlib", "h5py", "tensorboardX"}


@pytest.mark.parametrize("name", offline_mbrl.__all__)
def test_every_public_name_can_be_had(name):
    assert getattr(offline_mbrl, name) is not None
    assert name in dir(offline_mbrl)


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        importlib.import_module("offline_mbrl").nothing  # noqa: B018


# --- training ---

INGEST = """
import numpy as np
from offline_mbrl.data.catalog import load as catalog
from offline_mbrl.data.sources import ingest
rng = np.random.default_rng(0)
last = np.arange(50) % 5 == 4
records = {
    "observation": rng.normal(size=(50, 4)).astype(np.float32),
    "action": rng.integers(0, 3, 50),
    "reward": rng.normal(size=50).astype(np.float32),
    "is_first": np.roll(last, 1),
    "is_last": last,
    "is_terminal": last,
}
batch = ingest.Batch(records, np.full(10, 5))
entry = catalog.lookup("local/catch")
source = ingest.Source(iter([batch]), {"source": "test"})
ingest.ingest(source, catalog.store_directory(entry), name=entry.name)
"""
TRAIN = """
from offline_mbrl import cli
code = cli.main(
    "train bc --dataset local/catch --episodes 0 --config.num-updates 8 --config.batch-size 8"
    " --block-updates 4 --devices 1 --run-dir run".split()
)
assert code == 0
"""


def test_training_from_an_ingested_dataset_never_imports_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setenv("OFFLINE_MBRL_DATA", str(tmp_path / "data"))
    modules(INGEST, cwd=tmp_path)
    loaded = modules(TRAIN, cwd=tmp_path)
    assert {"jax", "offline_mbrl"} <= loaded
    assert not loaded & set(HEAVY)
    assert (tmp_path / "run/evaluation.json").exists()


def test_a_clone_beside_a_script_is_not_taken_for_the_package(tmp_path):
    """A folder `offline_mbrl` without `__init__.py`, as a clone of the repository is one."""
    (tmp_path / "offline_mbrl" / "docs").mkdir(parents=True)
    assert "offline_mbrl" in modules("import offline_mbrl; offline_mbrl.Dataset", cwd=tmp_path)
