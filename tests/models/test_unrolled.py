"""The unrolled loss, against references that are written out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.data import memory
from offline_mbrl.models import muzero, unrolled
from offline_mbrl.types import DiscreteActions, EnvironmentSpec

A, K = 3, 3
KEY = jax.random.key(0)
CONFIG = unrolled.LossConfig()
SPEC = EnvironmentSpec(jax.ShapeDtypeStruct((4,), jnp.float32), DiscreteActions(A))


def latent_model():
    model = muzero.make(muzero.ModelConfig(), SPEC)
    leaves, tree = jax.tree.flatten(model.init(KEY))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return model, jax.tree.unflatten(
        tree, [0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    )


def window(ends=(), *, terminal=True):
    """A window of 6 steps from the start of 12 records whose episodes end at `ends` and at 11."""
    generator = np.random.default_rng(0)
    is_last = np.isin(np.arange(12), [*ends, 11])
    dataset = memory.Dataset.from_arrays(
        {
            "observation": generator.normal(size=(12, 4)).astype(np.float32),
            "reward": 1.0 + np.arange(12),
            "action": generator.integers(A, size=12),
            "is_last": is_last,
            "is_terminal": is_last & terminal,
        }
    )
    return jax.jit(lambda dataset: memory.window(dataset, jnp.int32(0), length=6))(dataset)


def random_targets():
    return unrolled.Targets(
        reward=jnp.array([0.5, -1.0, 0.0]),
        value=jnp.array([0.1, 2.0, -0.3, 0.0]),
        policy=jax.nn.softmax(jax.random.normal(jax.random.key(5), (K + 1, A))),
        behavior=jnp.array([1.0, 0.0, 1.0, 0.0]),
        mask=jnp.ones(K + 1),
    )


def test_the_loss_is_the_weighted_mean_of_cross_entropies_written_out():
    model, params = latent_model()
    trajectory, targets = window(), random_targets()
    loss = jax.jit(
        lambda params, targets: unrolled.loss(model, CONFIG, 0.2, params, trajectory, targets, KEY)
    )
    total, metrics = loss(params, targets)
    embedding = model.represent(params, trajectory.observation[0])
    heads = [model.predict(params, embedding)]
    for k in range(K):
        embedding = model.dynamics(params, embedding, trajectory.action[k])
        heads.append(model.predict(params, embedding))

    def two_hot(x):
        scaled = np.sign(x) * (np.sqrt(abs(x) + 1) - 1) + 1e-3 * x + 10
        low = int(np.floor(scaled))
        encoded = np.zeros(21)
        encoded[low] = 1 - (scaled - low)
        encoded[low + 1] = scaled - low
        return encoded

    def cross(logits, p):
        return -float(np.sum(np.asarray(p) * np.asarray(jax.nn.log_softmax(logits))))

    parts = {
        "reward": np.mean(
            [cross(heads[k + 1].reward_logits, two_hot(float(targets.reward[k]))) for k in range(K)]
        ),
        "value": np.mean(
            [cross(heads[k].value_logits, two_hot(float(targets.value[k]))) for k in range(K + 1)]
        ),
        "policy": np.mean([cross(heads[k].policy_logits, targets.policy[k]) for k in range(K + 1)]),
        "behavior": np.mean(
            [
                float(targets.behavior[k])
                * cross(heads[k].policy_logits, np.eye(A)[int(trajectory.action[k])])
                for k in range(K + 1)
            ]
        ),
    }
    for name, part in parts.items():
        np.testing.assert_allclose(metrics[f"loss/{name}"], part, rtol=1e-4)
    expected = parts["reward"] + 0.25 * parts["value"] + parts["policy"] + 0.2 * parts["behavior"]
    np.testing.assert_allclose(total, expected, rtol=1e-4)


def test_steps_after_a_truncation_carry_no_gradient():
    model, params = latent_model()
    trajectory = window([2], terminal=False)
    targets = random_targets()._replace(
        mask=jnp.array([1.0, 1.0, 0.0, 0.0]), behavior=jnp.zeros(K + 1)
    )
    other = targets._replace(
        value=targets.value.at[2:].set(5.0), reward=targets.reward.at[2:].set(3.0)
    )

    def loss(params, targets):
        return unrolled.loss(model, CONFIG, 0.2, params, trajectory, targets, KEY)[0]

    gradient = jax.jit(jax.grad(loss))
    jax.tree.map(np.testing.assert_array_equal, gradient(params, targets), gradient(params, other))


def test_the_last_reward_before_a_truncation_is_trained():
    model, params = latent_model()
    trajectory = window([2], terminal=False)  # steps 0 and 1 happened
    targets = random_targets()._replace(mask=jnp.array([1.0, 1.0, 0.0, 0.0]))
    loss = jax.jit(
        lambda reward: unrolled.loss(
            model, CONFIG, 0.2, params, trajectory, targets._replace(reward=reward), KEY
        )[1]["loss/reward"]
    )
    first, last, after = (loss(targets.reward.at[k].set(5.0)) for k in range(K))
    assert abs(float(first - loss(targets.reward))) > 0.1
    assert abs(float(last - loss(targets.reward))) > 0.1
    assert float(after) == float(loss(targets.reward))


def test_actions_past_the_end_are_random_and_those_before_it_are_the_data():
    model, params = latent_model()
    seen = []
    spied = model._replace(
        dynamics=lambda params, embedding, action: (seen.append(action), embedding)[1]
    )
    trajectory = window([2])
    for key in jax.random.split(KEY, 30):
        unrolled.loss(spied, CONFIG, 0.2, params, trajectory, random_targets(), key)
    actions = np.array(seen).reshape(30, K)
    np.testing.assert_array_equal(
        actions[:, :2], np.tile(np.asarray(trajectory.action[:2]), (30, 1))
    )
    assert set(actions[:, 2]) == set(range(A))


def gradient_of_the_last(config):
    """Gradient of a loss on the last of two unrolled embeddings with respect to the first."""
    model, params = latent_model()
    identity = model._replace(represent=lambda params, observation: observation)
    start = jax.random.normal(KEY, (32,))
    actions = jnp.array([0, 2])

    def embeddings(start):
        return unrolled.unroll(identity, config, params, start, actions)

    gradient = jax.grad(lambda start: jnp.sum(jnp.sin(embeddings(start)[2])))(start)
    return gradient, embeddings(start)


def test_two_model_steps_scale_the_gradient_of_the_last_loss_by_a_quarter():
    (scaled, _), (plain, _) = map(
        gradient_of_the_last, (CONFIG, dataclasses.replace(CONFIG, gradient_scale=1.0))
    )
    np.testing.assert_allclose(scaled, 0.25 * plain, rtol=1e-5)


def test_heads_that_read_the_unscaled_embedding_get_one_scaling_less_and_the_same_values():
    (scaled, embeddings), (once, same) = map(
        gradient_of_the_last, (CONFIG, dataclasses.replace(CONFIG, scale_before_heads=False))
    )
    np.testing.assert_allclose(scaled, 0.5 * once, rtol=1e-5)
    np.testing.assert_array_equal(embeddings, same)


def test_the_weights_of_both_kinds_over_the_unroll():
    rewards, states = unrolled.step_weights("mean", K)
    np.testing.assert_allclose(rewards, np.full(K, 1 / K))
    np.testing.assert_allclose(states, np.full(K + 1, 1 / (K + 1)))
    rewards, states = unrolled.step_weights("root", K)
    np.testing.assert_allclose(rewards, np.full(K, 1 / K))
    np.testing.assert_allclose(states, [1.0, *np.full(K, 1 / K)])


def test_root_weights_count_the_first_state_as_much_as_all_later_ones_together():
    model, params = latent_model()

    def value(weights, mask):
        config = dataclasses.replace(CONFIG, step_weights=weights)
        targets = random_targets()._replace(mask=mask)
        _, metrics = unrolled.loss(model, config, 0.0, params, window(), targets, KEY)
        return metrics["loss/value"]

    first = jnp.eye(K + 1)[0]
    later = 1.0 - first
    np.testing.assert_allclose(value("root", first), (K + 1) * value("mean", first), rtol=1e-5)
    np.testing.assert_allclose(value("root", later), (K + 1) / K * value("mean", later), rtol=1e-5)
