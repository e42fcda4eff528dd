"""Problems whose values are known in closed form, with logged data: what estimators of returns are
checked against.

All have the same record, `KnownProblem`. Values are exact in float64: of the return over a number
of remaining steps (what trajectories cut at the horizon show, and importance sampling estimates),
and without end (`math.inf`: what bootstrapping through the cut estimates, as fitted Q evaluation
and density ratios do). The two differ by about `gamma ** horizon`.

The system depends only on the sizes; the seed is that of the logged data, so that repeats are
repeats.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from offline_mbrl.data.memory import Dataset
from offline_mbrl.problems import linear_gaussian as known_linear
from offline_mbrl.problems import tables
from offline_mbrl.types import (
    BoundedActions,
    DiscreteActions,
    EnvironmentSpec,
    Policy,
    PyTree,
    UsageError,
)

BEHAVIOR_STD = 0.15  # of the linear-Gaussian policies' actions
# Of its target policies: distance from the behavior, 0
STRENGTHS = (-1.0, -0.5, -0.25, 0.25, 0.5, 1.0)


class KnownProblem(NamedTuple):
    """Logged data with `behavior_log_prob` in their extras, policies, and exact values of any
    policy of their kind.

    Where `value`, `v` and `q` take the number of steps left, `math.inf` means no end.
    """

    dataset: Dataset
    spec: EnvironmentSpec  # gamma; horizon: every episode is cut there
    policy: Policy  # the kind of all policies here
    behavior_params: PyTree
    target_params: tuple[PyTree, ...]
    # (params, steps=horizon) -> expected discounted return from the start
    value: Callable[..., float]
    # (params, observation [..., n], steps [...] = inf) -> [...] of the state
    v: Callable[..., np.ndarray]
    # (params, observation [..., n], action [..., A], steps [...] = inf) -> [...]
    q: Callable[..., np.ndarray]
    truth: dict[str, np.ndarray]  # the system's own arrays
    density_ratio: Callable[[PyTree], np.ndarray] | None = None  # (params) -> [S, A]; see `tabular`


def _logged(
    observation: np.ndarray,
    action: np.ndarray,
    reward: np.ndarray,
    log_prob: np.ndarray,
    length: np.ndarray,
    terminal: np.ndarray,
) -> Dataset:
    """N simulated episodes `[N, H + 1, ...]`, `[N, H, ...]`; of each the first `length` `[N]` steps
    happened."""
    steps = np.arange(observation.shape[1])[None]
    happened = steps <= length[:, None]
    is_last = steps == length[:, None]
    close = lambda column: np.concatenate([column, np.zeros_like(column[:, :1])], axis=1)[happened]  # noqa: E731
    return Dataset.from_arrays(
        {
            "observation": observation[happened],
            "action": close(action),
            "reward": close(reward),
            "behavior_log_prob": close(log_prob),
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
    "log_std": [A]}`. Values are quadratic in the state, by the backward recursion of their
    coefficients (and without end by a Lyapunov equation). Actions are never clipped, and need not
    be: with the policies given here one lies outside [-1, 1] with a probability below 1e-7. No
    episode terminates.

    Args:
      seed: of the logged data.
      state_size: n.
      action_size: A, at most n; every action entry drives the states whose index it is modulo A.
      num_episodes: logged episodes.
      horizon: steps of each.
      gamma: discount factor.

    Raises:
      UsageError: there are more action than state entries.
    """
    n, m = state_size, action_size
    if not 0 < m <= n:
        raise UsageError(f"linear_gaussian: action_size must be in 1 .. state_size = {n}, got {m}")
    system, drives = known_linear.circulant(n, m)
    behavior, *targets = (
        {
            "gain": (0.2 * strength - 0.1) * drives / drives.sum(1, keepdims=True),
            "offset": np.full(m, 0.1 * strength),
            "log_std": np.full(m, math.log(BEHAVIOR_STD)),
        }
        for strength in (0.0, *STRENGTHS)
    )

    def value(params: PyTree, steps: float = horizon) -> float:
        _, _, quadratic, constant = known_linear.coefficients(system, params, gamma, steps)
        return float(np.sum(quadratic * system.start) + constant)

    def v(params: PyTree, observation: Any, steps: Any = math.inf) -> np.ndarray:
        _, _, quadratic, constant = known_linear.coefficients(system, params, gamma, steps)
        return known_linear.evaluate(quadratic, constant, observation)

    def q(params: PyTree, observation: Any, action: Any, steps: Any = math.inf) -> np.ndarray:
        quadratic, constant, _, _ = known_linear.coefficients(system, params, gamma, steps)
        return known_linear.evaluate(quadratic, constant, observation, action)

    spec = EnvironmentSpec(
        jax.ShapeDtypeStruct((n,), jnp.float32),
        BoundedActions((-1.0,) * m, (1.0,) * m),
        gamma,
        horizon,
    )
    as_params = lambda params: {name: np.float32(leaf) for name, leaf in params.items()}  # noqa: E731
    state, action, reward, log_prob = known_linear.simulate(
        system, as_params(behavior), np.random.default_rng(seed), num_episodes, horizon
    )
    length, ended = np.full(num_episodes, horizon), np.zeros(num_episodes, bool)
    return KnownProblem(
        _logged(state, action, reward, log_prob, length, ended),
        spec,
        known_linear.policy(),
        as_params(behavior),
        tuple(map(as_params, targets)),
        value,
        v,
        q,
        system._asdict(),
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
    """A chain of 5 states: action 1 moves right, 0 left; the other way with probability `slip`.

    Observations are one-hot; the reward of action a in state i is `i / 4 - a / 10`. With `terminal`
    the right end ends the episode and arriving there pays 2 more on average, else the chain goes
    on. Policies are tables, params `{"logits": [S, A]}`.

    `density_ratio` is `d_pi(s, a) / d_D(s, a)` on the states that do not end an episode, 0
    elsewhere: d_pi is `(1 - gamma)` times the discounted visits without end (they sum to less than
    one where episodes terminate), d_D the expected share of the logged steps. So `E_D[ratio *
    reward] = (1 - gamma) * value(params, inf)`.

    Args:
      seed: of the logged data.
      terminal: whether the right end is a true terminal.
      slip: probability of the other move; 0 makes the chain deterministic.
      num_episodes: logged episodes.
      horizon: steps after which an episode is cut.
      gamma: discount factor.
    """
    left, right = (np.minimum(np.maximum(np.arange(5) + step, 0), 4) for step in (-1, 1))
    transition = np.stack(
        [
            (1 - slip) * np.eye(5)[going] + slip * np.eye(5)[other]
            for going, other in ((left, right), (right, left))
        ],
        axis=1,
    )
    tilt = np.linspace(-0.4, 0.4, 5)
    policies = [
        np.stack([np.zeros(5), tilt + push], axis=1) for push in (0.0, -1.0, -0.5, 0.5, 1.0, 1.5)
    ]
    return _tabular(
        transition, terminal, policies, np.random.default_rng(seed), num_episodes, horizon, gamma
    )


def unsupported(
    seed: int, *, num_episodes: int = 200, horizon: int = 10, gamma: float = 0.9
) -> KnownProblem:
    """The chain with a third action that the data never hold and the targets take, 10, 50 and 90 %
    of the time.

    It jumps to the right end; nothing in the data says so. What looks at weights alone sees many
    equal ones.
    """
    chain = tabular(seed, num_episodes=1)
    transition = np.concatenate(
        [chain.truth["transition"], np.broadcast_to(np.eye(5)[4], (5, 1, 5))], axis=1
    )
    never = np.full((5, 1), -60.0)
    policies = [np.concatenate([chain.behavior_params["logits"], never], axis=1)]
    for share in (0.1, 0.5, 0.9):
        other: Any = scipy.special.logsumexp(chain.behavior_params["logits"], axis=1, keepdims=True)
        policies.append(
            np.concatenate([policies[0][:, :2], other + math.log(share / (1 - share))], axis=1)
        )
    return _tabular(
        transition, False, policies, np.random.default_rng(seed), num_episodes, horizon, gamma
    )


def _tabular(
    transition: np.ndarray,
    terminal: bool,
    policies: list[np.ndarray],
    rng: np.random.Generator,
    num_episodes: int,
    horizon: int,
    gamma: float,
) -> KnownProblem:
    num_states, num_actions, _ = transition.shape
    ends = np.arange(num_states) == (num_states - 1 if terminal else -1)
    reward = np.arange(num_states)[:, None] / (num_states - 1) - 0.1 * np.arange(num_actions)[None]
    reward = np.where(ends[:, None], 0.0, reward + 2.0 * transition[:, :, ends].sum(axis=-1))
    initial = np.array([0.4, 0.3, 0.2, 0.1, 0.0])
    table = tables.Table(transition, reward, initial, ends)
    params = [{"logits": logits.astype(np.float32)} for logits in policies]

    def of_q(params: PyTree, steps: Any) -> np.ndarray:
        return tables.action_values(table, tables.probabilities(params), gamma, steps)

    def of_v(params: PyTree, steps: Any) -> np.ndarray:
        return np.sum(of_q(params, steps) * tables.probabilities(params), axis=-1)

    def value(params: PyTree, steps: float = horizon) -> float:
        return float(of_v(params, steps) @ initial)

    def v(params: PyTree, observation: Any, steps: Any = math.inf) -> np.ndarray:
        return np.sum(np.asarray(observation) * of_v(params, steps), axis=-1)

    def q(params: PyTree, observation: Any, action: Any, steps: Any = math.inf) -> np.ndarray:
        chosen = (
            np.asarray(observation)[..., :, None]
            * np.eye(num_actions)[np.asarray(action)][..., None, :]
        )
        return np.sum(chosen * of_q(params, steps), axis=(-2, -1))

    spec = EnvironmentSpec(
        jax.ShapeDtypeStruct((num_states,), jnp.float32),
        DiscreteActions(num_actions),
        gamma,
        horizon,
    )
    behavior = tables.probabilities(params[0])
    state, chosen, length, ended = tables.simulate(table, behavior, rng, num_episodes, horizon)
    rows = (state[:, :-1], chosen)
    dataset = _logged(
        np.eye(num_states)[state], chosen, reward[rows], np.log(behavior)[rows], length, ended
    )
    return KnownProblem(
        dataset,
        spec,
        tables.policy(),
        params[0],
        tuple(params[1:]),
        value,
        v,
        q,
        table._asdict(),
        lambda target: tables.density_ratio(
            table, behavior, tables.probabilities(target), gamma, horizon
        ),
    )
