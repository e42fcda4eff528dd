"""What learned estimators draw from the data: steps, initial observations, bootstrap resamples."""

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.data import episodes
from offline_mbrl.data.memory import Dataset
from offline_mbrl.ope import batches

LENGTHS = (1, 2, 3, 12)  # of four episodes; observations are (episode, step)


def dataset():
    rows = [(float(e), float(t)) for e, length in enumerate(LENGTHS) for t in range(length)]
    ends = np.cumsum(LENGTHS) - 1
    return Dataset.from_arrays(
        {
            "observation": np.array(rows),
            "action": np.zeros((len(rows), 1)),
            "reward": np.arange(len(rows)),
            "is_terminal": np.isin(np.arange(len(rows)), ends),
            "is_truncated": np.zeros(len(rows), bool),
        }
    )


def test_a_batch_knows_its_steps_and_starts():
    batch = jax.jit(batches.Experience(200))(dataset(), None, jax.random.key(0))
    np.testing.assert_array_equal(batch.step, batch.transition.observation[:, 1])
    np.testing.assert_array_equal(batch.initial_observation[:, 1], 0.0)
    assert len(np.unique(batch.episode)) == 4
    ends = np.unique(dataset().episode_end)
    np.testing.assert_array_equal(
        ends[batch.transition.observation[:, 0].astype(int)], batch.episode
    )
    np.testing.assert_array_equal(
        ends[batch.initial_observation[:, 0].astype(int)], batch.initial_episode
    )
    assert batch.num_transitions == sum(LENGTHS)


def shares_of_episodes(batch):
    """The weight of each episode among the initial observations."""
    episode = batch.initial_observation[:, 0]
    size = batch.initial_weight.shape[0]
    return [np.sum(batch.initial_weight * (episode == e)) / size for e in range(4)]


def test_weighted_initial_observations_are_uniform_over_episodes_of_any_length():
    batch = jax.jit(batches.Experience(20_000))(dataset(), None, jax.random.key(1))
    np.testing.assert_allclose(batch.initial_weight.mean(), 1.0, rtol=1e-5)
    np.testing.assert_allclose(shares_of_episodes(batch), 0.25, atol=0.015)
    assert len(episodes.first_rows(dataset())) == 4


def test_initial_observations_stay_uniform_where_transitions_are_held_out():
    whole = dataset()
    kept = np.asarray(whole.starts)[
        [0, 1, 3, 4, 6, 7, 8, 9]
    ]  # 1, 1, 2 and 4 transitions of the four episodes
    batch = jax.jit(batches.Experience(20_000))(
        whole._replace(starts=kept), None, jax.random.key(1)
    )
    np.testing.assert_allclose(shares_of_episodes(batch), 0.25, atol=0.015)


def test_a_resample_without_an_episode_counts_them_all():
    keys = jax.vmap(jax.random.key)(jnp.arange(40))
    episode = jnp.zeros(5, jnp.int32)
    weights = jax.vmap(lambda key: batches.weights(key, episode, bootstrap=True))(keys)
    counts = jax.vmap(lambda key: batches.episode_weights(key, episode[:1]))(keys)[:, 0]
    assert np.sum(counts == 0) > 5
    np.testing.assert_array_equal(weights, np.repeat(np.maximum(counts, 1)[:, None], 5, axis=1))


def test_a_resample_counts_whole_episodes_like_a_poisson_of_mean_one():
    names = jnp.arange(20_000)
    counts = np.asarray(batches.episode_weights(jax.random.key(0), names))
    np.testing.assert_array_equal(
        batches.episode_weights(jax.random.key(0), names[::-1]), counts[::-1]
    )
    frequencies = [np.mean(counts == k) for k in range(4)]
    np.testing.assert_allclose(frequencies, np.exp(-1) / np.array([1, 1, 2, 6]), atol=0.012)
    np.testing.assert_allclose([counts.mean(), counts.var()], 1.0, atol=0.03)
    assert np.any(batches.episode_weights(jax.random.key(1), names) != counts)


def test_a_batch_without_weight_has_a_finite_mean():
    assert batches.weighted_mean(jnp.ones(3), jnp.zeros(3)) == 0
    np.testing.assert_allclose(
        batches.weighted_mean(jnp.array([1.0, 5.0]), jnp.array([3.0, 1.0])), 2.0
    )
