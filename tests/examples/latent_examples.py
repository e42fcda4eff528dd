"""What the tests of the latent family share: records, a table for a model, a random model."""

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.algorithms import advantages, latent, latent_targets, rosmo
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
    return memory.Dataset.from_arrays(
        {
            "observation": generator.normal(size=(length, 4)).astype(np.float32),
            "action": generator.integers(A, size=length),
            "reward": 1.0 + np.arange(length),
            "is_last": is_last,
            "is_terminal": is_last & terminal,
        }
    )


def window(dataset, row, length=K + N):
    cut = jax.jit(lambda dataset: memory.window(dataset, jnp.int32(row), length=length))
    return cut(dataset)


def table_model():
    """The embedding is the observation: its first entry the value, its second the reward."""

    def predict(params, embedding):
        del params
        return LatentPrediction(
            policy_logits=jnp.tile(embedding[2:3], A) * jnp.arange(A),
            reward_logits=embedding[1:2],
            value_logits=embedding[:1],
        )

    return LatentModel(
        init=lambda key: (),
        represent=lambda params, observation: observation,
        dynamics=lambda params, embedding, action: embedding * (1.0 + action),
        predict=predict,
        scalar=lambda logits: logits[0],
    )


def as_clone(advantage, at_zero=1.0):
    """ROSMO's behavior term with this advantage."""
    return lambda *inputs: weights.indicator(advantage(*inputs), at_zero=at_zero)


def table_targets(trajectory, config=CONFIG, clone=None):
    """Targets of one trajectory by the table model."""
    method = method_of(table_model(), config, clone or as_clone(advantages.planned))
    batch = jax.tree.map(lambda leaf: leaf[None], trajectory)
    compute = jax.jit(lambda batch: latent_targets.compute_targets(method, (), batch, KEY))
    return jax.tree.map(lambda leaf: leaf[0], compute(batch))


def method_of(model, config=CONFIG, clone=None):
    """How a config makes targets with a one-step lookahead in this model."""
    planner = one_step.exact(model, num_actions=A, gamma=config.gamma)
    clone = clone or as_clone(advantages.planned)
    return latent.method_of(config, model, planner, clone, num_actions=A)


def latent_model(seed=1):
    model = muzero.make(CONFIG.model, SPEC)
    params = model.init(KEY)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    random = [
        0.3 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)
    ]
    return model, jax.tree.unflatten(tree, random)
