"""Logs on BSuite: of a DQN that learns online, as RL Unplugged's, and of uniform actions.

Every episode of the DQN's run is kept, from the first random ones to the last good ones. With
noise, the environment replaces actions at random; the log holds both the agent's and the executed
action.
"""

from collections.abc import Callable, Iterator
from typing import Any

import dm_env
import jax
import numpy as np

from offline_mbrl import environments, types
from offline_mbrl.collect import dqn, replay
from offline_mbrl.data.catalog import official
from offline_mbrl.environments import bsuite
from offline_mbrl.types import Array, PyTree, UsageError

CAPACITY = 1_000_000  # transitions in the replay, as in Acme's DQN
EPISODES = {"catch": 2000, "cartpole": 1000, "mountain_car": 500}  # as in ROSMO's datasets


def collect(
    environment: str,
    *,
    num_episodes: int,
    noise: float = 0.0,
    fraction: int = 100,
    seed: int = 0,
    config: dqn.Config = dqn.Config(),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[dict[str, Any]]:
    """Runs DQN online from scratch and yields its episodes, in order.

    Args:
      environment: `catch`, `cartpole` or `mountain_car`.
      num_episodes: episodes of the run; `EPISODES` has the published numbers.
      noise: probability that the environment replaces an action by a uniform one.
      fraction: percent of the episodes to yield, a divisor of 100: one random episode of every
        block of `100 // fraction`. The length of the run does not change. Stores hold out one in
        20 of what is yielded.
      seed: source of all randomness; the same seed gives the same bytes on one machine.
      config: the agent's settings.
      progress: called after every episode of the run with the number done and `num_episodes`.

    Returns:
      Episodes `{"steps": {...}, "metadata": {"episode_id", "episode_return"}}`. Steps are RLDS
      records `[T + 1, ...]`: `observation`, `reward` and `discount` float32 (the latter two caused
      by the record's own action), `action` and `executed_action` int32, `is_first`, `is_last`,
      `is_terminal`, and `behavior_log_prob` float32, of `action` under the epsilon-greedy policy.
      On the last record only the observation and the flags are meaningful.

    Raises:
      UsageError: the environment is unknown, a number is out of range, or the fraction does not
        divide 100.
    """
    _check(environment, num_episodes, noise)
    official.check_fraction(fraction)
    kept = kept_episodes(num_episodes, fraction, seed=seed)
    return _run(f"bsuite/{environment}?noise={noise}", kept, seed, config, progress)


def collect_random(
    environment: str,
    *,
    num_episodes: int,
    noise: float = 0.0,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[dict[str, Any]]:
    """Yields episodes of uniform actions.

    Args:
      environment: `catch`, `cartpole` or `mountain_car`.
      num_episodes: episodes.
      noise: probability that the environment replaces an action by another uniform one.
      seed: source of all randomness; the same seed gives the same bytes.
      progress: called after every episode with the number done and `num_episodes`.

    Returns:
      Episodes as `collect` has them; `behavior_log_prob` is `-log A` of A actions.

    Raises:
      UsageError: the environment is unknown, or a number is out of range.
    """
    _check(environment, num_episodes, noise)
    return _play_uniformly(f"bsuite/{environment}?noise={noise}", num_episodes, seed, progress)


def _check(environment: str, num_episodes: int, noise: float) -> None:
    if environment not in bsuite.ENVIRONMENTS:
        raise UsageError(
            f"unknown environment {environment!r}: expected one of {', '.join(bsuite.ENVIRONMENTS)}"
        )
    if num_episodes < 1:
        raise UsageError(f"num_episodes must be at least 1, got {num_episodes}")
    if not 0 <= noise <= 1:
        raise UsageError(f"noise must be a probability from 0 to 1, got {noise}")


def kept_episodes(num_episodes: int, fraction: int, *, seed: int) -> np.ndarray:
    """Selects one random episode of every consecutive block of `100 // fraction`.

    Args:
      num_episodes: number of episodes.
      fraction: percent, a divisor of 100.
      seed: seed of the choice.

    Returns:
      `[num_episodes]` bool.
    """
    starts = np.arange(0, num_episodes, 100 // fraction)
    ends = np.minimum(starts + 100 // fraction, num_episodes)
    kept = np.zeros(num_episodes, bool)
    kept[np.random.default_rng([seed, 3]).integers(starts, ends)] = True
    return kept


def _run(
    simulator: str,
    kept: np.ndarray,
    seed: int,
    config: dqn.Config,
    progress: Callable[[int, int], None],
) -> Iterator[dict[str, Any]]:
    """The online run: act, log, and update every `update_period` steps."""
    spec = environments.spec(simulator)
    simulation: Any = environments.make(simulator, seed=seed)
    agent = dqn.make(config, spec)
    key_init, key_act = jax.random.split(jax.random.key(seed))

    @jax.jit
    def act(params: PyTree, observation: Array, step: Array) -> tuple[Array, Array]:
        return agent.act(params, observation, jax.random.fold_in(key_act, step))

    learn = jax.jit(agent.step)
    rng = np.random.default_rng([seed, 2])
    state = agent.init(key_init)
    memory = replay.make(min(CAPACITY, len(kept) * spec.horizon), spec.observation.shape)
    num_steps = 0
    num_stored = 0
    for episode in range(len(kept)):
        records = []
        timestep = simulation.reset()
        while not timestep.last():
            action, log_prob = act(state.params, timestep.observation, np.uint32(num_steps))
            following = simulation.step(int(action))
            executed_action = simulation.executed_action
            records.append(
                _record(timestep, int(action), executed_action, float(log_prob), following)
            )
            timestep = following
            num_steps += 1
            if num_steps % config.update_period == 0 and num_stored >= config.batch_size:
                state, _ = learn(state, replay.sample(memory, num_stored, config.batch_size, rng))
        steps = _episode(records, timestep)
        transitions = replay.n_step(steps, td_steps=config.td_steps, gamma=config.gamma)
        num_stored = replay.store(memory, num_stored, transitions)
        progress(episode + 1, len(kept))
        if kept[episode]:
            yield {"steps": steps, "metadata": _metadata(steps, episode)}


def _play_uniformly(
    simulator: str, num_episodes: int, seed: int, progress: Callable[[int, int], None]
) -> Iterator[dict[str, Any]]:
    simulation: Any = environments.make(simulator, seed=seed)
    num_actions = types.num_actions(environments.spec(simulator), simulator)
    rng = np.random.default_rng([seed, 4])
    for episode in range(num_episodes):
        records = []
        timestep = simulation.reset()
        while not timestep.last():
            action = int(rng.integers(num_actions))
            following = simulation.step(action)
            executed_action = simulation.executed_action
            records.append(
                _record(timestep, action, executed_action, -np.log(num_actions), following)
            )
            timestep = following
        steps = _episode(records, timestep)
        progress(episode + 1, num_episodes)
        yield {"steps": steps, "metadata": _metadata(steps, episode)}


def _episode(records: list[dict[str, Any]], final: dm_env.TimeStep) -> dict[str, np.ndarray]:
    """The steps of an episode, closed by the record of its last observation."""
    records = [*records, _record(final, 0, 0, 0.0, None)]
    return {name: np.stack([record[name] for record in records]) for name in records[0]}


def _metadata(steps: dict[str, np.ndarray], episode: int) -> dict[str, Any]:
    episode_return = float(steps["reward"].sum(dtype=np.float64))
    return {"episode_id": episode, "episode_return": episode_return}


def _record(
    timestep: dm_env.TimeStep,
    action: int,
    executed_action: int,
    log_prob: float,
    following: dm_env.TimeStep | None,
) -> dict[str, Any]:
    """An RLDS record; `following` is the next timestep, None on the episode's last record."""
    return {
        "observation": np.asarray(timestep.observation, np.float32),
        "action": np.int32(action),
        "executed_action": np.int32(executed_action),
        "reward": np.float32(following.reward if following else 0.0),
        "discount": np.float32(following.discount if following else 0.0),
        "is_first": np.bool_(timestep.first()),
        "is_last": np.bool_(timestep.last()),
        "is_terminal": np.bool_(timestep.last() and timestep.discount == 0),
        "behavior_log_prob": np.float32(log_prob),
    }
