"""What `models.py` measures with: options, cases that take turns, their tables, random data."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import stopwatch  # beside this file
from actors import ACTION_SIZE, STATE_SIZE  # beside this file
from rich.table import Table

from offline_mbrl.data import memory, normalize, specs
from offline_mbrl.types import Context, EnvironmentSpec

EPISODE = 1000
GAMMA = 0.995
PARTS = ("training", "rollouts", "sampling", "fqe", "fits", "evaluation")


@dataclasses.dataclass(frozen=True)
class Options:
    """What is measured."""

    parts: str = ",".join(PARTS)  # comma-separated
    transitions: int = 50_000
    starts: int = 5_000  # of a rollout
    horizon: int = 5  # of a rollout
    sampled: int = 512  # starts of the rollouts that compare ways of sampling
    policies: int = 8  # of fitted Q evaluation
    updates: int = 2_000  # of whole fits
    # Policies, starts, horizon of the last part.
    evaluated: tuple[int, int, int] = (10, 1_000, 100)
    rounds: int = 5  # measurements in turn; medians are shown
    seconds: float = 0.5  # of one measurement, about
    core: int | None = None  # which core; default: the first that this process may use


class Case(NamedTuple):
    """Something that is timed."""

    name: str
    run: Callable[[int], Any]  # does it so many times
    work: float = 1.0  # what is counted, in one time
    flops: float | None = None  # of one time


class Data(NamedTuple):
    """Random transitions, on the device."""

    dataset: memory.Dataset
    context: Context  # with their statistics
    spec: EnvironmentSpec


def table(title: str, unit: str, cases: list[Case], options: Options, peak: float) -> Table:
    """Rates, how much faster than the first case each is, and its share of the peak.

    Args:
      title: of the table.
      unit: of the rates.
      cases: take turns.
      options: how they are measured.
      peak: FLOP per second.
    """
    shown = Table(title=title)
    for column in ("what", unit, "against the first", "MFLOP", "share of peak"):
        shown.add_column(column, justify="left" if column == "what" else "right")
    seconds = stopwatch.in_turn([case.run for case in cases], options.seconds, options.rounds)
    rates = [case.work / spent for case, spent in zip(cases, seconds, strict=True)]
    for case, rate in zip(cases, rates, strict=True):
        cells = [case.name, f"{rate:,.0f}", f"{rate / rates[0]:.2f}", "", ""]
        if case.flops:
            flops = case.flops / case.work
            cells[3:] = [f"{flops / 1e6:.3g}", f"{flops * rate / peak:.0%}"]
        shown.add_row(*cells)
    return shown


def data(options: Options) -> Data:
    """Random transitions of the sizes of cheetah run."""
    return on_device(arrays(options.transitions))


def arrays(size: int, num_actions: int | None = None) -> dict[str, np.ndarray]:
    """Random transitions of the sizes of cheetah run, as columns.

    Args:
      size: number of transitions.
      num_actions: discrete actions in the place of cheetah's.
    """
    rng = np.random.default_rng(0)
    observation = rng.normal(size=(size, STATE_SIZE)).astype(np.float32)
    if num_actions is None:
        action = rng.uniform(-1, 1, (size, ACTION_SIZE)).astype(np.float32)
    else:
        action = rng.integers(num_actions, size=size, dtype=np.int32)
    return {
        "observation": observation,
        "action": action,
        "reward": rng.uniform(0, 1, size).astype(np.float32),
        "is_terminal": np.zeros(size, bool),
        "is_truncated": np.arange(size) % EPISODE == EPISODE - 1,
    }


def on_device(columns: Mapping[str, np.ndarray]) -> Data:
    """A dataset of columns, with its statistics."""
    dataset = memory.Dataset.from_arrays(columns)
    return Data(
        dataset=jax.tree.map(jnp.asarray, dataset),
        context=Context(statistics=normalize.full_statistics(dataset)),
        spec=specs.spec_of(dataset, gamma=GAMMA),
    )


def repeatedly(program: Callable, *arguments: Any) -> Callable[[int], Any]:
    """Runs a program, compiled here, so many times."""
    compiled = jax.jit(program).lower(*arguments).compile()

    def run(turns: int) -> None:
        for _ in range(turns):
            jax.block_until_ready(compiled(*arguments))

    return run
