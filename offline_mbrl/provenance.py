"""Where data and results came from: library versions and the revision of this code, as plain
JSON."""

import functools
import importlib.metadata
import subprocess
from pathlib import Path

# Results depend on them
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "offline_mbrl")
DATA_LIBRARIES = (
    "offline_mbrl",
    "jax",
    "numpy",
    "tensorflow-datasets",
    "array_record",
    "h5py",
    "minari",
    "bsuite",
)


def describe() -> dict:
    """Versions of the libraries that touch data, and the code's git revision where it is known."""
    return {
        "versions": {name: _version(name) for name in DATA_LIBRARIES if _version(name)},
        "revision": revision(),
    }


def versions() -> dict[str, str]:
    """Versions of the libraries that results depend on; one may be absent, as this package is in a
    source folder."""
    return {name: _version(name) or "not installed" for name in LIBRARIES}


def revision() -> str | None:
    """Git revision of this package's source, with `+changes` when it differs from the commit; None
    outside git."""
    here = Path(__file__).resolve().parent
    try:
        # Installed inside another project's tree
        _git(here, "ls-files", "--error-unmatch", Path(__file__).name)
        commit = _git(here, "rev-parse", "HEAD")
        return commit + ("+changes" if _git(here, "status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(directory: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(directory), *arguments], capture_output=True, check=True, timeout=10
    )
    return done.stdout.decode().strip()


@functools.cache
def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
