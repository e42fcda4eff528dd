"""DICE: closed forms, identities, the values and density ratios of a chain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learned_examples import (
    GAMMA,
    assert_finds_values,
    chain,
    context,
    over_policies,
    single,
)

from offline_mbrl.ope.ratios import dice
from offline_mbrl.ope.ratios import shared as ratios

SIZES = {
    "hidden_layers": (32,),
    "batch_size": 128,
    "nu_learning_rate": 1e-2,
    "zeta_learning_rate": 1e-2,
    "averaged_updates": 400,
}
TINY = {"hidden_layers": (8,), "batch_size": 16, "averaged_updates": 10}


def config(preset, **settings):
    return dice.Config(**{**dice.PRESETS[preset], **settings})


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize(
    ("preset", "terminal", "num_updates"), [("best_dice", True, 1_500), ("dual_dice", False, 2_500)]
)
def test_the_saddle_points_ratio_gives_the_values_of_a_chain(preset, terminal, num_updates):
    problem = chain(terminal=terminal)
    settings = config(preset, **SIZES)
    learner, read_out = dice.make(settings, problem.spec, problem.policy)
    made = (learner, read_out)
    policies, states, run_context, estimates = assert_finds_values(
        problem, made, num_updates=num_updates
    )
    np.testing.assert_allclose(estimates.diagnostics["mass"], 1.0, atol=0.03)
    assert not np.any(estimates.diagnostics["low_support"])
    ratio = jax.vmap(
        jax.vmap(dice.density_ratio(settings, problem.spec), (None, None, 0)), (None, 0, None)
    )
    states_of_chain = jnp.eye(5)[: 4 if terminal else 5]
    by_network = jax.jit(jax.vmap(ratio, (0, None, None)))(
        over_policies(learner.policy_params)(states, run_context), states_of_chain, jnp.arange(2)
    )
    by_network = by_network.reshape(2, len(policies), *by_network.shape[1:]).mean(axis=0)
    by_table = np.array([problem.density_ratio(params) for params in policies])[
        :, : len(states_of_chain)
    ]
    assert np.sqrt(np.mean((by_network - by_table) ** 2)) < 0.15
    assert np.corrcoef(by_network.ravel(), by_table.ravel())[0, 1] > 0.9


def test_the_residual_stops_at_a_terminal_and_not_at_a_time_limit():
    def residual(discount):
        nu, next_nu, lambda_, reward = jnp.array([1.0, 2.0, 3.0, 4.0])
        return dice.residual(
            nu, next_nu, lambda_, reward, jnp.float32(discount), gamma=0.9, reward_coef=0.5
        )

    np.testing.assert_allclose(residual(1), 0.5 * 4 + 0.9 * 2 - 1 - 3, rtol=1e-5)
    np.testing.assert_allclose(residual(0), 0.5 * 4 - 1 - 3 / (1 - 0.9), rtol=1e-5)


@pytest.mark.parametrize("geometric", [False, True])
def test_a_constant_reward_is_its_own_average_before_anything_is_learned(geometric):
    problem = chain(num_episodes=20)
    dataset = problem.dataset._replace(reward=jnp.full_like(problem.dataset.reward, 3.0))
    settings = config("best_dice", geometric_sampling=geometric, **TINY)
    run = single(dice.make(settings, problem.spec, problem.policy), num_updates=5)
    estimate = run(0, dataset, context(dataset, problem.behavior_params))
    np.testing.assert_allclose(estimate.value, 3.0 / (1 - GAMMA), rtol=1e-4)
    np.testing.assert_allclose(estimate.stderr, 0.0, atol=1e-3)
    assert estimate.diagnostics["updates_too_few"] == 1


def test_geometric_sampling_weighs_a_step_by_gamma_to_its_place():
    problem = chain(num_episodes=20)
    learner, _ = dice.make(config("best_dice", **TINY), problem.spec, problem.policy)
    batch = learner.sample(problem.dataset, None, jax.random.key(0))
    of_steps, of_starts = ratios.weights(
        jax.random.key(0), batch, gamma=0.5, geometric=True, bootstrap=False
    )
    np.testing.assert_allclose(of_steps, 0.5 ** np.asarray(batch.step), rtol=1e-6)
    np.testing.assert_allclose(of_starts, batch.initial_weight)
    plain, _ = ratios.weights(jax.random.key(0), batch, gamma=0.5, geometric=False, bootstrap=False)
    np.testing.assert_array_equal(plain, 1.0)


def test_the_players_move_against_each_other():
    problem = chain(num_episodes=20)
    learner, _ = dice.make(config("dual_dice", **TINY), problem.spec, problem.policy)
    batch = learner.sample(problem.dataset, None, jax.random.key(0))
    run_context = context(problem.dataset, problem.behavior_params)
    state = learner.init(jax.random.key(1), batch, run_context)
    step = jax.jit(learner.step)
    after, first = step(state, run_context, batch, jax.random.key(2))

    def lagrangian(**params):
        changed = state._replace(params={**state.params, **params})
        return step(changed, run_context, batch, jax.random.key(2))[1]["loss/lagrangian"]

    assert (
        lagrangian(nu=after.params["nu"])
        < first["loss/lagrangian"]
        < lagrangian(zeta=after.params["zeta"])
    )


def test_a_few_large_ratios_are_low_support():
    problem = chain(num_episodes=20)
    size = 200
    learner, _ = dice.make(
        config("best_dice", **{**TINY, "batch_size": size}), problem.spec, problem.policy
    )
    transitions = learner.sample(problem.dataset, None, jax.random.key(0)).transition
    averaging = ratios.Averaging(gamma=GAMMA, normalize=True, over=10.0)

    def diagnostics(ratio):
        moments = ratios.start(jnp.float32(1_000))
        moments = ratios.follow(moments, ratio, transitions, jnp.ones(size), averaging)
        return ratios.read_out(moments, averaging, width=jnp.float32(5.0)).diagnostics

    even = diagnostics(jnp.ones(size))
    single_large = diagnostics(jnp.full(size, 1e-4).at[0].set(float(size)))
    np.testing.assert_allclose(
        [even["effective_transitions"], single_large["largest_weight"]], [1_000, size], rtol=1e-5
    )
    np.testing.assert_allclose(single_large["effective_transitions"], 1_000 / size, rtol=0.01)
    assert even["low_support"] == 0
    assert single_large["low_support"] == 1
