"""Known traps of density models, each with a test that it would not pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from explicit_examples import ensemble, transition

from offline_mbrl.models import feedforward, gaussian_ensemble, likelihood, scores

FEEDFORWARD = {
    "feedforward": feedforward.make(feedforward.Config((8,)), 2, 1),
    "gaussian_ensemble": gaussian_ensemble.density(
        gaussian_ensemble.Config(hidden_layers=(8,), decay=(0.0, 0.0)), 2, 1
    ),
}


@pytest.mark.parametrize("shift", [-50.0, 50.0])
@pytest.mark.parametrize("name", FEEDFORWARD)
def test_no_activation_follows_the_last_layer(name, shift):
    density = FEEDFORWARD[name]
    params = density.init(jax.random.key(0))
    shared = density.shared()
    x = jnp.array([0.3, -1.0, 0.5])
    means = jax.jit(lambda params: density.moments(params, shared, x, x)[0])

    def moved(path, leaf):
        last = jax.tree_util.keystr(path).endswith("['layer_1']['bias']")
        return leaf + shift if last else leaf

    apart = means(jax.tree_util.tree_map_with_path(moved, params)) - means(params)
    np.testing.assert_allclose(apart, np.full(3, shift), rtol=1e-4)


def test_one_unusual_episode_decides_the_mean_but_neither_the_median_nor_which_member_is_best():
    model, params = ensemble(1)
    usual = transition(lead=(60,))
    unusual = usual._replace(reward=usual.reward.at[:3].add(1e4))
    report = jax.jit(lambda rows: likelihood.report(model, params, rows))
    score = jax.jit(lambda rows: scores.median_nll().evaluate(model, params, rows))
    before = report(usual)
    after = report(unusual)
    assert after.nll_z.mean[0] > before.nll_z.mean[0] + 100
    assert after.nll_z.p99[0] > before.nll_z.p99[0] + 100
    assert abs(after.nll_z.median[0] - before.nll_z.median[0]) < 1
    assert abs(score(unusual)[0] - score(usual)[0]) < 1
