"""The origin of data and results: library versions and the revision of this code, as JSON."""

import functools
import importlib.metadata
import subprocess
from pathlib import Path

# Libraries that results depend on.
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "offline_mbrl")
# Libraries that datasets depend on.
DATA_LIBRARIES = (
    "offline_mbrl",
    "jax",
    "numpy",
    "tensorflow-datasets",
    "array_record",
    "h5py",
    "minari",
    "bsuite",
    "mujoco",
    "ogbench",
)


def describe() -> dict:
    """Versions of the libraries that datasets depend on, and this code's git revision."""
    return {
        "versions": {name: _version(name) for name in DATA_LIBRARIES if _version(name)},
        "revision": revision(),
    }


def versions() -> dict[str, str]:
    """Versions of the libraries that results depend on, "not installed" for those without one."""
    return {name: _version(name) or "not installed" for name in LIBRARIES}


def revision() -> str | None:
    """The git revision of this package's source, None outside git.

    `+changes` is appended if the source differs from the commit.
    """
    package = Path(__file__).resolve().parent
    try:
        # Fails if the package is only installed inside another project's repository.
        _git(package, "ls-files", "--error-unmatch", Path(__file__).name)
        commit = _git(package, "rev-parse", "HEAD")
        changes = _git(package, "status", "--porcelain", "--", ".")
        return commit + ("+changes" if changes else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(directory: Path, *arguments: str) -> str:
    command = ["git", "-C", str(directory), *arguments]
    result = subprocess.run(command, capture_output=True, check=True, timeout=10)
    return result.stdout.decode().strip()


@functools.cache
def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
