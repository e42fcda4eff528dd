"""How much of the data a policy's visits rest on: a sign of support for single transitions.

With features `phi` of states and actions, whose means a linear map carries one step on under the
policy, the mean features of its discounted visits follow from those of its first step, as in linear
fitted Q evaluation:

    nu = (1 - gamma) E[phi(s0, a0)] + gamma A' nu
    A = E_D[phi phi']^-1 E_D[discount phi phi(s', a')']

The linear function of the data with these means that varies least,
`w(s, a) = nu' E_D[phi phi']^-1 phi(s, a)`, is the best linear density ratio. `E_D[w]^2 / E_D[w^2]`
is the share of the transitions that effectively count; its inverse less one is the restricted
chi-square divergence, by whose root the error of linear fitted values grows (Duan, Jia and Wang,
arXiv:2002.09516). More features would find more differences: the true share is rather smaller.
"""

import jax
import jax.numpy as jnp

from offline_mbrl import policies
from offline_mbrl.networks import torsos
from offline_mbrl.ope import batches, critics
from offline_mbrl.types import (
    Action,
    Array,
    EnvironmentSpec,
    Key,
    Metrics,
    Observation,
    Params,
    Policy,
)

RIDGE = 1e-3  # of features with variance one
# Of a feature: what the data never vary counts as far away as soon as a policy does.
SMALLEST_STD = 1e-3


def visited_share(
    policy: Policy,
    params: Params,
    batch: batches.Batch,
    spec: EnvironmentSpec,
    key: Key,
    *,
    gamma: float,
) -> Metrics:
    """`{"visited_share": []}` of one policy; vmap for many.

    Args:
      policy: the one to evaluate.
      params: its parameters.
      batch: transitions and initial observations, from `batches.Experience`; ten thousand or so
        are enough.
      spec: of them.
      key: of the policy's noise.
      gamma: discount factor, in [0, 1).

    Returns:
      The share of the transitions that effectively count, in (0, 1]: 1 for visits like the data's
      in the mean of every feature, near 0 for actions or states that the data never show.

    Raises:
      UsageError: gamma is not inside [0, 1), the policy has a memory, or it does not fit the spec.
    """
    critics.discount_factor(gamma, spec, "visited_share")
    policy = policies.require_memoryless(policy, "visited_share")
    data = batch.transition
    policies.check_fits(policy, params, spec, jax.tree.map(lambda leaf: leaf[0], data.observation))
    key_next, key_initial = jax.random.split(key)
    next_action = critics.actions(policy, params, data.next_observation, key_next)
    initial_action = critics.actions(policy, params, batch.initial_observation, key_initial)

    def features(observation: Observation, action: Action) -> Array:
        return jnp.concatenate([torsos.flat(observation), critics.action_vector(action, spec)])

    here = jax.vmap(features)(data.observation, data.action)
    following = jax.vmap(features)(data.next_observation, next_action)
    first = jax.vmap(features)(batch.initial_observation, initial_action)
    mean = jnp.mean(here, axis=0)
    std = jnp.std(here, axis=0) + SMALLEST_STD

    def with_intercept(row: Array) -> Array:
        return jnp.concatenate([jnp.ones(1), (row - mean) / std])

    here = jax.vmap(with_intercept)(here)
    following = jax.vmap(jnp.multiply)(jax.vmap(with_intercept)(following), data.discount)
    weight = batch.initial_weight
    start = weight @ jax.vmap(with_intercept)(first) / jnp.sum(weight)
    identity = jnp.eye(here.shape[1])
    second_moment = here.T @ here / here.shape[0] + RIDGE * identity
    transition = jnp.linalg.solve(second_moment, here.T @ following / here.shape[0])  # A
    visits = jnp.linalg.solve(identity - gamma * transition.T, (1.0 - gamma) * start)  # nu
    ratio_square = visits @ jnp.linalg.solve(second_moment, visits)
    return {"visited_share": visits[0] ** 2 / ratio_square}
