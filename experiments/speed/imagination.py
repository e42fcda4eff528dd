"""An epoch of MOPO: updates of the policy and a refresh of its imagined rows, on one core.

    python experiments/speed/imagination.py
    python experiments/speed/imagination.py --peer-python ../peer/bin/python --kit ../OfflineRL-Kit

Random transitions of the sizes of cheetah run, the released sizes of model, networks and rollouts.
Compared are members that are asked jointly at every step, which MOPO's own penalty needs, members
that roll out their shares alone, and OfflineRL-Kit's components (`offlinerl_kit_peer.py`), which
take turns on the same core with one thread; the fastest of each counts. `--kit` is a checkout of
yihaosun1124/OfflineRL-Kit, `--peer-python` an interpreter with torch.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import peer  # beside this file
import stopwatch  # beside this file
import tyro
from cases import Data, arrays, on_device  # beside this file
from learner_cases import handed_on  # beside this file
from rich.console import Console
from rich.table import Table

from offline_mbrl import registry
from offline_mbrl.algorithms.imagined.mopo import KIT_POLICY
from offline_mbrl.models import gaussian_ensemble
from offline_mbrl.rollouts.imagination import ImaginationConfig
from offline_mbrl.training import feeding, fit, programs, stages
from offline_mbrl.types import Context, Learner, PyTree, Stage

# name in the table -> (algorithm, settings)
OURS = {
    "mopo, members jointly": ("mopo", {"penalty_coef": 2.5}),
    "mopo, own likelihood, members alone": ("mopo", {"penalty": "own_likelihood"}),
    "mbpo, members alone": ("mbpo", {}),
}


@dataclass(frozen=True)
class Options:
    """What is measured."""

    peer_python: Path | None = None  # an interpreter that has torch; None: the kit is left out
    kit: Path | None = None  # a checkout of OfflineRL-Kit
    transitions: int = 50_000
    updates: int = 1_000  # of an epoch
    starts: int = 50_000  # of its refresh
    horizon: int = 5
    batch_size: int = 256
    layers: tuple[int, ...] = (256, 256)  # of actor and critics
    model_layers: tuple[int, ...] = (200, 200, 200, 200)
    rounds: int = 3  # measurements in turn; the fastest is shown
    seconds: float = 4.0  # of one measurement, about
    core: int | None = None  # which core; default: the first that this process may use


class Epoch(NamedTuple):
    """The parts of an epoch: each is run so many times."""

    updates: Callable[[int], Any]
    refresh: Callable[[int], Any]


def main(options: Options) -> None:
    """Prints the table."""
    core = stopwatch.one_core(options.core)
    console = Console(highlight=False, width=160)
    console.print(f"core {core}; the fastest of {options.rounds} measurements\n")
    columns = arrays(options.transitions)
    data = on_device(columns)
    with contextlib.ExitStack() as stack:
        epochs = own_epochs(data, options)
        if options.peer_python and options.kit:
            epochs["OfflineRL-Kit"] = stack.enter_context(kit_epoch(columns, options, core))
        runs = [run for epoch in epochs.values() for run in epoch]
        seconds = stopwatch.in_turn(runs, options.seconds, options.rounds, summary=min)
    pairs = zip(seconds[::2], seconds[1::2], strict=True)
    console.print(table(dict(zip(epochs, pairs, strict=True)), options))


def table(seconds: dict[str, tuple[float, float]], options: Options) -> Table:
    """CPU seconds of an epoch, and how much faster than the last row it is.

    Args:
      seconds: by name, of one update and of one refresh.
      options: the size of an epoch.
    """
    shown = Table(title=f"{options.updates:,} updates and {options.starts:,} rollouts")
    heads = ("what", "updates / s", "steps / s", "refresh, s", "its share", "epoch, s", "faster")
    for column in heads:
        shown.add_column(column, justify="left" if column == "what" else "right")
    epochs = {
        name: options.updates * update + refresh for name, (update, refresh) in seconds.items()
    }
    slowest = [*epochs.values()][-1]
    for name, (update, refresh) in seconds.items():
        shown.add_row(
            name,
            f"{1 / update:,.0f}",
            f"{options.starts * options.horizon / refresh:,.0f}",
            f"{refresh:.2f}",
            f"{refresh / epochs[name]:.0%}",
            f"{epochs[name]:.2f}",
            f"{slowest / epochs[name]:.2f}",
        )
    return shown


# --- ours ---


def own_epochs(data: Data, options: Options) -> dict[str, Epoch]:
    """Algorithms of the registry, as `fit` compiles them, with one model of two updates.

    Args:
      data: on the device.
      options: the sizes.
    """
    every = {
        name: own_stages(algorithm, settings, data, options)
        for name, (algorithm, settings) in OURS.items()
    }
    dataset, context = handed_on(next(iter(every.values())), data, None)
    return {
        name: compiled_epoch(of_name[stages.MAIN].learner, dataset, context)
        for name, of_name in every.items()
    }


def own_stages(
    name: str, settings: dict[str, Any], data: Data, options: Options
) -> dict[str, Stage]:
    """The stages of an algorithm.

    Args:
      name: of the algorithm.
      settings: beside the sizes and the rates of the kit.
      data: its spec counts.
      options: the sizes.
    """
    algorithm = registry.lookup(name)
    config = algorithm.config(
        termination="never",
        dynamics=gaussian_ensemble.Config(hidden_layers=options.model_layers),
        imagination=ImaginationConfig(
            num_starts=options.starts, horizon=options.horizon, every=options.updates
        ),
        policy=replace(
            KIT_POLICY,
            actor_layers=options.layers,
            critic_layers=options.layers,
            batch_size=options.batch_size,
        ),
        **settings,
    )
    return stages.of_algorithm(algorithm, config, data.spec)


def compiled_epoch(learner: Learner, dataset: PyTree, context: Context) -> Epoch:
    """The programs of a run of one seed.

    Args:
      learner: with a refresh.
      dataset: on the device.
      context: constants, and the model's parameters.
    """
    key = jax.random.key(0)
    keys = fit.keys_for(key, None)
    feed = feeding.make(learner, dataset, keys[..., 1], None)
    states = [stopwatch.copied(fit.init(learner, dataset, key=key, context=context))]
    compiled, _ = programs.compile_programs(feed, states[0], context, keys, None)
    assert compiled.refresh is not None
    refresh_once = compiled.refresh

    def updates(count: int) -> None:
        state, report = compiled.block(states[0], feed.resident, np.int32(count))
        states[0] = jax.block_until_ready(state)
        jax.device_get(report)

    def refresh(count: int) -> None:
        for _ in range(count):
            state, report, metrics = refresh_once(states[0], feed.resident)
            states[0] = jax.block_until_ready(state)
            jax.device_get((report, metrics))

    refresh(1)
    return Epoch(updates=updates, refresh=refresh)


# --- the kit's ---


@contextlib.contextmanager
def kit_epoch(columns: dict[str, np.ndarray], options: Options, core: int) -> Iterator[Epoch]:
    """OfflineRL-Kit's components in a process of their own.

    Args:
      columns: random transitions.
      options: the sizes.
      core: that it stays on.

    Raises:
      UsageError: the interpreter does not run them.
    """
    assert options.peer_python is not None
    observation = columns["observation"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "arrays.npz"
        np.savez(
            path,
            observations=observation,
            actions=columns["action"],
            next_observations=np.roll(observation, -1, axis=0),
            rewards=columns["reward"],
            terminals=columns["is_terminal"],
        )
        request = sizes(options) | {"arrays": str(path)}
        script = peer.OFFLINERL_KIT
        with peer.start(options.peer_python, script, core, str(options.kit)) as ask:

            def part(way: str) -> Callable[[int], float]:
                return lambda count: ask({**request, "way": way, "count": count})

            yield Epoch(updates=part("updates"), refresh=part("refresh"))


def sizes(options: Options) -> dict[str, Any]:
    """What a request of the kit's peer says of the sizes."""
    model, rollouts = gaussian_ensemble.Config(), ImaginationConfig()
    return {
        "starts": options.starts,
        "horizon": options.horizon,
        "retain": rollouts.retain,
        "real_fraction": rollouts.real_fraction,
        "batch_size": options.batch_size,
        "layers": options.layers,
        "model_layers": options.model_layers,
        "members": model.num_members,
        "elites": model.fit.num_elites,
        "penalty_coef": OURS["mopo, members jointly"][1]["penalty_coef"],
    }


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
