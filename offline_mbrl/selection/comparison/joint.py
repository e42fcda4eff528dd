"""Values of several policies drawn together: from votes of families to probabilities of choices.

A vote is drawn by the multiplier bootstrap of `ope.errors`: policies that met the same episodes,
members and fits meet the same noise. Over families, votes are an additive table,

  vote[policy, family] = value[policy] + bias[family] + interaction[policy, family],

solved by least squares with the smallest biases. How far families disagree is all that tells what
they may be off by: the standard deviation of biases moves all policies alike, that of interactions
each alone, both as one more family would, `sqrt(1 + 1 / families)` times it.
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from offline_mbrl.ope import errors
from offline_mbrl.types import Estimate

NUM_DRAWS = 4_000
SMALL = 1e-4  # weight of the rows that ask for small biases


class Draws(NamedTuple):
    """Joint draws of the values of P policies and of the behavior."""

    policies: np.ndarray  # [R, P]
    behavior: np.ndarray  # [R]
    mean: np.ndarray  # [P]


class Standing(NamedTuple):
    """What is believed of one policy, beside the others that are judged."""

    value: float
    low: float  # ends of the 95 % interval
    high: float
    least_gain: float  # over the behavior: more with 95 %
    better: float  # probability of a larger value than the behavior's
    best: float  # probability of the largest value of all
    top: tuple[float, ...]  # probability of being among the best 1, 2, .. P
    regret: float  # expected: what the best has more


class Table(NamedTuple):
    """The additive table, as linear maps of its cells."""

    values: np.ndarray  # [P, C]
    biases: np.ndarray  # [F, C]
    residuals: np.ndarray  # [C, C]
    freedom: int  # degrees of freedom of the residuals


def draw(
    votes: Mapping[str, Mapping[str, Estimate]],
    behavior: Mapping[str, Estimate],
    *,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
) -> Draws:
    """Joint draws of all policies that have a vote.

    Args:
      votes: policy -> family -> estimate, at least one each.
      behavior: family -> the logged value in the family's convention, without bias.
      num_draws: R.
      seed: of the draws.
    """
    families = sorted({family for by_family in votes.values() for family in by_family})
    cells = [(policy, family) for policy, by_family in votes.items() for family in by_family]
    estimates = [votes[policy][family] for policy, family in cells]
    names = [f"{family}/{policy}" for policy, family in cells]
    noise = np.stack(
        [
            _errors(estimate, family, name, num_draws, seed)
            for estimate, (_, family), name in zip(estimates, cells, names, strict=True)
        ],
        axis=1,
    )
    centers = np.array([float(estimate.value) for estimate in estimates])
    table = additive(cells, list(votes), families)
    biases = table.biases @ centers
    residuals = table.residuals @ centers
    common = _root_mean(biases, len(families) - 1) * np.sqrt(1 + 1 / len(families))
    counts = np.array([len(by_family) for by_family in votes.values()])
    own = _root_mean(residuals, table.freedom) * np.sqrt(1 + 1 / counts)
    rng = np.random.default_rng(seed)
    mean = table.values @ centers
    policies = (
        mean
        + noise @ table.values.T
        + common * rng.standard_normal((num_draws, 1))
        + own * rng.standard_normal((num_draws, len(votes)))
    )
    logged = [
        float(behavior[family].value)
        + _errors(behavior[family], family, "behavior", num_draws, seed)
        for family in families
    ]
    return Draws(policies=policies, behavior=np.mean(logged, axis=0), mean=mean)


def standings(draws: Draws) -> list[Standing]:
    """What the draws say of each policy."""
    policies = draws.policies
    gain = policies - draws.behavior[:, None]
    order = np.argsort(np.argsort(-policies, axis=1), axis=1)  # 0 for the best of a draw
    low, high = np.quantile(policies, [0.025, 0.975], axis=0)
    least_gain = np.quantile(gain, 0.05, axis=0)
    largest = policies.max(axis=1)
    places = np.arange(policies.shape[1])
    return [
        Standing(
            value=float(draws.mean[row]),
            low=float(low[row]),
            high=float(high[row]),
            least_gain=float(least_gain[row]),
            better=float(np.mean(gain[:, row] > 0)),
            best=float(np.mean(order[:, row] == 0)),
            top=tuple(float(np.mean(order[:, row] <= place)) for place in places),
            regret=float(np.mean(largest - policies[:, row])),
        )
        for row in places
    ]


def shortlist(draws: Draws, order: Sequence[int], probability: float) -> int:
    """How many of the first policies hold the best of all with this probability.

    Args:
      draws: of `draw`.
      order: rows of the policies, first choice first.
      probability: at least.
    """
    best = np.argmax(draws.policies, axis=1)
    covered = np.cumsum([np.mean(best == row) for row in order])
    return int(np.argmax(covered >= min(probability, covered[-1]))) + 1


def larger(draws: Draws, order: Sequence[int]) -> list[float]:
    """Probability that the first policy's value is larger than each of the others'.

    Args:
      draws: of `draw`.
      order: rows of the policies, first choice first.
    """
    first = draws.policies[:, order[0]]
    return [float(np.mean(first > draws.policies[:, row])) for row in order[1:]]


def additive(
    cells: Sequence[tuple[str, str]], policies: Sequence[str], families: Sequence[str]
) -> Table:
    """Least squares of `value[policy] + bias[family]` over the cells that are there.

    Of all solutions that with the smallest biases: families that share no policy are not adjusted
    to each other, and with a single family there is no bias.

    Args:
      cells: (policy, family), C of them.
      policies: P.
      families: F.
    """
    own = np.array([[policy == name for name in policies] for policy, _ in cells], float)
    shared = np.array([[family == name for name in families] for _, family in cells], float)
    design = np.hstack([own, shared])
    smallest = np.hstack([np.zeros((len(families), len(policies))), SMALL * np.eye(len(families))])
    solution = np.linalg.pinv(np.vstack([design, smallest]))[:, : len(cells)]
    rank = int(np.linalg.matrix_rank(design))
    return Table(
        values=solution[: len(policies)],
        biases=solution[len(policies) :],
        residuals=np.eye(len(cells)) - design @ solution,
        freedom=len(cells) - rank,
    )


# --- parts ---


def _errors(estimate: Estimate, family: str, name: str, num_draws: int, seed: int) -> np.ndarray:
    """Draws `[R]` of an estimate's error; policies of one family share the noise of its sources."""
    total = np.zeros(num_draws)
    explained = 0.0
    for source, vector in estimate.errors.items():
        vector = np.asarray(vector, np.float64)
        owner = source if source == errors.EPISODES else f"{family}/{source}"
        total += vector @ _normals(owner, len(vector), num_draws, seed)
        explained += float(vector @ vector)
    rest = max(float(estimate.stderr) ** 2 - explained, 0.0)
    return total + np.sqrt(rest) * _normals(name, 1, num_draws, seed)[0]


def _normals(source: str, size: int, num_draws: int, seed: int) -> np.ndarray:
    """Standard normal numbers `[size, R]`, the same for every estimate with this source."""
    rng = np.random.default_rng([seed, zlib.crc32(source.encode())])
    return rng.standard_normal((size, num_draws))


def _root_mean(deviations: np.ndarray, freedom: int) -> float:
    return float(np.sqrt(np.sum(deviations**2) / freedom)) if freedom > 0 else 0.0
