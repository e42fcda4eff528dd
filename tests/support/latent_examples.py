"""What the tests of the latent family share: a stream of records, a table for a model, a random latent model."""

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.algorithms import advantages, latent, rosmo
from offline_mbrl.data import memory
from offline_mbrl.models import muzero
from offline_mbrl.planning import one_step
from offline_mbrl.targets import weights
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


def as_clone(advantage, at_zero=1.0):
    """ROSMO's behavior term with this advantage."""
    return lambda *inputs: weights.indicator(advantage(*inputs), at_zero=at_zero)


def table_targets(trajectory, config=CONFIG, clone=None):
    """Targets of one trajectory by the table model."""
    model, clone = table_model(), clone or as_clone(advantages.planned)
    planner = one_step.exact(model, num_actions=A, gamma=config.gamma)
    batch = jax.tree.map(lambda leaf: leaf[None], trajectory)
    targets = jax.jit(lambda batch: latent.compute_targets(model, planner, clone, config, A, (), batch, KEY))(batch)
    return jax.tree.map(lambda leaf: leaf[0], targets)


def latent_model(seed=1):
    model = muzero.make(CONFIG.model, SPEC)
    params = model.init(KEY)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return model, jax.tree.unflatten(
        tree, [0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    )
