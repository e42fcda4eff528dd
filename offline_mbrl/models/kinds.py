"""Explicit models by their configs: the class of a config chooses its model.

An algorithm has a field of the union `ModelConfig`, and calls `make` and `stage` with it; another
kind of model is then one flag. All configs have `num_members` and `fit` beside their sizes.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from offline_mbrl.models import (
    autoregressive,
    coupled,
    explicit,
    feedforward,
    fitting,
    gaussian_ensemble,
    scores,
)
from offline_mbrl.models.autoregressive import MaskedConfig, SharedConfig
from offline_mbrl.models.coupled import CoupledConfig
from offline_mbrl.models.densities import coordinates
from offline_mbrl.models.densities.density import Density
from offline_mbrl.models.feedforward import FeedforwardConfig
from offline_mbrl.models.gaussian_ensemble import GaussianEnsembleConfig
from offline_mbrl.types import (
    DynamicsModel,
    EnvironmentSpec,
    Learner,
    Stage,
    Termination,
    UsageError,
)

ModelConfig = (
    FeedforwardConfig | MaskedConfig | SharedConfig | CoupledConfig | GaussianEnsembleConfig
)


class Kind(NamedTuple):
    """What a class of configs chooses."""

    config: type  # frozen dataclass with `num_members` and `fit`
    density: Callable[[Any, int, int], Density]  # (config, state size, action size)
    units: Callable[[Any], coordinates.Units]  # (config) -> of the density's targets
    score: Callable[[Any], scores.Score]  # (config) -> how members are judged


def _unit_variance(config: Any) -> coordinates.Units:
    del config
    return coordinates.unit_variance


def _median_nll(config: Any) -> scores.Score:
    del config
    return scores.median_nll()


KINDS: Mapping[str, Kind] = {
    "feedforward": Kind(
        config=FeedforwardConfig,
        density=feedforward.make,
        units=_unit_variance,
        score=_median_nll,
    ),
    "autoregressive": Kind(
        config=MaskedConfig,
        density=autoregressive.masked,
        units=_unit_variance,
        score=_median_nll,
    ),
    "autoregressive_shared": Kind(
        config=SharedConfig,
        density=autoregressive.shared,
        units=_unit_variance,
        score=_median_nll,
    ),
    "coupled": Kind(
        config=CoupledConfig,
        density=coupled.make,
        units=_unit_variance,
        score=_median_nll,
    ),
    "gaussian_ensemble": Kind(
        config=GaussianEnsembleConfig,
        density=gaussian_ensemble.density,
        units=gaussian_ensemble.units,
        score=gaussian_ensemble.score,
    ),
}


def kind_of(config: ModelConfig) -> Kind:
    """The kind that a config chooses.

    Raises:
      UsageError: it is a config of no explicit model.
    """
    for kind in KINDS.values():
        if isinstance(config, kind.config):
            return kind
    names = ", ".join(kind.config.__name__ for kind in KINDS.values())
    raise UsageError(
        f"{type(config).__name__} is not the config of an explicit model: give one of {names}"
    )


def density(config: ModelConfig, spec: EnvironmentSpec) -> Density:
    """One member's density.

    Raises:
      UsageError: as the density's own `make`, or the spec is not one of vectors.
    """
    return kind_of(config).density(config, *explicit.sizes(spec))


def make(
    config: ModelConfig,
    spec: EnvironmentSpec,
    *,
    draw: explicit.Draw = explicit.SAMPLE,
    terminate: Termination | None = None,
    continuation: explicit.Continuation | None = None,
) -> DynamicsModel:
    """The ensemble of `config.num_members`; see `explicit.make`.

    Raises:
      UsageError: a setting is out of range, or the spec is not one of vectors.
    """
    return explicit.make(
        density(config, spec),
        spec,
        num_members=config.num_members,
        units=kind_of(config).units(config),
        draw=draw,
        terminate=terminate,
        continuation=continuation,
    )


def learner(config: ModelConfig, model: DynamicsModel) -> Learner:
    """The fit of a model that `make` returned for this config."""
    score = kind_of(config).score(config)
    return fitting.make(model, config.fit, num_members=config.num_members, score=score)


def stage(config: ModelConfig, spec: EnvironmentSpec, **options: Any) -> Stage:
    """The fit as a stage of an algorithm, which hands on `ModelParams`; see `fitting.stage`.

    Args:
      config: of the model and its fit.
      spec: of the data.
      **options: further arguments of `make`.

    Raises:
      UsageError: as `make`.
    """
    return fitting.stage(
        make(config, spec, **options),
        config.fit,
        num_members=config.num_members,
        score=kind_of(config).score(config),
    )
