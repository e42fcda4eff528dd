"""Tree search through mctx.

MuZero's visits (arXiv:1911.08265), Gumbel MuZero, and prior times exp(Q) (MZU-Q).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import mctx

from offline_mbrl.planning import outcomes
from offline_mbrl.types import (
    Action,
    Array,
    Key,
    LatentModel,
    Params,
    Plan,
    Planner,
    PyTree,
    UsageError,
)

# mctx's records get their constructors and methods at run time, where a type checker sees none.
RootFnOutput: Any = mctx.RootFnOutput
RecurrentFnOutput: Any = mctx.RecurrentFnOutput
Tree = Any
ROOT = mctx.Tree.ROOT_INDEX


def root(model: LatentModel, params: Params, embeddings: PyTree) -> Any:
    """The model at `[B, ...]` embeddings as an `mctx.RootFnOutput`."""
    outcome = outcomes.evaluate(model, params, embeddings)
    return RootFnOutput(
        prior_logits=outcome.prior_logits, value=outcome.value, embedding=embeddings
    )


def recurrent_fn(model: LatentModel, gamma: float) -> Callable:
    """The model as mctx's recurrent function.

    Reward, value and prior are predicted from the embedding that the action leads to, never from
    the one it starts from.

    Args:
      model: the latent model.
      gamma: discount factor per step.

    Returns:
      `(params, key, actions [B], embeddings [B, ...]) -> (mctx.RecurrentFnOutput, following
      embeddings [B, ...])`.
    """

    def recurrent(
        params: Params, key: Key, action: Action, embedding: PyTree
    ) -> tuple[Any, PyTree]:
        del key
        following = jax.vmap(model.dynamics, (None, 0, 0))(params, embedding, action)
        outcome = outcomes.evaluate(model, params, following)
        output = RecurrentFnOutput(
            reward=outcome.reward,
            discount=jnp.full_like(outcome.reward, gamma),
            prior_logits=outcome.prior_logits,
            value=outcome.value,
        )
        return output, following

    return recurrent


def completed_qvalues(tree: Tree, prior_logits: Array) -> Array:
    """Q-values of the roots' actions in raw units.

    An action without a visit gets Gumbel MuZero's mixed value: of the network's value, with the
    weight of one visit, and the visited actions' Q-values averaged under the prior, with the weight
    of all visits.

    Args:
      tree: left by a search of `[B]` roots.
      prior_logits: `[B, A]` for the average; the tree's own may hold exploration noise.

    Returns:
      `[B, A]`.
    """

    def single_root(tree: Tree) -> Any:
        unscaled = 1.0 - jnp.max(tree.children_visits[ROOT])  # mctx scales by this plus the maximum
        return mctx.qtransform_completed_by_mix_value(
            tree, ROOT, value_scale=1.0, maxvisit_init=unscaled, rescale_values=False
        )

    return jax.vmap(single_root)(tree.replace(children_prior_logits=prior_logits[:, None]))


def muzero(
    model: LatentModel,
    *,
    num_actions: int,
    gamma: float,
    num_simulations: int,
    max_depth: int | None = None,
    dirichlet_fraction: float = 0.25,
    dirichlet_alpha: float = 0.3,
    pb_c_init: float = 1.25,
    pb_c_base: float = 19652.0,
    temperature: float = 1.0,
) -> Planner:
    """MuZero's search: the weights are the fractions of visits.

    Args:
      model: the latent model.
      num_actions: A.
      gamma: discount factor per step.
      num_simulations: expansions per root.
      max_depth: longest path from the root; None or 0 for no limit.
      dirichlet_fraction: share of Dirichlet noise in the prior of the root, 0 to 1.
      dirichlet_alpha: concentration of that noise.
      pb_c_init: c1 of the selection rule.
      pb_c_base: c2 of the selection rule.
      temperature: `action` is sampled by `visits ** (1 / temperature)`; 0 takes the most visited.

    Returns:
      A planner of `[B]` roots, N = A. `qvalues` are completed (`completed_qvalues`),
      `improved_value` is the mean of the network's value and the returns backed up.

    Raises:
      UsageError: a setting that makes no search.
    """
    if temperature < 0:
        raise UsageError(f"tree search: temperature is {temperature}; give 0 or more")
    policy = _muzero_policy(dirichlet_fraction, dirichlet_alpha, pb_c_init, pb_c_base, temperature)
    search = _search(model, policy, num_actions, gamma, num_simulations, max_depth)

    def plan(params: Params, embeddings: PyTree, key: Key) -> Plan:
        return search(params, embeddings, key)[0]

    return plan


def muzero_q(
    model: LatentModel,
    *,
    num_actions: int,
    gamma: float,
    num_simulations: int,
    max_depth: int | None = None,
    dirichlet_fraction: float = 0.25,
    dirichlet_alpha: float = 0.3,
    pb_c_init: float = 1.25,
    pb_c_base: float = 19652.0,
    temperature: float = 1.0,
) -> Planner:
    """The search of `muzero`, weighed by its Q-values: `softmax(prior_logits + q / temperature)`.

    The prior is the network's own, without exploration noise. After Grill et al.
    (arXiv:2007.12509).

    Args:
      model: the latent model.
      num_actions: A.
      gamma: discount factor per step.
      num_simulations: expansions per root.
      max_depth: longest path from the root; None or 0 for no limit.
      dirichlet_fraction: share of Dirichlet noise in the prior that the search follows at the root,
        0 to 1.
      dirichlet_alpha: concentration of that noise.
      pb_c_init: c1 of the selection rule.
      pb_c_base: c2 of the selection rule.
      temperature: tau, in the units of the return; no source states its value. At 1, one simulation
        of depth 1 per action gives `one_step.exact`.

    Returns:
      A planner of `[B]` roots, N = A; `action` is sampled from `weights`, the rest is as in
      `muzero`.

    Raises:
      UsageError: a setting that makes no search.
    """
    if temperature <= 0:
        raise UsageError(f"MZU-Q: temperature is {temperature}; give more than 0")
    policy = _muzero_policy(dirichlet_fraction, dirichlet_alpha, pb_c_init, pb_c_base, 1.0)
    search = _search(model, policy, num_actions, gamma, num_simulations, max_depth)

    def plan(params: Params, embeddings: PyTree, key: Key) -> Plan:
        key_search, key_action = jax.random.split(key)
        searched, prior_logits = search(params, embeddings, key_search)
        weights = jax.nn.softmax(prior_logits + searched.qvalues / temperature)
        return searched._replace(action=outcomes.draw(weights, key_action), weights=weights)

    return plan


def gumbel(
    model: LatentModel,
    *,
    num_actions: int,
    gamma: float,
    num_simulations: int,
    max_depth: int | None = None,
    max_num_considered_actions: int = 16,
    gumbel_scale: float = 1.0,
    value_scale: float = 0.1,
    maxvisit_init: float = 50.0,
    rescale_values: bool = True,
) -> Planner:
    """Gumbel MuZero's search (openreview bERaNdoegnO): weights `softmax(prior_logits + sigma(q))`.

    Args:
      model: the latent model.
      num_actions: A.
      gamma: discount factor per step.
      num_simulations: expansions per root.
      max_depth: longest path from the root; None or 0 for no limit.
      max_num_considered_actions: actions that sequential halving starts with.
      gumbel_scale: scale of the noise that picks them; 0 for none.
      value_scale: sigma is `(maxvisit_init + largest visit count) * value_scale * q`.
      maxvisit_init: see `value_scale`.
      rescale_values: let the q of sigma run from 0 to 1 over the actions.

    Returns:
      A planner of `[B]` roots, N = A; its `action` is the winner of the halving; the rest as in
      `muzero`.

    Raises:
      UsageError: a setting that makes no search.
    """
    outcomes.require_at_least(
        1, "tree search", max_num_considered_actions=max_num_considered_actions
    )
    transform = partial(
        mctx.qtransform_completed_by_mix_value,
        value_scale=value_scale,
        maxvisit_init=maxvisit_init,
        rescale_values=rescale_values,
    )
    policy = partial(
        mctx.gumbel_muzero_policy,
        qtransform=transform,
        max_num_considered_actions=max_num_considered_actions,
        gumbel_scale=gumbel_scale,
    )
    search = _search(model, policy, num_actions, gamma, num_simulations, max_depth)

    def plan(params: Params, embeddings: PyTree, key: Key) -> Plan:
        return search(params, embeddings, key)[0]

    return plan


def _muzero_policy(
    fraction: float, alpha: float, pb_c_init: float, pb_c_base: float, temperature: float
) -> Callable:
    if not 0 <= fraction <= 1 or alpha <= 0:
        raise UsageError(
            f"tree search: dirichlet_fraction is {fraction} and dirichlet_alpha {alpha}; "
            "give a fraction from 0 to 1 and an alpha above 0"
        )
    return partial(
        mctx.muzero_policy,
        dirichlet_fraction=float(fraction),
        dirichlet_alpha=float(alpha),
        pb_c_init=pb_c_init,
        pb_c_base=pb_c_base,
        temperature=temperature,
    )


def _search(
    model: LatentModel,
    policy: Callable,
    num_actions: int,
    gamma: float,
    num_simulations: int,
    max_depth: int | None,
) -> Callable[[Params, PyTree, Key], tuple[Plan, Array]]:
    """A search of many roots by one of mctx's policies.

    It returns the plan, and the prior logits without noise `[B, A]`.
    """
    outcomes.require_at_least(
        1, "tree search", num_actions=num_actions, num_simulations=num_simulations
    )
    outcomes.require_at_least(0, "tree search", max_depth=max_depth or 0)
    recurrent = recurrent_fn(model, gamma)

    def search(params: Params, embeddings: PyTree, key: Key) -> tuple[Plan, Array]:
        start = root(model, params, embeddings)
        output = policy(
            params,
            key,
            start,
            recurrent,
            num_simulations=num_simulations,
            max_depth=max_depth or None,
        )
        qvalues = completed_qvalues(output.search_tree, start.prior_logits)
        plan = Plan(
            action=output.action,
            actions=outcomes.all_actions(qvalues),
            weights=output.action_weights,
            qvalues=qvalues,
            value=start.value,
            improved_value=output.search_tree.node_values[:, ROOT],
        )
        return plan, start.prior_logits

    return search
