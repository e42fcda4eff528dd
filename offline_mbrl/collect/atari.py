"""Atari episodes of scripted play of several strengths, in the layout of RL Unplugged's Atari data.

Nothing is learned here. In Pong and Breakout the script sends the paddle to where the ball will
arrive (`collect.atari_scripts`); in every other game it repeats the previous action. With a
probability that cycles through `EPSILONS` from episode to episode, a uniform action replaces the
script's, so that the data range from random to good play.
"""

from collections.abc import Callable, Iterator
from typing import Any

import dm_env
import numpy as np

from offline_mbrl import environments
from offline_mbrl.collect import atari_scripts
from offline_mbrl.data.catalog.atari import EPSILONS
from offline_mbrl.types import UsageError


def collect(
    game: str,
    *,
    num_steps: int,
    num_episodes: int = 0,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[dict[str, Any]]:
    """Plays episodes until there are enough steps, and yields them in order.

    Args:
      game: for example `Pong`.
      num_steps: total number of agent steps; the last episode is truncated there.
      num_episodes: limit of the number of episodes; 0: no limit.
      seed: source of all randomness; the same seed gives the same bytes on one machine.
      progress: called after every 100 steps and every episode with the steps done and `num_steps`.

    Returns:
      Episodes `{"steps": {...}, "metadata": {"episode_id", "episode_return", "unclipped_return",
      "epsilon"}}`. Steps are RLDS records `[T + 1, ...]`: `observation` `[84, 84, 1]` uint8, the
      newest frame alone; `action` int64 of the minimal set; `reward` float32 clipped to [-1, 1],
      and `unclipped_reward`, the game's own; `discount`; flags; and `behavior_log_prob` float32,
      of `action` given the episode's epsilon (and the previous action, where the script repeats
      it). On the last record only the observation and the flags are meaningful.

    Raises:
      UsageError: the game is unknown, or a number is out of range.
    """
    if num_steps < 1 or num_episodes < 0:
        raise UsageError(
            f"num_steps must be at least 1 and num_episodes not negative, got {num_steps}, "
            f"{num_episodes}"
        )
    simulation = environments.make(f"atari/{game}", seed=seed)
    return _run(game, simulation, num_steps, num_episodes, seed, progress)


def _run(
    game: str,
    simulation: dm_env.Environment,
    num_steps: int,
    num_episodes: int,
    seed: int,
    progress: Callable[[int, int], None],
) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng([seed, 2])
    steps = episode = 0
    while steps < num_steps and (not num_episodes or episode < num_episodes):
        epsilon = EPSILONS[episode % len(EPSILONS)]

        def episode_progress(done: int, steps_before: int = steps) -> None:
            progress(steps_before + done, num_steps)

        columns = _episode(game, simulation, epsilon, num_steps - steps, rng, episode_progress)
        steps += len(columns["reward"]) - 1
        progress(steps, num_steps)
        metadata = {
            "episode_id": episode,
            "episode_return": float(columns["reward"].sum(dtype=np.float64)),
            "unclipped_return": float(columns["unclipped_reward"].sum(dtype=np.float64)),
            "epsilon": epsilon,
        }
        yield {"steps": columns, "metadata": metadata}
        episode += 1


def _episode(
    game: str,
    simulation: dm_env.Environment,
    epsilon: float,
    limit: int,
    rng: np.random.Generator,
    progress: Callable[[int], None],
) -> dict[str, np.ndarray]:
    """Plays an episode of at most `limit` steps; its columns `[T + 1, ...]`."""
    action_spec: Any = simulation.action_spec()
    num_actions = int(action_spec.num_values)
    records = []
    timestep = simulation.reset()
    action = 0
    while not timestep.last() and len(records) < limit:
        scripted = (
            atari_scripts.act(game, timestep.observation)
            if game in atari_scripts.FIELDS
            else action
        )
        action, log_prob = epsilon_greedy(scripted, num_actions, epsilon, rng)
        following = simulation.step(action)
        records.append(_record(timestep, action, log_prob, following))
        timestep = following
        if len(records) % 100 == 0:
            progress(len(records))
    records.append(_record(timestep, 0, 0.0, None) | {"is_last": np.bool_(True)})
    return {name: np.stack([record[name] for record in records]) for name in records[0]}


def epsilon_greedy(
    scripted: int, num_actions: int, epsilon: float, rng: np.random.Generator
) -> tuple[int, float]:
    """Replaces the scripted action by a uniform one with probability `epsilon`.

    Args:
      scripted: the script's action.
      num_actions: number of actions.
      epsilon: probability of a uniform action.
      rng: advanced by the draws.

    Returns:
      The action and its log probability.
    """
    action = int(rng.integers(num_actions)) if rng.random() < epsilon else scripted
    return action, float(np.log(epsilon / num_actions + (1 - epsilon) * (action == scripted)))


def _record(
    timestep: dm_env.TimeStep, action: int, log_prob: float, following: dm_env.TimeStep | None
) -> dict[str, Any]:
    """An RLDS record; `following` is the next timestep, None on the episode's last record."""
    reward = float(following.reward) if following else 0.0
    return {
        "observation": timestep.observation[..., -1:].copy(),  # a view would keep the whole stack
        "action": np.int64(action),
        "reward": np.float32(np.clip(reward, -1, 1)),
        "unclipped_reward": np.float32(reward),
        "discount": np.float32(following.discount if following else 0.0),
        "is_first": np.bool_(timestep.first()),
        "is_last": np.bool_(timestep.last()),
        "is_terminal": np.bool_(timestep.last() and timestep.discount == 0),
        "behavior_log_prob": np.float32(log_prob),
    }
