"""The variational power method: closed forms, identities, the values of a chain."""

import jax.numpy as jnp
import numpy as np
import pytest
from learned_examples import GAMMA, assert_finds_values, chain, single, statistics

from offline_mbrl.ope.ratios import vpm

QUICK = vpm.Config(hidden_layers=(32,), batch_size=128, learning_rate=3e-3, averaged_updates=200)
TINY = vpm.Config(hidden_layers=(8,), batch_size=16, averaged_updates=10)


@pytest.mark.parametrize("terminal", [False, True])
def test_power_steps_find_the_values_of_a_chain(terminal):
    problem = chain(terminal=terminal)
    made = vpm.make(QUICK, problem.spec, problem.policy)
    _, _, found = assert_finds_values(problem, made, num_updates=2_000)
    np.testing.assert_allclose(found.diagnostics["mass"], 1.0, atol=0.05)


def test_the_visit_after_a_terminal_is_a_start_and_after_a_cut_goes_on():
    after = lambda discount: vpm.flow(*jnp.array([2.0, 5.0]), jnp.float32(discount), gamma=0.9)  # noqa: E731
    np.testing.assert_allclose([after(0), after(1)], [5.0, 0.9 * 2 + 0.1 * 5], rtol=1e-6)


def test_without_a_power_step_the_previous_ratio_is_the_minimum_and_with_a_whole_one_its_flow():
    ratios = jnp.linspace(0.0, 4.0, 4_001)
    loss = lambda tau, alpha: vpm.power_loss(tau, 2.0 * tau, jnp.float32(1.5), jnp.float32(alpha))  # noqa: E731
    for alpha, best in ((0.0, 1.5), (0.5, 1.5 * 1.5)):  # the visits after x weigh twice what x does
        losses = np.array([loss(tau, alpha) for tau in ratios[::50]])
        np.testing.assert_allclose(ratios[::50][losses.argmin()], best, atol=0.05)


def test_a_constant_reward_is_its_own_average_before_anything_is_learned():
    problem = chain(num_episodes=20)
    dataset = problem.dataset._replace(reward=jnp.full_like(problem.dataset.reward, 3.0))
    found = single(vpm.make(TINY, problem.spec, problem.policy), num_updates=5)(
        0, problem.behavior_params, dataset, statistics(dataset))  # fmt: skip
    np.testing.assert_allclose(found.value, 3.0 / (1 - GAMMA), rtol=1e-4)
    assert found.diagnostics["updates_too_few"] == 1
