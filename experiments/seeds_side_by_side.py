"""Compares seeds that are trained side by side with the same seeds alone, for every algorithm.

    python experiments/seeds_side_by_side.py
    python experiments/seeds_side_by_side.py --algorithms sac,mopo --seeds 2

Every registered case trains on its toy problem with its small networks: all stages, 100 updates
each, once with all seeds in one program and once seed by seed. Programs of other widths round
differently, and training amplifies it: what is shown is the largest difference between the two
states after it, over 1 plus the absolute value. Prints a table; the exit code is 1 where a
difference exceeds the tolerance.
"""

import dataclasses
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from offline_mbrl import registry
from offline_mbrl.data import normalize
from offline_mbrl.training import stages
from offline_mbrl.types import Algorithm, Case, Stage


@dataclass(frozen=True)
class Options:
    """Trains seeds side by side and alone, and compares the ends."""

    algorithms: str = ""  # comma-separated; default: all
    seeds: int = 8
    updates: int = 100  # of each stage
    tolerance: float = 1e-3


def main(options: Options) -> int:
    """Compares all cases; the exit code."""
    names = [name for name in options.algorithms.split(",") if name] or list(registry.ALGORITHMS)
    shown = Table(title=f"{options.seeds} seeds side by side and alone, {options.updates} updates")
    for head in ("algorithm", "largest difference", "seconds"):
        shown.add_column(head, justify="left" if head == "algorithm" else "right")
    console = Console()
    exceeded = []
    for name in names:
        algorithm = registry.lookup(name)
        for number, case in enumerate(algorithm.cases):
            label = f"{name}/{number}" if number else name
            began = time.monotonic()
            largest = difference(algorithm, case, options)
            seconds = time.monotonic() - began
            console.print(f"{label}: {largest:.1e}", highlight=False)
            shown.add_row(label, f"{largest:.1e}", f"{seconds:.0f}")
            if not largest <= options.tolerance:
                exceeded.append(label)
    console.print(shown)
    if exceeded:
        console.print(f"beyond {options.tolerance:g}: {', '.join(exceeded)}")
    return int(bool(exceeded))


def difference(algorithm: Algorithm, case: Case, options: Options) -> float:
    """The largest difference between states side by side and alone, over 1 plus the value."""
    together = trained(algorithm, case, range(options.seeds), options.updates)
    largest = 0.0
    for seed in range(options.seeds):
        alone = trained(algorithm, case, [seed], options.updates)
        for joint, single in zip(together, alone, strict=True):
            reference = np.asarray(single[0], np.float64)
            if reference.size:
                apart = np.abs(np.asarray(joint[seed], np.float64) - reference)
                largest = max(largest, float(np.max(apart / (1.0 + np.abs(reference)))))
    return largest


def trained(algorithm: Algorithm, case: Case, seeds: Any, updates: int) -> list[np.ndarray]:
    """The arrays `[S, ...]` of the last stage's learner after `updates` updates of every stage."""
    problem = case.problem()
    made = stages.of_algorithm(algorithm, _config(algorithm, case, updates), problem.spec)
    short = {name: _shortened(stage, updates) for name, stage in made.items()}
    end = stages.train_stages(
        short,
        problem.dataset,
        key=jax.random.key(5),
        run_stage=stages.plain(seeds=list(seeds), block_updates=updates),
        statistics=normalize.statistics(problem.dataset),
    )
    leaves = jax.tree.leaves(end.end.state.learner)
    numbers = [
        leaf for leaf in leaves if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    ]
    return jax.device_get(numbers)


def _config(algorithm: Algorithm, case: Case, updates: int) -> Any:
    names = {field.name for field in dataclasses.fields(algorithm.config)}
    batch_size = {"batch_size": 32} if "batch_size" in names else {}
    return algorithm.config(**{**case.config, **batch_size, "num_updates": updates})


def _shortened(stage: Stage, updates: int) -> Stage:
    return stage._replace(num_updates=min(stage.num_updates, updates))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
