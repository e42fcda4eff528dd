"""What planners share: drawing by weights."""

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.planning import outcomes

KEY = jax.random.key(0)


def test_actions_are_drawn_by_their_weights_whatever_the_sum():
    weights = jnp.array([0.0, 1.0, 3.0, 0.0, 4.0, 0.0])
    draws = jax.jit(outcomes.draw)(jnp.tile(weights, (100_000, 1)), KEY)
    found = np.bincount(draws, minlength=6) / 100_000
    np.testing.assert_allclose(found, weights / 8.0, atol=0.006)  # four standard errors
    assert found[[0, 3, 5]].sum() == 0


def test_the_largest_and_the_smallest_random_number_draw_a_possible_action(monkeypatch):
    weights = (
        jax.nn.softmax(jax.random.normal(KEY, (10_000, 18)) * 5.0)
        .at[:, 0]
        .set(0.0)
        .at[:, -1]
        .set(0.0)
    )
    for number in (0.0, 1.0 - 2.0**-23):
        monkeypatch.setattr(
            jax.random, "uniform", lambda key, shape, number=number: jnp.full(shape, number)
        )
        drawn = outcomes.draw(weights, KEY)
        assert np.all(np.take_along_axis(np.asarray(weights), np.asarray(drawn)[:, None], 1) > 0)
