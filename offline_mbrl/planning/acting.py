"""Planners that plan nothing, for acting: the policy head as it is, and the best value that a planner found."""

import jax
import jax.numpy as jnp

from offline_mbrl.planning import outcomes
from offline_mbrl.types import Array, LatentModel, Plan, Planner, PyTree


def policy_head(model: LatentModel) -> Planner:
    """The policy head itself: `weights` are its probabilities, every q-value is the model's value of the root."""

    def plan(params: PyTree, embeddings: PyTree, key: Array) -> Plan:
        root = outcomes.evaluate(model, params, embeddings)
        qvalues = jnp.zeros_like(root.prior_logits) + root.value[:, None]
        return outcomes.plan_by_softmax(root.prior_logits, qvalues, root.value, key)

    return plan


def largest_value(planner: Planner) -> Planner:
    """Acts by the largest action value that another planner found, its prior left aside (arXiv:2104.06294, table 2)."""

    def plans(params: PyTree, embeddings: PyTree, key: Array) -> Plan:
        plan = planner(params, embeddings, key)
        best = jnp.argmax(plan.qvalues, axis=-1)
        action = jnp.take_along_axis(plan.actions, best[:, None], axis=-1)[:, 0]
        return plan._replace(action=action, weights=jax.nn.one_hot(best, plan.qvalues.shape[-1]))

    return plans
