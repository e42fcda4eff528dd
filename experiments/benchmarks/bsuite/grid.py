"""What the studies compare: arms, settings, and which settings make up which study. Nothing is run here."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

LOWEST, WHOLE = 1, 100  # percent of the data's episodes


class Arm(NamedTuple):
    """One way of learning. All but the first two rows of `ARMS` are one algorithm with another operator."""

    label: str
    algorithm: str
    operator: str = ""  # "" where there is none
    behavior_coef: float = 0.0
    tree: bool = False  # searches a tree: its seeds are trained one after the other, which is faster


ARMS = {
    "bc": Arm("behavior cloning", "bc"),
    "latent_crr": Arm("CRR on the latent model", "latent_crr"),
    "rosmo": Arm("one-step exact + behavior term (ROSMO)", "rosmo", "one_step", behavior_coef=0.2),
    "one_step": Arm("one-step exact", "rosmo", "one_step"),
    "one_step_sampled": Arm("one-step sampled", "rosmo", "one_step_sampled"),
    "gumbel": Arm("tree, Gumbel", "rosmo", "gumbel", tree=True),
    "muzero": Arm("tree, visits (MuZero)", "rosmo", "muzero", tree=True),
    "muzero_behavior": Arm("tree, visits + behavior term", "rosmo", "muzero", behavior_coef=0.2, tree=True),
    "muzero_q": Arm("tree, MZU-Q", "rosmo", "muzero_q", tree=True),
    "lookahead": Arm("exact depth-d, softmax backup", "rosmo", "lookahead"),
    "lookahead_max": Arm("exact depth-d, max backup", "rosmo", "lookahead_max"),
}


class Setting(NamedTuple):
    """One cell of a study; with a seed it is one run. A zero means that the arm has no such thing, or no limit."""

    arm: str
    environment: str = "catch"
    fraction: int = WHOLE  # percent of the data's episodes
    noise: float = 0.0  # probability that the environment replaces an action, in the data and in evaluation
    simulations: int = 0  # N: of a tree search, or sampled actions
    depth: int = 0  # of a lookahead; limit of a tree search, 0 without limit
    unroll: int = 3  # K


class Study(NamedTuple):
    """Series of settings in which one variable changes."""

    title: str
    variable: str  # a field of Setting
    axis: str  # what it is called in tables and figures
    series: Mapping[str, tuple[Setting, ...]]  # label -> settings in one environment, in order of the variable


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
    ends: tuple[str, ...]  # of these arms, those that see only the smallest and the largest fraction
    unrolled: tuple[tuple[str, int], ...]  # (arm, N) of the study of the unroll length
    noisy: tuple[tuple[str, int], ...]  # and of that of noise


# Shared by all arms. The published 7e-4 took one-step lookahead, with the behavior term, three times as many updates.
LEARNING_RATE = 2e-3
FEW = 4  # simulations where the budget is not what changes
ARMS_WITH_BUDGET = (
    ("bc", 0), ("latent_crr", 0), ("rosmo", 0), ("one_step", 0), ("one_step_sampled", FEW), ("gumbel", FEW),
    ("muzero_q", FEW), ("muzero", FEW), ("muzero_behavior", FEW),
)  # fmt: skip
PRESETS = {
    "quick": Preset(
        ("catch",), 3, 30_000, 32, (1, 10, 100), (0.0, 0.3, 0.5), (2, 4, 8, 16), (4, 16), (4,),
        (1, 2, 4, 0), 8, (1, 3, 5, 10), coverage=ARMS_WITH_BUDGET, ends=("muzero_q",),
        unrolled=(("rosmo", 0), ("one_step", 0), ("muzero", FEW)),
        noisy=(("bc", 0), ("rosmo", 0), ("one_step", 0), ("muzero", FEW))),
    "full": Preset(
        ("catch", "cartpole", "mountain_car"), 5, 50_000, 128, (1, 10, 100), (0.0, 0.1, 0.2, 0.3, 0.4, 0.5),
        (2, 4, 8, 16, 32), (2, 4, 8, 16, 32), (2, 4, 8, 16, 32), (1, 2, 4, 0), 16, (1, 3, 5, 10),
        coverage=(*ARMS_WITH_BUDGET, ("muzero", 16)), ends=(),
        unrolled=(("rosmo", 0), ("one_step", 0), ("muzero", FEW)), noisy=ARMS_WITH_BUDGET),
}  # fmt: skip


def studies(preset: Preset) -> dict[str, Study]:
    """All studies by name, the most important first."""
    return {
        "coverage": Study(
            "Coverage: less data", "fraction", "data, percent of the episodes",
            {label(arm, n): tuple(Setting(arm, fraction=f, simulations=n) for f in fractions_of(preset, arm))
             for arm, n in preset.coverage}),
        "budget": Study("Simulation budget", "simulations", "N", {
            ARMS[arm].label: tuple(Setting(arm, simulations=n) for n in budgets) for arm, budgets in (
                ("one_step_sampled", preset.budgets), ("gumbel", preset.gumbel_budgets),
                ("muzero_q", preset.muzero_q_budgets), ("muzero", preset.budgets))}),
        "depth": Study("Depth of the search", "depth", "depth", {
            ARMS["lookahead"].label: (Setting("one_step"), *(Setting("lookahead", depth=d) for d in (2, 3))),
            ARMS["lookahead_max"].label: (Setting("one_step"), *(Setting("lookahead_max", depth=d) for d in (2, 3))),
            label("muzero", preset.depth_budget): tuple(
                Setting("muzero", simulations=preset.depth_budget, depth=d) for d in preset.depths)}),
        "unroll": Study(
            "Unroll length in training", "unroll", "K",
            {label(arm, n): tuple(Setting(arm, simulations=n, unroll=k) for k in preset.unrolls)
             for arm, n in preset.unrolled}),
        "noise": Study(
            "Noise in the environment", "noise", "noise",
            {label(arm, n): tuple(Setting(arm, noise=noise, simulations=n) for noise in preset.noises)
             for arm, n in preset.noisy}),
    }  # fmt: skip


def fractions_of(preset: Preset, arm: str) -> list[int]:
    """Which fractions of the data an arm of the study of coverage sees."""
    fractions = sorted(preset.fractions)
    return [fractions[0], fractions[-1]] if arm in preset.ends else fractions


def label(arm: str, simulations: int) -> str:
    """What a series is called."""
    return ARMS[arm].label + (f", N = {simulations}" if simulations else "")


def position(study: Study, setting: Setting) -> str:
    """The value of the study's variable in words; an exact one-step lookahead has depth 1."""
    value = getattr(setting, study.variable)
    if study.variable == "depth" and not value:
        return "1" if setting.arm == "one_step" else "no limit"
    return f"{value:g}"


# --- pieces of work ---


def pieces(preset: Preset, names: Iterable[str]) -> Iterator[tuple[str, Setting]]:
    """(study, setting) of everything that these studies need, each setting once.

    Studies come in their order, cheap settings first. All environments of a setting follow one another. The study
    that comes with a setting is the first of all that has it, whichever are asked for.
    """
    found = {name: set(all_settings(study)) for name, study in studies(preset).items()}
    done: set[Setting] = set()
    for name in (name for name in found if name in names):
        for setting in sorted(found[name] - done, key=lambda one: (milliseconds(one, preset.batch_size), one)):
            owner = next(name for name, settings in found.items() if setting in settings)
            yield from ((owner, setting._replace(environment=environment)) for environment in preset.environments)
        done |= found[name]


def all_settings(study: Study) -> Iterator[Setting]:
    """The settings of all series; one may come twice."""
    return itertools.chain.from_iterable(study.series.values())


def milliseconds(setting: Setting, batch_size: int) -> float:
    """About how long one update of one seed takes on one core; measured at batch 128 with K = 3."""
    n, d = setting.simulations, setting.depth
    if setting.arm == "bc":
        return 0.05 + 0.3 * batch_size / 128
    search = {
        "one_step_sampled": 0.1 + 0.02 * n, "gumbel": 0.23 * n + 0.005 * n * n,
        "lookahead": 0.06 * 3**d, "lookahead_max": 0.06 * 3**d,
    }.get(setting.arm, 0.35 * n + 0.027 * n * n)  # fmt: skip
    return 0.1 + (1.3 + search) * (setting.unroll + 1) / 4 * batch_size / 128
