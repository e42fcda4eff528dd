"""From arrays to a deployed policy in memory: `offline_mbrl.train`, a run without a folder."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np

from offline_mbrl import export, registry
from offline_mbrl.data import normalize, specs
from offline_mbrl.data.memory import Dataset
from offline_mbrl.evaluation import episodes
from offline_mbrl.networks.precision import stages_in
from offline_mbrl.runs import display, playing
from offline_mbrl.settings import Precision
from offline_mbrl.training import fit as fitting
from offline_mbrl.training.stages import MAIN, RunStage, of_algorithm, plain, train_stages
from offline_mbrl.types import (
    Actor,
    Algorithm,
    Context,
    EnvironmentSpec,
    Params,
    Policy,
    Stage,
    UsageError,
)

VALIDATION_BATCHES = 10
Row = dict[str, Any]  # stage, step, seed, and figures by name


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished training run, in memory."""

    algorithm: str
    config: Any
    spec: EnvironmentSpec
    seeds: tuple[int, ...]
    policy: Policy | Actor | None
    policy_params: Params  # leading axis [S]
    history: list[Row]  # one row a stage, block and seed
    failures: dict[int, str]  # seed -> what became non-finite
    upstream: Mapping[str, Any]  # what each stage handed on, leading axis [S]
    precision: Precision = "float32"  # of its updates

    def evaluate(
        self, simulator: str, *, num_episodes: int = 20, greedy: bool = True, seed: int = 0
    ) -> np.ndarray:
        """Returns of complete episodes in a simulator, `[S, num_episodes]`.

        Args:
          simulator: its name, for example `gym/Pendulum-v1`.
          num_episodes: of each seed.
          greedy: whether the policy acts greedily, or samples.
          seed: of the simulators.

        Raises:
          UsageError: there is no policy, the simulator is not installed or does not fit, its
            actions have other bounds than the data's, or an episode could not be finished.
        """
        if self.policy is None:
            raise UsageError(f"{self.algorithm} has no policy to evaluate")
        playing.check(simulator, self.spec)
        evaluation = episodes.evaluate(
            self.policy,
            self.policy_params,
            simulator,
            seed=seed,
            num_episodes=num_episodes,
            greedy=greedy,
            num_seeds=len(self.seeds),
        )
        if not evaluation.complete:
            raise UsageError(evaluation.message)
        return evaluation.returns

    def export(self, directory: str | Path) -> Path:
        """Writes the policies of all seeds as a folder that `offline_mbrl.load_policy` reads.

        Raises:
          UsageError: there is no policy, or the folder cannot be written.
        """
        if self.policy is None:
            raise UsageError(f"{self.algorithm} has no policy to export")
        export.save(
            Path(directory),
            algorithm=self.algorithm,
            config=self.config,
            spec=self.spec,
            params=jax.device_get(self.policy_params),
            seeds=self.seeds,
        )
        return Path(directory)

    def report(self) -> str:
        """The last figures of each stage, as lines of Markdown: mean over seeds and range."""
        lines = [f"# {self.algorithm}, {len(self.seeds)} seeds", ""]
        for stage in dict.fromkeys(row["stage"] for row in self.history):
            rows = [row for row in self.history if row["stage"] == stage]
            last = max(row["step"] for row in rows)
            lines += [f"## {stage}, update {last}", "", "| figure | mean | least | largest |"]
            lines += ["| --- | ---: | ---: | ---: |"]
            lines += _figures([row for row in rows if row["step"] == last])
            lines += [""]
        lines += [f"- seed {seed}: {reason}" for seed, reason in self.failures.items()]
        return "\n".join(lines)


def _figures(rows: Sequence[Row]) -> list[str]:
    names = [name for name in rows[0] if name not in ("stage", "step", "seed")]
    lines = []
    for name in names:
        values = np.array([row[name] for row in rows if np.isfinite(row[name])])
        if values.size:
            lines.append(
                f"| {name} | {values.mean():.4g} | {values.min():.4g} | {values.max():.4g} |"
            )
    return lines


def train(
    algorithm: str | Algorithm,
    dataset: Dataset,
    *,
    config: Any = None,
    preset: str = "",
    num_updates: int | None = None,
    seeds: int | Sequence[int] = 1,
    spec: EnvironmentSpec | None = None,
    validation: Dataset | None = None,
    hooks: Sequence[fitting.Hook] = (),
    seconds_a_row: float = 1.0,
    progress: bool = True,
    precision: Precision = "float32",
) -> Run:
    """Trains an algorithm on a dataset, all its stages one after the other.

    Args:
      algorithm: a name of the registry, `path/to/file.py:make`, or an `Algorithm`.
      dataset: transitions or episodes, for example from `Dataset.from_arrays`.
      config: the algorithm's settings; default: those of `preset`, else the class's own.
      preset: the name of a preset of the algorithm.
      num_updates: of the main stage, instead of the config's.
      seeds: a number of them, or the seeds themselves; they are trained side by side.
      spec: what the policy acts in; default: read off the dataset, actions in [-1, 1].
      validation: held-out episodes, whose losses the history has too.
      hooks: of the main stage; see `fit`.
      seconds_a_row: about how long a block, and so the time between two rows, lasts.
      progress: whether to show a bar.
      precision: in which hidden layers compute while training; see `networks.precision`.

    Raises:
      UsageError: bad input; or a stage failed or was stopped by a hook before its end. The message
        says which figure became non-finite first.
    """
    if not isinstance(dataset, Dataset):
        raise UsageError(
            f"train: dataset is {type(dataset).__name__}: pass a Dataset, for example "
            "`Dataset.from_arrays(arrays)` or `load_dataset(name).dataset`"
        )
    name, entry = _lookup(algorithm)
    config = _config(entry, name, config, preset, num_updates)
    numbers = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    spec = spec or specs.spec_of(dataset)
    stages = stages_in(of_algorithm(entry, config, spec), _precision(precision))
    history: list[Row] = []
    trained = train_stages(
        stages,
        dataset,
        key=jax.random.key(0),
        run_stage=_recorded(history, stages, numbers, validation, hooks, seconds_a_row, progress),
        statistics=_statistics(dataset),
    )
    if trained.end.stopped and trained.end.stopped.startswith("all seeds"):
        raise UsageError(f"stage {trained.name}: {trained.end.stopped}")
    if trained.name != MAIN:
        raise UsageError(f"stage {trained.name} did not finish: {trained.end.stopped}")
    learner = stages[MAIN].learner
    return Run(
        algorithm=name,
        config=config,
        spec=spec,
        seeds=numbers,
        policy=learner.policy,
        policy_params=fitting.policy_params(learner, trained.end.state, trained.context),
        history=history,
        failures=trained.failures,
        upstream=trained.upstream,
        precision=precision,
    )


def _lookup(algorithm: str | Algorithm) -> tuple[str, Algorithm]:
    if isinstance(algorithm, str):
        return registry.absolute(algorithm), registry.lookup(algorithm)
    if isinstance(algorithm, Algorithm):
        names = [name for name, entry in registry.ALGORITHMS.items() if entry is algorithm]
        return (names or [f"{algorithm.make.__module__}:{algorithm.make.__name__}"])[0], algorithm
    raise UsageError(
        f"train: algorithm is {type(algorithm).__name__}: pass a name such as 'sac', "
        "'path/to/file.py:make', or an Algorithm"
    )


def _config(entry: Algorithm, name: str, config: Any, preset: str, num_updates: int | None) -> Any:
    if preset and preset not in entry.presets:
        choices = ", ".join(entry.presets) or "none"
        raise UsageError(f"{name} has no preset {preset!r}; known: {choices}")
    if preset and config is not None:
        raise UsageError("train: give a preset or a config, not both")
    if config is None:
        config = entry.config(**entry.presets.get(preset, {}))
    if not isinstance(config, entry.config):
        raise UsageError(
            f"train: config is {type(config).__name__}, but {name} takes "
            f"{entry.config.__module__}.{entry.config.__name__}"
        )
    if num_updates is not None:
        config = dataclasses.replace(config, num_updates=num_updates)
    return config


def _precision(name: Any) -> Precision:
    choices = get_args(Precision)
    if name not in choices:
        raise UsageError(f"train: precision must be one of {', '.join(choices)}, got {name}")
    return name


def _statistics(dataset: Dataset) -> normalize.Statistics:
    """With those of transitions where observations and actions are vectors."""
    if isinstance(dataset.observation, np.ndarray) and dataset.observation.ndim == 2:
        return normalize.full_statistics(dataset)
    return normalize.statistics(dataset)


def _recorded(
    history: list[Row],
    stages: Mapping[str, Stage],
    seeds: tuple[int, ...],
    validation: Dataset | None,
    hooks: Sequence[fitting.Hook],
    seconds_a_row: float,
    progress: bool,
) -> RunStage:
    """A `run_stage` that writes rows into `history` and shows a bar."""
    console = display.console()
    console.quiet = not progress

    def run_stage(name: str, stage: Stage, dataset: Dataset, context: Context, key: Any) -> Any:
        measure = _validation(stage, validation, context)
        with display.bar(console, name, stage.num_updates) as show:

            def record(update: fitting.Progress) -> None:
                figures = update.metrics | measure(update.state)
                history.extend(_rows(name, update.step, seeds, figures))
                show(update.step, "")

            stage_hooks = [record, *(hooks if name == MAIN else ())]
            run = plain(seeds=seeds, hooks=lambda _: stage_hooks, block_seconds=seconds_a_row)
            return run(name, stage, dataset, context, key)

    return run_stage


def _validation(
    stage: Stage, dataset: Dataset | None, context: Context
) -> Callable[[fitting.FitState], dict[str, np.ndarray]]:
    if dataset is None:
        return lambda state: {}
    measure = fitting.validation(
        stage.learner,
        dataset,
        key=jax.random.key(1),
        num_batches=VALIDATION_BATCHES,
        context=context,
    )

    def prefixed(state: fitting.FitState) -> dict[str, np.ndarray]:
        return {f"validation/{name}": value for name, value in measure(state).items()}

    return prefixed


def _rows(
    stage: str, step: int, seeds: Sequence[int], figures: Mapping[str, np.ndarray]
) -> list[Row]:
    return [
        {"stage": stage, "step": step, "seed": seed}
        | {name: float(value[index]) for name, value in figures.items()}
        for index, seed in enumerate(seeds)
    ]
