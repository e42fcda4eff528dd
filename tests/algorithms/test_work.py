"""How much an update computes, as the compiler counts it: a clock is less exact."""

import jax
import jax.numpy as jnp
import pytest

from offline_mbrl import registry
from offline_mbrl.algorithms import operators
from offline_mbrl.types import Context, DiscreteActions, EnvironmentSpec, Trajectory

CATCH = EnvironmentSpec(jax.ShapeDtypeStruct((10, 5), jnp.float32), DiscreteActions(3))
B = 32


# MFLOP of an update of 32 windows on catch. The compiler counts one simulation of a tree search,
# whatever N.
@pytest.mark.parametrize(
    ("name", "megaflops"), [("rosmo", 14.0), ("gumbel", 13.0), ("muzero_unplugged", 13.5)]
)
def test_an_update_computes_no_more_than_it_did(name, megaflops):
    algorithm = registry.lookup(name)
    config = algorithm.config(batch_size=B)
    if name != "rosmo":
        search = operators.SearchConfig(config.search.operator, num_simulations=4)
        config = algorithm.config(batch_size=B, search=search)
    learner = algorithm.make(config, CATCH)
    length = config.unroll_steps + config.td_steps
    values = jax.ShapeDtypeStruct((B, length), jnp.float32)
    batch = Trajectory(
        observation=jax.ShapeDtypeStruct((B, length + 1, 10, 5), jnp.float32),
        action=jax.ShapeDtypeStruct((B, length), jnp.int32),
        reward=values,
        discount=values,
        mask=values,
    )
    key = jax.random.key(0)
    state = jax.eval_shape(lambda key: learner.init(key, None, Context()), key)
    compiled = jax.jit(learner.step).lower(state, Context(), batch, key).compile()
    assert 0.6 * megaflops < compiled.cost_analysis()["flops"] / 1e6 < megaflops
