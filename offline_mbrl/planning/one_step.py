"""One-step lookahead over all actions or over samples of the prior (ROSMO, arXiv:2210.05980)."""

import jax
import jax.numpy as jnp

from offline_mbrl.planning import outcomes
from offline_mbrl.types import Array, Key, LatentModel, Params, Plan, Planner, PyTree

MAX_LOG_WEIGHT = 80.0  # e^80 = 5.5e34 is still a float32


def exact(model: LatentModel, *, num_actions: int, gamma: float) -> Planner:
    """Looks one step ahead under every action.

    `q(s, a) = r(s, a) + gamma v(s')`, weights `p(a) = prior(a) exp(q(s, a) - v(s)) / Z(s)`, written
    as a softmax so that any advantage is finite (the release multiplies and divides, and overflows
    at 88).

    Args:
      model: the latent model.
      num_actions: A.
      gamma: discount factor per step.

    Returns:
      A planner of `[B]` roots, N = A; its `action` is sampled from `weights`.

    Raises:
      UsageError: fewer than one action.
    """
    outcomes.require_at_least(1, "one-step lookahead", num_actions=num_actions)

    def plan(params: Params, embeddings: PyTree, key: Key) -> Plan:
        root = outcomes.evaluate(model, params, embeddings)
        _, outcome = outcomes.follow(model, params, embeddings, jnp.arange(num_actions))
        qvalues = outcome.reward + gamma * outcome.value
        logits = root.prior_logits + qvalues - root.value[:, None]
        return outcomes.plan_by_softmax(logits, qvalues, root.value, key)

    return plan


def sampled(
    model: LatentModel, *, num_actions: int, gamma: float, num_samples: int, normalize: bool = False
) -> Planner:
    """Looks one step ahead under N actions drawn from the prior, with replacement.

    Sample i weighs `exp(adv_i) / (1 + sum of exp(adv_j) over j != i)`, Muesli's normalizer with
    `z_init = 1`. Added up per action the weights are the policy target; their sum is 1 only when
    all advantages are 0, as in the release. A weight above e^80 is cut there, so that it stays a
    number.

    Args:
      model: the latent model.
      num_actions: A.
      gamma: discount factor per step.
      num_samples: N, the number of dynamics calls per root.
      normalize: rescale the weights of each root to the sum 1.

    Returns:
      A planner of `[B]` roots whose candidates may repeat. Its `action` is drawn from the prior, as
      the released actor does when it samples; `improved_value` takes the weights normalized.

    Raises:
      UsageError: fewer than one action or sample.
    """
    outcomes.require_at_least(
        1, "sampled one-step lookahead", num_actions=num_actions, num_samples=num_samples
    )

    def plan(params: Params, embeddings: PyTree, key: Key) -> Plan:
        root = outcomes.evaluate(model, params, embeddings)
        # One more than the candidates: the last one is the action.
        shape = (num_samples + 1, root.value.shape[0])
        samples = jax.random.categorical(key, root.prior_logits, shape=shape).T
        actions = samples[:, :-1]
        _, outcome = outcomes.follow(model, params, embeddings, actions)
        qvalues = outcome.reward + gamma * outcome.value
        logits = _sampled_logits(qvalues - root.value[:, None])
        normalized = jax.nn.softmax(logits)
        as_released = jnp.exp(jnp.minimum(logits, MAX_LOG_WEIGHT))
        return Plan(
            action=samples[:, -1],
            actions=actions,
            weights=normalized if normalize else as_released,
            qvalues=qvalues,
            value=root.value,
            improved_value=jnp.sum(normalized * qvalues, axis=-1),
        )

    return plan


def _sampled_logits(advantages: Array) -> Array:
    """Logarithms `[B, N]` of the weights that samples with these advantages `[B, N]` have."""
    same = jnp.eye(advantages.shape[1], dtype=bool)[None]
    others = jnp.where(same, 0.0, advantages[:, None])  # a sample's own place holds z_init = e^0
    return advantages - jax.nn.logsumexp(others, axis=2)
