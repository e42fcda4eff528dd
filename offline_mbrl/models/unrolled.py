"""A latent model unrolled over a window, and the cross-entropies that train it.

As in MuZero and in ROSMO's release. The heads regress to `Targets`, which the algorithm computes.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from offline_mbrl.settings import at_least
from offline_mbrl.targets import transforms
from offline_mbrl.types import (
    Array,
    Key,
    LatentModel,
    Metrics,
    Observation,
    Params,
    PyTree,
    Trajectory,
    UsageError,
)


@dataclass(frozen=True)
class LossConfig:
    """ROSMO's released values unless said otherwise."""

    reward_coef: Annotated[float, at_least(0)] = 1.0
    value_coef: Annotated[float, at_least(0)] = 0.25
    policy_coef: Annotated[float, at_least(0)] = 1.0
    gradient_scale: Annotated[float, at_least(0)] = 0.5  # of the embedding after every model step
    # Released; False scales only what the next model step sees (MuZero).
    scale_before_heads: bool = True
    # Over the unroll: "root" is MuZero's 1 at the root, 1 / K after it.
    step_weights: Literal["mean", "root"] = "mean"


class Targets(NamedTuple):
    """What the unrolled model regresses to, one trajectory; none of it carries a gradient."""

    reward: Array  # [K]
    value: Array  # [K + 1]
    policy: Array  # [K + 1, A]
    behavior: Array  # [K + 1] weight with which the data's action is cloned
    # [K + 1] 0 after a truncation, where there is nothing to learn; reward k belongs to step k
    mask: Array


def unroll(
    model: LatentModel,
    config: LossConfig,
    params: Params,
    observation: Observation,
    actions: Array,
) -> PyTree:
    """Embeddings `[K + 1, ...]` that the heads read: the encoded observation, then K model steps.

    Args:
      model: the latent model.
      config: how gradients are scaled.
      params: online parameters.
      observation: `[...]` of the first step.
      actions: `[K]`.
    """
    embedding = model.represent(params, observation)
    embeddings = [embedding]
    for action in actions:
        following = model.dynamics(params, embedding, action)
        embedding = optax.scale_gradient(following, config.gradient_scale)
        embeddings.append(embedding if config.scale_before_heads else following)
    return jax.tree.map(lambda *steps: jnp.stack(steps), *embeddings)


def step_weights(kind: str, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the K rewards and of the K + 1 values and policies in their sums over the unroll.

    Raises:
      UsageError: the kind is unknown.
    """
    later = np.full(num_steps, 1.0 / num_steps, np.float32)
    states = {
        "mean": np.full(num_steps + 1, 1.0 / (num_steps + 1), np.float32),
        "root": np.concatenate([np.ones(1, np.float32), later]),
    }
    if kind not in states:
        raise UsageError(f"unknown step_weights {kind!r}: choose one of {', '.join(states)}")
    return later, states[kind]


def loss(
    model: LatentModel,
    config: LossConfig,
    behavior_coef: float,
    params: Params,
    trajectory: Trajectory,
    targets: Targets,
    key: Key,
) -> tuple[Array, Metrics]:
    """The cross-entropies of one trajectory: reward, value, policy, and the weighted cloning term.

    Steps past the end of an episode take a random action: an absorbing state must be insensitive to
    it.

    Args:
      model: the latent model.
      config: coefficients, and how the unroll is weighted.
      behavior_coef: coefficient of the cloning term.
      params: online parameters.
      trajectory: at least K + 1 steps.
      targets: K is the number of its rewards.
      key: consumed by the random actions.

    Returns:
      The loss `[]` and its parts by name.
    """
    num_steps = targets.reward.shape[0]
    logged = trajectory.action[: num_steps + 1]
    random = jax.random.randint(key, (num_steps,), 0, targets.policy.shape[1])
    actions = jnp.where(trajectory.mask[:num_steps] > 0, logged[:num_steps], random)
    first = jax.tree.map(lambda leaf: leaf[0], trajectory.observation)
    embeddings = unroll(model, config, params, first, actions)
    heads = jax.vmap(model.predict, (None, 0))(params, embeddings)
    two_hot = jax.vmap(lambda x: transforms.two_hot(x, heads.value_logits.shape[1]))
    cross_entropy = optax.softmax_cross_entropy
    reward_loss = cross_entropy(heads.reward_logits[1:], two_hot(targets.reward))
    value_loss = cross_entropy(heads.value_logits, two_hot(targets.value))
    policy_loss = cross_entropy(heads.policy_logits, targets.policy)
    cloning_loss = optax.softmax_cross_entropy_with_integer_labels(heads.policy_logits, logged)
    reward_weights, state_weights = step_weights(config.step_weights, num_steps)
    parts = {
        "reward": jnp.dot(reward_weights, targets.mask[:-1] * reward_loss),
        "value": jnp.dot(state_weights, targets.mask * value_loss),
        "policy": jnp.dot(state_weights, targets.mask * policy_loss),
        "behavior": jnp.dot(state_weights, targets.behavior * cloning_loss),
    }
    coefs = jnp.array([config.reward_coef, config.value_coef, config.policy_coef, behavior_coef])
    total = jnp.dot(coefs, jnp.stack(list(parts.values())))
    metrics = {
        "loss/total": total,
        **{f"loss/{name}": part for name, part in parts.items()},
        "target/value": jnp.mean(targets.value),
        "target/cloned": jnp.mean(targets.behavior),
    }
    return total, metrics
