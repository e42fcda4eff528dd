"""What `learners.py` measures: learners of equal sizes on random data, and what feeds them."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import stopwatch  # beside this file
from actors import ACTION_SIZE  # beside this file
from cases import Data, arrays, on_device  # beside this file

from offline_mbrl import config_json, registry, settings
from offline_mbrl.training import stages
from offline_mbrl.types import Algorithm, Context, EnvironmentSpec, Key, PyTree, Stage

CONTINUOUS = (
    *("td3_bc", "rebrac", "edac", "iql", "cql", "crr", "bcq", "bear", "brac", "fql"),
    *("bail", "percentile_bc", "bc", "sac"),
)
DISCRETE = ("dqn", "qr_dqn", "rem", "bcq_discrete", "cql_discrete")
PRETRAINING = 2  # updates of earlier stages: what they hand on takes as long to read


class Sizes(NamedTuple):
    """Of a learner."""

    layers: tuple[int, ...]
    batch_size: int


@dataclasses.dataclass(frozen=True)
class Options:
    """What is measured."""

    parts: str = "learners,d3rlpy,seeds"  # comma-separated; d3rlpy needs its interpreter
    learners: str = ",".join((*CONTINUOUS, *DISCRETE))  # of the first two parts
    seed_learners: str = "td3_bc,iql,dqn"  # of the last part
    seeds: tuple[int, ...] = (1, 8, 32)  # side by side
    peer_python: Path | None = None  # an interpreter that has d3rlpy; None: it is left out
    transitions: int = 50_000
    layers: tuple[int, ...] = (256, 256)  # with continuous actions
    batch_size: int = 256
    discrete_layers: tuple[int, ...] = (64, 64)
    discrete_batch_size: int = 32
    rounds: int = 10  # measurements in turn; the fastest is shown
    seconds: float = 0.5  # of one measurement, about: `fit` dispatches a second of updates
    core: int | None = None  # which core; default: the first that this process may use


class Case(NamedTuple):
    """A learner with what its updates read."""

    stage: Stage  # the last of its algorithm
    # Seeds, or None -> a dataset and constants, with what earlier stages hand on to them
    inputs: Callable[[Sequence[int] | None], tuple[PyTree, Context]]

    def run(self, seeds: Sequence[int] | None = None) -> Callable[[int], None]:
        """Runs so many updates of these seeds in one dispatch."""
        return stopwatch.fitted(self.stage.learner, *self.inputs(seeds), seeds)

    def flops(self) -> float:
        """Of an update of one seed."""
        return stopwatch.update_flops(self.stage.learner, *self.inputs(None))


def sizes_of(name: str, options: Options) -> Sizes:
    """The sizes of a learner's networks and batches."""
    if name in DISCRETE:
        return Sizes(options.discrete_layers, options.discrete_batch_size)
    return Sizes(options.layers, options.batch_size)


@functools.cache
def measured(name: str, transitions: int) -> dict[str, Any]:
    """The columns that a learner and its peer learn from."""
    return arrays(transitions, ACTION_SIZE if name in DISCRETE else None)


def make(name: str, options: Options) -> Case:
    """A learner of the registry.

    Args:
      name: of its algorithm.
      options: its sizes and the number of transitions.
    """
    data = on_device(measured(name, options.transitions))
    algorithm = registry.lookup(name)
    config = resized(algorithm, data.spec, sizes_of(name, options))
    every = stages.of_algorithm(algorithm, config, data.spec)
    return Case(
        stage=every[stages.MAIN], inputs=functools.cache(functools.partial(handed_on, every, data))
    )


def resized(algorithm: Algorithm, spec: EnvironmentSpec, sizes: Sizes) -> Any:
    """The default settings with these sizes.

    Args:
      algorithm: whose settings.
      spec: of the problem.
      sizes: of all layers that this problem reads, and of batches.
    """
    config = algorithm.config()
    json = config_json.to_json(config)
    for name in settings.in_use(config, spec):
        *path, last = name.split(".")
        owner = functools.reduce(dict.__getitem__, path, json)
        if isinstance(owner[last], tuple) and last.endswith("layers"):
            owner[last] = sizes.layers
    return config_json.from_json(algorithm.config, {**json, "batch_size": sizes.batch_size})


def handed_on(
    every: dict[str, Stage], data: Data, seeds: Sequence[int] | None
) -> tuple[PyTree, Context]:
    """What the last stage sees, after a few updates of those before it.

    Args:
      every: the stages by name.
      data: of the first.
      seeds: of all stages; None for a single run.
    """
    seen = []
    few = stages.plain(seeds=seeds, block_updates=PRETRAINING)

    def run_stage(
        name: str, stage: Stage, dataset: PyTree, context: Context, key: Key
    ) -> stages.StageEnd:
        if name == stages.MAIN:
            seen.append((jax.device_put(dataset), context))
            return stages.StageEnd(state=None, failures={}, stopped="measured")  # type: ignore[arg-type]
        return few(name, stage._replace(num_updates=PRETRAINING), dataset, context, key)

    host = jax.device_get(data.dataset)
    statistics = data.context.statistics
    key = jax.random.key(0)
    stages.train_stages(every, host, key=key, run_stage=run_stage, statistics=statistics)
    return seen[0]
