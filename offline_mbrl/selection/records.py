"""What the estimation of policies starts from: data, policies, and how much is fitted."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from offline_mbrl.data import memory, normalize
from offline_mbrl.ope import support
from offline_mbrl.types import (
    Actor,
    Array,
    EnvironmentSpec,
    Estimate,
    Key,
    Params,
    Policy,
    PyTree,
    Trajectory,
)

Estimates = dict[str, Estimate]  # by estimator, every field [P, ...]


class Data(NamedTuple):
    """What policies are judged by."""

    dataset: memory.Dataset  # with held-out transitions, for models
    statistics: normalize.Statistics  # of the training transitions
    spec: EnvironmentSpec
    gamma: float
    horizon: int
    limits: support.Limits = support.Limits()  # of signs, beyond which support is low


class Policies(NamedTuple):
    """P policies of one kind."""

    policy: Policy | Actor
    params: Params  # [P, ...]

    @property
    def count(self) -> int:
        """P."""
        return len(jax.tree.leaves(self.params)[0])


@dataclass(frozen=True)
class Settings:
    """How much each estimator is fitted: enough for a first answer on a CPU.

    The published settings are the estimators' own.
    """

    # Of all members; judged on held-out transitions every 500, not after the last.
    model_updates: int = 8_001
    model_members: int = 4
    model_layers: tuple[int, ...] = (256, 256, 256)  # of a feedforward or coupled model
    masked_units: int = 256  # of an autoregressive one
    # How much transitions that are hard to predict count; 0: as in the likelihood.
    model_beta: float = 0.5
    fqe_updates: int = 100_000
    # Of categorical fitted values, each about twice as long.
    distributional_updates: int = 50_000
    fqe_layers: tuple[int, ...] = (64, 64)  # of either
    ratio_updates: int = 50_000  # of DICE and VPM
    ratio_layers: tuple[int, ...] = (64, 64)
    ratio_batch: int = 256
    clone_updates: int = 10_000
    clone_layers: tuple[int, ...] = (256, 256)
    side_by_side: int = 4  # policies rolled out together in a model
    # Each fit of values or ratios sees its own resample of the episodes.
    bootstrap: bool = False


class Effort(NamedTuple):
    """How much is spent on a judgement."""

    settings: Settings
    seeds: int  # fits of each estimator


EFFORTS: Mapping[str, Effort] = {
    # A first answer: four policies of a 20,000-step log in about two minutes of one core.
    "quick": Effort(
        settings=Settings(
            model_updates=4_001,
            model_layers=(128, 128, 128),
            fqe_updates=15_000,
            clone_updates=3_000,
            clone_layers=(128, 128),
            bootstrap=True,
        ),
        seeds=3,
    ),
    "thorough": Effort(settings=Settings(bootstrap=True), seeds=4),
}


# What a group learns from the data alone: (data, settings, key) -> anything.
LearnFn = Callable[[Data, Settings, Key], Any]
# (what `LearnFn` returned, data, policies, settings, key) -> estimates of all policies
EstimateFn = Callable[[Any, Data, Policies, Settings, Key], Estimates]


def behavior_log_prob(trajectories: Trajectory) -> Array | None:
    """The logged density `[N, T]` of the behavior's actions, or None where none was logged."""
    extras: Any = trajectories.extras
    return jnp.asarray(extras["behavior_log_prob"]) if "behavior_log_prob" in extras else None


def stack(trees: list[PyTree]) -> PyTree:
    """P trees as one, every leaf `[P, ...]`."""
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *trees)


def unstack(stacked: PyTree) -> list[PyTree]:
    """A tree `[P, ...]` as P trees."""
    size = len(jax.tree.leaves(stacked)[0])
    return [jax.tree.map(lambda leaf, row=row: leaf[row], stacked) for row in range(size)]
