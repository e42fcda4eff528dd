"""Episodes of a policy in a simulator: many at a time, all seeds of a run in one call per step."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import dm_env
import jax
import numpy as np

from offline_mbrl import environments
from offline_mbrl.evaluation import acting, schedules, simulation
from offline_mbrl.types import Actor, Params, Policy, UsageError

Chooser = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (observations [N, ...], first [N])


class Evaluation(NamedTuple):
    """What was played. The leading axis `S` is there when seeds were evaluated together."""

    # [S, num_episodes] or [num_episodes]   undiscounted unless asked; NaN where not finished
    returns: np.ndarray
    lengths: np.ndarray  # same shape, int32 steps; 0 where not finished
    complete: bool  # every episode was finished
    message: str  # why not; empty when complete
    # [S, num_episodes] or [num_episodes] bool, the episode solved the task; None where the
    # simulator has no such notion
    success: np.ndarray | None = None
    starts: int = 0  # all of them were played, equally often; 0: starts were drawn


class Evaluator(NamedTuple):
    """A policy in simulators that are built by its first evaluation and used by all later ones."""

    # (params, *, seed, num_episodes, greedy, ended=None) -> Evaluation; `ended(count)` is called
    # for each episode with the number of those that have ended so far
    evaluate: Callable[..., Evaluation]
    # (params, *, num_episodes, num_steps) -> seconds that a step of all slots takes
    seconds_per_step: Callable[..., float]
    close: Callable[[], None]  # frees the simulators


@contextlib.contextmanager
def opened(policy: Policy | Actor, simulator: str, **settings: Any) -> Iterator[Evaluator]:
    """An evaluator that is closed at the end; see `make_evaluator` for the settings."""
    evaluator = make_evaluator(policy, simulator, **settings)
    try:
        yield evaluator
    finally:
        evaluator.close()


def evaluate(
    policy: Policy | Actor,
    params: Params,
    simulator: str,
    *,
    seed: int,
    num_episodes: int,
    greedy: bool,
    **settings: Any,
) -> Evaluation:
    """Plays episodes once; use `opened` to evaluate again and again.

    Args:
      policy: with memory or without.
      params: its parameters, `[S, ...]` with `num_seeds`.
      simulator: its name.
      seed: of the episodes.
      num_episodes: per seed.
      greedy: whether the policy acts without exploration.
      **settings: those of `make_evaluator`.
    """
    with opened(policy, simulator, **settings) as evaluator:
        return evaluator.evaluate(params, seed=seed, num_episodes=num_episodes, greedy=greedy)


def make_evaluator(
    policy: Policy | Actor,
    simulator: str,
    *,
    num_seeds: int | None = None,
    batch_size: int = 100,
    timeout: float = 60.0,
    processes: int = 0,
    make: Callable[..., dm_env.Environment] = environments.make,
    gamma: float = 1.0,
) -> Evaluator:
    """Builds an evaluator; the policy is compiled on first use, and once for each size.

    `batch_size` simulators per seed play side by side, each a fixed number of episodes, so that
    long episodes count as much as short ones. Every seed of a run meets simulators and action keys
    of its own, so that scores of seeds are independent, as intervals over them assume. An actor's
    carry is made anew at the start of every episode.

    Where a simulator has few starts and nothing after them is random (`environments.starts`),
    greedy policies play each start once. The number of episodes has to be a multiple of the number
    of starts, so that they count alike; the mean return is then exact and no seed changes it.

    Args:
      policy: with memory or without.
      simulator: a name for `make`.
      num_seeds: S when params carry a leading axis `[S, ...]`, None for one set of params.
      batch_size: simulators per seed at most. The episodes depend on it.
      timeout: seconds without an answer from the simulators that count as hanging.
      processes: that step the simulators; 0 for a thread of this one. The episodes do not depend
        on it.
      make: `(simulator, *, seed) -> dm_env.Environment`; importable where there are processes.
      gamma: discount factor of the returns; 1 for scores.

    Returns:
      The evaluator. An evaluation ends early, with `complete` False and a message, when a simulator
      raises or hangs; it raises UsageError when a number is not positive, when the simulator cannot
      be made or when the policy's actions do not fit it.

    Raises:
      UsageError: a number is not positive.
    """
    _require_positive(batch_size=batch_size, num_seeds=num_seeds or 1)
    build = functools.partial(_build, make, simulator)
    simulators = simulation.make(build, timeout=timeout, processes=processes)
    lead = () if num_seeds is None else (num_seeds,)
    over_seeds = num_seeds is not None
    has_success = environments.has_success(simulator)
    # An actor may act at random even greedily, a policy's mode does not.
    starts = environments.starts(simulator) if isinstance(policy, Policy) else ()

    @functools.cache
    def compiled(width: int, greedy: bool) -> acting.Acting:
        return acting.vectorize(policy, width, greedy=greedy, over_seeds=over_seeds)

    def play(
        params: Params, seed: int, schedule: schedules.Schedule, ended: Callable[[int], None]
    ) -> Evaluation:
        choose = _chooser(
            compiled(schedule.width, schedule.greedy), params, (*lead, schedule.width), seed
        )
        record = _empty(num_seeds or 1, schedule.num_episodes)
        message = ""
        try:
            _play(simulators.begin(schedule.seeds), choose, record, schedule.width, gamma, ended)
        except simulation.SimulatorFailed as error:
            finished = int((record.lengths > 0).sum())
            size = record.lengths.size
            message = f"{simulator}: {error}; {finished} of {size} episodes were finished"
        return _evaluation(record, lead, message, schedule, has_success=has_success)

    def evaluate(
        params: Params,
        *,
        seed: int,
        num_episodes: int,
        greedy: bool,
        ended: Callable[[int], None] | None = None,
    ) -> Evaluation:
        _require_positive(num_episodes=num_episodes)
        schedule = schedules.make(
            starts,
            seed=seed,
            num_seeds=num_seeds or 1,
            batch_size=batch_size,
            num_episodes=num_episodes,
            greedy=greedy,
        )
        return play(params, seed, schedule, schedules.counting(ended or _ignore, schedule))

    def seconds_per_step(params: Params, *, num_episodes: int, num_steps: int = 20) -> float:
        _require_positive(num_episodes=num_episodes, num_steps=num_steps)
        width = min(batch_size, num_episodes)
        choose = _chooser(compiled(width, False), params, (*lead, width), 0)
        running = simulators.begin(schedules.draw_seeds(0, num_seeds or 1, width))
        return _time_steps(running, choose, num_steps)

    return Evaluator(evaluate=evaluate, seconds_per_step=seconds_per_step, close=simulators.close)


# --- parts ---


class _Record(NamedTuple):
    """Filled in place while episodes end."""

    returns: np.ndarray  # [S, num_episodes]
    lengths: np.ndarray  # [S, num_episodes]
    terminal: np.ndarray  # [S, num_episodes] bool


def _empty(num_seeds: int, num_episodes: int) -> _Record:
    returns = np.full((num_seeds, num_episodes), np.nan)
    return _Record(
        returns=returns,
        lengths=np.zeros(returns.shape, np.int32),
        terminal=np.zeros(returns.shape, bool),
    )


def _evaluation(
    record: _Record,
    lead: tuple[int, ...],
    message: str,
    schedule: schedules.Schedule,
    *,
    has_success: bool,
) -> Evaluation:
    """What a record says, without the axis of seeds where there is none."""
    count = schedule.num_episodes * max(schedule.repeats, 1)

    def shaped(column: np.ndarray) -> np.ndarray:
        return np.tile(column, max(schedule.repeats, 1)).reshape(*lead, count)

    return Evaluation(
        returns=shaped(record.returns),
        lengths=shaped(record.lengths),
        complete=not message,
        message=message,
        success=shaped(record.terminal) if has_success else None,
        starts=schedule.num_episodes if schedule.repeats else 0,
    )


def _require_positive(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise UsageError(f"{name} must be at least 1, got {number}")


def _ignore(count: int) -> None:
    del count


def _build(make: Callable[..., dm_env.Environment], simulator: str, seed: int) -> Any:
    return make(simulator, seed=seed)


def _chooser(policy: acting.Acting, params: Params, shape: tuple[int, ...], seed: int) -> Chooser:
    """(observations [N, ...], first [N]) -> actions [N, ...], with the carries kept in between.

    Args:
      policy: compiled.
      params: its parameters.
      shape: [S, W] or [W], with N entries.
      seed: of the action keys.
    """
    key = jax.random.key(seed)
    carry: Any = None
    t = 0

    def choose(observation: np.ndarray, first: np.ndarray) -> np.ndarray:
        nonlocal carry, t
        observation = observation.reshape(*shape, *observation.shape[1:])
        step: Any = np.uint32(t)
        if t == 0:
            carry = policy.begin(params, observation, key, step)
        action, carry = policy.act(params, carry, observation, first.reshape(shape), key, step)
        t += 1
        actions = np.asarray(action)
        return actions.reshape(-1, *actions.shape[len(shape) :])

    return choose


def _play(
    running: simulation.Simulation,
    choose: Chooser,
    record: _Record,
    width: int,
    gamma: float,
    ended: Callable[[int], None],
) -> None:
    """Fills the record: slot w of a seed plays its episodes w, w + W, ...

    Args:
      running: S * W simulators.
      choose: their actions.
      record: `[S, num_episodes]`, changed in place.
      width: W.
      gamma: discount factor of the returns.
      ended: called for each episode with the number of those that have ended.
    """
    num_seeds, num_episodes = record.returns.shape
    slots = np.tile(np.arange(width), num_seeds)
    quota = (num_episodes - slots + width - 1) // width
    played = np.zeros_like(slots)
    steps = np.zeros_like(slots)
    total = np.zeros(len(slots))
    observation = running.first
    first = np.zeros(len(slots), bool)  # the carries of the first episodes are there
    active = quota > 0
    while active.any():
        actions = choose(observation, first)
        _check(actions, running.action_spec)
        moment = running.step(actions, active)
        total += gamma**steps * moment.reward  # steps before this one, in this episode
        steps = steps + active
        observation = moment.observation
        first = moment.last
        rows = np.flatnonzero(moment.last)
        where = (rows // width, slots[rows] + played[rows] * width)
        record.returns[where] = total[rows]
        record.lengths[where] = steps[rows]
        record.terminal[where] = moment.terminal[rows]
        for number in range(len(rows)):
            ended(int(played.sum()) + number + 1)
        played[rows] += 1
        total[rows] = 0
        steps[rows] = 0
        active = played < quota


def _time_steps(running: simulation.Simulation, choose: Chooser, num_steps: int) -> float:
    """Median seconds of a step of all simulators, apart from the first, which compiles."""
    everywhere = np.ones(len(running.first), bool)
    observation = running.first
    first = np.zeros(len(observation), bool)
    seconds = []
    for _ in range(num_steps + 1):
        began = time.perf_counter()
        actions = choose(observation, first)
        _check(actions, running.action_spec)
        moment = running.step(actions, everywhere)
        observation = moment.observation
        first = moment.last
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds[1:]))


def _check(actions: np.ndarray, spec: Any) -> None:
    """Refuses actions `[N, ...]` of another shape or kind than the simulator's, or out of range."""
    whole = np.dtype(spec.dtype).kind in "iu"
    if actions.shape[1:] != spec.shape or (actions.dtype.kind in "iu") != whole:
        raise UsageError(
            f"the policy gives actions of shape {actions.shape[1:]} and dtype {actions.dtype}, the "
            f"simulator takes shape {spec.shape} and dtype {np.dtype(spec.dtype)}"
        )
    inside = (actions >= spec.minimum) & (actions <= spec.maximum)  # NaN is not
    if not inside.all():
        wrong = actions[~inside].ravel()[0]
        raise UsageError(
            f"the policy gave the action {wrong}, the simulator takes {spec.minimum} to "
            f"{spec.maximum}"
        )
