"""Updates per CPU second of every policy learner without a model, on one core, beside d3rlpy's.

    python experiments/speed/learners.py
    python experiments/speed/learners.py --peer-python ../peer/bin/python
    python experiments/speed/learners.py --parts learners --learners td3_bc,dqn --rounds 40

Random transitions of the sizes of cheetah run, or the same with as many discrete actions. All
networks have the same hidden layers, whatever their methods' papers have; other settings are the
defaults. Updates are those of `fit`: many in one dispatch, compiled before. A learner, a matrix
product and d3rlpy's learner take turns; of many short measurements the fastest counts, because
whoever shares the machine can only slow one down. FLOPs are those of products.

d3rlpy runs in a process of its own, on the same core and with one thread, under an interpreter that
has it (`d3rlpy_peer.py`).
"""

import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import learner_cases  # beside this file
import numpy as np
import peer  # beside this file
import stopwatch  # beside this file
import tyro
from learner_cases import Options  # beside this file
from rich.console import Console
from rich.table import Table

PEERS = ("td3_bc", "iql", "cql", "dqn", "bcq_discrete")  # d3rlpy has them in the same form


def main(options: Options) -> None:
    """Prints the tables of each part."""
    core = stopwatch.one_core(options.core)
    console = Console(highlight=False, width=160)
    console.print(f"core {core}; the fastest of {options.rounds} measurements\n")
    names = options.learners.split(",")
    parts = options.parts.split(",")
    if "learners" in parts:
        console.print(learner_table(names, options))
    if "d3rlpy" in parts and options.peer_python:
        console.print(peer_table(names, options, core))
    if "seeds" in parts:
        console.print(seed_table(options))


# --- the tables ---


def learner_table(names: Sequence[str], options: Options) -> Table:
    """Every learner: its rate, its floating point operations, and its share of the peak."""
    shown = Table(title="updates of each learner")
    for column in ("learner", "updates / s", "MFLOP", "share of peak", "GFLOP / s of a product"):
        shown.add_column(column, justify="left" if column == "learner" else "right")
    product = stopwatch.matrix_product()
    for name in names:
        case = learner_cases.make(name, options)
        seconds, product_seconds = fastest([case.run(), product.run], options)
        peak = product.flops / product_seconds
        flops = case.flops()
        shown.add_row(
            name,
            f"{1 / seconds:,.0f}",
            f"{flops / 1e6:,.3g}",
            f"{flops / seconds / peak:.0%}",
            f"{peak / 1e9:.0f}",
        )
    return shown


def peer_table(names: Sequence[str], options: Options, core: int) -> Table:
    """Learners in turn with d3rlpy's, whose updates count as its `fit` calls them and alone."""
    shown = Table(title="updates of each learner and of d3rlpy's, per CPU second")
    for column in ("learner", "ours", "d3rlpy's fit", "ratio", "d3rlpy's update alone", "ratio"):
        shown.add_column(column, justify="left" if column == "learner" else "right")
    assert options.peer_python is not None
    d3rlpy = peer.start(options.peer_python, peer.D3RLPY, core)
    with tempfile.TemporaryDirectory() as folder, d3rlpy as ask:
        for name in (name for name in names if name in PEERS):
            request = request_of(name, options, Path(folder))
            theirs = [functools.partial(asked, ask, request, way) for way in ("fit", "update")]
            ours, fit, alone = fastest([learner_cases.make(name, options).run(), *theirs], options)
            rates = [f"{1 / seconds:,.0f}" for seconds in (ours, fit, alone)]
            ratios = [f"{seconds / ours:.2f}" for seconds in (fit, alone)]
            shown.add_row(name, *rates[:2], ratios[0], rates[2], ratios[1])
    return shown


def request_of(name: str, options: Options, folder: Path) -> dict[str, Any]:
    """The peer's request of a learner, with its arrays in a file."""
    path = folder / f"{name}.npz"
    np.savez(path, **learner_cases.measured(name, options.transitions))
    sizes = learner_cases.sizes_of(name, options)
    return {"name": name, "arrays": str(path), **sizes._asdict()}


def asked(ask: peer.Ask, request: dict[str, Any], way: str, count: int) -> float:
    """CPU seconds of so many updates of the peer's.

    Args:
      ask: the peer.
      request: the learner.
      way: "fit" or "update".
      count: of updates.
    """
    return ask({**request, "way": way, "count": count})


def seed_table(options: Options) -> Table:
    """Updates of one seed per CPU second, by how many learn side by side."""
    shown = Table(title="updates of a seed / s, by seeds side by side")
    for column in ("learner", *map(str, options.seeds)):
        shown.add_column(column, justify="left" if column == "learner" else "right")
    for name in options.seed_learners.split(","):
        case = learner_cases.make(name, options)
        runs = [case.run(range(count)) for count in options.seeds]
        pairs = zip(options.seeds, fastest(runs, options), strict=True)
        shown.add_row(name, *(f"{count / seconds:,.0f}" for count, seconds in pairs))
    return shown


def fastest(runs: Sequence[Callable[[int], Any]], options: Options) -> list[float]:
    """CPU seconds of one turn of each, at best."""
    return stopwatch.in_turn(runs, options.seconds, options.rounds, summary=min)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
