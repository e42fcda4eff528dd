"""What the likelihood study compares: models, settings, presets, and published figures.

Nothing is run here. Every run has a training time, not a number of updates, so that a preset takes
about as long on any machine.
"""

import bisect
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from offline_mbrl.models import fitting, kinds
from offline_mbrl.models.autoregressive import MaskedConfig, SharedConfig
from offline_mbrl.models.coupled import CoupledConfig
from offline_mbrl.models.feedforward import FeedforwardConfig
from offline_mbrl.types import BoundedActions, EnvironmentSpec, UsageError


class Family(NamedTuple):
    """One way of making a density."""

    label: str
    color: str  # in figures


FAMILIES = {
    "feedforward": Family(label="feedforward", color="C0"),
    "masked": Family(label="masked autoregressive", color="C3"),
    "shared": Family(label="shared autoregressive", color="C2"),
    "coupled": Family(label="coupled", color="C1"),
}
AUTOREGRESSIVE = ("masked", "shared")


class Task(NamedTuple):
    """Sizes, and the source's held-out NLL, (feedforward, autoregressive), of the best models."""

    state_size: int
    action_size: int
    top_1: tuple[float, float]
    top_5: tuple[float, float]


# "Autoregressive models for offline policy evaluation + optimization" (Zhang et al., slides of
# arXiv:2104.13877).
TASKS = {
    "cheetah_run": Task(17, 6, (-4.90, -6.36), (-4.85, -6.32)),
    "walker_walk": Task(24, 6, (-3.84, -4.17), (-3.81, -4.15)),
    "cartpole_swingup": Task(5, 1, (-6.81, -7.21), (-6.75, -7.14)),
    "finger_turn_hard": Task(12, 2, (-5.58, -6.14), (-5.50, -5.94)),
    "fish_swim": Task(24, 5, (-4.91, -5.21), (-4.90, -5.18)),
    "humanoid_run": Task(67, 21, (-3.42, -4.18), (-3.40, -4.15)),
    "walker_stand": Task(24, 6, (-4.52, -4.73), (-4.49, -4.71)),
    "manipulator_insert_ball": Task(44, 5, (-4.74, -5.62), (-4.64, -5.58)),
    "manipulator_insert_peg": Task(44, 5, (-4.34, -5.73), (-4.31, -5.29)),
}


class Architecture(NamedTuple):
    """What decides how many updates a second there are."""

    task: str
    family: str
    hidden: int  # width of the hidden layers
    depth: int  # how many there are


class Setting(NamedTuple):
    """One run but for its seed."""

    task: str
    family: str
    hidden: int
    depth: int = 3
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    seconds: float = 0.0  # of updates, of one core


class Preset(NamedTuple):
    """How much is run."""

    tasks: tuple[str, ...]
    seeds: int
    seconds: float  # of updates of one run, studies `time` and `parameters`
    short_tasks: Mapping[str, float]  # share of all seconds, where less is enough
    grid_seconds: float  # of updates of one run, study `grid`
    widths: Mapping[str, int]  # of the models that are compared at equal time
    curve: tuple[int, ...]  # feedforward's other widths in the curve over parameters
    curve_families: tuple[str, ...]  # the others have as many parameters
    curve_seeds: int  # at those other widths
    grid_families: tuple[str, ...]
    hidden: tuple[int, ...]
    depth: tuple[int, ...]
    learning_rate: tuple[float, ...]
    weight_decay: tuple[float, ...]
    most_judged: int  # held-out transitions that are reported on, at most
    batch_size: int = 256
    num_scores: int = 20  # held-out scores while training
    rate_seconds: float = 0.5  # of one measurement of updates per second, about
    rate_rounds: int = 3


WIDTHS = {"feedforward": 256, "masked": 512, "shared": 256, "coupled": 256}
QUICK_FAMILIES = ("feedforward", "masked", "shared")
PRESETS = {
    "quick": Preset(
        tasks=("cheetah_run", "walker_walk", "cartpole_swingup"),
        seeds=3,
        seconds=80.0,
        short_tasks={"cartpole_swingup": 0.5},
        grid_seconds=20.0,
        widths={family: WIDTHS[family] for family in QUICK_FAMILIES},
        curve=(128, 512),
        curve_families=("feedforward", "masked"),
        curve_seeds=1,
        grid_families=("feedforward", "masked"),
        hidden=(256, 512),
        depth=(2, 3),
        learning_rate=(3e-4, 1e-3),
        weight_decay=(1e-4,),
        most_judged=10_000,
    ),
    "full": Preset(
        tasks=tuple(TASKS),
        seeds=5,
        seconds=900.0,
        short_tasks={},
        grid_seconds=300.0,
        widths=WIDTHS,
        curve=(64, 128, 512, 1024),
        curve_families=tuple(FAMILIES),
        curve_seeds=5,
        grid_families=tuple(FAMILIES),
        hidden=(128, 256, 512),
        depth=(2, 3, 4),
        learning_rate=(3e-4, 1e-3),
        weight_decay=(0.0, 1e-4),
        most_judged=50_000,
    ),
}


def only(preset: Preset, families: Iterable[str]) -> Preset:
    """The preset with feedforward and these families alone, in every study."""
    compared = tuple(dict.fromkeys(("feedforward", *families)))
    return preset._replace(
        widths={family: WIDTHS[family] for family in compared},
        curve_families=compared,
        grid_families=compared,
    )


TITLES = {
    "time": "Equal training time",
    "parameters": "Negative log-likelihood and the number of parameters, equal training time",
    "grid": "Best of a sweep: top-1 and top-5",
}


# --- models ---


def model_config(
    model: Setting | Architecture, fit: fitting.Config = fitting.Config()
) -> kinds.ModelConfig:
    """The config of a setting's model, of one member.

    A masked network has one block fewer than it has hidden layers.

    Args:
      model: its family, width and depth.
      fit: of the model.

    Raises:
      UsageError: the family is unknown.
    """
    layers = (model.hidden,) * model.depth
    if model.family == "feedforward":
        return FeedforwardConfig(hidden_layers=layers, num_members=1, fit=fit)
    if model.family == "masked":
        return MaskedConfig(
            hidden_size=model.hidden, num_blocks=model.depth - 1, num_members=1, fit=fit
        )
    if model.family == "shared":
        return SharedConfig(hidden_layers=layers, num_members=1, fit=fit)
    if model.family == "coupled":
        return CoupledConfig(hidden_layers=layers, num_members=1, fit=fit)
    raise UsageError(f"unknown family {model.family!r}: choose from {', '.join(FAMILIES)}")


def spec_of(task: Task) -> EnvironmentSpec:
    """Shapes of a task."""
    bounds = (1.0,) * task.action_size
    return EnvironmentSpec(
        observation=jax.ShapeDtypeStruct((task.state_size,), jnp.float32),
        action=BoundedActions(minimum=tuple(-bound for bound in bounds), maximum=bounds),
    )


def architecture(setting: Setting) -> Architecture:
    """What decides the speed of a run."""
    return Architecture(
        task=setting.task, family=setting.family, hidden=setting.hidden, depth=setting.depth
    )


@functools.cache
def num_parameters(model: Architecture) -> int:
    """Parameters that are stored, those that a mask holds at zero included."""
    density = kinds.density(model_config(model), spec_of(TASKS[model.task]))
    shapes = jax.eval_shape(density.init, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def equal_width(preset: Preset, task: str, family: str, like: int) -> int:
    """The width with which a family has about as many parameters as feedforward of width `like`.

    The family's own width where that is within a tenth, so that its runs serve twice; else a
    multiple of 8.

    Args:
      preset: for the family's own width.
      task: whose sizes count.
      family: of models.
      like: feedforward's width.
    """

    def count(family: str, width: int) -> int:
        return num_parameters(Architecture(task=task, family=family, hidden=width, depth=3))

    target = count("feedforward", like)
    if abs(count(family, preset.widths[family]) / target - 1) < 0.1:
        return preset.widths[family]
    least = TASKS[task].state_size + 1  # a masked network needs a unit for each entry
    widths = range(-(-least // 8) * 8, 16 * max(like, least), 8)
    above = bisect.bisect_left(widths, target, key=lambda width: count(family, width))
    nearest = widths[max(above - 1, 0) : above + 1]
    return min(nearest, key=lambda width: abs(count(family, width) - target))


# --- settings of the studies ---


def equal_time(preset: Preset, task: str) -> dict[str, Setting]:
    """The models of study `time` by family."""
    seconds = preset.seconds * preset.short_tasks.get(task, 1.0)
    return {
        family: Setting(task, family, width, seconds=seconds)
        for family, width in preset.widths.items()
    }


def curves(preset: Preset, task: str) -> dict[str, dict[int, Setting]]:
    """Family -> feedforward's width -> the setting with about as many parameters as that."""
    seconds = preset.seconds * preset.short_tasks.get(task, 1.0)
    likes = sorted({preset.widths["feedforward"], *preset.curve})

    def width(family: str, like: int) -> int:
        return like if family == "feedforward" else equal_width(preset, task, family, like)

    return {
        family: {
            like: Setting(task, family, width(family, like), seconds=seconds) for like in likes
        }
        for family in preset.curve_families
    }


def sweep(preset: Preset, task: str, family: str) -> list[Setting]:
    """All configurations of study `grid`."""
    seconds = preset.grid_seconds * preset.short_tasks.get(task, 1.0)
    values = itertools.product(
        preset.hidden, preset.depth, preset.learning_rate, preset.weight_decay
    )
    return [Setting(task, family, *configuration, seconds) for configuration in values]


class Piece(NamedTuple):
    """One run."""

    study: str
    setting: Setting
    seed: int


def pieces(preset: Preset, studies: Iterable[str]) -> list[Piece]:
    """All runs of these studies, each once, what decides most first.

    The study that comes with a run is the first of all that reads it, whichever are asked for.
    """
    asked = set(studies)
    owners: dict[tuple[Setting, int], str] = {}
    for study in TITLES:
        for setting, seed in runs_of(preset, study):
            owners.setdefault((setting, seed), study)
    ordered = dict.fromkeys(
        run for study in TITLES if study in asked for run in runs_of(preset, study)
    )
    return [
        Piece(study=owners[setting, seed], setting=setting, seed=seed) for setting, seed in ordered
    ]


def runs_of(preset: Preset, study: str) -> Iterator[tuple[Setting, int]]:
    """(setting, seed) of all runs that a study reads."""
    for task in preset.tasks:
        if study == "time":
            models = equal_time(preset, task).values()
            yield from itertools.product(models, range(preset.seeds))
        elif study == "grid":
            for family in preset.grid_families:
                yield from ((setting, 0) for setting in sweep(preset, task, family))
        else:
            for family in curves(preset, task).values():
                for like, setting in family.items():
                    middle = like == preset.widths["feedforward"]
                    num_seeds = preset.seeds if middle else preset.curve_seeds
                    yield from ((setting, seed) for seed in range(num_seeds))
