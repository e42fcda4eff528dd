"""`offline-mbrl export RUN DIR`: a run's policies as a folder for `offline_mbrl.load_policy`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro

from offline_mbrl import config_json, export, registry
from offline_mbrl.commands import arguments
from offline_mbrl.commands.evaluate import policy_folder
from offline_mbrl.types import UsageError

ADDED = {*export.REQUIRED, "structure"}  # written by `export.save` itself


@dataclass(frozen=True)
class Options:
    """Writes policy.json and params.npz."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]  # run folder
    # where to write; made where it is absent
    directory: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    seed: int | None = None  # one seed of the run; default: all


def main(argv: list[str]) -> int:
    """Runs the command; see `cli`."""
    options = arguments.parse(Options, argv, prog="offline-mbrl export")
    exported = export.load(policy_folder(options.run))
    about = exported.description
    seeds = about["seeds"] if options.seed is None else [options.seed]
    if not set(seeds) <= set(about["seeds"]):
        raise UsageError(
            f"the run has no seed {options.seed}: it holds {', '.join(map(str, about['seeds']))}"
        )
    rows = np.array([about["seeds"].index(seed) for seed in seeds])
    algorithm = registry.lookup(about["algorithm"])
    config = config_json.from_json(algorithm.config, about["config"])
    export.save(
        options.directory,
        algorithm=about["algorithm"],
        config=config,
        spec=exported.spec,
        params=jax.tree.map(lambda leaf: leaf[rows], exported.params),
        seeds=seeds,
        description={name: value for name, value in about.items() if name not in ADDED},
    )
    print(
        f"wrote {options.directory}: policy = offline_mbrl.load_policy({str(options.directory)!r})"
    )
    return 0
