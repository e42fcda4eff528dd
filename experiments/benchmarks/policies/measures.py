"""What runs report beside their scores: figures of the critics and of the models.

The value gap is that of the initial states: what the critics say of the policy's action there, less
the discounted rewards, and from the second step on the entropy bonus, that episodes then give.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from experiments.benchmarks.policies import presets
from offline_mbrl.algorithms.imagined import rambo
from offline_mbrl.collect import online
from offline_mbrl.learners import sac
from offline_mbrl.learners.parts import actor_critic
from offline_mbrl.learners.parts.actor_critic import State
from offline_mbrl.training.fit import Progress
from offline_mbrl.types import EnvironmentSpec, PyTree

KEPT = ("expansion/expected_horizon", "expansion/std", "q/mean")  # of the metrics of a block
NUM_STARTS = 20  # initial states of the value gap
NUM_STEPS = 1_000  # of the episodes from there: what follows is discounted away
GAP = "value_gap"


def of_block(progress: Progress) -> dict[str, list[float]]:
    """The metrics that are kept, `[S]` each."""
    return {
        name: np.atleast_1d(progress.metrics[name]).tolist()
        for name in KEPT
        if name in progress.metrics
    }


def with_soft_values(config: Any) -> sac.Config | None:
    """The settings of a learner whose critics estimate soft values of discounted rewards."""
    policy = presets.policy_config(config)
    return policy if type(policy) is sac.Config else None


def critics_of(state: PyTree) -> State | None:
    """The part of a learner's state that is its policy and critics; None where there is none.

    RAMBO's state has its model beside them.
    """
    inner = state.learner if isinstance(state, rambo.State) else state
    return inner if isinstance(inner, State) else None


def value_gap(
    config: sac.Config, spec: EnvironmentSpec, state: State, simulator: str, *, seed: int
) -> float:
    """The mean over initial states of the critics' values less the discounted soft returns.

    Args:
      config: of the policy and its critics.
      spec: of the problem.
      state: of one seed.
      simulator: its name; episodes are as long as values are, not as scores count them.
      seed: of simulators and actions.
    """
    networks = sac.networks(config, spec)
    agent = actor_critic.agent_of(networks, state)
    name = simulator.partition("?")[0] + f"?max_steps={NUM_STEPS}"
    running = online.simulators(name, NUM_STARTS, entropy=[seed, 29])

    @jax.jit
    def sample(observations: PyTree, step: int) -> tuple[PyTree, PyTree]:
        key = jax.random.fold_in(jax.random.key(seed), step)
        action, log_prob = actor_critic.sample_actions(agent.policy, observations, key)
        return action, {"log_prob": log_prob}

    steps = iter(range(NUM_STEPS))
    starts = online.reset(running)
    played = online.play(running, starts, lambda seen: sample(seen, next(steps)), NUM_STEPS)[1:]
    for simulator_ in running:
        simulator_.close()
    transitions, is_last = jax.tree.map(
        lambda leaf: leaf.reshape(NUM_STEPS, NUM_STARTS, -1), played
    )
    returns = soft_returns(
        transitions.reward[..., 0],
        transitions.extras["log_prob"][..., 0],
        is_last[..., 0],
        gamma=config.gamma,
        temperature=float(agent.temperature),
    )
    values = agent.critics(transitions.observation[0], transitions.action[0])
    return float(np.mean(values) - np.mean(returns))


def soft_returns(
    reward: np.ndarray,
    log_prob: np.ndarray,
    is_last: np.ndarray,
    *,
    gamma: float,
    temperature: float,
) -> np.ndarray:
    """`r_0 + sum_t>0 gamma^t (r_t - temperature log pi(a_t|s_t))` of first episodes, `[K]`.

    Args:
      reward: `[T, K]`.
      log_prob: `[T, K]` of the actions.
      is_last: `[T, K]` whether an episode ends with the step; what follows is another episode.
      gamma: discount factor.
      temperature: weight of entropy.
    """
    ended_before = np.cumsum(is_last, axis=0) - is_last > 0
    weights = gamma ** np.arange(len(reward))[:, None] * ~ended_before
    bonus = -temperature * log_prob
    bonus[0] = 0.0
    return np.sum(weights * (reward + bonus), axis=0)


def of_seed(history: list[dict[str, list[float]]], index: int) -> Mapping[str, float]:
    """Each figure's mean over the last third of the blocks that have it, for one seed.

    Args:
      history: figures of the blocks, `[S]` each.
      index: of the seed.
    """
    names = sorted({name for block in history for name in block})
    columns = {name: [block[name][index] for block in history if name in block] for name in names}
    return {
        name: round(float(np.mean(values[-max(len(values) // 3, 1) :])), 4)
        for name, values in columns.items()
    }
