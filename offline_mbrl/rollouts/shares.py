"""How rollouts are spread over the members of an ensemble.

`by_member` gives every member a share of the starts and rolls it in that share alone: one member per rollout, chosen
at its start (TS-infinity of PETS, arXiv:1805.12114, section 5). A step then costs one member instead of E.
`jointly` leaves it to the model's own `step`, which sees all members: needed where a penalty or a disagreement does.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from offline_mbrl.types import Array, DynamicsModel, PyTree

Run = Callable[[PyTree, PyTree, PyTree, Array], PyTree]  # (model_params, policy_params, observation, key) -> any tree
Spread = Callable[[DynamicsModel, Run], Run]  # the result takes observations [B, ...] and keys [B]


def jointly(model: DynamicsModel, run: Run) -> Run:
    """Every start with the whole ensemble: `(model_params, policy_params, [B, ...], keys [B]) -> [B, ...]`."""
    del model
    return jax.vmap(run, in_axes=(None, None, 0, 0))


def by_member(model: DynamicsModel, run: Run) -> Run:
    """Start i with elite member i mod E alone, the members side by side.

    The weights of a member are taken out once, before the rollout: vmap over `[E]` parameters and `[E, B / E]` starts
    is one batched product a layer, where an index per rollout would gather weights at every step. B need not be a
    multiple of E: the last shares are filled with starts that are rolled a second time and left out of the result.

    Args:
      model: whose `member` gives an ensemble of one.
      run: one start, for example `unroll(model, policy, horizon=10)`.

    Returns:
      `(model_params, policy_params, observations [B, ...], keys [B]) -> [B, ...]`, in the order of the starts.
    """
    over_starts = jax.vmap(run, in_axes=(None, None, 0, 0))
    over_members = jax.vmap(over_starts, in_axes=(0, None, 0, 0))

    def spread(model_params: PyTree, policy_params: PyTree, observations: PyTree, keys: Array) -> PyTree:
        elites = model_params["elites"]
        num_rows, num_members = keys.shape[0], elites.shape[0]
        alone = jax.vmap(model.member, in_axes=(None, 0))(model_params, elites)
        padded = num_members * -(-num_rows // num_members)
        rows = (jnp.arange(padded) % num_rows).reshape(-1, num_members).T  # [E, ceil(B / E)]
        mine = lambda tree: jax.tree.map(lambda leaf: leaf[rows], tree)  # noqa: E731
        found = over_members(alone, policy_params, mine(observations), mine(keys))
        return jax.tree.map(lambda leaf: _in_order(leaf, num_rows), found)

    return spread


def member_of(num_rows: int, num_members: int) -> Array:
    """Which share `[B]` each row of `by_member` was in: a position in `params["elites"]`."""
    return jnp.arange(num_rows) % num_members


def _in_order(leaf: Array, num_rows: int) -> Array:
    """`[E, ceil(B / E), ...]` back to `[B, ...]`."""
    return jnp.swapaxes(leaf, 0, 1).reshape(-1, *leaf.shape[2:])[:num_rows]
