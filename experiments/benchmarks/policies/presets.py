"""What the benchmark of policy learners runs: learners, datasets, and sizes."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.benchmarks.policies.arms import MODEL_FREE, WITH_MODELS, Arm
from offline_mbrl import registry, settings
from offline_mbrl.types import Algorithm, BoundedActions, EnvironmentSpec

# A problem by which settings are told that continuous actions read.
CONTINUOUS = EnvironmentSpec(
    observation=jax.ShapeDtypeStruct((1,), np.float32),
    action=BoundedActions(minimum=(-1.0,), maximum=(1.0,)),
)


class Data(NamedTuple):
    """A dataset, and what the presets and the published figures call it."""

    name: str
    names: tuple[str, ...]  # of presets, the closest first
    published: str = ""  # the official dataset it corresponds to
    value_range: tuple[float, float] = (0.0, 100.0)  # of categorical critics
    gamma: float | None = None  # where the settings of the family differ
    target_entropy: float | None = None
    updates: int | None = None  # in place of the preset's


class Preset(NamedTuple):
    """How much is run."""

    datasets: tuple[Data, ...]
    arms: tuple[str, ...]
    seeds: int
    updates: int | None  # None: each learner's own
    batch_size: int | None
    episodes: int  # of each evaluation and seed
    evaluations: int  # along a run
    changes: Mapping[str, Any] = {}  # dotted setting -> value, of learners that have the setting


def _local(
    task: str,
    kind: str,
    steps: int,
    value_range: tuple[float, float],
    updates: int | None = None,
    target_entropy: float | None = None,
) -> Data:
    underscored = kind.replace("-", "_")
    return Data(
        name=f"local/mujoco/{task}-{kind}-steps{steps}",
        names=(f"{task}_{underscored}", task, underscored, "gym"),
        published="" if task == "pendulum" else f"{task}-{kind}",
        value_range=value_range,
        updates=updates,
        target_entropy=target_entropy,
    )


def _official(task: str, kind: str) -> Data:
    underscored = kind.replace("-", "_")
    return Data(
        name=f"d4rl_mujoco_{task}/v2-{kind}",
        names=(f"{task}_{underscored}", task, underscored, "gym"),
        published=f"{task}-{kind}",
        value_range=(-100.0, 1_200.0) if task == "halfcheetah" else (0.0, 500.0),
    )


# Networks, rates and ensembles that learn in minutes on a CPU.
SMALL = {
    "actor_layers": (64, 64),
    "critic_layers": (64, 64),
    "vae_layers": (64, 64),
    "continuous.layers": (64, 64),
    "continuous.learning_rate": 1e-3,
    "actor_learning_rate": 1e-3,
    "critic_learning_rate": 1e-3,
    "temperature_learning_rate": 1e-3,
    "behavior_learning_rate": 1e-3,
    "behavior_updates": 5_000,
    "constraint_updates": 2_000,
    "envelope.num_updates": 5_000,
    "envelope.layers": (64, 64),
    "num_critics": 10,  # at most
    "gap.num_actions": 4,  # of CQL
}
# The same for learners with models: small ensembles, fewer and shorter rollouts.
SMALL_WITH_MODELS = {
    **SMALL,
    "dynamics.hidden_layers": (100, 100, 100, 100),
    "dynamics.fit.num_updates": 10_000,  # at most; patience may end a fit before
    "imagination.num_starts": 5_000,
    "imagination.horizon": 5,
    "adversary_updates": 200,
    "num_critics": 5,
}
CUBE = tuple(
    Data(
        name=f"local/ogbench/cube-single-play-singletask-task{number}",
        names=("ogbench", "cube"),
        published=f"cube-single-play-singletask-task{number}",
    )
    for number in range(1, 6)
)
PRESETS = {
    "quick": Preset(
        datasets=(
            _local("pendulum", "medium-replay", 20_000, value_range=(-1_000.0, 0.0)),
            _local("hopper", "medium-replay", 100_000, value_range=(0.0, 400.0), updates=45_000),
        ),
        arms=tuple(name for name in MODEL_FREE if name != "sac_n"),
        seeds=3,
        updates=20_000,
        batch_size=128,
        episodes=5,
        evaluations=20,
        changes=SMALL,
    ),
    "models": Preset(
        datasets=(
            _local(
                "pendulum",
                "medium-replay",
                20_000,
                value_range=(-1_000.0, 0.0),
                target_entropy=-1.0,
            ),
        ),
        arms=("bc", "sac", "cql", *WITH_MODELS),
        seeds=3,
        updates=20_000,
        batch_size=128,
        episodes=5,
        evaluations=20,
        changes=SMALL_WITH_MODELS,
    ),
    "models-gpu": Preset(
        datasets=tuple(
            _local(task, "medium-replay", 200_000, value_range=(0.0, 500.0))
            for task in ("hopper", "walker2d")
        ),
        arms=("bc", "sac", "mopo", "morel", "combo", "mobile"),
        seeds=5,
        updates=1_000_000,
        batch_size=256,
        episodes=10,
        evaluations=20,
    ),
    "d4rl": Preset(
        datasets=tuple(
            _official(task, kind)
            for task in ("halfcheetah", "hopper", "walker2d")
            for kind in ("medium", "medium-replay", "medium-expert")
        ),
        arms=tuple(MODEL_FREE),
        seeds=5,
        updates=None,
        batch_size=None,
        episodes=10,
        evaluations=100,
    ),
    "ogbench": Preset(
        datasets=CUBE,
        arms=("bc", "iql", "rebrac", "fql"),
        seeds=4,
        updates=1_000_000,
        batch_size=256,
        episodes=50,
        evaluations=10,
    ),
    "ogbench-cpu": Preset(
        datasets=tuple(
            data._replace(name=f"{data.name}-steps100000", published="") for data in CUBE[:1]
        ),
        arms=("bc", "iql", "rebrac", "fql"),
        seeds=2,
        updates=50_000,
        batch_size=256,
        episodes=10,
        evaluations=10,
        changes={"actor_layers": (128, 128), "critic_layers": (128, 128)},
    ),
}


# --- settings ---


def configure(arm: Arm, data: Data, preset: Preset) -> Any:
    """The settings of a learner on a dataset: published ones, the benchmark's sizes, the arm's."""
    entry = registry.lookup(arm.algorithm)
    config = entry.config(**entry.presets.get(preset_name(arm, entry, data), {}))
    sizes = {
        "num_updates": data.updates if preset.updates and data.updates else preset.updates,
        "batch_size": preset.batch_size,
        "gamma": data.gamma,
        "target_entropy": data.target_entropy,
    }
    changes = {name: value for name, value in sizes.items() if value is not None}
    changes["value_range"] = data.value_range
    for name, value in {**changes, **preset.changes, **arm.changes}.items():
        in_use = settings.in_use(config, CONTINUOUS)
        for path in (name, f"policy.{name}"):
            if path in in_use:
                config = _changed(config, path.split("."), value)
                break
    return config


def batch_size(config: Any) -> int:
    """Of a learner's updates."""
    return policy_config(config).batch_size


def policy_config(config: Any) -> Any:
    """The settings of the policy's learner: a part of them where there is a model, else all."""
    part = getattr(config, "policy", None)
    return part if dataclasses.is_dataclass(part) else config


def preset_name(arm: Arm, entry: Algorithm, data: Data) -> str:
    """The arm's preset, or the first of the dataset's names that the algorithm has; else empty.

    Args:
      arm: the learner with settings.
      entry: its algorithm.
      data: the dataset.
    """
    names = [*data.names]
    if arm.preset:
        names = [*(f"{arm.preset}_{name}" for name in data.names), arm.preset]
    return next((name for name in names if name in entry.presets), "")


def _changed(config: Any, path: list[str], value: Any) -> Any:
    """The settings with another value."""
    name = path[0]
    old = getattr(config, name)
    if path[1:]:
        new = _changed(old, path[1:], value)
    else:
        new = min(old, value) if name == "num_critics" else value
    return dataclasses.replace(config, **{name: new})
