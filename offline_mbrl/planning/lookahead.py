"""Exact lookahead over all action sequences of some length, in batched matrix products.

With `V_0(s) = v(s)` and `q_k(s, a) = r(s, a) + gamma V_(k-1)(s')`, a backup turns `q_k(s, .)` into
`V_k(s)`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from offline_mbrl.planning import outcomes
from offline_mbrl.types import Array, Key, LatentModel, Params, Plan, Planner, PyTree, UsageError

Backup = Callable[[Array, Array], Array]  # (prior logits [A], q-values [A]) -> value []
MAX_LEAVES = 100_000  # per root


def make(
    model: LatentModel, *, num_actions: int, gamma: float, depth: int, backup: Backup
) -> Planner:
    """Looks `depth` steps ahead under every sequence of actions.

    The root's weights are those of `one_step.exact` with the deeper q: `softmax(prior_logits +
    q_depth - v)` whatever the backup, so depth 1 is `one_step.exact`.

    Args:
      model: the latent model.
      num_actions: A.
      gamma: discount factor per step.
      depth: number of steps; `A ** depth` leaves per root.
      backup: the value of a state below the root, of one state's prior logits and q-values.

    Returns:
      A planner of `[B]` roots, N = A; `action` is sampled from `weights`.

    Raises:
      UsageError: no action, no step, or more than `MAX_LEAVES` leaves per root.
    """
    outcomes.require_at_least(1, "lookahead", num_actions=num_actions, depth=depth)
    if num_actions**depth > MAX_LEAVES:
        raise UsageError(
            f"lookahead: depth {depth} over {num_actions} actions has {num_actions**depth} leaves "
            f"per root, above {MAX_LEAVES}; look less deep, or search a tree"
        )
    actions = jnp.arange(num_actions)

    def plan(params: Params, embeddings: PyTree, key: Key) -> Plan:
        root = outcomes.evaluate(model, params, embeddings)
        levels = []
        for _ in range(depth):
            following, outcome = outcomes.follow(model, params, embeddings, actions)
            levels.append(outcome)
            embeddings = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), following)
        qvalues = levels[-1].reward + gamma * levels[-1].value
        for outcome in reversed(levels[:-1]):
            prior_logits = outcome.prior_logits.reshape(qvalues.shape)
            values = jax.vmap(backup)(prior_logits, qvalues).reshape(outcome.reward.shape)
            qvalues = outcome.reward + gamma * values
        logits = root.prior_logits + qvalues - root.value[:, None]
        return outcomes.plan_by_softmax(logits, qvalues, root.value, key)

    return plan


def softmax_backup(
    model: LatentModel, *, num_actions: int, gamma: float, depth: int, temperature: float = 1.0
) -> Planner:
    """Every state below the root is worth its expected q under the improved policy there.

    `V_k(s) = sum of p(a) q_k(s, a)` with `p = softmax(prior_logits + q_k / temperature)`.

    Args:
      model: the latent model.
      num_actions: A.
      gamma: discount factor per step.
      depth: number of steps.
      temperature: of the improved policies below the root; towards 0 this becomes `max_backup`.

    Returns:
      A planner as that of `make`.

    Raises:
      UsageError: as `make`, or a temperature that is not above 0.
    """
    if temperature <= 0:
        raise UsageError(f"lookahead: temperature is {temperature}; give more than 0")

    def expected(prior_logits: Array, qvalues: Array) -> Array:
        return jnp.dot(jax.nn.softmax(prior_logits + qvalues / temperature), qvalues)

    return make(model, num_actions=num_actions, gamma=gamma, depth=depth, backup=expected)


def max_backup(model: LatentModel, *, num_actions: int, gamma: float, depth: int) -> Planner:
    """Every state below the root is worth its largest q: `V_k(s) = max_a q_k(s, a)`.

    Args:
      model: the latent model.
      num_actions: A.
      gamma: discount factor per step.
      depth: number of steps.

    Returns:
      A planner as that of `make`.

    Raises:
      UsageError: as `make`.
    """
    return make(
        model,
        num_actions=num_actions,
        gamma=gamma,
        depth=depth,
        backup=lambda _, qvalues: jnp.max(qvalues),
    )
