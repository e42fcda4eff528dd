"""COMBO: which rows are pushed down, and which up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offline_mbrl.algorithms.imagined import combo
from offline_mbrl.learners.parts import conservative
from offline_mbrl.types import Context, Transition

KEY = jax.random.key(0)
GAP = conservative.Config(coef=1.0, num_actions=2)


class Uniform:
    """Uniform on the square, whatever is asked."""

    def sample_and_log_prob(self, *, seed):
        return jax.random.uniform(seed, (2,), minval=-1.0), 2 * jnp.log(0.5)


class Agent:
    """Critics that know the state alone: `Q(s, a) = s[0]`."""

    def critics(self, observations, actions):
        del actions
        return observations[None, :, 0]

    def policy(self, observation):
        del observation
        return Uniform()


def batch():
    state = jnp.array([[1.0], [2.0], [10.0], [20.0]])
    return Transition(
        observation=state,
        action=jnp.zeros((4, 2)),
        reward=jnp.zeros(4),
        discount=jnp.ones(4),
        next_observation=state,
        extras={"is_imagined": jnp.array([0.0, 0.0, 1.0, 1.0])},
    )


@pytest.mark.parametrize(("states", "pushed"), [("imagined", 15.0), ("all", 33.0 / 4)])
def test_imagined_states_are_pushed_down_and_real_actions_up(states, pushed):
    term = conservative.regularizer(GAP, state_rows=combo.STATES[states], data_rows=combo.real_rows)
    loss, _ = term(Agent(), Context(), batch(), KEY)
    # Six equal values of density 1/4: their soft maximum is Q + log(6 * 4).
    np.testing.assert_allclose(loss, pushed + np.log(24.0) - 1.5, rtol=1e-5)


def test_values_of_imagined_rows_carry_gradients():
    term = conservative.regularizer(GAP, state_rows=combo.imagined_rows, data_rows=combo.real_rows)

    def loss(state):
        return term(Agent(), Context(), batch()._replace(observation=state), KEY)[0]

    gradient = jax.grad(loss)(batch().observation)[:, 0]
    np.testing.assert_allclose(gradient, [-0.5, -0.5, 0.5, 0.5], rtol=1e-5)


def test_the_kit_whose_squared_error_has_no_half_stands_with_half_the_weight():
    assert combo.PRESETS["hopper_medium"]["policy"].gap.coef == 2.5
