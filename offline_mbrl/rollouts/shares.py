"""How rollouts are spread over the members of an ensemble.

`jointly` leaves the choice of members to the model's own `step`, which sees all of them: needed
where a penalty or a disagreement does. The others roll each elite member alone, chosen at the start
(TS-infinity of PETS, arXiv:1805.12114, section 5): `by_member` in a share of the starts, so that a
step costs one member instead of E; `all_members` in every start; `by_particle` with one member tied
to each particle of every start.

A member's weights are taken out once, before the rollout: vmap over `[E]` parameters and the starts
is one batched product a layer, where an index for each rollout would gather weights at every step.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from offline_mbrl.types import (
    Action,
    Array,
    DynamicsModel,
    Key,
    ModelParams,
    Observation,
    Params,
    PyTree,
)


class Run(Protocol):
    """A rollout from one start, for example `unroll.unroll(model, policy, horizon=10)`."""

    def __call__(
        self,
        model_params: ModelParams,
        policy_params: Params,
        observation: Observation,
        key: Key,
        first_action: Action | None = None,
    ) -> PyTree:
        """One rollout, any tree of arrays.

        The result of `Spread.apply` is of this kind too: observations, keys and first actions then
        have a leading axis [B], and results the axes that the spread says.
        """
        ...


class Spread(NamedTuple):
    """A way to spread rollouts over members."""

    apply: Callable[[DynamicsModel, Run], Run]  # (model, one start) -> many starts
    # (params) -> members that are rolled out separately; 1 where all of them share a rollout
    num_members: Callable[[ModelParams], int]


def _num_elites(params: ModelParams) -> int:
    return params.elites.shape[0]


def _one_group(params: ModelParams) -> int:
    del params
    return 1


# --- the whole ensemble ---


def _jointly(model: DynamicsModel, run: Run) -> Run:
    del model
    over_starts = jax.vmap(run, in_axes=(None, None, 0, 0, 0))

    def rollouts(
        model_params: ModelParams,
        policy_params: Params,
        observation: Observation,
        key: Key,
        first_action: Action | None = None,
    ) -> PyTree:
        return over_starts(model_params, policy_params, observation, key, first_action)

    return rollouts


jointly = Spread(apply=_jointly, num_members=_one_group)  # results [B, ...]


# --- members alone ---


def _by_member(model: DynamicsModel, run: Run) -> Run:
    """Start i with elite member i mod E alone.

    B need not be a multiple of E: the last shares are filled with starts that are rolled a second
    time and left out of the result.
    """
    over_members = _over_members(run)

    def rollouts(
        model_params: ModelParams,
        policy_params: Params,
        observation: Observation,
        key: Key,
        first_action: Action | None = None,
    ) -> PyTree:
        num_rows = key.shape[0]
        num_members = _num_elites(model_params)
        padded = num_members * -(-num_rows // num_members)
        rows = (jnp.arange(padded) % num_rows).reshape(-1, num_members).T  # [E, ceil(B / E)]
        shares = jax.tree.map(lambda leaf: leaf[rows], (observation, key, first_action))
        results = over_members(_elites_alone(model, model_params), policy_params, *shares)
        return jax.tree.map(lambda leaf: _in_order(leaf, num_rows), results)

    return rollouts


by_member = Spread(apply=_by_member, num_members=_num_elites)  # results [B, ...], in order


def member_of(num_rows: int, num_members: int) -> Array:
    """The share `[B]` of each row of `by_member`: a position in `params.elites`."""
    return jnp.arange(num_rows) % num_members


def _all_members(model: DynamicsModel, run: Run) -> Run:
    """Every start with every elite member alone; the key of member e is `fold_in(key, e)`."""
    return _particles(model, run, _num_elites)


all_members = Spread(apply=_all_members, num_members=_num_elites)  # results [E, B, ...]


def by_particle(num_particles: int) -> Spread:
    """K particles of every start, particle k in elite member k mod E alone from start to end.

    The key of particle k is `fold_in(key, k)`. `all_members` is the case K = E.

    Args:
      num_particles: K.

    Returns:
      A spread whose results are `[K, B, ...]`.
    """

    def apply(model: DynamicsModel, run: Run) -> Run:
        return _particles(model, run, lambda params: num_particles)

    def num_members(params: ModelParams) -> int:
        return min(num_particles, _num_elites(params))

    return Spread(apply=apply, num_members=num_members)


def _particles(model: DynamicsModel, run: Run, count: Callable[[ModelParams], int]) -> Run:
    over_starts = jax.vmap(run, in_axes=(None, None, 0, 0, 0))
    over_particles = jax.vmap(over_starts, in_axes=(None, None, None, 0, None))
    over_members = jax.vmap(over_particles, in_axes=(0, None, None, 0, None))

    def rollouts(
        model_params: ModelParams,
        policy_params: Params,
        observation: Observation,
        key: Key,
        first_action: Action | None = None,
    ) -> PyTree:
        num_particles = count(model_params)
        num_members = _num_elites(model_params)
        padded = num_members * -(-num_particles // num_members)
        particles = jnp.arange(padded).reshape(-1, num_members).T  # [E, ceil(K / E)]
        fold_starts = jax.vmap(jax.random.fold_in, in_axes=(0, None))
        keys = jax.vmap(jax.vmap(fold_starts, in_axes=(None, 0)), in_axes=(None, 0))(key, particles)
        alone = _elites_alone(model, model_params)
        results = over_members(alone, policy_params, observation, keys, first_action)
        return jax.tree.map(lambda leaf: _in_order(leaf, num_particles), results)

    return rollouts


# --- parts ---


def _over_members(run: Run) -> Callable[..., PyTree]:
    """Members `[E]`, each with starts `[E, B / E]` of its own."""
    over_starts = jax.vmap(run, in_axes=(None, None, 0, 0, 0))
    return jax.vmap(over_starts, in_axes=(0, None, 0, 0, 0))


def _elites_alone(model: DynamicsModel, params: ModelParams) -> ModelParams:
    """Parameters `[E]` of ensembles of one, an elite member each."""
    return jax.vmap(model.member, in_axes=(None, 0))(params, params.elites)


def _in_order(leaf: Array, num_rows: int) -> Array:
    """`[E, ceil(B / E), ...]` back to `[B, ...]`."""
    return jnp.swapaxes(leaf, 0, 1).reshape(-1, *leaf.shape[2:])[:num_rows]
