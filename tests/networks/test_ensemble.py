"""An ensemble is its members side by side."""

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.networks import ensemble, torsos

NETWORK = torsos.MLP((4, 2))
MEMBERS = ensemble.make(
    lambda key: torsos.init(NETWORK, key, jnp.zeros(3)),
    lambda params, x, scale: scale * torsos.apply(NETWORK, params, x),
    5,
)


def test_all_members_at_once_equal_one_member_at_a_time():
    params, x = MEMBERS.init(jax.random.key(0)), jnp.arange(3.0)
    together = jax.jit(MEMBERS.apply)(params, x, 2.0)
    assert together.shape == (5, 2)
    for e in range(5):
        alone = 2.0 * torsos.apply(NETWORK, jax.tree.map(lambda leaf, e=e: leaf[e], params), x)
        np.testing.assert_allclose(together[e], alone, rtol=1e-5)


def test_members_start_different():
    kernel = np.asarray(MEMBERS.init(jax.random.key(0))["layer_0"]["kernel"])
    assert len({member.tobytes() for member in kernel}) == 5
