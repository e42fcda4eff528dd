"""All of a model's diagnosis at once, for a command or a notebook."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np

from offline_mbrl.data import memory
from offline_mbrl.rollouts.pessimism import PENALTIES, Penalty
from offline_mbrl.selection.diagnose import coverage, horizons, maps, ranks, single_steps
from offline_mbrl.settings import at_least
from offline_mbrl.types import DynamicsModel, Key, ModelParams, Transition, UsageError

ERROR = "error"  # the name of the true one-step error on a map


@dataclass(frozen=True)
class Settings:
    """How much is rolled out and judged."""

    horizon: Annotated[int, at_least(1)] = 1_000  # steps, or the longest episode if that is less
    num_windows: Annotated[int, at_least(1)] = 128  # starts of replayed rollouts
    num_rollouts: Annotated[int, at_least(1)] = 4  # from each start, whose mean predicts
    num_transitions: Annotated[int, at_least(1)] = 2_000  # for single steps, at most
    dimensions: tuple[int, ...] = ()  # two entries as the map's axes; (): principal components
    seed: int = 0  # of all choices and samples


class SourceDiagnosis(NamedTuple):
    """By the episodes of a source."""

    errors: horizons.HorizonErrors
    calibration: coverage.Calibration
    correlations: dict[str, ranks.Correlation]  # of each penalty with the true error
    num_transitions: int  # behind the correlations
    num_episodes: int  # that these are of, which their intervals resample
    map: maps.TrustMap | None  # of the error and all penalties; None for a single entry


class Diagnosis(NamedTuple):
    """What is known of when and where a model can be trusted."""

    sources: dict[str, SourceDiagnosis]
    gamma: float
    notes: tuple[str, ...] = ()  # what could not be judged, and why
    # Rows of a run, each with `step`, `seed` and `value`: the steps that its targets looked ahead
    expected_horizon: tuple[Mapping[str, float], ...] = ()


def diagnose(
    model: DynamicsModel,
    params: ModelParams,
    sources: Mapping[str, memory.Dataset],
    *,
    gamma: float,
    settings: Settings = Settings(),
    predictive: coverage.Predictive | None = None,
    penalties: Mapping[str, Penalty] = PENALTIES,
) -> Diagnosis:
    """Judges a model by episodes that it was not fitted to.

    Args:
      model: an explicit model, as it is rolled out.
      params: its parameters.
      sources: by name, for example "held out" and "policy": datasets on the host, whose `starts`
        are the transitions to judge by. The axes of all maps are those of the first.
      gamma: discount factor of returns.
      settings: how much is rolled out.
      predictive: `explicit.conditionals` of the model's density and units; None: the moments that
        the model's steps give, right where entries are independent.
      penalties: by name.

    Raises:
      UsageError: there is no source, or `dimensions` are not two entries of the observation.
    """
    if not sources:
        raise UsageError("a diagnosis needs at least one set of episodes to judge the model by")
    setting = _Setting(
        model=model,
        params=params,
        gamma=gamma,
        settings=settings,
        predictive=predictive or coverage.of_steps(model),
        penalties=penalties,
    )
    samples = {name: _sample(dataset, settings) for name, dataset in sources.items()}
    first = next(iter(samples.values())).transitions
    plane = _plane(np.asarray(first.observation), settings.dimensions)
    key = jax.random.key(settings.seed)
    judged = {
        name: _judge(setting, dataset, samples[name], plane, jax.random.fold_in(key, index))
        for index, (name, dataset) in enumerate(sources.items())
    }
    return Diagnosis(sources=judged, gamma=gamma)


class _Sample(NamedTuple):
    """M transitions of a dataset, on the host."""

    transitions: Transition  # [M, ...]
    episode: np.ndarray  # [M] the last row of each one's episode


class _Setting(NamedTuple):
    """What all sources share."""

    model: DynamicsModel
    params: ModelParams
    gamma: float
    settings: Settings
    predictive: coverage.Predictive
    penalties: Mapping[str, Penalty]


def _judge(
    setting: _Setting,
    dataset: memory.Dataset,
    sample: _Sample,
    plane: maps.Plane | None,
    key: Key,
) -> SourceDiagnosis:
    """The diagnosis by one set of episodes, and a sample of their transitions."""
    model, params, settings = setting.model, setting.params, setting.settings
    key_replay, key_steps, key_ranks = jax.random.split(key, 3)
    errors = horizons.horizon_errors(
        model,
        params,
        dataset,
        key_replay,
        gamma=setting.gamma,
        horizon=settings.horizon,
        num_windows=settings.num_windows,
        num_rollouts=settings.num_rollouts,
        seed=settings.seed,
    )
    steps = single_steps.one_step(model, params, sample.transitions, setting.penalties, key_steps)
    quantities = {ERROR: steps.error} | steps.penalties
    return SourceDiagnosis(
        errors=errors,
        calibration=coverage.calibration(setting.predictive, params, sample.transitions),
        correlations=single_steps.rank_correlations(steps, sample.episode, key_ranks),
        num_transitions=len(steps.error),
        num_episodes=len(np.unique(sample.episode[steps.rows])),
        map=plane and maps.trust_map(plane, steps.observation, quantities),
    )


def _sample(dataset: memory.Dataset, settings: Settings) -> _Sample:
    """At most `num_transitions` of a dataset's transitions, on the host."""
    rng = np.random.default_rng([settings.seed, 19])
    rows = np.sort(rng.permutation(np.asarray(dataset.starts))[: settings.num_transitions])
    host = jax.tree.map(np.asarray, dataset._replace(extras=()))
    return _Sample(
        transitions=memory.Transitions(1).gather(host, rows), episode=host.episode_end[rows]
    )


def _plane(observations: np.ndarray, dimensions: Sequence[int]) -> maps.Plane | None:
    """The axes of the maps; None where observations have a single entry.

    Raises:
      UsageError: `dimensions` are not two entries of the observation.
    """
    if not dimensions:
        return maps.principal(observations) if observations.shape[1] > 1 else None
    if len(dimensions) != 2:
        raise UsageError(f"dimensions names {len(dimensions)} entries: a map has two axes")
    return maps.chosen(observations.shape[1], *dimensions)


# --- as JSON ---


def to_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """Everything as JSON values, horizons at 1, 2, 3, 5, 10, ... steps; null where not finite."""
    return {
        "gamma": diagnosis.gamma,
        "notes": list(diagnosis.notes),
        "sources": {name: _source_json(source) for name, source in diagnosis.sources.items()},
        "expected_horizon": [dict(row) for row in diagnosis.expected_horizon],
    }


def _source_json(source: SourceDiagnosis) -> dict[str, Any]:
    steps = horizons.log_spaced(len(source.errors.error))
    rows = np.asarray(steps) - 1
    errors = {name: column[rows] for name, column in source.errors._asdict().items()}
    return {
        "trusted_steps": horizons.trusted_steps(source.errors),
        "horizons": {"steps": list(steps)} | _plain(errors),
        "calibration": _plain(source.calibration._asdict() | {"gap": source.calibration.gap}),
        "rank_correlations": {
            name: _plain(rank._asdict()) for name, rank in source.correlations.items()
        },
        "confidence": ranks.CONFIDENCE,
        "num_transitions": source.num_transitions,
        "num_episodes": source.num_episodes,
        "map": source.map and _plain(source.map._asdict()),
    }


def _plain(value: Any) -> Any:
    """Nested lists and numbers; None in the place of what is not finite."""
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
