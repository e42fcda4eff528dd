"""A continuous problem of random numbers, and batches of its transitions."""

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.types import BoundedActions, Context, EnvironmentSpec, Transition

SPEC = EnvironmentSpec(
    observation=jax.ShapeDtypeStruct((3,), jnp.float32),
    action=BoundedActions((-1.0,) * 2, (1.0,) * 2),
)
SIZES = {"actor_layers": (8,), "critic_layers": (8,), "batch_size": 6}


def batch(seed: int = 0, size: int = 6) -> Transition:
    """Transitions `[size]` with logged next actions; the first is terminal."""
    generator = np.random.default_rng(seed)

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(generator.uniform(-1, 1, (size, *shape)), jnp.float32)

    follows = jnp.ones(size).at[0].set(0.0)
    return Transition(
        observation=draw(3),
        action=draw(2),
        reward=draw(),
        discount=follows,
        next_observation=draw(3),
        extras={"next_action": draw(2), "has_next_action": follows},
    )


def differs(first, second) -> bool:
    """Whether two trees of arrays differ anywhere."""
    return any(
        bool(jnp.any(a != b))
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    )


def next_actions(backup, agent, data: Transition, key) -> jax.Array:
    """The next actions `[B, A]` that a backup of discount factor 0.99 evaluates.

    Without rewards its targets are those of critics that read a single entry of an action.
    """
    data = data._replace(reward=0.0 * data.reward, discount=jnp.ones_like(data.discount))

    def targets(entry: int) -> jax.Array:
        def critics(observations, actions):
            return actions[None, :, entry]

        return backup(agent._replace(target_critics=critics), Context(), data, key)

    return jnp.stack([targets(entry) for entry in range(data.action.shape[1])], axis=1) / 0.99
