"""What the source observes on BSuite, as comparisons of settings. Nothing is judged here.

The source is "Efficient Offline Policy Optimization with a Learned Model" (arXiv:2210.05980) and
its talk. A comparison is a quantity computed from scores of settings, and where it should lie.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from experiments.benchmarks.bsuite import grid
from experiments.benchmarks.bsuite.grid import ARMS, Preset, Setting, label

MARGIN = 0.1  # of normalized score: a smaller difference counts as none

Quantity = Callable[[np.ndarray], np.ndarray]  # scores [..., settings] -> [...]
Change = Callable[[Setting], Setting]  # to less data, or more noise

OBSERVATIONS = {
    "1": "with less data, tree search degrades and one-step lookahead does not",
    "2": "tree search is sensitive to its simulation budget and depth, one-step lookahead is not",
    "3": "at N = 4: visit counts < MZU-Q < one-step lookahead, sampled or exact",
    "4": "one-step lookahead is robust to the unroll length K in training",
    "5": "one-step lookahead holds up under noise",
    "6": "the behavior term makes the difference, rather than the operator "
    "(asked here, not by the source)",
}


class Comparison(NamedTuple):
    """A statement of the source, or one that follows from it: a quantity beyond a threshold."""

    observation: str  # a key of OBSERVATIONS
    study: str
    statement: str
    settings: tuple[Setting, ...]
    quantity: Quantity
    threshold: float = 0.0
    below: bool = False


# --- quantities ---


def gain(scores: np.ndarray) -> np.ndarray:
    """Of a pair: by how much the second is better."""
    return scores[..., 1] - scores[..., 0]


def loss(scores: np.ndarray) -> np.ndarray:
    """Of (easy, hard): what is lost."""
    return scores[..., 0] - scores[..., 1]


def extra_loss(scores: np.ndarray) -> np.ndarray:
    """Of (easy, hard, easy, hard): how much more the first pair loses than the second."""
    return loss(scores[..., :2]) - loss(scores[..., 2:])


def spread(scores: np.ndarray) -> np.ndarray:
    """Between the best and the worst."""
    return scores.max(-1) - scores.min(-1)


def extra_spread(scores: np.ndarray) -> np.ndarray:
    """By how much the spread of the first half exceeds that of the second."""
    half = scores.shape[-1] // 2
    return spread(scores[..., :half]) - spread(scores[..., half:])


# --- kinds of statements ---


def name(setting: Setting) -> str:
    """An arm with its budget."""
    return label(setting.arm, setting.simulations)


def better(
    observation: str, study: str, winner: Setting, loser: Setting, condition: str = ""
) -> Comparison:
    """One setting is better than another; `condition` begins the statement."""
    return Comparison(
        observation=observation,
        study=study,
        statement=f"{condition}{name(winner)} is better than {name(loser)}",
        settings=(loser, winner),
        quantity=gain,
    )


def loses(
    observation: str, study: str, setting: Setting, change: Change, words: str, *, below: bool
) -> Comparison:
    """A change for the worse costs more than the margin, or less; `words` name the change."""
    amount = "less" if below else "more"
    return Comparison(
        observation=observation,
        study=study,
        statement=f"{name(setting)} loses {amount} than {MARGIN:g} {words}",
        settings=(setting, change(setting)),
        quantity=loss,
        threshold=MARGIN,
        below=below,
    )


def loses_more(
    observation: str, study: str, tree: Setting, lookahead: Setting, change: Change, words: str
) -> Comparison:
    """A change for the worse costs a tree more than a lookahead; `words` name the change."""
    return Comparison(
        observation=observation,
        study=study,
        statement=f"{words} {name(tree)} loses more than {name(lookahead)}",
        settings=(tree, change(tree), lookahead, change(lookahead)),
        quantity=extra_loss,
    )


def matters(
    study: str, variable: str, arm: str, series: Sequence[Setting], *, below: bool = False
) -> Comparison:
    """A variable matters to an arm by more than the margin, or by less."""
    amount = "less" if below else "more"
    return Comparison(
        observation="4" if study == "unroll" else "2",
        study=study,
        statement=f"{variable} matters to {arm} by {amount} than {MARGIN:g}",
        settings=tuple(series),
        quantity=spread,
        threshold=MARGIN,
        below=below,
    )


def varies_more(
    study: str,
    variable: str,
    first: tuple[str, Sequence[Setting]],
    second: tuple[str, Sequence[Setting]],
) -> Comparison:
    """An arm varies more with a variable than another; each is a label with its series."""
    return Comparison(
        observation="4" if study == "unroll" else "2",
        study=study,
        statement=f"{first[0]} varies more with {variable} than {second[0]}",
        settings=(*first[1], *second[1]),
        quantity=extra_spread,
    )


# --- the comparisons ---

N = grid.FEW
ROSMO = Setting("rosmo")
ONE_STEP = Setting("one_step")
SAMPLED = Setting("one_step_sampled", simulations=N)
GUMBEL = Setting("gumbel", simulations=N)
MUZERO_Q = Setting("muzero_q", simulations=N)
MUZERO = Setting("muzero", simulations=N)
MUZERO_BEHAVIOR = Setting("muzero_behavior", simulations=N)
LOOKAHEADS = (ROSMO, ONE_STEP, SAMPLED)
TREES = (MUZERO, GUMBEL, MUZERO_Q)


def comparisons(preset: Preset) -> list[Comparison]:
    """All, in the order of the observations."""
    return [
        *coverage(preset),
        *budgets(preset),
        *depths(preset),
        *order(),
        *unrolls(preset),
        *noise(preset),
        *behavior(preset),
    ]


def coverage(preset: Preset) -> list[Comparison]:
    """Observation 1."""
    least = min(preset.fractions)
    words = f"from 100 % to {least} %"
    of_data = f"{words} of the data"
    condition = f"with {least} % of the data "
    pairs = [
        (ROSMO, MUZERO),
        (ONE_STEP, MUZERO),
        (ONE_STEP, GUMBEL),
        (ONE_STEP, MUZERO_Q),
        (SAMPLED, MUZERO),
    ]

    def less(setting: Setting) -> Setting:
        return setting._replace(fraction=least)

    return [
        *(loses("1", "coverage", tree, less, of_data, below=False) for tree in TREES),
        *(loses("1", "coverage", ours, less, of_data, below=True) for ours in LOOKAHEADS),
        *(better("1", "coverage", less(ours), less(tree), condition) for ours, tree in pairs),
        *(loses_more("1", "coverage", tree, ours, less, words) for ours, tree in pairs),
    ]


def budgets(preset: Preset) -> list[Comparison]:
    """Observation 2, the number of simulations."""
    series = grid.by_budget(preset)
    sampled = ARMS["one_step_sampled"].label
    visits = ARMS["muzero"].label
    trees = [ARMS[arm].label for arm in ("muzero", "gumbel", "muzero_q")]
    return [
        *(matters("budget", "N", arm, series[arm]) for arm in trees if len(series[arm]) > 1),
        matters("budget", "N", sampled, series[sampled], below=True),
        varies_more("budget", "N", (visits, series[visits]), (sampled, series[sampled])),
    ]


def depths(preset: Preset) -> list[Comparison]:
    """Observation 2, the depth."""
    series = grid.by_depth(preset)
    exact = {
        arm: series[arm] for arm in (ARMS[key].label for key in ("lookahead", "lookahead_max"))
    }
    limited = series[label("muzero", preset.depth_budget)]
    deeper = [
        Comparison(
            observation="2",
            study="depth",
            statement=f"{arm} is worse at depth {settings[-1].depth} than at depth 1",
            settings=(settings[-1], settings[0]),
            quantity=gain,
        )
        for arm, settings in exact.items()
    ]
    return [
        matters("depth", "the depth limit", ARMS["muzero"].label, limited),
        *deeper,
        *(matters("depth", "the depth", arm, settings) for arm, settings in exact.items()),
    ]


def order() -> list[Comparison]:
    """Observation 3."""
    pairs = [
        (MUZERO, MUZERO_Q),
        (MUZERO_Q, SAMPLED),
        (MUZERO_Q, ONE_STEP),
        (MUZERO, SAMPLED),
        (MUZERO, ONE_STEP),
    ]
    return [better("3", "coverage", winner, loser) for loser, winner in pairs]


def unrolls(preset: Preset) -> list[Comparison]:
    """Observation 4."""

    def series(setting: Setting) -> tuple[Setting, ...]:
        return tuple(setting._replace(unroll=k) for k in preset.unrolls)

    lookaheads = [
        setting
        for setting in (ROSMO, ONE_STEP)
        if (setting.arm, setting.simulations) in preset.unrolled
    ]
    tree = (name(MUZERO), series(MUZERO))
    return [
        *(matters("unroll", "K", name(ours), series(ours), below=True) for ours in lookaheads),
        *(varies_more("unroll", "K", tree, (name(ours), series(ours))) for ours in lookaheads),
    ]


def noise(preset: Preset) -> list[Comparison]:
    """Observation 5."""
    most = max(preset.noises)
    words = f"from noise 0 to {most:g}"
    condition = f"at noise {most:g} "
    arms = dict(preset.noisy)
    lookaheads = [setting for setting in LOOKAHEADS if setting.arm in arms]
    pairs = [(ours, tree) for ours in lookaheads for tree in TREES if tree.arm in arms]

    def noisy(setting: Setting) -> Setting:
        return setting._replace(noise=most)

    return [
        *(loses("5", "noise", ours, noisy, words, below=True) for ours in lookaheads),
        *(better("5", "noise", noisy(ours), noisy(tree), condition) for ours, tree in pairs),
        *(loses_more("5", "noise", tree, ours, noisy, words) for ours, tree in pairs),
    ]


def behavior(preset: Preset) -> list[Comparison]:
    """Observation 6: with and without the term, and both operators with it."""
    statements = []
    for fraction in (min(preset.fractions), max(preset.fractions)):
        condition = f"with {fraction} % of the data "
        for without, with_term in ((ONE_STEP, ROSMO), (MUZERO, MUZERO_BEHAVIOR)):
            winner = with_term._replace(fraction=fraction)
            loser = without._replace(fraction=fraction)
            statements.append(better("6", "coverage", winner, loser, condition))
        pair = (MUZERO_BEHAVIOR, ROSMO)
        statements.append(
            Comparison(
                observation="6",
                study="coverage",
                statement=f"{condition}{name(ROSMO)} and {name(MUZERO_BEHAVIOR)} differ by less "
                f"than {MARGIN:g}",
                settings=tuple(setting._replace(fraction=fraction) for setting in pair),
                quantity=spread,
                threshold=MARGIN,
                below=True,
            )
        )
    return statements
