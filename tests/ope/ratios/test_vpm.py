"""The variational power method: closed forms, identities, the values of a chain."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learned_examples import GAMMA, assert_finds_values, chain, context, single

from offline_mbrl.ope import batches
from offline_mbrl.ope.ratios import vpm
from offline_mbrl.problems import known
from offline_mbrl.types import Transition

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


# --- long horizons ---

# A corridor of 5 states whose ends attract: what the starts put on either side stays there, so that
# the ratio of a start that is forgotten by `gamma` alone is what a long horizon asks for.
ENDS_ATTRACT = {"logits": np.array([[60, -60]] * 3 + [[-60, 60]] * 2, np.float32)}
CORRIDOR = vpm.Config(
    hidden_layers=(16,),
    learning_rate=1e-2,
    power_period=25,
    penalty=0.0,
    averaged_updates=200,
    num_updates=30_000,
)


def every_move(corridor):
    """A batch of each state and action once, of starts as often as the corridor has them."""
    state, action = np.divmod(np.arange(10), 2)
    unit = np.eye(5, dtype=np.float32)
    transition = Transition(
        observation=unit[state],
        action=action,
        reward=corridor.truth["reward"][state, action],
        discount=np.ones(10),
        next_observation=corridor.truth["transition"][state, action],
        extras={},
    )
    batch = batches.Batch(
        transition=transition,
        episode=np.arange(10),
        step=np.zeros(10, int),
        initial_observation=unit[np.repeat(np.arange(4), [4, 3, 2, 1])],
        initial_episode=np.arange(10),
        initial_weight=np.ones(10),
        num_transitions=np.array(10.0),
    )
    return jax.tree.map(jnp.asarray, batch)


def test_power_steps_reach_over_a_horizon_of_two_hundred_steps_or_say_that_they_do_not():
    """Expectations are exact."""
    corridor = known.tabular(0, slip=0.0, gamma=0.995, num_episodes=20)
    truth = corridor.value(ENDS_ATTRACT, np.inf)
    batch = every_move(corridor)
    estimates = []
    for least_alpha in (0.0, None):
        config = dataclasses.replace(CORRIDOR, least_alpha=least_alpha)
        learner, read_out = vpm.make(config, corridor.spec, corridor.policy)
        made = (learner._replace(sample=lambda dataset, cache, key: batch), read_out)
        run = single(made, num_updates=config.num_updates)
        estimates.append(run(0, corridor.dataset, context(corridor.dataset, ENDS_ATTRACT)))
    short, long = estimates
    mean_reward = float(batch.transition.reward.mean()) / (1 - 0.995)
    left = (np.array([short.value, long.value]) - truth) / (mean_reward - truth)  # of the beginning
    assert left[0] > 0.15
    assert abs(left[1]) < 0.1
    assert short.diagnostics["updates_too_few"] == 1
    assert long.diagnostics["updates_too_few"] == 0
    np.testing.assert_allclose(long.diagnostics["flow_steps"], 4 * 200, rtol=0.02)
    np.testing.assert_allclose(long.diagnostics["mass"], 1.0, atol=0.12)  # without a penalty
