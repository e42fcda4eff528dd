"""A run's policies in its simulator, acting greedily and by sampling, and what the scores say."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dm_env
import jax
import numpy as np

from offline_mbrl import environments
from offline_mbrl.evaluation import aggregate, episodes
from offline_mbrl.runs import display
from offline_mbrl.types import BoundedActions, DiscreteActions, EnvironmentSpec, Policy, PyTree, UsageError

HOW = {"greedy": True, "sampled": False}
Show = display.Show


def check(simulator: str, spec: EnvironmentSpec) -> None:
    """Refuses a simulator that cannot be made here or that policies of this spec would not fit.

    Raises:
      UsageError: see above.
    """
    there = environments.spec(simulator)
    seen, wanted = (
        " ".join(f"{list(leaf.shape)}" for leaf in jax.tree.leaves(one.observation)) for one in (there, spec)
    )
    if seen != wanted:
        raise UsageError(f"the dataset's observations have shape {wanted}, those of {simulator} {seen}")
    if not _fits(spec.action, there.action):
        raise UsageError(f"the dataset's actions are {spec.action}, those of {simulator} {there.action}")


def _fits(action: DiscreteActions | BoundedActions, taken: DiscreteActions | BoundedActions) -> bool:
    if isinstance(action, DiscreteActions):
        return isinstance(taken, DiscreteActions) and action.num_actions <= taken.num_actions
    return isinstance(taken, BoundedActions) and action.size == taken.size


def make(
    policy: Policy, simulator: str, *, num_seeds: int, num_episodes: int
) -> Callable[..., dict[str, episodes.Evaluation]]:
    """Builds `play(params [S, ...], *, seed, show) -> {"greedy": Evaluation, "sampled": Evaluation}`.

    `show(number, "episodes")` is called as episodes end, from the simulators' thread; there are
    `num_played(num_seeds, num_episodes)` in all.
    """
    watcher: list[Callable[[], None]] = [lambda: None]  # of the call in progress

    def watched(name: str, *, seed: int) -> dm_env.Environment:
        return Watched(environments.make(name, seed=seed), watcher[0])

    evaluators = {
        how: episodes.make_evaluator(
            policy, simulator, num_episodes=num_episodes, greedy=greedy, num_seeds=num_seeds, make=watched
        )
        for how, greedy in HOW.items()
    }

    def play(params: PyTree, *, seed: int, show: Show = lambda done, words: None) -> dict[str, episodes.Evaluation]:
        watcher[0] = _counter(show)
        return {how: evaluate(params, seed=seed) for how, evaluate in evaluators.items()}

    return play


def num_played(num_seeds: int, num_episodes: int) -> int:
    """Episodes of one call of `play`."""
    return len(HOW) * num_seeds * num_episodes


def _counter(show: Show) -> Callable[[], None]:
    ended, lock = [0], threading.Lock()  # a simulator that hung in an earlier evaluation may still end an episode

    def count() -> None:
        with lock:
            ended[0] += 1
            show(ended[0], "episodes")

    return count


class Watched(dm_env.Environment):
    """A simulator that tells when an episode has ended."""

    def __init__(self, environment: dm_env.Environment, ended: Callable[[], None]):
        """Args: `ended` is called after an episode's last step."""
        self._environment = environment
        self._ended = ended

    def reset(self) -> dm_env.TimeStep:
        """Starts an episode."""
        return self._environment.reset()

    def step(self, action: Any) -> dm_env.TimeStep:
        """Takes a step."""
        timestep = self._environment.step(action)
        if timestep.last():
            self._ended()
        return timestep

    def observation_spec(self) -> Any:
        """The simulator's."""
        return self._environment.observation_spec()

    def action_spec(self) -> Any:
        """The simulator's."""
        return self._environment.action_spec()

    def close(self) -> None:
        """Frees the simulator."""
        self._environment.close()


# --- what the scores say ---


def mean_returns(played: episodes.Evaluation) -> np.ndarray:
    """`[S]` mean over the episodes that were finished; NaN for a seed that finished none."""
    counts = np.isfinite(played.returns).sum(axis=1)
    return np.where(counts, np.nansum(played.returns, axis=1) / np.maximum(counts, 1), np.nan)


def summarize(
    played: Mapping[str, episodes.Evaluation], reference: Sequence[float] | None, human: Sequence[float] | None = None
) -> dict[str, dict[str, Any]]:
    """Per way of acting: mean return per seed, normalized score, interquartile mean and its 95 % interval.

    With the returns of a random policy and of a human, `human`, there are human-normalized scores beside them.

    Scores are raw returns where there is no reference. An evaluation that did not finish has no aggregate: what
    its seeds played is still there, marked incomplete.
    """
    return {how: _summarize(one, reference) | _on_human_scale(one, human) for how, one in played.items()}


def _on_human_scale(played: episodes.Evaluation, human: Sequence[float] | None) -> dict[str, Any]:
    if human is None:
        return {}
    scores = aggregate.normalized_score(mean_returns(played), *human)
    middle = float(aggregate.interquartile_mean(scores[:, None])) if played.complete else None
    return {"human_scores": _numbers(scores), "human_interquartile_mean": middle}


def _summarize(played: episodes.Evaluation, reference: Sequence[float] | None) -> dict[str, Any]:
    returns = mean_returns(played)
    scores = returns if reference is None else aggregate.normalized_score(returns, *reference)
    summary = {
        "complete": played.complete, "message": played.message,
        "episodes": np.isfinite(played.returns).sum(axis=1).tolist(),
        "returns": _numbers(returns), "scores": _numbers(scores), "normalized": reference is not None,
        "lengths": [float(row[row > 0].mean()) if (row > 0).any() else None for row in played.lengths],
        "interquartile_mean": None, "interval": None,
    }  # fmt: skip
    if played.complete:
        summary["interquartile_mean"] = float(aggregate.interquartile_mean(scores[:, None]))
        if len(scores) > 1:  # one seed says nothing about others
            summary["interval"] = list(aggregate.stratified_bootstrap(scores[:, None], seed=0))
    return summary


def _numbers(values: np.ndarray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
