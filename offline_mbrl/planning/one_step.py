"""One-step lookahead over all actions (ROSMO, arXiv:2210.05980)."""

import jax
import jax.numpy as jnp

from offline_mbrl.types import Array, LatentModel, Plan, Planner, PyTree


def exact(model: LatentModel, *, num_actions: int, gamma: float) -> Planner:
    """Looks one step ahead under every action.

    `q(s, a) = r(s, a) + gamma v(s')`, weights `p(a) = prior(a) exp(q(s, a) - v(s)) / Z(s)`, written as a softmax so
    that any advantage is finite (the release multiplies and divides, and overflows at 88).

    Args:
      model: the latent model.
      num_actions: A.
      gamma: discount factor per step.

    Returns:
      A planner for one root; its `action` is sampled from `weights`.
    """

    def plan(params: PyTree, embedding: PyTree, key: Array) -> Plan:
        root = model.predict(params, embedding)
        value = model.scalar(root.value_logits)
        actions = jnp.arange(num_actions)
        children = jax.vmap(model.dynamics, (None, None, 0))(params, embedding, actions)
        outcome = jax.vmap(model.predict, (None, 0))(params, children)
        qvalues = jax.vmap(model.scalar)(outcome.reward_logits) + gamma * jax.vmap(model.scalar)(outcome.value_logits)
        logits = root.policy_logits + qvalues - value
        return Plan(
            action=jax.random.categorical(key, logits), actions=actions,
            weights=jax.nn.softmax(logits), qvalues=qvalues, value=value)  # fmt: skip

    return plan
