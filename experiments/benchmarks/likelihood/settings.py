"""What the likelihood study compares: models, settings, presets, and the figures that it is put beside. Nothing runs.

Every run is given a training time, not a number of updates, so that a preset takes about as long on any machine.
"""

import bisect
import functools
import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax

from offline_mbrl.models import autoregressive, feedforward
from offline_mbrl.models.density import Density
from offline_mbrl.types import UsageError


class Family(NamedTuple):
    """One way of making a density; `hidden` and `depth` are width and number of hidden layers."""

    label: str
    color: str  # in pictures


FAMILIES = {
    "feedforward": Family("feedforward", "C0"),
    "masked": Family("masked autoregressive", "C3"),
    "shared": Family("shared autoregressive", "C2"),
}
AUTOREGRESSIVE = ("masked", "shared")


class Task(NamedTuple):
    """Sizes, and what the source reports: held-out NLL, (feedforward, autoregressive) of the best and the best five."""

    state_size: int
    action_size: int
    top_1: tuple[float, float]
    top_5: tuple[float, float]


# "Autoregressive models for offline policy evaluation + optimization" (Zhang et al., slides of arXiv:2104.13877)
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
}  # fmt: skip


class Setting(NamedTuple):
    """One run but for its seed."""

    task: str
    family: str
    hidden: int
    depth: int = 3
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    seconds: float = 0.0  # of updates, of one core


class Architecture(NamedTuple):
    """What decides how many updates a second there are."""

    task: str
    family: str
    hidden: int
    depth: int


class Preset(NamedTuple):
    """How much is run."""

    tasks: tuple[str, ...]
    seeds: int
    seconds: float  # of updates of one run, studies `time` and `parameters`
    short_tasks: dict[str, float]  # share of all seconds, where less is enough
    grid_seconds: float  # likewise, study `grid`
    widths: dict[str, int]  # of the models that are compared at equal time
    curve: tuple[int, ...]  # feedforward's other widths in the curve over parameters
    curve_families: tuple[str, ...]  # the others get as many parameters
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


WIDTHS = {"feedforward": 256, "masked": 512, "shared": 256}
PRESETS = {
    "quick": Preset(
        ("cheetah_run", "walker_walk", "cartpole_swingup"), 3, 80.0, {"cartpole_swingup": 0.5}, 20.0, WIDTHS,
        (128, 512), ("feedforward", "masked"), 1,
        ("feedforward", "masked"), (256, 512), (2, 3), (3e-4, 1e-3), (1e-4,), 10_000),
    "full": Preset(
        tuple(TASKS), 5, 900.0, {}, 300.0, WIDTHS, (64, 128, 512, 1024),
        tuple(FAMILIES), 5, tuple(FAMILIES), (128, 256, 512), (2, 3, 4), (3e-4, 1e-3), (0.0, 1e-4), 50_000),
}  # fmt: skip
TITLES = {
    "time": "Equal training time",
    "parameters": "Negative log-likelihood and the number of parameters, equal training time",
    "grid": "Best of a sweep: top-1 and top-5",
}


# --- densities ---


def density(one: Setting | Architecture, state_size: int, action_size: int) -> Density:
    """The density of a setting; a masked network has one block fewer than it has hidden layers.

    Raises:
      UsageError: the family is unknown.
    """
    layers, sizes = (one.hidden,) * one.depth, (state_size, action_size)
    if one.family == "feedforward":
        return feedforward.make(feedforward.Config(hidden_layers=layers), *sizes)
    if one.family == "masked":
        config = autoregressive.MaskedConfig(hidden_size=one.hidden, num_blocks=one.depth - 1)
        return autoregressive.masked(config, *sizes)
    if one.family == "shared":
        return autoregressive.shared(autoregressive.SharedConfig(hidden_layers=layers), *sizes)
    raise UsageError(f"unknown family {one.family!r}: choose from {', '.join(FAMILIES)}")


@functools.cache
def num_parameters(one: Architecture) -> int:
    """Parameters that are stored, those that a mask holds at zero included."""
    made = density(one, *TASKS[one.task][:2])
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(made.init, jax.random.key(0))))


def equal_width(preset: Preset, task: str, family: str, like: int) -> int:
    """The width with which a family has about as many parameters as feedforward of width `like`.

    The family's own width where that is within a tenth, so that its runs serve twice; else a multiple of 8.
    """
    count = lambda family, width: num_parameters(Architecture(task, family, width, 3))  # noqa: E731
    wanted = count("feedforward", like)
    if abs(count(family, preset.widths[family]) / wanted - 1) < 0.1:
        return preset.widths[family]
    least = TASKS[task].state_size + 1  # a masked network needs a unit for each entry
    widths = range(-(-least // 8) * 8, 16 * max(like, least), 8)
    above = bisect.bisect_left(widths, wanted, key=lambda width: count(family, width))
    return min(widths[max(above - 1, 0) : above + 1], key=lambda width: abs(count(family, width) - wanted))


# --- settings of the studies ---


def seconds(preset: Preset, task: str, *, grid: bool = False) -> float:
    """Training time of a run."""
    return (preset.grid_seconds if grid else preset.seconds) * preset.short_tasks.get(task, 1.0)


def equal_time(preset: Preset, task: str) -> dict[str, Setting]:
    """The models of study `time` by family."""
    time = seconds(preset, task)
    return {family: Setting(task, family, width, seconds=time) for family, width in preset.widths.items()}


def curves(preset: Preset, task: str) -> dict[str, dict[int, Setting]]:
    """Family -> feedforward's width -> the setting with about as many parameters as feedforward of that width."""
    time = seconds(preset, task)
    likes = sorted({preset.widths["feedforward"], *preset.curve})
    width = lambda family, like: like if family == "feedforward" else equal_width(preset, task, family, like)  # noqa: E731
    return {
        family: {like: Setting(task, family, width(family, like), seconds=time) for like in likes}
        for family in preset.curve_families
    }


def sweep(preset: Preset, task: str, family: str) -> list[Setting]:
    """All configurations of study `grid`."""
    given = itertools.product(preset.hidden, preset.depth, preset.learning_rate, preset.weight_decay)
    return [Setting(task, family, *one, seconds(preset, task, grid=True)) for one in given]


def pieces(preset: Preset, studies: Iterable[str]) -> Iterator[tuple[str, Setting, int]]:
    """(study, setting, seed) of all runs, each once, what decides most first."""
    done: set[tuple[Setting, int]] = set()
    for study in (study for study in TITLES if study in set(studies)):
        for setting, seed in wanted(preset, study):
            if (setting, seed) not in done:
                done.add((setting, seed))
                yield study, setting, seed


def wanted(preset: Preset, study: str) -> Iterator[tuple[Setting, int]]:
    """(setting, seed) of all runs that a study reads."""
    for task in preset.tasks:
        if study == "time":
            yield from itertools.product(equal_time(preset, task).values(), range(preset.seeds))
        elif study == "grid":
            yield from ((one, 0) for family in preset.grid_families for one in sweep(preset, task, family))
        else:
            for settings in curves(preset, task).values():
                for like, one in settings.items():
                    middle = like == preset.widths["feedforward"]
                    yield from ((one, seed) for seed in range(preset.seeds if middle else preset.curve_seeds))
