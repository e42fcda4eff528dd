"""The persistent compilation cache: a second run of the same program starts in a tenth of the
time."""

import os
from pathlib import Path

import jax

DIRECTORY = "jax_compilation_cache_dir"
MINIMUM_COMPILE_SECONDS = 0.5  # what compiles faster is not worth a file


def enable(directory: str | Path | None = None) -> Path | None:
    """Turns the cache on for this process, unless the user has chosen one
    (`JAX_COMPILATION_CACHE_DIR`).

    Called by commands, never at import.

    Args:
      directory: where to keep compiled programs; by default `$OFFLINE_MBRL_CACHE`, else
        `~/.cache/offline_mbrl/xla`.

    Returns:
      The folder in use, or None where none can be written: then there is no cache, and nothing
        fails.
    """
    if chosen := getattr(jax.config, DIRECTORY):
        return Path(chosen)
    try:
        folder = Path(
            directory
            or os.environ.get("OFFLINE_MBRL_CACHE")
            or Path.home() / ".cache/offline_mbrl/xla"
        )
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # read-only, or no home
        return None
    if not os.access(folder, os.W_OK):
        return None
    jax.config.update(DIRECTORY, str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MINIMUM_COMPILE_SECONDS)
    return folder
