"""What the latent family's heads regress to: rewards, values, policies, and cloned actions.

All of it comes from the target parameters and carries no gradient.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from offline_mbrl.models.unrolled import Targets
from offline_mbrl.targets import returns
from offline_mbrl.types import (
    Action,
    Array,
    Key,
    LatentModel,
    Params,
    Plan,
    Planner,
    PyTree,
    Trajectory,
)

# (target params, embeddings [T + 1], trajectory, plan [K + 1], values [T + 1])
# -> [K + 1] weights of cloning
Clone = Callable[[Params, PyTree, Trajectory, Plan, Array], Array]


class ValueTarget(NamedTuple):
    """A kind of value target, for one trajectory."""

    bootstrap: Callable[[Plan, Array], Array]  # (plan, values [T + 1]) -> end of the returns
    every_step: bool = False  # it needs a plan at all T + 1 states, not at the first K + 1 alone
    is_return: bool = True  # False: the bootstrap itself is the target, no logged reward enters


class Method(NamedTuple):
    """What makes the targets of one algorithm."""

    model: LatentModel
    planner: Planner
    clone: Clone
    value_target: ValueTarget
    num_actions: int
    gamma: float
    unroll_steps: int  # K
    td_steps: int  # n


# --- values ---


def _network_value(plan: Plan, values: Array) -> Array:
    del plan
    return values


def _root_mean(plan: Plan, values: Array) -> Array:
    del values
    return plan.improved_value


def _visited_value(plan: Plan, values: Array) -> Array:
    del values
    return jnp.sum(plan.weights * plan.qvalues, -1) / jnp.sum(plan.weights, -1)


VALUE_TARGETS: dict[str, ValueTarget] = {
    # ROSMO; MuZero Unplugged on Atari
    "target_value": ValueTarget(_network_value),
    # the released baseline
    "search_root_mean": ValueTarget(_root_mean, every_step=True),
    # the talk on ROSMO; weights: visits, by muzero
    "search_visit_q": ValueTarget(_visited_value, every_step=True),
    # MuZero Unplugged on DM Control: no steps of the data
    "search_only": ValueTarget(_root_mean, is_return=False),
}


# --- cloning ---


def clone_nothing(
    params: Params, embeddings: PyTree, trajectory: Trajectory, plan: Plan, values: Array
) -> Array:
    """No cloning: a zero for each planned state."""
    del params, embeddings, trajectory, values
    return jnp.zeros_like(plan.value)


# --- ends of episodes ---


def keep_ends(trajectory: Trajectory) -> Trajectory:
    """Truncations stay truncations."""
    return trajectory


def truncation_terminates(trajectory: Trajectory) -> Trajectory:
    """Takes every end of an episode for a terminal.

    The window loses its last step, which only shows how the step before it ended.
    """
    observation = jax.tree.map(lambda leaf: leaf[:-1], trajectory.observation)
    discount = trajectory.discount[:-1] * trajectory.mask[1:]
    without_ends = trajectory._replace(observation=(), discount=())
    shorter = jax.tree.map(lambda leaf: leaf[:-1], without_ends)
    return shorter._replace(observation=observation, discount=discount)


# --- targets ---


def compute_targets(method: Method, params: Params, batch: Trajectory, key: Key) -> Targets:
    """Targets of a batch; all roots are searched in one call.

    Args:
      method: how they are made.
      params: target parameters.
      batch: fields `[B, T, ...]`, `T = K + n` steps.
      key: consumed by the planner.

    Returns:
      Targets with a leading axis [B], without gradient.
    """
    # Also the input of the search, whose loops must not be differentiated.
    params = jax.lax.stop_gradient(params)
    model = method.model
    over_batch = jax.vmap(jax.vmap(model.represent, (None, 0)), (None, 0))
    embeddings = over_batch(params, batch.observation)
    num_planned = method.unroll_steps + 1
    num_roots = batch.reward.shape[1] + 1 if method.value_target.every_step else num_planned
    roots = jax.tree.map(lambda leaf: leaf[:, :num_roots], embeddings)
    plan = plan_windows(method.planner, params, roots, key)
    rest = jax.tree.map(lambda leaf: leaf[:, num_roots:], embeddings)
    later = jax.vmap(jax.vmap(model.predict, (None, 0)), (None, 0))(params, rest)
    later_values = jax.vmap(jax.vmap(model.scalar))(later.value_logits)
    values = jnp.concatenate([plan.value, later_values], axis=1)

    def per_window(
        trajectory: Trajectory, embeddings: PyTree, plan: Plan, values: Array
    ) -> Targets:
        planned = jax.tree.map(lambda leaf: leaf[:num_planned], plan)
        behavior = method.clone(params, embeddings, trajectory, planned, values)
        return trajectory_targets(method, trajectory, plan, values, behavior)

    return jax.lax.stop_gradient(jax.vmap(per_window)(batch, embeddings, plan, values))


def plan_windows(planner: Planner, params: Params, embeddings: PyTree, key: Key) -> Plan:
    """A plan at every state of a batch of windows, in one call of the planner.

    Args:
      planner: plans for a batch of roots.
      params: the model's.
      embeddings: `[B, T, ...]`.
      key: consumed.

    Returns:
      A plan with leading axes [B, T].
    """
    batch_size, num_steps = jax.tree.leaves(embeddings)[0].shape[:2]
    roots = jax.tree.map(
        lambda leaf: leaf.reshape(batch_size * num_steps, *leaf.shape[2:]), embeddings
    )
    plan = planner(params, roots, key)
    return jax.tree.map(lambda leaf: leaf.reshape(batch_size, num_steps, *leaf.shape[1:]), plan)


def trajectory_targets(
    method: Method, trajectory: Trajectory, plan: Plan, values: Array, behavior: Array
) -> Targets:
    """Targets of one trajectory.

    Args:
      method: K, n, gamma, and the kind of value target.
      trajectory: `T = K + n` steps.
      plan: fields `[K + 1, ...]` or `[T + 1, ...]`.
      values: `[T + 1]` of the target network.
      behavior: `[K + 1]` weights of cloning.
    """
    size = method.unroll_steps + 1
    num_actions = method.num_actions
    value = method.value_target.bootstrap(plan, values)
    if method.value_target.is_return:
        # Past a truncation nothing happens: the last observation's value is passed back to the cut
        # without discount.
        discount = trajectory.discount * jnp.where(trajectory.mask > 0, method.gamma, 1.0)
        value = returns.n_step_returns(trajectory.reward, discount, value, n=method.td_steps)
    happened = trajectory.mask[:size]
    absorbing = (1.0 - happened) * (1.0 - trajectory.discount[:size])
    policy = jax.vmap(dense, (0, 0, None))(plan.actions, plan.weights, num_actions)[:size]
    return Targets(
        reward=trajectory.reward[: size - 1],
        value=jnp.where(absorbing > 0, 0.0, value[:size]),
        policy=jnp.where(absorbing[:, None] > 0, 1.0 / num_actions, policy),
        behavior=behavior * happened,
        mask=happened + absorbing,
    )


def dense(actions: Action, weights: Array, num_actions: int) -> Array:
    """Weights of candidates as weights of all actions; a repeated candidate adds up.

    Args:
      actions: `[N]` candidates.
      weights: `[N]`.
      num_actions: A.

    Returns:
      `[A]`.
    """
    return weights @ jax.nn.one_hot(actions, num_actions)
