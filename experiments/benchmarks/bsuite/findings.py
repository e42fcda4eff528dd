"""What the numbers say of the source's observations: claims, their intervals, and sentences made from them.

The source is "Efficient Offline Policy Optimization with a Learned Model" (arXiv:2210.05980) and its talk. A claim is
a quantity computed from scores of settings, and where it should lie. It holds if the whole 95 % interval of the
quantity (widened for few seeds) lies there, it does not hold if the whole interval lies on the other side, and it
cannot be told otherwise.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from experiments.benchmarks.bsuite import grid
from offline_mbrl.evaluation import aggregate

MARGIN = 0.1  # of normalized score: a smaller difference is taken for none
LEARNED = 0.5  # an arm that stays below it everywhere has nothing to lose: neither robust nor sensitive
HOLDS, FAILS, OPEN, MISSING = "holds", "does not hold", "cannot be told", "not measured"

Quantity = Callable[[np.ndarray], np.ndarray]  # scores [..., settings] -> [...]
Scores = Mapping[grid.Setting, np.ndarray]  # setting (of the first environment) -> [S, environments]


class Claim(NamedTuple):
    """Something that the source says, or that follows if it is right: a quantity is above a threshold, or below it."""

    observation: int  # see OBSERVATIONS
    study: str
    text: str
    settings: tuple[grid.Setting, ...]
    quantity: Quantity
    threshold: float = 0.0
    below: bool = False


class Verdict(NamedTuple):
    """What the runs say of a claim."""

    claim: Claim
    verdict: str
    value: float = np.nan  # of the quantity, NaN where not measured
    low: float = np.nan
    high: float = np.nan
    note: str = ""  # why it cannot be told, where that is not the interval's doing


OBSERVATIONS = {
    1: "with less data, tree search degrades and one-step lookahead does not",
    2: "tree search is sensitive to its simulation budget and depth, one-step lookahead is not",
    3: "at N = 4: visit counts < MZU-Q < one-step lookahead, sampled or exact",
    4: "one-step lookahead is robust to the unroll length K in training",
    5: "one-step lookahead holds up under noise",
    6: "the behavior term makes the difference, rather than the operator (asked here, not by the source)",
}

# --- quantities ---


def gain(scores: np.ndarray) -> np.ndarray:
    """Of (one, other): by how much the other is better."""
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


# Chance widens a spread, and resampling widens it again: their percentiles would call noise a difference more often
# than not. The reflected (basic) bootstrap interval takes the bias off instead of adding it.
WIDENED_BY_CHANCE = (spread, extra_spread)

# --- the claims ---

N = grid.FEW
ROSMO, ONE_STEP = grid.Setting("rosmo"), grid.Setting("one_step")
SAMPLED = grid.Setting("one_step_sampled", simulations=N)
GUMBEL, MUZERO_Q, MUZERO, MUZERO_BEHAVIOR = (
    grid.Setting(arm, simulations=N) for arm in ("gumbel", "muzero_q", "muzero", "muzero_behavior")
)


def claims(preset: grid.Preset) -> list[Claim]:
    """All, in the order of the observations."""
    return [*coverage_claims(preset), *search_claims(preset), *order_claims(), *unroll_claims(preset),
            *noise_claims(preset), *behavior_claims(preset)]  # fmt: skip


def coverage_claims(preset: grid.Preset) -> list[Claim]:
    """Observation 1."""
    least = min(preset.fractions)
    less = lambda one: one._replace(fraction=least)  # noqa: E731
    pairs = [(ROSMO, MUZERO), (ONE_STEP, MUZERO), (ONE_STEP, GUMBEL), (ONE_STEP, MUZERO_Q), (SAMPLED, MUZERO)]
    return [
        *(Claim(1, "coverage", f"{name(tree)} loses more than {MARGIN:g} from 100 % to {least} % of the data",
                (tree, less(tree)), loss, MARGIN) for tree in (MUZERO, GUMBEL, MUZERO_Q)),
        *(Claim(1, "coverage", f"{name(one)} loses less than {MARGIN:g} from 100 % to {least} % of the data",
                (one, less(one)), loss, MARGIN, below=True) for one in (ROSMO, ONE_STEP, SAMPLED)),
        *(Claim(1, "coverage", f"with {least} % of the data {name(one)} is better than {name(tree)}",
                (less(tree), less(one)), gain) for one, tree in pairs),
        *(Claim(1, "coverage", f"from 100 % to {least} % {name(tree)} loses more than {name(one)}",
                (tree, less(tree), one, less(one)), extra_loss) for one, tree in pairs),
    ]  # fmt: skip


def behavior_claims(preset: grid.Preset) -> list[Claim]:
    """Observation 6: with and without the term under one operator, and one operator against the other with it."""
    terms, least = [(ONE_STEP, ROSMO), (MUZERO, MUZERO_BEHAVIOR)], (MUZERO_BEHAVIOR, ROSMO)

    def at(fraction: int, pair: Sequence[grid.Setting]) -> tuple[grid.Setting, ...]:
        return tuple(one._replace(fraction=fraction) for one in pair)

    return [
        claim for fraction in (min(preset.fractions), max(preset.fractions)) for claim in (
            *(Claim(6, "coverage", f"with {fraction} % of the data {name(high)} is better than {name(low)}",
                    at(fraction, (low, high)), gain) for low, high in terms),
            Claim(6, "coverage", f"with {fraction} % of the data {name(least[1])} and {name(least[0])} differ by less "
                  f"than {MARGIN:g}", at(fraction, least), spread, MARGIN, below=True))
    ]  # fmt: skip


def search_claims(preset: grid.Preset) -> list[Claim]:
    """Observation 2."""
    found = grid.studies(preset)
    budget, depth = (found[name].series for name in ("budget", "depth"))
    trees = {arm: budget[grid.ARMS[arm].label] for arm in ("muzero", "gumbel", "muzero_q")}
    sampled, limited = budget[grid.ARMS["one_step_sampled"].label], depth[grid.label("muzero", preset.depth_budget)]
    exact = {arm: depth[grid.ARMS[arm].label] for arm in ("lookahead", "lookahead_max")}
    one, visits = grid.ARMS["one_step_sampled"].label, grid.ARMS["muzero"].label
    most, least = f"by more than {MARGIN:g}", f"by less than {MARGIN:g}"
    return [
        *(Claim(2, "budget", f"N matters to {grid.ARMS[arm].label} {most}", of, spread, MARGIN)
          for arm, of in trees.items() if len(of) > 1),
        Claim(2, "budget", f"N matters to {one} {least}", sampled, spread, MARGIN, below=True),
        Claim(2, "budget", f"{visits} varies more with N than {one}", (*trees["muzero"], *sampled), extra_spread),
        Claim(2, "depth", f"the depth limit matters to {visits} {most}", limited, spread, MARGIN),
        *(Claim(2, "depth", f"{grid.ARMS[arm].label} is worse at depth {of[-1].depth} than at depth 1",
                (of[-1], of[0]), gain) for arm, of in exact.items()),
        *(Claim(2, "depth", f"the depth matters to {grid.ARMS[arm].label} {most}", of, spread, MARGIN)
          for arm, of in exact.items()),
    ]  # fmt: skip


def order_claims() -> list[Claim]:
    """Observation 3."""
    order = [(MUZERO, MUZERO_Q), (MUZERO_Q, SAMPLED), (MUZERO_Q, ONE_STEP), (MUZERO, SAMPLED), (MUZERO, ONE_STEP)]
    return [Claim(3, "coverage", f"{name(high)} is better than {name(low)}", (low, high), gain) for low, high in order]


def unroll_claims(preset: grid.Preset) -> list[Claim]:
    """Observation 4."""
    muzero, *ones = (tuple(one._replace(unroll=k) for k in preset.unrolls) for one in (MUZERO, ROSMO, ONE_STEP)
                     if (one.arm, one.simulations) in preset.unrolled)  # fmt: skip
    return [
        *(Claim(4, "unroll", f"K matters to {name(one[0])} by less than {MARGIN:g}", one, spread, MARGIN, below=True)
          for one in ones),
        *(Claim(4, "unroll", f"{name(muzero[0])} varies more with K than {name(one[0])}", (*muzero, *one), extra_spread)
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
        *(Claim(5, "noise", f"{name(one)} loses less than {MARGIN:g} from noise 0 to {most:g}", (one, noisy(one)), loss,
                MARGIN, below=True) for one in ones),
        *(Claim(5, "noise", f"at noise {most:g} {name(one)} is better than {name(tree)}", (noisy(tree), noisy(one)),
                gain) for one, tree in pairs),
        *(Claim(5, "noise", f"from noise 0 to {most:g} {name(tree)} loses more than {name(one)}",
                (tree, noisy(tree), one, noisy(one)), extra_loss) for one, tree in pairs),
    ]  # fmt: skip


def name(setting: grid.Setting) -> str:
    """An arm with its budget."""
    return grid.label(setting.arm, setting.simulations)


# --- statistics ---


def judge(claim: Claim, scores: Scores) -> Verdict:
    """The interval of the quantity, by resampling seeds within each setting and environment."""
    if any(len(scores.get(setting, ())) < 2 for setting in claim.settings):  # one seed says nothing about others
        return Verdict(claim, MISSING)
    num_seeds = min(len(scores[setting]) for setting in claim.settings)
    table = np.concatenate([scores[setting][:num_seeds] for setting in claim.settings], axis=1)

    def means(tables: np.ndarray) -> np.ndarray:
        apart = tables.reshape(*tables.shape[:-1], len(claim.settings), -1)  # [..., S, settings, environments]
        return aggregate.interquartile_mean(np.moveaxis(apart, -2, -3))

    value = float(claim.quantity(means(table)))
    low, high = aggregate.stratified_bootstrap(table, lambda tables: claim.quantity(means(tables)))
    if claim.quantity in WIDENED_BY_CHANCE:
        low, high = 2 * value - high, 2 * value - low
    widen = few_seeds(num_seeds, len(claim.settings))
    low, high = value - widen * (value - low), value + widen * (high - value)
    if note := nothing_to_lose(claim, means(table)):
        return Verdict(claim, OPEN, value, low, high, note)
    above, under = low > claim.threshold, high < claim.threshold
    right, wrong = (under, above) if claim.below else (above, under)
    return Verdict(claim, HOLDS if right else FAILS if wrong else OPEN, value, low, high)


def few_seeds(num_seeds: int, num_settings: int) -> float:
    """By how much a bootstrap interval of so few seeds is too narrow: its variance is that of a sample taken for the
    whole, and its quantiles are the normal ones instead of Student's."""
    spread_lost = np.sqrt(num_seeds / (num_seeds - 1))
    return float(spread_lost * stats.t.ppf(0.975, (num_seeds - 1) * num_settings) / stats.norm.ppf(0.975))


def nothing_to_lose(claim: Claim, means: np.ndarray) -> str:
    """Which arm of a claim about losses or spreads is nowhere above `LEARNED`, in words; empty if none."""
    if claim.quantity is gain:
        return ""
    arms = list(dict.fromkeys(setting.arm for setting in claim.settings))
    best = {arm: max(mean for mean, one in zip(means, claim.settings, strict=True) if one.arm == arm) for arm in arms}
    if claim.quantity is spread:  # one series, which may begin with another arm that is its first point
        best = {claim.settings[-1].arm: max(best.values())}
    low = [f"{grid.ARMS[arm].label} at best {mean:.2f}" for arm, mean in best.items() if mean < LEARNED]
    return f"nothing to lose: {', '.join(low)}" if low else ""


# --- sentences ---


def lines(verdicts: Sequence[Verdict]) -> list[str]:
    """What holds, what does not, and what these runs do not tell: a line of Markdown each."""
    beginnings = {
        HOLDS: "Holds here", FAILS: "Does not hold here", OPEN: "Cannot be told from these runs",
        MISSING: "Not measured yet",
    }  # fmt: skip
    told = {outcome: [sentence(one) for one in verdicts if one.verdict == outcome] for outcome in beginnings}
    return [f"- {beginning}: {'; '.join(told[outcome])}." for outcome, beginning in beginnings.items() if told[outcome]]


def sentence(verdict: Verdict) -> str:
    """The claim with its figure."""
    if verdict.verdict == MISSING:
        return verdict.claim.text
    note = f"; {verdict.note}" if verdict.note else ""
    return f"{verdict.claim.text} ({verdict.value:+.2f}, {verdict.low:+.2f} to {verdict.high:+.2f}{note})"


def summary(verdicts: Sequence[Verdict]) -> str:
    """One line on an observation: what became of its claims."""
    counts = Counter(one.verdict for one in verdicts)
    told = ", ".join(f"{counts[outcome]} {outcome}" for outcome in (HOLDS, FAILS, OPEN, MISSING) if counts[outcome])
    if len(counts) == 1:
        return f"{verdicts[0].verdict} ({len(verdicts)} of {len(verdicts)} claims)"
    mixed = {(True, True): "mixed", (True, False): "holds in part", (False, True): "does not hold in part"}
    return f"{mixed.get((HOLDS in counts, FAILS in counts), OPEN)} (of {len(verdicts)} claims: {told})"
