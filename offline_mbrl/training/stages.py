"""The stages of an algorithm one after the other: what each sees, and what it hands on.

A command, a notebook and a benchmark all train by `train_stages`; they differ in what they give as
`run_stage`: a plain `fit`, or one that restores, records and saves.
"""

import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax

from offline_mbrl.training import fit as fitting
from offline_mbrl.training.fit import FitState, Hook
from offline_mbrl.types import Algorithm, Context, EnvironmentSpec, Key, PyTree, Stage

MAIN = "train"  # the name of the last stage


class StageEnd(NamedTuple):
    """How a stage ended."""

    state: FitState
    failures: Mapping[int, str]  # seed -> what became non-finite
    stopped: str | None  # why it is not finished; None: it is, by its length or by its own rule


class RunStage(Protocol):
    """Trains one stage to its end, or says why it could not."""

    def __call__(
        self, name: str, stage: Stage, dataset: PyTree, context: Context, key: Key
    ) -> StageEnd:
        """Trains.

        Args:
          name: of the stage.
          stage: its learner, length and rule.
          dataset: what it sees, split already.
          context: its statistics, and what earlier stages handed on.
          key: of the stage; seeds are folded into it.
        """
        ...


class StagesEnd(NamedTuple):
    """What is left when the last stage has ended, or the first one that did not finish."""

    name: str  # of that stage
    end: StageEnd
    context: Context  # of that stage
    failures: dict[int, str]  # over all stages
    upstream: dict[str, PyTree]  # what finished stages handed on


def of_algorithm(algorithm: Algorithm, config: Any, spec: EnvironmentSpec) -> dict[str, Stage]:
    """An algorithm's stages by name, in order; the last is `MAIN`."""
    stages = dict(algorithm.pretrain(config, spec))
    main = Stage(
        learner=algorithm.make(config, spec),
        num_updates=config.num_updates,
        prepare=functools.partial(algorithm.prepare, config),
    )
    return {**stages, MAIN: main}


def key_of(key: Key, name: str) -> Key:
    """The key of a stage: another one for every name."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def train_stages(
    stages: Mapping[str, Stage],
    dataset: PyTree,
    *,
    key: Key,
    run_stage: RunStage,
    statistics: PyTree = None,
) -> StagesEnd:
    """Trains all stages in order; the first that does not finish ends it.

    Args:
      stages: by name.
      dataset: on the host, or whatever `run_stage` takes.
      key: the run's key.
      run_stage: trains one; see `plain`.
      statistics: of the dataset, for stages that do not compute their own.

    Returns:
      How the last stage ended; `end.stopped` says why where it is not finished.
    """
    upstream: dict[str, PyTree] = {}
    failures: dict[int, str] = {}
    result = None
    for name, stage in stages.items():
        prepared = stage.prepare(dataset)
        own_statistics = stage.statistics(prepared) if stage.statistics else statistics
        context = Context(statistics=own_statistics, upstream=dict(upstream))
        end = run_stage(name, stage, prepared, context, key_of(key, name))
        failures = {
            seed: f"{reason}, stage {name}" for seed, reason in end.failures.items()
        } | failures
        result = StagesEnd(
            name=name, end=end, context=context, failures=failures, upstream=upstream
        )
        if end.stopped:
            return result
        outputs = fitting.over_seeds(
            stage.outputs or stage.learner.policy_params, end.state, context
        )
        upstream[name] = outputs
        if stage.hand_on_dataset:
            key_dataset = jax.random.fold_in(key_of(key, name), 0)
            dataset = stage.hand_on_dataset(dataset, _with_seeds(outputs, end), key_dataset)
    assert result is not None
    return result


def _with_seeds(outputs: PyTree, end: StageEnd) -> PyTree:
    """Outputs with the axis of seeds, which those of a single run lack."""
    return outputs if end.state.alive.ndim else jax.tree.map(lambda leaf: leaf[None], outputs)


def plain(
    *,
    seeds: Sequence[int] | None,
    hooks: Callable[[str], Sequence[Hook]] | None = None,
    **options: Any,
) -> RunStage:
    """A `run_stage` in memory: one call of `fit`.

    Args:
      seeds: as `fit` has them.
      hooks: (name of the stage) -> hooks beside the stage's own.
      **options: further arguments of `fit`.
    """

    def run_stage(name: str, stage: Stage, dataset: PyTree, context: Context, key: Key) -> StageEnd:
        rule, reason = ending_rule(stage.hooks)
        result = fitting.fit(
            stage.learner,
            dataset,
            key=key,
            num_updates=stage.num_updates,
            seeds=seeds,
            context=context,
            hooks=[rule, *(hooks(name) if hooks else ())],
            **options,
        )
        stopped = None if reason() else result.stopped
        return StageEnd(state=result.state, failures=result.failures, stopped=stopped)

    return run_stage


def ending_rule(hooks: Sequence[Hook]) -> tuple[Hook, Callable[[], str | None]]:
    """A stage's own hooks as one, and the reason that it gave: a stage that it ends is finished."""
    reasons: list[str] = []

    def rule(progress: fitting.Progress) -> str | None:
        reasons.extend(filter(None, [hook(progress) for hook in hooks]))
        return reasons[0] if reasons else None

    return rule, lambda: reasons[0] if reasons else None
