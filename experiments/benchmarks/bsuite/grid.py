"""What the studies compare: arms, settings, and which settings make up which study.

Nothing is run here.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from offline_mbrl.data.store.write import VALIDATION_EVERY

LOWEST = 1  # percent of the run's episodes; of those that are kept the store holds some out
WHOLE = 100


class Arm(NamedTuple):
    """One way of learning.

    All but the first two rows of `ARMS` are one algorithm with another operator.
    """

    label: str
    algorithm: str
    operator: str = ""  # "" where there is none
    behavior_coef: float = 0.0
    tree: bool = False  # searches a tree: seeds are trained one after the other, which is faster


ARMS = {
    "bc": Arm(label="behavior cloning", algorithm="bc"),
    "latent_crr": Arm(label="CRR on the latent model", algorithm="latent_crr"),
    "rosmo": Arm(
        label="one-step exact + behavior term (ROSMO)",
        algorithm="rosmo",
        operator="one_step",
        behavior_coef=0.2,
    ),
    "one_step": Arm(label="one-step exact", algorithm="rosmo", operator="one_step"),
    "one_step_sampled": Arm(
        label="one-step sampled", algorithm="rosmo", operator="one_step_sampled"
    ),
    "gumbel": Arm(label="tree, Gumbel", algorithm="rosmo", operator="gumbel", tree=True),
    "muzero": Arm(label="tree, visits (MuZero)", algorithm="rosmo", operator="muzero", tree=True),
    "muzero_behavior": Arm(
        label="tree, visits + behavior term",
        algorithm="rosmo",
        operator="muzero",
        behavior_coef=0.2,
        tree=True,
    ),
    "muzero_q": Arm(label="tree, MZU-Q", algorithm="rosmo", operator="muzero_q", tree=True),
    "lookahead": Arm(
        label="exact depth-d, softmax backup", algorithm="rosmo", operator="lookahead"
    ),
    "lookahead_max": Arm(
        label="exact depth-d, max backup", algorithm="rosmo", operator="lookahead_max"
    ),
}


class Setting(NamedTuple):
    """One cell of a study; with a seed it is one run.

    A zero means that the arm has no such thing, or no limit.
    """

    arm: str
    environment: str = "catch"
    fraction: int = WHOLE  # percent of the run's episodes that the dataset keeps
    # Probability that the environment replaces an action, in the data and in evaluation.
    noise: float = 0.0
    simulations: int = 0  # N: of a tree search, or sampled actions
    depth: int = 0  # of a lookahead; limit of a tree search, 0 without limit
    unroll: int = 3  # K


class Study(NamedTuple):
    """Series of settings in which one variable changes."""

    title: str
    variable: str  # a field of Setting
    axis: str  # what it is called in tables and figures
    # Label -> settings in one environment, in order of the variable.
    series: Mapping[str, tuple[Setting, ...]]


class Preset(NamedTuple):
    """How much is run."""

    environments: tuple[str, ...]
    seeds: int
    updates: int
    batch_size: int
    fractions: tuple[int, ...]
    noises: tuple[float, ...]
    budgets: tuple[int, ...]  # of visit counts and of sampled actions
    gumbel_budgets: tuple[int, ...]
    muzero_q_budgets: tuple[int, ...]
    depths: tuple[int, ...]  # limits of visit counts
    depth_budget: int  # their N
    unrolls: tuple[int, ...]
    coverage: tuple[tuple[str, int], ...]  # (arm, N) of the study of coverage
    ends: tuple[str, ...]  # of these arms, those that see only the smallest and largest fraction
    unrolled: tuple[tuple[str, int], ...]  # (arm, N) of the study of the unroll length
    noisy: tuple[tuple[str, int], ...]  # and of that of noise
    episodes: int = 200  # of evaluation, a seed and way of acting


# Shared by all arms. The published 7e-4 took one-step lookahead, with the behavior term, three
# times as many updates.
LEARNING_RATE = 2e-3
FEW = 4  # simulations where the budget is not what changes
ARMS_WITH_BUDGET = (
    ("bc", 0),
    ("latent_crr", 0),
    ("rosmo", 0),
    ("one_step", 0),
    ("one_step_sampled", FEW),
    ("gumbel", FEW),
    ("muzero_q", FEW),
    ("muzero", FEW),
    ("muzero_behavior", FEW),
)
PRESETS = {
    "quick": Preset(
        environments=("catch",),
        seeds=3,
        updates=30_000,
        batch_size=32,
        fractions=(1, 10, 100),
        noises=(0.0, 0.3, 0.5),
        budgets=(2, 4, 8, 16),
        gumbel_budgets=(4, 16),
        muzero_q_budgets=(4,),
        depths=(1, 2, 4, 0),
        depth_budget=8,
        unrolls=(1, 3, 5, 10),
        coverage=ARMS_WITH_BUDGET,
        ends=("muzero_q",),
        unrolled=(("rosmo", 0), ("one_step", 0), ("muzero", FEW)),
        noisy=(("bc", 0), ("rosmo", 0), ("one_step", 0), ("muzero", FEW)),
    ),
    "full": Preset(
        environments=("catch", "cartpole", "mountain_car"),
        seeds=5,
        updates=50_000,
        batch_size=128,
        fractions=(1, 10, 100),
        noises=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5),
        budgets=(2, 4, 8, 16, 32),
        gumbel_budgets=(2, 4, 8, 16, 32),
        muzero_q_budgets=(2, 4, 8, 16, 32),
        depths=(1, 2, 4, 0),
        depth_budget=16,
        unrolls=(1, 3, 5, 10),
        coverage=(*ARMS_WITH_BUDGET, ("muzero", 16)),
        ends=(),
        unrolled=(("rosmo", 0), ("one_step", 0), ("muzero", FEW)),
        noisy=ARMS_WITH_BUDGET,
    ),
}


# --- the studies ---


def studies(preset: Preset) -> dict[str, Study]:
    """All studies by name, the most important first."""
    return {
        "coverage": Study(
            title="Coverage: less data",
            variable="fraction",
            axis=f"percent of the run, 1 episode in {VALIDATION_EVERY} held out",
            series={
                label(arm, n): tuple(
                    Setting(arm, fraction=fraction, simulations=n)
                    for fraction in fractions_of(preset, arm)
                )
                for arm, n in preset.coverage
            },
        ),
        "budget": Study(
            title="Simulation budget", variable="simulations", axis="N", series=by_budget(preset)
        ),
        "depth": Study(
            title="Depth of the search", variable="depth", axis="depth", series=by_depth(preset)
        ),
        "unroll": Study(
            title="Unroll length in training",
            variable="unroll",
            axis="K",
            series={
                label(arm, n): tuple(Setting(arm, simulations=n, unroll=k) for k in preset.unrolls)
                for arm, n in preset.unrolled
            },
        ),
        "noise": Study(
            title="Noise in the environment",
            variable="noise",
            axis="noise",
            series={
                label(arm, n): tuple(
                    Setting(arm, noise=noise, simulations=n) for noise in preset.noises
                )
                for arm, n in preset.noisy
            },
        ),
    }


def by_budget(preset: Preset) -> dict[str, tuple[Setting, ...]]:
    """Series in which the number of simulations changes."""
    budgets = {
        "one_step_sampled": preset.budgets,
        "gumbel": preset.gumbel_budgets,
        "muzero_q": preset.muzero_q_budgets,
        "muzero": preset.budgets,
    }
    return {
        ARMS[arm].label: tuple(Setting(arm, simulations=n) for n in numbers)
        for arm, numbers in budgets.items()
    }


def by_depth(preset: Preset) -> dict[str, tuple[Setting, ...]]:
    """Series in which the depth changes; an exact lookahead of depth 1 is the one-step arm."""
    series = {
        ARMS[arm].label: (Setting("one_step"), Setting(arm, depth=2), Setting(arm, depth=3))
        for arm in ("lookahead", "lookahead_max")
    }
    series[label("muzero", preset.depth_budget)] = tuple(
        Setting("muzero", simulations=preset.depth_budget, depth=depth) for depth in preset.depths
    )
    return series


def fractions_of(preset: Preset, arm: str) -> list[int]:
    """Which fractions of the data an arm of the study of coverage sees."""
    fractions = sorted(preset.fractions)
    return [fractions[0], fractions[-1]] if arm in preset.ends else fractions


def label(arm: str, simulations: int) -> str:
    """The name of a series."""
    return ARMS[arm].label + (f", N = {simulations}" if simulations else "")


def position(study: Study, setting: Setting) -> str:
    """The value of the study's variable in words; an exact one-step lookahead has depth 1."""
    value = getattr(setting, study.variable)
    if study.variable == "depth" and not value:
        return "1" if setting.arm == "one_step" else "no limit"
    return f"{value:g}"


# --- pieces of work ---


class Piece(NamedTuple):
    """Seeds that are trained together."""

    study: str
    setting: Setting
    seeds: tuple[int, ...]


def pieces(preset: Preset, names: Iterable[str], arms: Iterable[str] = tuple(ARMS)) -> list[Piece]:
    """All work that these studies need, each setting once.

    Studies come in their order, settings with fewer simulations first. All environments of a
    setting follow one another. The study that comes with a setting is the first of all that has it,
    whichever are asked for.

    Args:
      preset: how much is run.
      names: of studies.
      arms: of these arms alone.
    """
    work = []
    for name, setting in owned_settings(preset, set(names)):
        if setting.arm in set(arms):
            for environment in preset.environments:
                there = setting._replace(environment=environment)
                work += [Piece(name, there, seeds) for seeds in groups(setting, preset.seeds)]
    return work


def owned_settings(preset: Preset, names: set[str]) -> Iterator[tuple[str, Setting]]:
    """(study that owns it, setting) of everything that the named studies show."""
    settings = {name: set(all_settings(study)) for name, study in studies(preset).items()}
    owner: dict[Setting, str] = {}
    for name, shown in settings.items():
        for setting in shown:
            owner.setdefault(setting, name)
    done: set[Setting] = set()
    for name in (name for name in settings if name in names):
        for setting in sorted(settings[name] - done, key=lambda item: (item.simulations, item)):
            yield owner[setting], setting
        done |= settings[name]


def groups(setting: Setting, num_seeds: int) -> list[tuple[int, ...]]:
    """Seeds that are trained together: all, but for a tree search."""
    seeds = tuple(range(num_seeds))
    return [(seed,) for seed in seeds] if ARMS[setting.arm].tree else [seeds]


def all_settings(study: Study) -> Iterator[Setting]:
    """The settings of all series; some come twice."""
    return itertools.chain.from_iterable(study.series.values())
