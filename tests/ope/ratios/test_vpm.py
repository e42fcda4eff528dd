"""The variational power method: closed forms, identities, the values of a chain."""

import jax.numpy as jnp
import numpy as np
import pytest
from learned_examples import GAMMA, assert_finds_values, chain, context, single

from offline_mbrl.ope.ratios import vpm

QUICK = vpm.Config(hidden_layers=(32,), batch_size=128, learning_rate=6e-3, averaged_updates=400)
TINY = vpm.Config(hidden_layers=(8,), batch_size=16, averaged_updates=10)


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("terminal", [False, True])
def test_power_steps_find_the_values_of_a_chain(terminal):
    problem = chain(terminal=terminal)
    made = vpm.make(QUICK, problem.spec, problem.policy)
    _, _, _, estimates = assert_finds_values(problem, made, num_updates=1_000)
    np.testing.assert_allclose(estimates.diagnostics["mass"], 1.0, atol=0.05)


def test_the_visit_after_a_terminal_is_a_start_and_after_a_cut_goes_on():
    def after(discount):
        return vpm.flow(*jnp.array([2.0, 5.0]), jnp.float32(discount), gamma=0.9)

    np.testing.assert_allclose([after(0), after(1)], [5.0, 0.9 * 2 + 0.1 * 5], rtol=1e-6)


def test_without_a_power_step_the_previous_ratio_is_the_minimum_and_with_a_whole_one_its_flow():
    ratios = jnp.linspace(0.0, 4.0, 4_001)

    def loss(tau, alpha):
        return vpm.power_loss(tau, 2.0 * tau, jnp.float32(1.5), jnp.float32(alpha))

    for alpha, best in ((0.0, 1.5), (0.5, 1.5 * 1.5)):  # the visits after x weigh twice what x does
        losses = np.array([loss(tau, alpha) for tau in ratios[::50]])
        np.testing.assert_allclose(ratios[::50][losses.argmin()], best, atol=0.05)


def test_a_constant_reward_is_its_own_average_before_anything_is_learned():
    problem = chain(num_episodes=20)
    dataset = problem.dataset._replace(reward=jnp.full_like(problem.dataset.reward, 3.0))
    run = single(vpm.make(TINY, problem.spec, problem.policy), num_updates=5)
    estimate = run(0, dataset, context(dataset, problem.behavior_params))
    np.testing.assert_allclose(estimate.value, 3.0 / (1 - GAMMA), rtol=1e-4)
    assert estimate.diagnostics["updates_too_few"] == 1
