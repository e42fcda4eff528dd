"""A bandit with a rare good action, and a cliff that no data show.

Actions of the data lie in two intervals around `center(x)`: most in the lower one, few in the upper
one, where the reward is best. The reward rises all the way through the data, so that a critic
extrapolates it further; a little beyond the upper interval it is the worst there is. A learner that
stays within the support of the data finds the rare action; one that trusts its critic falls.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.data.memory import Dataset
from offline_mbrl.types import Action, Array, BoundedActions, EnvironmentSpec, Params, Policy

OFFSET = 0.3  # of the two intervals' middles from `center`
HALF_WIDTH = 0.15  # of both intervals
SLOPE = 2.0  # of the reward in the action, up to the cliff
EDGE = 0.55  # where the cliff is, a little beyond the upper interval
CLIFF = -2.0  # the reward beyond the edge


class SupportProblem(NamedTuple):
    """A problem of `toy`, with the distance of a policy from the data."""

    dataset: Dataset
    spec: EnvironmentSpec
    # (policy, params) -> [], exact: 1 for the best action of the support, 0 for the common mean
    score: Callable[[Policy, Params], Array]
    # (policy, params) -> [N] distances of greedy actions from the support, over a grid of contexts
    distance: Callable[[Policy, Params], Array]


def rare_action(seed: int, *, num_steps: int = 4_000, rare: float = 0.1) -> SupportProblem:
    """The bandit with logged data; every step is an episode.

    The context x is in `[-1, 1]`, the action in `[-1, 1]`, and both are one number.

    Args:
      seed: seed of the contexts and of the behavior.
      num_steps: number of logged steps.
      rare: probability of an action in the upper interval.
    """
    generator = np.random.default_rng(seed)
    context = generator.uniform(-1, 1, (num_steps, 1)).astype(np.float32)
    side = np.where(generator.random((num_steps, 1)) < rare, OFFSET, -OFFSET)
    noise = generator.uniform(-HALF_WIDTH, HALF_WIDTH, (num_steps, 1))
    action = (center(context) + side + noise).astype(np.float32)
    columns: dict[str, Any] = {
        "observation": context,
        "action": action,
        "reward": np.asarray(reward(context, action))[:, 0],
        "is_terminal": np.ones(num_steps, bool),
    }
    spec = EnvironmentSpec(
        observation=jax.ShapeDtypeStruct((1,), jnp.float32),
        action=BoundedActions(minimum=(-1.0,), maximum=(1.0,)),
        horizon=1,
    )
    return SupportProblem(
        dataset=Dataset.from_arrays(columns), spec=spec, score=_score, distance=_distance
    )


def center(context: Any) -> Any:
    """The middle between the two intervals; elementwise."""
    return 0.2 * context


def reward(context: Any, action: Any) -> Array:
    """The reward of an action; elementwise."""
    above = jnp.asarray(action - center(context))
    return jnp.where(above > EDGE, CLIFF, SLOPE * above)


def distance_from_support(context: Array, action: Array) -> Array:
    """How far an action lies outside the two intervals, 0 inside; elementwise."""
    from_middle = jnp.abs(jnp.abs(action - center(context)) - OFFSET)
    return jnp.maximum(from_middle - HALF_WIDTH, 0.0)


def _score(policy: Policy, params: Params) -> Array:
    contexts, actions = _greedy(policy, params)
    best = SLOPE * (OFFSET + HALF_WIDTH)
    common = -SLOPE * OFFSET
    return (jnp.mean(reward(contexts, actions)) - common) / (best - common)


def _distance(policy: Policy, params: Params) -> Array:
    contexts, actions = _greedy(policy, params)
    return distance_from_support(contexts, actions)[:, 0]


def _greedy(policy: Policy, params: Params) -> tuple[Array, Action]:
    """Contexts `[N, 1]` and the policy's actions `[N, 1]` there."""
    contexts = jnp.linspace(-1.0, 1.0, 41)[:, None]
    return contexts, jax.vmap(policy.mode, (None, 0))(params, contexts)
