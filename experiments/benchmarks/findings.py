"""What the numbers say of the source's observations: claims, their intervals, and sentences made from them.

The source is "Efficient Offline Policy Optimization with a Learned Model" (arXiv:2210.05980) and its talk. A claim is
a contrast of scores of settings. It holds if the 95 % interval of the contrast lies above zero, it does not hold if
the interval lies below, and it cannot be told otherwise. "Hardly matters" means: by less than MARGIN.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.benchmarks import grid
from offline_mbrl.evaluation import aggregate

MARGIN = 0.1  # of normalized score: a smaller difference is taken for none
HOLDS, FAILS, OPEN, MISSING = "holds", "does not hold", "cannot be told", "not measured"

Contrast = Callable[[np.ndarray], np.ndarray]  # scores [..., settings] -> [...], positive where the claim holds
Scores = Mapping[grid.Setting, np.ndarray]  # setting (of the first environment) -> [S, environments]


class Claim(NamedTuple):
    """Something that the source says, or that follows if it is right."""

    observation: int  # 1 to 5, see OBSERVATIONS
    study: str
    text: str
    settings: tuple[grid.Setting, ...]
    contrast: Contrast


class Verdict(NamedTuple):
    """What the runs say of a claim."""

    claim: Claim
    verdict: str
    value: float  # of the contrast, NaN where not measured
    low: float
    high: float


OBSERVATIONS = {
    1: "with less data, tree search degrades and one-step lookahead does not",
    2: "tree search is sensitive to its simulation budget and depth, one-step lookahead is not",
    3: "at N = 4: visit counts < MZU-Q < one-step lookahead, sampled or exact",
    4: "one-step lookahead is robust to the unroll length K in training",
    5: "one-step lookahead holds up under noise",
}

# --- contrasts ---


def more(scores: np.ndarray) -> np.ndarray:
    """By how much the second is better than the first."""
    return scores[..., 1] - scores[..., 0]


def loses_more(scores: np.ndarray) -> np.ndarray:
    """Of (easy, hard, easy, hard): how much more the first pair loses than the second."""
    return (scores[..., 0] - scores[..., 1]) - (scores[..., 2] - scores[..., 3])


def spread(scores: np.ndarray) -> np.ndarray:
    """Between the best and the worst."""
    return scores.max(-1) - scores.min(-1)


def matters(scores: np.ndarray) -> np.ndarray:
    """By how much the spread exceeds what is taken for none."""
    return spread(scores) - MARGIN


def hardly_matters(scores: np.ndarray) -> np.ndarray:
    """The opposite."""
    return MARGIN - spread(scores)


def loses(scores: np.ndarray) -> np.ndarray:
    """Of (easy, hard): whether more is lost than what is taken for none."""
    return scores[..., 0] - scores[..., 1] - MARGIN


def hardly_loses(scores: np.ndarray) -> np.ndarray:
    """The opposite."""
    return -loses(scores)


def varies_more(scores: np.ndarray) -> np.ndarray:
    """By how much the spread of the first half exceeds that of the second."""
    half = scores.shape[-1] // 2
    return spread(scores[..., :half]) - spread(scores[..., half:])


# --- the claims ---

N = grid.FEW
ROSMO, ONE_STEP = grid.Setting("rosmo"), grid.Setting("one_step")
SAMPLED = grid.Setting("one_step_sampled", simulations=N)
GUMBEL, MUZERO_Q, MUZERO = (grid.Setting(arm, simulations=N) for arm in ("gumbel", "muzero_q", "muzero"))


def claims(preset: grid.Preset) -> list[Claim]:
    """All, in the order of the observations."""
    return [*coverage_claims(preset), *search_claims(preset), *order_claims(), *unroll_claims(preset),
            *noise_claims(preset)]  # fmt: skip


def coverage_claims(preset: grid.Preset) -> list[Claim]:
    """Observation 1."""
    least = min(preset.fractions)
    less = lambda one: one._replace(fraction=least)  # noqa: E731
    pairs = [(one, tree) for one in (ROSMO, ONE_STEP, SAMPLED) for tree in (MUZERO, GUMBEL, MUZERO_Q)]
    return [
        *(Claim(1, "coverage", f"{name(tree)} loses more than {MARGIN:g} from 100 % to {least} % of the data",
                (tree, less(tree)), loses) for tree in (MUZERO, GUMBEL, MUZERO_Q)),
        *(Claim(1, "coverage", f"{name(one)} loses less than {MARGIN:g} from 100 % to {least} % of the data",
                (one, less(one)), hardly_loses) for one in (ROSMO, ONE_STEP, SAMPLED)),
        *(Claim(1, "coverage", f"with {least} % of the data {name(one)} is better than {name(tree)}",
                (less(tree), less(one)), more) for one, tree in pairs),
        *(Claim(1, "coverage", f"from 100 % to {least} % {name(tree)} loses more than {name(one)}",
                (tree, less(tree), one, less(one)), loses_more) for one, tree in pairs[:6]),
    ]  # fmt: skip


def search_claims(preset: grid.Preset) -> list[Claim]:
    """Observation 2."""
    found = grid.studies(preset)
    budget, depth = (found[name].series for name in ("budget", "depth"))
    trees = {arm: budget[grid.ARMS[arm].label] for arm in ("muzero", "gumbel", "muzero_q")}
    sampled, limited = budget[grid.ARMS["one_step_sampled"].label], depth[grid.label("muzero", preset.depth_budget)]
    exact = {arm: depth[grid.ARMS[arm].label] for arm in ("lookahead", "lookahead_max")}
    return [
        *(Claim(2, "budget", f"the budget N matters to {grid.ARMS[arm].label} by more than {MARGIN:g}", of, matters)
          for arm, of in trees.items() if len(of) > 1),
        Claim(2, "budget", f"the number of samples hardly matters to {grid.ARMS['one_step_sampled'].label}", sampled,
              hardly_matters),
        Claim(2, "budget", f"{grid.ARMS['muzero'].label} varies more with N than {grid.ARMS['one_step_sampled'].label}",
              (*trees["muzero"], *sampled), varies_more),
        Claim(2, "depth", f"the depth limit matters to {grid.ARMS['muzero'].label} by more than {MARGIN:g}", limited,
              matters),
        *(Claim(2, "depth", f"{grid.ARMS[arm].label} is worse at depth {of[-1].depth} than at depth 1",
                (of[-1], of[0]), more) for arm, of in exact.items()),
        *(Claim(2, "depth", f"the depth matters to {grid.ARMS[arm].label} by more than {MARGIN:g}", of, matters)
          for arm, of in exact.items()),
    ]  # fmt: skip


def order_claims() -> list[Claim]:
    """Observation 3."""
    order = [(MUZERO, MUZERO_Q), (MUZERO_Q, SAMPLED), (MUZERO_Q, ONE_STEP), (MUZERO, SAMPLED), (MUZERO, ONE_STEP)]
    return [Claim(3, "coverage", f"{name(high)} is better than {name(low)}", (low, high), more) for low, high in order]


def unroll_claims(preset: grid.Preset) -> list[Claim]:
    """Observation 4."""
    muzero, *ones = (tuple(one._replace(unroll=k) for k in preset.unrolls) for one in (MUZERO, ROSMO, ONE_STEP)
                     if (one.arm, one.simulations) in preset.unrolled)  # fmt: skip
    return [
        *(Claim(4, "unroll", f"K hardly matters to {name(one[0])}", one, hardly_matters) for one in ones),
        *(Claim(4, "unroll", f"{name(muzero[0])} varies more with K than {name(one[0])}", (*muzero, *one), varies_more)
          for one in ones),
    ]  # fmt: skip


def noise_claims(preset: grid.Preset) -> list[Claim]:
    """Observation 5."""
    most = max(preset.noises)
    noisy = lambda one: one._replace(noise=most)  # noqa: E731
    arms = dict(preset.noisy)
    ones, trees = ([one for one in kind if one.arm in arms]
                   for kind in ((ROSMO, ONE_STEP, SAMPLED), (MUZERO, GUMBEL, MUZERO_Q)))  # fmt: skip
    pairs = [(one, tree) for one in ones for tree in trees]
    return [
        *(Claim(5, "noise", f"at noise {most:g} {name(one)} is better than {name(tree)}", (noisy(tree), noisy(one)),
                more) for one, tree in pairs),
        *(Claim(5, "noise", f"from noise 0 to {most:g} {name(tree)} loses more than {name(one)}",
                (tree, noisy(tree), one, noisy(one)), loses_more) for one, tree in pairs),
    ]  # fmt: skip


def name(setting: grid.Setting) -> str:
    """An arm with its budget."""
    return grid.label(setting.arm, setting.simulations)


# --- statistics ---


def judge(claim: Claim, scores: Scores) -> Verdict:
    """The interval of the contrast, by resampling seeds within each setting and environment."""
    if any(setting not in scores for setting in claim.settings):
        return Verdict(claim, MISSING, np.nan, np.nan, np.nan)
    num_seeds = min(len(scores[setting]) for setting in claim.settings)
    if num_seeds < 2:  # one seed says nothing about others
        return Verdict(claim, MISSING, np.nan, np.nan, np.nan)
    table = np.concatenate([scores[setting][:num_seeds] for setting in claim.settings], axis=1)

    def statistic(tables: np.ndarray) -> np.ndarray:
        apart = tables.reshape(*tables.shape[:-1], len(claim.settings), -1)  # [..., S, settings, environments]
        return claim.contrast(aggregate.interquartile_mean(np.moveaxis(apart, -2, -3)))

    low, high = aggregate.stratified_bootstrap(table, statistic)
    verdict = HOLDS if low > 0 else FAILS if high < 0 else OPEN
    return Verdict(claim, verdict, float(statistic(table)), low, high)


# --- sentences ---


def paragraph(verdicts: Sequence[Verdict]) -> str:
    """What holds, what does not, and what these runs do not tell."""
    parts = []
    for outcome, beginning in (
        (HOLDS, "Holds here"), (FAILS, "Does not hold here"), (OPEN, "Cannot be told (the interval contains zero)"),
        (MISSING, "Not measured yet"),
    ):  # fmt: skip
        told = [sentence(one) for one in verdicts if one.verdict == outcome]
        if told:
            parts.append(f"{beginning}: {'; '.join(told)}.")
    return " ".join(parts)


def sentence(verdict: Verdict) -> str:
    """The claim with its figure."""
    if verdict.verdict == MISSING:
        return verdict.claim.text
    return f"{verdict.claim.text} ({verdict.value:+.2f}, {verdict.low:+.2f} to {verdict.high:+.2f})"


def summary(verdicts: Sequence[Verdict]) -> str:
    """One line on an observation: how many of its claims have which verdict."""
    counts = {outcome: sum(one.verdict == outcome for one in verdicts) for outcome in (HOLDS, FAILS, OPEN, MISSING)}
    told = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
    kinds = {outcome for outcome, count in counts.items() if count}
    whole = next(iter(kinds)) if len(kinds) == 1 else "holds in part" if HOLDS in kinds else "is not confirmed"
    return f"{whole} (of {len(verdicts)} claims: {told})"
