"""Explicit models that runs have fitted, read back from their checkpoints, or fitted anew."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from offline_mbrl import config_json, registry
from offline_mbrl.data.catalog.load import Loaded
from offline_mbrl.data.memory import Dataset
from offline_mbrl.environments import termination
from offline_mbrl.models import explicit, kinds
from offline_mbrl.runs import folder
from offline_mbrl.training import checkpoint
from offline_mbrl.training import fit as fitting
from offline_mbrl.training.stages import plain, train_stages
from offline_mbrl.types import (
    Context,
    DynamicsModel,
    EnvironmentSpec,
    MemberPredictions,
    ModelParams,
    Params,
    Termination,
    Transition,
    UsageError,
)

STAGE = "model"  # of algorithms that fit an explicit model
EXPECTED_HORIZON = "expected_horizon"  # last part of the name of a figure


class FittedModel(NamedTuple):
    """A model and what is needed to judge it."""

    model: DynamicsModel
    params: ModelParams
    # (params, transition) -> moments of every conditional at what really happened
    predictive: Callable[[ModelParams, Transition], MemberPredictions]


def restore(run_folder: Path, data: Loaded, *, seed: int | None = None) -> FittedModel:
    """The model of a run's last checkpoint of stage `model`.

    Args:
      run_folder: of any algorithm with such a stage; the run need not be finished.
      data: that the run was trained on.
      seed: of the run; None: its first.

    Raises:
      UsageError: the run fitted no explicit model, has no such seed, or its data have changed.
    """
    run = folder.read_json(run_folder / folder.RUN)
    seeds = list(run["seeds"])
    if seed is not None and seed not in seeds:
        raise UsageError(f"{run_folder} has no seed {seed}: it has {', '.join(map(str, seeds))}")
    if run["fingerprint"] != data.fingerprint:
        raise UsageError(f"{data.name} has changed since {run_folder} was trained; train again")
    algorithm = registry.lookup(run["algorithm"])
    config = config_json.from_json(algorithm.config, run["config"])
    stage = algorithm.pretrain(config, data.spec).get(STAGE)
    if stage is None:
        raise UsageError(
            f"{run['algorithm']} fits no explicit model: give a run of an algorithm that does, or "
            f"fit one by name: {', '.join(kinds.KINDS)}"
        )
    dataset = stage.prepare(data.dataset)
    statistics = stage.statistics(dataset) if stage.statistics else data.statistics
    context = Context(statistics=statistics)
    shapes = fitting.template(
        stage.learner, dataset, key=jax.random.key(0), seeds=seeds, context=context
    )
    directory = run_folder / "checkpoints" / STAGE
    state = checkpoint.restore(directory, shapes, expect=run["config"]).state
    stacked = fitting.policy_params(stage.learner, state, context)
    row = 0 if seed is None else seeds.index(seed)
    params = jax.tree.map(lambda leaf: leaf[row], stacked)
    return assemble(model_config(config), data.spec, params, terminate=_rule(config))


def fit(
    config: kinds.ModelConfig,
    dataset: Dataset,
    spec: EnvironmentSpec,
    *,
    show: Callable[[int, str], None] = lambda step, figures: None,
) -> FittedModel:
    """A model fitted to data; where these have true terminals, their ends are learned too.

    Args:
      config: of the model and its fit.
      dataset: on the host.
      spec: of the data.
      show: called as updates are done.

    Raises:
      UsageError: the fit failed.
    """
    terminates = bool(np.any(np.asarray(dataset.discount)[dataset.starts] == 0))
    continuation = explicit.learned_continuation(spec) if terminates else None
    stage = kinds.stage(config, spec, continuation=continuation)

    def report(progress: Any) -> None:
        show(progress.step, "")

    run_stage = plain(seeds=None, hooks=lambda name: [report])
    trained = train_stages({STAGE: stage}, dataset, key=jax.random.key(0), run_stage=run_stage)
    if trained.end.stopped:
        raise UsageError(f"the model could not be fitted: {trained.end.stopped}")
    return assemble(config, spec, trained.upstream[STAGE])


def assemble(
    config: kinds.ModelConfig,
    spec: EnvironmentSpec,
    params: ModelParams,
    *,
    terminate: Termination | None = None,
) -> FittedModel:
    """The model that these parameters are of.

    Args:
      config: of the model.
      spec: of the data.
      params: of a single seed; where they hold a head that ends episodes, the model uses it.
      terminate: the rule that ends episodes.
    """
    head = params.network.get("continuation")
    continuation = None
    if head is not None:
        continuation = explicit.learned_continuation(spec, hidden_layers=_widths(head))
    density = kinds.density(config, spec)
    units = kinds.kind_of(config).units(config)
    return FittedModel(
        model=kinds.make(config, spec, terminate=terminate, continuation=continuation),
        params=params,
        predictive=explicit.conditionals(density, units=units),
    )


def model_config(config: Any) -> kinds.ModelConfig:
    """The model's settings among those of an algorithm.

    Raises:
      UsageError: there are none.
    """
    classes = tuple(kind.config for kind in kinds.KINDS.values())
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, classes):
            return value
    raise UsageError(f"{type(config).__name__} has no settings of an explicit model")


def expected_horizon(run_folder: Path) -> tuple[dict[str, float], ...]:
    """Rows `step`, `seed`, `value` of how far a run's targets looked ahead; () for other runs."""
    rows = []
    for row in folder.read_rows(run_folder):
        for name, value in row.items():
            if name.rpartition("/")[2] == EXPECTED_HORIZON and value is not None:
                rows.append({"step": row["step"], "seed": row["seed"], "value": value})
    return tuple(rows)


def _rule(config: Any) -> Termination | None:
    """The rule that an algorithm names, if it does."""
    name = getattr(config, "termination", None)
    return None if name in (None, "learned", "never") else termination.lookup(name)


def _widths(head: Params) -> tuple[int, ...]:
    """Hidden units of a stacked head: of all its layers but the last."""
    layers = [head[f"layer_{index}"]["kernel"].shape[-1] for index in range(len(head))]
    return tuple(layers[:-1])
