"""The one list of algorithms, read by the contract tests, the command line and the benchmarks."""

import difflib

from offline_mbrl.algorithms import latent_crr, muzero_unplugged, rosmo, skeleton
from offline_mbrl.learners import bc, sac
from offline_mbrl.types import Algorithm, UsageError

ALGORITHMS: dict[str, Algorithm] = {
    "bc": Algorithm(bc.Config, bc.make),
    "gumbel": Algorithm(muzero_unplugged.GumbelConfig, muzero_unplugged.make),
    "latent_crr": Algorithm(latent_crr.Config, latent_crr.make, presets=latent_crr.PRESETS),
    "muzero_unplugged": Algorithm(
        muzero_unplugged.Config, muzero_unplugged.make, presets=muzero_unplugged.PRESETS),
    "mzu_q": Algorithm(muzero_unplugged.QConfig, muzero_unplugged.make),
    "rosmo": Algorithm(rosmo.Config, rosmo.make, presets=rosmo.PRESETS),
    "sac": Algorithm(sac.Config, sac.make),
    "skeleton": Algorithm(skeleton.Config, skeleton.make, skeleton.pretrain),
}  # fmt: skip


def lookup(name: str) -> Algorithm:
    """An algorithm by name.

    Raises:
      UsageError: unknown; the message has the closest known names.
    """
    if name in ALGORITHMS:
        return ALGORITHMS[name]
    close = difflib.get_close_matches(name, ALGORITHMS, n=2)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(ALGORITHMS)}"
    raise UsageError(f"unknown algorithm {name!r}: {hint}")
