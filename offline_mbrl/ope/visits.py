"""How much of the data a policy's visits rest on: a sign of support for estimators that look at single transitions.

With features `phi` of states and actions, whose means a linear map carries one step on under the policy, the mean
features of its discounted visits follow from those of its first step, as in linear fitted Q evaluation:

    nu = (1 - gamma) E[phi(s0, a0)] + gamma A' nu,    A = E_D[phi phi']^-1 E_D[discount phi phi(s', a')']

The linear function of the data with these means that varies least, `w(s, a) = nu' E_D[phi phi']^-1 phi(s, a)`, is
the best linear density ratio. `E_D[w]^2 / E_D[w^2]` is the share of the transitions that effectively count; its
inverse less one is the restricted chi-square divergence, by whose root the error of linear fitted values grows (Duan,
Jia and Wang, arXiv:2002.09516). More features would find more differences: the true share is rather smaller.
"""

import functools

import jax
import jax.numpy as jnp

from offline_mbrl import policies
from offline_mbrl.networks import torsos
from offline_mbrl.ope import batches, critics
from offline_mbrl.types import Array, DiscreteActions, EnvironmentSpec, Metrics, Policy, PyTree

RIDGE = 1e-3  # of features with variance one
SMALLEST_STD = 1e-3  # of a feature: what the data never vary counts as far away as soon as a policy does


def visited_share(
    policy: Policy, params: PyTree, batch: batches.Batch, spec: EnvironmentSpec, key: Array, *, gamma: float
) -> Metrics:
    """`{"visited_share": []}` of one policy; vmap for many.

    Args:
      policy: the one to evaluate.
      params: its parameters.
      batch: transitions and initial observations, from `batches.experience`; some ten thousand are enough.
      spec: of them.
      key: of the policy's noise.
      gamma: discount factor, in [0, 1).

    Returns:
      The share of the transitions that effectively count, in (0, 1]: 1 for visits like the data's, in the mean of
      every feature; near 0 for actions or states that the data never show.

    Raises:
      UsageError: gamma is not inside [0, 1), or the policy does not fit the spec.
    """
    critics.discount_factor(gamma, spec, "visited_share")
    policies.check_fits(policy, params, spec, jax.tree.map(lambda leaf: leaf[0], batch.transition.observation))
    key_next, key_initial = jax.random.split(key)
    data, of = batch.transition, functools.partial(_features, spec=spec)
    observations = data.observation, data.next_observation, batch.initial_observation
    actions = (data.action, critics.actions(policy, params, data.next_observation, key_next),
               critics.actions(policy, params, batch.initial_observation, key_initial))  # fmt: skip
    here, following, first = map(jax.vmap(of), observations, actions)
    mean, std = jnp.mean(here, axis=0), jnp.std(here, axis=0) + SMALLEST_STD
    with_one = jax.vmap(lambda each: jnp.concatenate([jnp.ones(1), (each - mean) / std]))
    here, following = with_one(here), jax.vmap(jnp.multiply)(with_one(following), data.discount)
    start = batch.initial_weight @ with_one(first) / jnp.sum(batch.initial_weight)
    identity = jnp.eye(here.shape[1])
    second = here.T @ here / here.shape[0] + RIDGE * identity
    onward = jnp.linalg.solve(second, here.T @ following / here.shape[0])  # A
    found = jnp.linalg.solve(identity - gamma * onward.T, (1.0 - gamma) * start)
    return {"visited_share": found[0] ** 2 / (found @ jnp.linalg.solve(second, found))}


def _features(observation: PyTree, action: Array, *, spec: EnvironmentSpec) -> Array:
    """The flat observation and the action; discrete actions are one-hot."""
    if isinstance(spec.action, DiscreteActions):
        action = jax.nn.one_hot(action, spec.action.num_actions)
    return jnp.concatenate([torsos.flat(observation), jnp.ravel(action)])
