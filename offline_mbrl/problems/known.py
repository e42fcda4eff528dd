"""Problems with logged data and values in closed form, to check estimators of returns.

All problems are records `KnownProblem`. Values are exact in float64, of two kinds: over a number of
remaining steps, which importance sampling estimates from trajectories truncated at the horizon, and
without end (`math.inf`), which fitted Q evaluation and density ratios estimate by bootstrapping
through the truncation. They differ by about `gamma ** horizon`.

A system depends only on its sizes. The seed is that of the logged data, so that problems with
different seeds are independent samples of the same system.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from offline_mbrl.data.memory import Dataset
from offline_mbrl.problems import linear_gaussian as linear
from offline_mbrl.problems import tables
from offline_mbrl.types import (
    BoundedActions,
    DiscreteActions,
    EnvironmentSpec,
    Params,
    Policy,
    UsageError,
)

BEHAVIOR_STD = 0.15  # standard deviation of the linear-Gaussian policies' actions
STRENGTHS = (-1.0, -0.5, -0.25, 0.25, 0.5, 1.0)  # of the targets; the behavior's is 0


class KnownProblem(NamedTuple):
    """Logged data, a class of policies, and the exact values of any policy of the class.

    `value`, `v` and `q` take the number of remaining steps; `math.inf` means no end.
    """

    dataset: Dataset  # its extras hold `behavior_log_prob`
    spec: EnvironmentSpec  # with gamma; every episode is truncated at the horizon
    policy: Policy  # shared by the behavior and all targets, which differ in their params
    behavior_params: Params
    target_params: tuple[Params, ...]
    # (params, steps=horizon) -> expected discounted return from the start
    value: Callable[..., float]
    # (params, observation [..., n], steps [...] = inf) -> [...]
    v: Callable[..., np.ndarray]
    # (params, observation [..., n], action [..., A], steps [...] = inf) -> [...]
    q: Callable[..., np.ndarray]
    truth: dict[str, np.ndarray]  # the system's own arrays
    density_ratio: Callable[[Params], np.ndarray] | None = None  # -> [S, A]; see `tabular`


def _logged(
    observation: np.ndarray,
    action: np.ndarray,
    reward: np.ndarray,
    log_prob: np.ndarray,
    length: np.ndarray,
    terminal: np.ndarray,
) -> Dataset:
    """The dataset of N simulated episodes.

    Args:
      observation: `[N, H + 1, ...]`.
      action: `[N, H, ...]`.
      reward: `[N, H]`.
      log_prob: `[N, H]` log probabilities of the actions.
      length: `[N]` numbers of steps; what follows them is left out.
      terminal: `[N]` bool, whether the episode ends in a true terminal.
    """
    steps = np.arange(observation.shape[1])[None]
    happened = steps <= length[:, None]
    is_last = steps == length[:, None]

    def records(column: np.ndarray) -> np.ndarray:
        return np.concatenate([column, np.zeros_like(column[:, :1])], axis=1)[happened]

    return Dataset.from_arrays(
        {
            "observation": observation[happened],
            "action": records(action),
            "reward": records(reward),
            "behavior_log_prob": records(log_prob),
            "is_last": is_last[happened],
            "is_terminal": (is_last & terminal[:, None])[happened],
        }
    )


# --- linear-Gaussian ---


def linear_gaussian(
    seed: int,
    *,
    state_size: int = 2,
    action_size: int = 1,
    num_episodes: int = 200,
    horizon: int = 20,
    gamma: float = 0.9,
) -> KnownProblem:
    """A stable linear system with Gaussian noise, a quadratic reward, and linear-Gaussian policies.

    `s' = A s + B a + 0.1 e`, reward `1/2 + mean(s) + mean(a) / 5 - (|s|^2 + |a|^2) / 10 + 0.05 e`,
    policies `a = gain s + offset + exp(log_std) e` with params `{"gain": [A, n], "offset": [A],
    "log_std": [A]}`. Values are quadratic in the state; a backward recursion gives their
    coefficients, a Lyapunov equation those without end. Actions are not clipped: for the policies
    of this problem an action lies outside [-1, 1] with a probability below 1e-7. No episode
    terminates.

    Args:
      seed: seed of the logged data.
      state_size: n.
      action_size: A, at most n; action entry j drives the state entries i with i mod A = j.
      num_episodes: number of logged episodes.
      horizon: steps per episode.
      gamma: discount factor.

    Raises:
      UsageError: there are more action than state entries.
    """
    if not 0 < action_size <= state_size:
        raise UsageError(
            f"linear_gaussian: action_size must be in 1 .. state_size = {state_size}, got "
            f"{action_size}"
        )
    system, drives = linear.circulant(state_size, action_size)

    def policy_params(strength: float) -> Params:
        params = {
            "gain": (0.2 * strength - 0.1) * drives / drives.sum(1, keepdims=True),
            "offset": np.full(action_size, 0.1 * strength),
            "log_std": np.full(action_size, math.log(BEHAVIOR_STD)),
        }
        return {name: np.float32(leaf) for name, leaf in params.items()}

    def value(params: Params, steps: float = horizon) -> float:
        _, _, quadratic, constant = linear.coefficients(system, params, gamma, steps)
        return float(np.sum(quadratic * system.start) + constant)

    def v(params: Params, observation: Any, steps: Any = math.inf) -> np.ndarray:
        _, _, quadratic, constant = linear.coefficients(system, params, gamma, steps)
        return linear.evaluate(quadratic, constant, observation)

    def q(params: Params, observation: Any, action: Any, steps: Any = math.inf) -> np.ndarray:
        quadratic, constant, _, _ = linear.coefficients(system, params, gamma, steps)
        return linear.evaluate(quadratic, constant, observation, action)

    behavior_params = policy_params(0.0)
    state, action, reward, log_prob = linear.simulate(
        system, behavior_params, np.random.default_rng(seed), num_episodes, horizon
    )
    dataset = _logged(
        observation=state,
        action=action,
        reward=reward,
        log_prob=log_prob,
        length=np.full(num_episodes, horizon),
        terminal=np.zeros(num_episodes, bool),
    )
    spec = EnvironmentSpec(
        observation=jax.ShapeDtypeStruct((state_size,), jnp.float32),
        action=BoundedActions(minimum=(-1.0,) * action_size, maximum=(1.0,) * action_size),
        gamma=gamma,
        horizon=horizon,
    )
    return KnownProblem(
        dataset=dataset,
        spec=spec,
        policy=linear.policy(),
        behavior_params=behavior_params,
        target_params=tuple(policy_params(strength) for strength in STRENGTHS),
        value=value,
        v=v,
        q=q,
        truth=system._asdict(),
    )


# --- tabular ---


def tabular(
    seed: int,
    *,
    terminal: bool = False,
    slip: float = 0.2,
    num_episodes: int = 200,
    horizon: int = 10,
    gamma: float = 0.9,
) -> KnownProblem:
    """A chain of 5 states: action 1 moves right, 0 left; the opposite with probability `slip`.

    Observations are one-hot; the reward of action a in state i is `i / 4 - a / 10`. With `terminal`
    the right end terminates the episode and reaching it adds 2 to the reward; without, episodes
    only end at the horizon. Policies are tables with params `{"logits": [S, A]}`.

    `density_ratio` is `d_pi(s, a) / d_D(s, a)` on the states that do not terminate the episode, and
    0 elsewhere: d_pi is `(1 - gamma)` times the discounted visits without end (they sum to less
    than 1 where episodes terminate), d_D the expected share of the logged steps. So `E_D[ratio *
    reward] = (1 - gamma) * value(params, inf)`.

    Args:
      seed: seed of the logged data.
      terminal: whether the right end is a true terminal.
      slip: probability of the opposite move; 0 makes the chain deterministic.
      num_episodes: number of logged episodes.
      horizon: steps after which an episode is truncated.
      gamma: discount factor.
    """
    states = np.arange(5)
    left = np.eye(5)[np.maximum(states - 1, 0)]
    right = np.eye(5)[np.minimum(states + 1, 4)]
    transition = np.stack(
        [(1 - slip) * left + slip * right, (1 - slip) * right + slip * left], axis=1
    )
    tilt = np.linspace(-0.4, 0.4, 5)
    logits = [
        np.stack([np.zeros(5), tilt + push], axis=1) for push in (0.0, -1.0, -0.5, 0.5, 1.0, 1.5)
    ]
    return _tabular(
        _table(transition, terminal),
        logits,
        np.random.default_rng(seed),
        num_episodes,
        horizon,
        gamma,
    )


def unsupported(
    seed: int, *, num_episodes: int = 200, horizon: int = 10, gamma: float = 0.9
) -> KnownProblem:
    """The chain with a third action that is absent from the data but used by the targets.

    It jumps to the right end, and the targets choose it with probabilities of 0.1, 0.5 and 0.9. No
    importance weight of the logged steps reveals that the targets are not supported.

    Args:
      seed: seed of the logged data.
      num_episodes: number of logged episodes.
      horizon: steps after which an episode is truncated.
      gamma: discount factor.
    """
    chain = tabular(seed, num_episodes=1)
    transition = np.concatenate(
        [chain.truth["transition"], np.broadcast_to(np.eye(5)[4], (5, 1, 5))], axis=1
    )
    behavior_logits = chain.behavior_params["logits"]
    absent = np.full((5, 1), -60.0)
    logits = [np.concatenate([behavior_logits, absent], axis=1)]
    for share in (0.1, 0.5, 0.9):
        total: Any = scipy.special.logsumexp(behavior_logits, axis=1, keepdims=True)
        jump = total + math.log(share / (1 - share))
        logits.append(np.concatenate([logits[0][:, :2], jump], axis=1))
    table = _table(transition, terminal=False)
    return _tabular(table, logits, np.random.default_rng(seed), num_episodes, horizon, gamma)


def _table(transition: np.ndarray, terminal: bool) -> tables.Table:
    """The chain's table from its transition probabilities `[S, A, S]`."""
    num_states, num_actions, _ = transition.shape
    ends = np.arange(num_states) == (num_states - 1 if terminal else -1)
    reward = np.arange(num_states)[:, None] / (num_states - 1) - 0.1 * np.arange(num_actions)[None]
    reward = np.where(ends[:, None], 0.0, reward + 2.0 * transition[:, :, ends].sum(axis=-1))
    initial = np.array([0.4, 0.3, 0.2, 0.1, 0.0])
    return tables.Table(transition=transition, reward=reward, initial=initial, terminal=ends)


def _tabular(
    table: tables.Table,
    logits: list[np.ndarray],
    rng: np.random.Generator,
    num_episodes: int,
    horizon: int,
    gamma: float,
) -> KnownProblem:
    """The problem of a table; the first of `logits` `[S, A]` is the behavior, the rest targets."""
    num_states, num_actions, _ = table.transition.shape
    behavior_params, *target_params = [{"logits": leaf.astype(np.float32)} for leaf in logits]
    behavior = tables.probabilities(behavior_params)

    def action_values(params: Params, steps: Any) -> np.ndarray:
        return tables.action_values(table, tables.probabilities(params), gamma, steps)

    def state_values(params: Params, steps: Any) -> np.ndarray:
        return np.sum(action_values(params, steps) * tables.probabilities(params), axis=-1)

    def value(params: Params, steps: float = horizon) -> float:
        return float(state_values(params, steps) @ table.initial)

    def v(params: Params, observation: Any, steps: Any = math.inf) -> np.ndarray:
        return np.sum(np.asarray(observation) * state_values(params, steps), axis=-1)

    def q(params: Params, observation: Any, action: Any, steps: Any = math.inf) -> np.ndarray:
        one_hot_action = np.eye(num_actions)[np.asarray(action)]
        one_hot = np.asarray(observation)[..., :, None] * one_hot_action[..., None, :]
        return np.sum(one_hot * action_values(params, steps), axis=(-2, -1))

    def density_ratio(params: Params) -> np.ndarray:
        target = tables.probabilities(params)
        return tables.density_ratio(table, behavior, target, gamma, horizon)

    state, action, length, terminal = tables.simulate(table, behavior, rng, num_episodes, horizon)
    pairs = (state[:, :-1], action)
    dataset = _logged(
        observation=np.eye(num_states)[state],
        action=action,
        reward=table.reward[pairs],
        log_prob=np.log(behavior)[pairs],
        length=length,
        terminal=terminal,
    )
    spec = EnvironmentSpec(
        observation=jax.ShapeDtypeStruct((num_states,), jnp.float32),
        action=DiscreteActions(num_actions),
        gamma=gamma,
        horizon=horizon,
    )
    return KnownProblem(
        dataset=dataset,
        spec=spec,
        policy=tables.policy(),
        behavior_params=behavior_params,
        target_params=tuple(target_params),
        value=value,
        v=v,
        q=q,
        truth=table._asdict(),
        density_ratio=density_ratio,
    )
