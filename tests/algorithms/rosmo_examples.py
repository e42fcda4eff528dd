"""What the tests of ROSMO share: a stream of records, a model that is a table, and a random latent model."""

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.algorithms import rosmo
from offline_mbrl.data import memory
from offline_mbrl.models import muzero
from offline_mbrl.planning import one_step
from offline_mbrl.types import DiscreteActions, EnvironmentSpec, LatentModel, LatentPrediction

A, K, N = 3, 3, 3
SPEC = EnvironmentSpec(jax.ShapeDtypeStruct((4,), jnp.float32), DiscreteActions(A))
CONFIG = rosmo.Config(batch_size=8)
KEY = jax.random.key(0)


def records(length, ends, *, terminal=True, seed=0):
    """One stream of records with episodes that end at the given rows."""
    generator = np.random.default_rng(seed)
    is_last = np.isin(np.arange(length), ends)
    return memory.Dataset.from_arrays({
        "observation": generator.normal(size=(length, 4)).astype(np.float32), "reward": 1.0 + np.arange(length),
        "action": generator.integers(A, size=length), "is_last": is_last, "is_terminal": is_last & terminal,
    })  # fmt: skip


def window(dataset, row, length=K + N):
    return jax.jit(lambda dataset: memory.window(dataset, jnp.int32(row), length=length))(dataset)


def table_model():
    """The embedding is the observation; the value is its first entry, the reward its second, the policy the rest."""

    def predict(params, embedding):
        del params
        return LatentPrediction(jnp.tile(embedding[2:3], A) * jnp.arange(A), embedding[1:2], embedding[:1])

    return LatentModel(
        init=lambda key: (), represent=lambda params, observation: observation,
        dynamics=lambda params, embedding, action: embedding * (1.0 + action), predict=predict,
        scalar=lambda logits: logits[0])  # fmt: skip


def table_targets(trajectory, config=CONFIG, advantage=rosmo.model_advantage):
    model = table_model()
    planner = one_step.exact(model, num_actions=A, gamma=config.gamma)
    return jax.jit(lambda trajectory: rosmo.compute_targets(model, planner, advantage, config, (), trajectory, KEY))(
        trajectory
    )


def latent_model(seed=1):
    model = muzero.make(CONFIG.model, SPEC)
    params = model.init(KEY)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return model, jax.tree.unflatten(
        tree, [0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    )
