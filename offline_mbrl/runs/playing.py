"""A run's policies in its simulator, acting greedily and by sampling, and what that costs."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import dm_env
import jax
import numpy as np

from offline_mbrl import environments
from offline_mbrl.data import specs
from offline_mbrl.evaluation import aggregate, episodes, simulation
from offline_mbrl.runs import display
from offline_mbrl.types import (
    Actor,
    BoundedActions,
    DiscreteActions,
    EnvironmentSpec,
    Params,
    Policy,
    UsageError,
)

HOW = {"greedy": True, "sampled": False}
BATCH_SIZE = 100  # simulators per seed
HORIZON = 1_000  # steps of an episode, for estimates of time, where a simulator states none
ALLOWANCE = 10.0  # seconds that evaluations during training may take in any run
Show = display.Show


def check(simulator: str, spec: EnvironmentSpec) -> None:
    """Refuses a simulator that cannot be made here or that policies of this spec would not fit.

    Raises:
      UsageError: see above.
    """
    simulated = environments.spec(simulator)
    shapes = _shapes(spec.observation)
    if _shapes(simulated.observation) != shapes:
        raise UsageError(
            f"the dataset's observations have shape {shapes}, those of {simulator} "
            f"{_shapes(simulated.observation)}"
        )
    if not _fits(spec.action, simulated.action):
        raise UsageError(
            f"the dataset's actions are {spec.action}, those of {simulator} {simulated.action}"
        )
    if isinstance(spec.action, BoundedActions) and isinstance(simulated.action, BoundedActions):
        _require_units(simulator, spec.action, simulated.action)


def _require_units(simulator: str, own: BoundedActions, simulated: BoundedActions) -> None:
    """Refuses actions in other units than the simulator's.

    Those that are stated to lie in [-1, 1] were scaled before they were logged, or need no scaling.
    """
    if specs.has_unit_bounds(own) and (specs.has_unit_bounds(simulated) or not own.assumed):
        return
    if np.allclose([own.minimum, own.maximum], [simulated.minimum, simulated.maximum]):
        return
    theirs = specs.describe_range(simulated)
    origin = "are assumed, for none are stated" if own.assumed else "are stated"
    raise UsageError(
        f"the bounds of the dataset's actions {origin}: {specs.describe_range(own)}; those of "
        f"{simulator} are {theirs}. Give --action-bounds (of arrays: `action_bounds`) with those "
        f"of {simulator} if the data are in its units, or -1 1 if they were scaled before they "
        "were logged; or train without a simulator by --episodes 0"
    )


def _shapes(observation: Any) -> str:
    return " ".join(f"{list(leaf.shape)}" for leaf in jax.tree.leaves(observation))


def _fits(
    policy: DiscreteActions | BoundedActions, simulator: DiscreteActions | BoundedActions
) -> bool:
    """Whether a simulator takes the actions that a policy gives."""
    if isinstance(policy, DiscreteActions):
        return (
            isinstance(simulator, DiscreteActions) and policy.num_actions <= simulator.num_actions
        )
    return isinstance(simulator, BoundedActions) and policy.size == simulator.size


# --- playing ---


class Player(NamedTuple):
    """A run's policies in simulators that are built once and used by all evaluations."""

    # (params [S, ...], *, seed, num_episodes, show) -> {"greedy": ..., "sampled": ...}, each an
    # `Evaluation`; `show(number, "episodes")` is called as episodes end, up to `num_played`
    play: Callable[..., dict[str, episodes.Evaluation]]
    # (params [S, ...], num_episodes, length) -> estimated seconds of `play` for episodes of that
    # many steps; None for the longest possible
    seconds: Callable[[Params, int, float | None], float]


@contextlib.contextmanager
def opened(
    policy: Policy | Actor, simulator: str, *, num_seeds: int, processes: int = 0
) -> Iterator[Player]:
    """A player whose simulators are freed at the end.

    Args:
      policy: of the run.
      simulator: its name.
      num_seeds: S.
      processes: that step the simulators; 0 for a thread of this one.
    """
    with episodes.opened(
        policy,
        simulator,
        num_seeds=num_seeds,
        batch_size=BATCH_SIZE,
        processes=processes,
        make=_make,
    ) as evaluator:

        def play(
            params: Params, *, seed: int, num_episodes: int, show: Show | None = None
        ) -> dict[str, episodes.Evaluation]:
            played = {}
            for how, greedy in HOW.items():
                before = len(played) * num_seeds * num_episodes
                played[how] = evaluator.evaluate(
                    params,
                    seed=seed,
                    num_episodes=num_episodes,
                    greedy=greedy,
                    ended=_counter(show, before),
                )
            return played

        def seconds(params: Params, num_episodes: int, length: float | None = None) -> float:
            try:
                per_step = evaluator.seconds_per_step(params, num_episodes=num_episodes)
            except simulation.SimulatorFailed:
                return 0.0  # the evaluation itself will say why
            rounds = math.ceil(num_episodes / BATCH_SIZE)
            if length is None:
                length = environments.spec(simulator).horizon or HORIZON
            return len(HOW) * rounds * length * per_step

        yield Player(play=play, seconds=seconds)


def num_played(num_seeds: int, num_episodes: int) -> int:
    """Episodes of one call of `play`."""
    return len(HOW) * num_seeds * num_episodes


def _make(simulator: str, *, seed: int) -> dm_env.Environment:
    return environments.make(simulator, seed=seed)


def _counter(show: Show | None, before: int) -> Callable[[int], None] | None:
    """What shows the number of episodes that have ended, with those of earlier evaluations."""
    if show is None:
        return None
    return lambda count: show(before + count, "episodes")


# --- what evaluations during training may cost ---


def affordable(
    num_evaluations: int,
    seconds_each: float,
    training_seconds: float,
    share: float = 0.1,
    allowance: float = ALLOWANCE,
) -> int:
    """How many evaluations fit into a share of the run's time.

    With n evaluations of s seconds and T seconds of training, n s <= share (T + n s), or n s <=
    allowance if that is more: short runs keep their learning curve.

    Args:
      num_evaluations: asked for; never more are returned.
      seconds_each: s.
      training_seconds: T, without evaluations.
      share: of the whole run, at least 0; from 1 on all evaluations fit.
      allowance: seconds for all of them that are never refused.
    """
    if share >= 1 or seconds_each <= 0:
        return num_evaluations
    budget = max(share / (1 - share) * training_seconds, allowance)
    return min(num_evaluations, math.floor(budget / seconds_each))


def cost(num_evaluations: int, affordable: int, seconds_each: float) -> str:
    """One line about evaluations during training, for a person, before the first of them.

    Args:
      num_evaluations: asked for.
      affordable: that will be played.
      seconds_each: estimated.
    """
    each = f"each about {_in_words(seconds_each)}"
    if affordable >= num_evaluations:
        return f"{num_evaluations} evaluations during training, {each}"
    return (
        f"{affordable} of {num_evaluations} evaluations during training, {each}: more would exceed "
        "--evaluation-share of the run's time; a smaller --episodes-during makes room for more"
    )


def _in_words(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min"


# --- what the scores say ---


def mean_returns(played: episodes.Evaluation) -> np.ndarray:
    """`[S]` mean over the episodes that were finished; NaN for a seed that finished none."""
    counts = np.isfinite(played.returns).sum(axis=1)
    return np.where(counts, np.nansum(played.returns, axis=1) / np.maximum(counts, 1), np.nan)


def summarize(
    played: Mapping[str, episodes.Evaluation],
    reference: Sequence[float] | None,
    human: Sequence[float] | None = None,
) -> dict[str, dict[str, Any]]:
    """Per way of acting: mean return per seed, normalized score, interquartile mean, 95 % interval.

    Scores are raw returns where there is no reference. An evaluation that did not finish has no
    aggregate: what its seeds played is still there, marked incomplete.

    Args:
      played: what `play` returned.
      reference: the returns that stand for 0 and 1.
      human: the returns of a random policy and of a human, for human-normalized scores.
    """
    return {
        how: _summarize(evaluation, reference)
        | _on_human_scale(evaluation, human)
        | _success(evaluation)
        | _starts(evaluation)
        for how, evaluation in played.items()
    }


def _success(played: episodes.Evaluation) -> dict[str, Any]:
    """The share of each seed's finished episodes that solved the task, where there is one."""
    if played.success is None:
        return {}
    finished = np.isfinite(played.returns).sum(axis=1)
    solved = played.success.sum(axis=1)
    rates = np.where(finished, solved / np.maximum(finished, 1), np.nan)
    middle = float(aggregate.interquartile_mean(rates[:, None])) if played.complete else None
    return {"success": _numbers(rates), "success_interquartile_mean": middle}


def _starts(played: episodes.Evaluation) -> dict[str, Any]:
    """The number of starts where all of them were played."""
    return {"starts": played.starts} if played.starts else {}


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
        "complete": played.complete,
        "message": played.message,
        "episodes": np.isfinite(played.returns).sum(axis=1).tolist(),
        "returns": _numbers(returns),
        "scores": _numbers(scores),
        "normalized": reference is not None,
        "lengths": [
            float(row[row > 0].mean()) if (row > 0).any() else None for row in played.lengths
        ],
        "interquartile_mean": None,
        "interval": None,
    }
    if played.complete:
        summary["interquartile_mean"] = float(aggregate.interquartile_mean(scores[:, None]))
        if len(scores) > 1:  # one seed says nothing about others
            summary["interval"] = list(aggregate.stratified_bootstrap(scores[:, None], seed=0))
    return summary


def _numbers(values: np.ndarray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
