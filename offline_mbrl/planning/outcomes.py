"""What planners share: predictions at many embeddings at once, and plans over all actions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from offline_mbrl.types import Action, Array, Key, LatentModel, Params, Plan, PyTree, UsageError


class Outcome(NamedTuple):
    """The heads at embeddings `[B, ...]`, reward and value in raw units."""

    prior_logits: Array  # [B, A]
    reward: Array  # [B]   of the transition that led here
    value: Array  # [B]


def evaluate(model: LatentModel, params: Params, embeddings: PyTree) -> Outcome:
    """Predictions at `[B, ...]` embeddings; under jit the heads that nobody reads cost nothing."""
    heads = jax.vmap(model.predict, (None, 0))(params, embeddings)
    scalar = jax.vmap(model.scalar)
    return Outcome(
        prior_logits=heads.policy_logits,
        reward=scalar(heads.reward_logits),
        value=scalar(heads.value_logits),
    )


def follow(
    model: LatentModel, params: Params, embeddings: PyTree, actions: Action
) -> tuple[PyTree, Outcome]:
    """Where several actions lead from each state, and the predictions there.

    Args:
      model: the latent model.
      params: its parameters.
      embeddings: `[B, ...]`.
      actions: `[N]`, the same for all states, or `[B, N]`.

    Returns:
      Embeddings `[B, N, ...]`, and the outcomes with `[B, N]` in front.
    """
    # The map over actions is the inner one: what depends on the embedding alone is computed once
    # per state.
    step = jax.vmap(model.dynamics, (None, None, 0))
    following = jax.vmap(step, (None, 0, None if actions.ndim == 1 else 0))(
        params, embeddings, actions
    )
    return following, jax.vmap(evaluate, (None, None, 0))(model, params, following)


def plan_by_softmax(logits: Array, qvalues: Array, value: Array, key: Key) -> Plan:
    """The plan over all actions with weights `softmax(logits)`, from which its action is sampled.

    Args:
      logits: `[B, A]`.
      qvalues: `[B, A]`.
      value: `[B]` the model's own.
      key: consumed.
    """
    weights = jax.nn.softmax(logits)
    return Plan(
        action=draw(weights, key),
        actions=all_actions(qvalues),
        weights=weights,
        qvalues=qvalues,
        value=value,
        improved_value=jnp.sum(weights * qvalues, axis=-1),
    )


def draw(weights: Array, key: Key) -> Array:
    """An index `[B]` for each row of `[B, A]` weights, which need not sum to 1.

    A weight of 0 is never drawn. By inversion, a single random number for each row: a quarter of
    the time of a one-step lookahead would otherwise go here. The number is at most 1 - 2^-23, so
    that it times the sum stays below the sum in float32 too.
    """
    total = jnp.cumsum(weights, axis=-1)
    below = jax.random.uniform(key, weights.shape[:1]) * total[:, -1]
    return jnp.sum(total <= below[:, None], axis=-1)


def all_actions(qvalues: Array) -> Array:
    """The candidates `[B, A]` of a planner that leaves no action out."""
    return jnp.broadcast_to(jnp.arange(qvalues.shape[-1]), qvalues.shape)


def require_at_least(minimum: int, caller: str, **settings: int) -> None:
    """Refuses settings that are not whole numbers, or too small.

    Args:
      minimum: of each.
      caller: for messages.
      settings: by name.

    Raises:
      UsageError: the first setting that is wrong.
    """
    for name, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise UsageError(
                f"{caller}: {name} is {value!r}; give a whole number of at least {minimum}"
            )
