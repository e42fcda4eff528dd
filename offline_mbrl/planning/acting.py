"""Planners for acting: the policy head as it is, and the best value of another planner."""

import jax
import jax.numpy as jnp

from offline_mbrl.planning import outcomes
from offline_mbrl.types import Key, LatentModel, Params, Plan, Planner, PyTree


def policy_head(model: LatentModel) -> Planner:
    """The policy head itself.

    `weights` are its probabilities, every q-value is the model's value of the root.
    """

    def plan(params: Params, embeddings: PyTree, key: Key) -> Plan:
        root = outcomes.evaluate(model, params, embeddings)
        qvalues = jnp.zeros_like(root.prior_logits) + root.value[:, None]
        return outcomes.plan_by_softmax(root.prior_logits, qvalues, root.value, key)

    return plan


def largest_value(planner: Planner) -> Planner:
    """Acts by the largest action value of another planner (arXiv:2104.06294, table 2).

    The prior is left aside.
    """

    def plan(params: Params, embeddings: PyTree, key: Key) -> Plan:
        searched = planner(params, embeddings, key)
        best = jnp.argmax(searched.qvalues, axis=-1)
        action = jnp.take_along_axis(searched.actions, best[:, None], axis=-1)[:, 0]
        weights = jax.nn.one_hot(best, searched.qvalues.shape[-1])
        return searched._replace(action=action, weights=weights)

    return plan
