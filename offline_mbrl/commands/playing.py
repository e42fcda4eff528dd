"""A run's policies in its simulator, acting greedily and by sampling, and what the scores say."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from offline_mbrl.evaluation import aggregate, episodes
from offline_mbrl.types import Policy, PyTree

HOW = {"greedy": True, "sampled": False}


def make(
    policy: Policy, simulator: str, *, num_seeds: int, num_episodes: int
) -> Callable[..., dict[str, episodes.Evaluation]]:
    """Builds `play(params [S, ...], *, seed) -> {"greedy": Evaluation, "sampled": Evaluation}`."""
    evaluators = {
        how: episodes.make_evaluator(policy, simulator, num_episodes=num_episodes, greedy=greedy, num_seeds=num_seeds)
        for how, greedy in HOW.items()
    }

    def play(params: PyTree, *, seed: int) -> dict[str, episodes.Evaluation]:
        return {how: evaluate(params, seed=seed) for how, evaluate in evaluators.items()}

    return play


def summarize(
    played: Mapping[str, episodes.Evaluation], reference: Sequence[float] | None
) -> dict[str, dict[str, Any]]:
    """Per way of acting: mean return per seed, normalized score, interquartile mean and its 95 % interval.

    Scores are raw returns where there is no reference. An evaluation that did not finish has no aggregate: what
    its seeds played is still there, marked incomplete.
    """
    return {how: _summarize(one, reference) for how, one in played.items()}


def _summarize(played: episodes.Evaluation, reference: Sequence[float] | None) -> dict[str, Any]:
    finished = np.isfinite(played.returns)
    counts = finished.sum(axis=1)
    returns = np.where(counts, np.nansum(played.returns, axis=1) / np.maximum(counts, 1), np.nan)
    scores = returns if reference is None else aggregate.normalized_score(returns, *reference)
    summary = {
        "complete": played.complete, "message": played.message, "episodes": counts.tolist(),
        "returns": returns.tolist(), "scores": scores.tolist(), "normalized": reference is not None,
        "lengths": [float(row[row > 0].mean()) if (row > 0).any() else None for row in played.lengths],
        "interquartile_mean": None, "interval": None,
    }  # fmt: skip
    if played.complete:
        summary["interquartile_mean"] = float(aggregate.interquartile_mean(scores[:, None]))
        summary["interval"] = list(aggregate.stratified_bootstrap(scores[:, None], seed=0))
    return summary
