"""Fitted Q evaluation: closed forms, identities, the values of a chain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learned_examples import (
    GAMMA,
    assert_finds_values,
    chain,
    context,
    fitted,
    over_policies,
    single,
)

from offline_mbrl.data import normalize
from offline_mbrl.ope.values import fitted_q, fqe, fqe_distributional
from offline_mbrl.problems import known
from offline_mbrl.targets import categorical
from offline_mbrl.training.fit import fit
from offline_mbrl.types import Policy, UsageError

QUICK = fqe.Config(
    batch_size=128, hidden_layers=(32,), learning_rate=1e-2, weight_decay=0.0, tau=0.1
)
TINY = fqe.Config(hidden_layers=(8,), batch_size=32)
ATOMS = fqe_distributional.Config(
    batch_size=128, hidden_layers=(32,), learning_rate=2e-3, target_period=5, num_atoms=21
)


# --- equations ---


def test_a_terminal_step_is_worth_its_reward_and_a_time_limit_bootstraps():
    def backup(discount):
        reward, discount, next_value, low, high = jnp.array([2.0, discount, 3.0, -9.0, 9.0])
        return fqe.backup(reward, discount, next_value, gamma=0.9, low=low, high=high)

    np.testing.assert_allclose(backup(0), 0.1 * 2.0, rtol=1e-6)
    np.testing.assert_allclose(backup(1), 0.1 * 2.0 + 0.9 * 3.0, rtol=1e-6)


def test_a_cut_episode_never_stops_a_bootstrap():
    problem = known.tabular(0, num_episodes=5, horizon=3)
    learner, _ = fqe.make(TINY, problem.spec, problem.policy)
    assert np.all(learner.sample(problem.dataset, None, jax.random.key(0)).transition.discount == 1)


@pytest.mark.parametrize("terminal", [False, True])
def test_targets_are_clipped_to_the_rewards_with_zero_where_episodes_end(terminal):
    problem = chain(terminal=terminal, num_episodes=20)
    raised = problem.dataset._replace(reward=problem.dataset.reward + 5.0)
    learner, _ = fqe.make(TINY, problem.spec, problem.policy)
    run_context = context(raised, problem.behavior_params)
    state = learner.init(jax.random.key(0), None, run_context)
    scales = learner.policy_params(state, run_context).scales
    rewards = np.asarray(raised.reward)[np.asarray(raised.starts)]
    np.testing.assert_allclose(scales.low, 0.0 if terminal else rewards.min(), rtol=1e-6)
    np.testing.assert_allclose(scales.high, rewards.max(), rtol=1e-6)


def losses_by_hand(state, scales, batch, actions, spec):
    """Per-example squared errors `[B]` of the first update, one after the other in numpy."""

    def network(params, observation, action):
        x = (observation - scales.observation_mean) / scales.observation_std
        x = np.concatenate([x, np.eye(2)[action]])
        hidden = np.maximum(x @ params["layer_0"]["kernel"] + params["layer_0"]["bias"], 0)
        return (hidden @ params["layer_1"]["kernel"] + params["layer_1"]["bias"])[0]

    def standard(reward):
        return (reward - scales.reward_mean) / scales.reward_std

    errors = []
    data = batch.transition
    for i, action in enumerate(actions):
        following = network(state.lagging_params, data.next_observation[i], action)
        target = (1 - spec.gamma) * standard(data.reward[i])
        target += spec.gamma * data.discount[i] * following
        target = np.clip(target, standard(scales.low), standard(scales.high))
        errors.append((target - network(state.params, data.observation[i], data.action[i])) ** 2)
    return np.array(errors)


def test_each_example_has_its_own_reward_in_its_error():
    problem = chain(terminal=True, num_episodes=20)
    policy = problem.policy._replace(sample=lambda params, observation, key: jnp.int32(1))
    learner, _ = fqe.make(TINY, problem.spec, policy)
    batch = learner.sample(problem.dataset, None, jax.random.key(0))
    run_context = context(problem.dataset, problem.behavior_params)
    state = learner.init(jax.random.key(1), batch, run_context)
    shifted = batch._replace(
        transition=batch.transition._replace(reward=jnp.roll(batch.transition.reward, 1))
    )
    step = jax.jit(learner.step)
    scales = learner.policy_params(state, run_context).scales
    losses = []
    by_hand = []
    for rows in (batch, shifted):
        losses.append(step(state, run_context, rows, jax.random.key(2))[1]["loss/total"])
        arguments = jax.device_get((state, scales, rows))
        by_hand.append(losses_by_hand(*arguments, [1] * 32, problem.spec).mean())
    np.testing.assert_allclose(losses, by_hand, rtol=1e-4)
    # A mean over all pairs would be the same for both.
    assert abs(by_hand[0] - by_hand[1]) > 1e-3 * by_hand[0]


def test_scaled_and_shifted_rewards_give_scaled_and_shifted_values():
    problem = chain(num_episodes=50)
    changed = problem.dataset._replace(reward=3.0 * problem.dataset.reward + 5.0)
    run = single(fqe.make(TINY, problem.spec, problem.policy), num_updates=30)
    plain, other = (
        run(0, dataset, context(dataset, problem.behavior_params))
        for dataset in (problem.dataset, changed)
    )
    np.testing.assert_allclose(other.value, 3.0 * plain.value + 5.0 / (1 - GAMMA), rtol=1e-4)
    np.testing.assert_allclose(other.stderr, 3.0 * plain.stderr, rtol=1e-3)
    assert (
        plain.diagnostics["updates_too_few"] == 1
    )  # values need 3 / (0.005 * 0.2) updates to travel back


# --- known values ---


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("terminal", [False, True])
def test_fitted_q_finds_the_values_of_a_chain(terminal):
    problem = chain(terminal=terminal)
    made = fqe.make(QUICK, problem.spec, problem.policy)
    policies, fits, run_context, estimates = assert_finds_values(problem, made, num_updates=900)
    assert not np.any(estimates.diagnostics["updates_too_few"])
    values = fqe.values(QUICK, problem.spec, problem.policy)
    params = over_policies(made[0].policy_params)(fits, run_context)
    states = jnp.eye(5)[: 4 if terminal else 5]
    over_actions = jax.vmap(values.q_value, (None, None, 0))
    over_states = jax.vmap(over_actions, (None, 0, None))
    q = jax.jit(jax.vmap(over_states, (0, None, None)))(params, states, jnp.arange(2))[:3]
    by_table = [
        [problem.q(policy, states, np.full(len(states), a)) for a in (0, 1)] for policy in policies
    ]
    np.testing.assert_allclose(q, np.moveaxis(np.array(by_table), 1, 2), rtol=0.1, atol=0.05)


def test_the_value_of_a_state_is_the_mean_over_the_policys_actions():
    problem = chain(num_episodes=20)
    learner, _ = fqe.make(TINY, problem.spec, problem.policy)
    run_context = context(problem.dataset, problem.behavior_params)
    state = learner.init(jax.random.key(1), None, run_context)
    values = fqe.values(TINY, problem.spec, problem.policy)
    params = learner.policy_params(state, run_context)
    q = jnp.stack([values.q_value(params, jnp.eye(5)[1], action) for action in (0, 1)])
    chances = jax.nn.softmax(problem.behavior_params["logits"][1])
    found = values.state_value(params, jnp.eye(5)[1], jax.random.key(0), num_samples=5_000)
    np.testing.assert_allclose(found, chances @ q, atol=4 * float(jnp.std(q)) / np.sqrt(5_000))


@pytest.mark.usefixtures("optimized")
def test_distributional_fitted_q_finds_the_values_of_a_chain():
    problem = chain(terminal=True)
    made = fqe_distributional.make(ATOMS, problem.spec, problem.policy)
    _, _, _, estimates = assert_finds_values(problem, made, num_updates=1_000)
    assert not np.any(estimates.diagnostics["updates_too_few"])


# --- distributions ---


def test_projection_equals_a_hand_computation():
    support = jnp.array([-1.0, 1.0, 3.0])
    positions = jnp.array([-2.0, -0.5, 2.5, 9.0])
    projected = categorical.project(jnp.array([0.1, 0.4, 0.3, 0.2]), positions, support)
    by_hand = [0.1 + 0.4 * 0.75, 0.4 * 0.25 + 0.3 * 0.25, 0.3 * 0.75 + 0.2]
    np.testing.assert_allclose(projected, by_hand, rtol=1e-6)


def test_projection_keeps_mass_and_inside_the_support_the_mean():
    generator = np.random.default_rng(0)
    support = jnp.linspace(-1.3, 2.1, 13)
    positions = jnp.asarray(generator.uniform(support[0], support[-1], 7), jnp.float32)
    probabilities = jnp.asarray(generator.dirichlet(np.ones(7)), jnp.float32)
    projected = categorical.project(probabilities, positions, support)
    np.testing.assert_allclose(projected.sum(), 1.0, rtol=1e-5)
    np.testing.assert_allclose(projected @ support, probabilities @ positions, rtol=1e-5)
    again = categorical.project(projected, support, support)
    np.testing.assert_allclose(again, projected, atol=1e-6)


def test_the_mean_of_the_worst_share_counts_part_of_an_atom():
    support = jnp.array([-10.0, 0.0, 5.0])
    probabilities = jnp.array([0.05, 0.15, 0.8])
    worst = [fitted_q.lower_mean(support, probabilities, share) for share in (0.05, 0.1, 0.4, 1.0)]
    by_hand = [-10.0, (-0.5 + 0.0) / 0.1, (-0.5 + 0.0 + 0.2 * 5) / 0.4, -0.5 + 4.0]
    np.testing.assert_allclose(worst, by_hand, rtol=1e-5)


def test_the_worst_tenth_is_read_off_the_mixture_over_starts():
    """Untrained critics have one distribution for all: its worst tenth, in the data's units."""
    problem = chain(num_episodes=20)
    config = fqe_distributional.Config(hidden_layers=(8,), num_atoms=11)
    learner, read_out = fqe_distributional.make(config, problem.spec, problem.policy)
    run_context = context(problem.dataset, problem.behavior_params)
    state = learner.init(jax.random.key(0), None, run_context)
    last = {"kernel": jnp.zeros((8, 11)), "bias": jnp.zeros(11)}
    state = state._replace(lagging_params={**state.lagging_params, "layer_1": last})
    starts = jnp.eye(5)[:2]
    found = read_out(state, run_context, starts, jax.random.key(1)).diagnostics["cvar_10"]
    scales = learner.policy_params(state, run_context).scales
    low, high = float(scales.low) / (1 - GAMMA), float(scales.high) / (1 - GAMMA)
    # The lowest of eleven equal atoms has 1/11 of the probability, the second the rest of a tenth.
    step = (high - low) / 10
    np.testing.assert_allclose(found, low + step * (0.1 - 1 / 11) / 0.1, rtol=1e-4, atol=1e-4)


def test_d4pgs_trunk_takes_two_layers_and_an_unknown_one_is_refused():
    problem = chain(num_episodes=20)
    config = fqe_distributional.Config(torso="d4pg", hidden_layers=(12, 8), num_atoms=5)
    learner, _ = fqe_distributional.make(config, problem.spec, problem.policy)
    run_context = context(problem.dataset, problem.behavior_params)
    state = jax.eval_shape(lambda: learner.init(jax.random.key(0), None, run_context))
    assert state.params["logits"]["kernel"].shape == (8, 5)
    with pytest.raises(UsageError, match="d4pg with two hidden layers"):
        fqe_distributional.make(
            fqe_distributional.Config(torso="d4pg", hidden_layers=(8,)),
            problem.spec,
            problem.policy,
        )


def are_equal(tree, other):
    return all(map(np.array_equal, jax.tree.leaves(tree), jax.tree.leaves(other)))


def test_the_lagging_network_is_copied_once_a_period():
    problem = chain(num_episodes=20)
    config = fqe_distributional.Config(
        hidden_layers=(8,), batch_size=16, num_atoms=5, target_period=3
    )
    learner, _ = fqe_distributional.make(config, problem.spec, problem.policy)
    batch = learner.sample(problem.dataset, None, jax.random.key(0))
    run_context = context(problem.dataset, problem.behavior_params)
    state = learner.init(jax.random.key(1), batch, run_context)
    step = jax.jit(learner.step)
    copied = []
    for _ in range(6):
        before = state
        state, _ = step(state, run_context, batch, jax.random.key(2))
        copied.append(are_equal(state.params, state.lagging_params))
        assert copied[-1] or are_equal(before.lagging_params, state.lagging_params)
    assert copied == [False, False, True, False, False, True]


def test_distributional_fits_begin_at_the_mean_reward_whatever_the_rewards_range():
    for mean in (-0.9, 0.0, 0.3, 0.9):
        support = jnp.linspace(-1.0, 1.0, 51) - mean
        logits = fqe_distributional.initial_logits(support)
        np.testing.assert_allclose(jax.nn.softmax(logits) @ support, 0.0, atol=1e-4)
    at_end = fqe_distributional.initial_logits(jnp.linspace(0.0, 1.0, 51))
    np.testing.assert_allclose(np.ptp(at_end), fqe_distributional.LARGEST_TILT, rtol=1e-4)
    np.testing.assert_allclose(
        fqe_distributional.initial_logits(jnp.linspace(-2.0, 2.0, 5)), 0.0, atol=1e-4
    )
    problem = chain(num_episodes=20)
    config = fqe_distributional.Config(hidden_layers=(8,))
    learner, _ = fqe_distributional.make(config, problem.spec, problem.policy)
    run_context = context(problem.dataset, problem.behavior_params)
    params = learner.policy_params(learner.init(jax.random.key(0), None, run_context), run_context)
    bias = params.network["layer_1"]["bias"]
    support = fqe_distributional.atoms(params.scales, 51)
    np.testing.assert_allclose(jax.nn.softmax(bias) @ support, 0.0, atol=1e-3)


# --- many policies, resamples, bad input ---


def test_eight_policies_in_one_fit_equal_eight_fits_and_are_traced_as_often_as_one():
    problem = chain(num_episodes=20)
    traces = []

    def sample(params, observation, key):
        traces.append(0)
        return problem.policy.sample(params, observation, key)

    made = fqe.make(TINY, problem.spec, Policy(sample, problem.policy.mode))
    policies = [jax.tree.map(lambda x, i=i: x * i, problem.target_params[1]) for i in range(8)]
    _, _, together = fitted(problem, made, policies, num_updates=40)
    of_eight = len(traces)
    traces.clear()
    fitted(problem, made, policies[:1], num_updates=1)
    assert of_eight == len(traces)
    run = single(made, num_updates=40)
    alone = [
        run(seed, problem.dataset, context(problem.dataset, params)).value
        for seed, params in enumerate(policies)
    ]
    np.testing.assert_allclose(together.value, jnp.stack(alone), atol=1e-4)
    assert np.ptp(together.value) > 1e-3


def test_resampled_fits_differ_by_their_episodes_alone():
    problem = chain(num_episodes=20)
    run_context = context(problem.dataset, problem.behavior_params)
    losses = {}
    for bootstrap in (False, True):
        config = fqe.Config(hidden_layers=(8,), batch_size=64, bootstrap=bootstrap)
        learner, _ = fqe.make(config, problem.spec, problem.policy)
        batch = learner.sample(problem.dataset, None, jax.random.key(0))
        state = learner.init(jax.random.key(1), batch, run_context)
        step = jax.jit(learner.step)
        losses[bootstrap] = [
            step(start, run_context, batch, jax.random.key(2))[1]["loss/total"]
            for start in (state, state._replace(bootstrap_key=jax.random.key(9)))
        ]
    assert losses[False][0] == losses[False][1]
    assert losses[True][0] != losses[True][1]


def test_what_is_missing_is_named():
    problem = chain(num_episodes=20)
    learner, _ = fqe.make(TINY, problem.spec, problem.policy)
    run_context = context(problem.dataset, problem.behavior_params)
    settings = {"key": jax.random.key(0), "num_updates": 1}
    without = run_context._replace(statistics=normalize.statistics(problem.dataset))
    with pytest.raises(UsageError, match="statistics of the transitions"):
        fit(learner, problem.dataset, context=without, **settings)
    with pytest.raises(UsageError, match=r"upstream=\{'target': params\}"):
        fit(learner, problem.dataset, context=run_context._replace(upstream={}), **settings)
    with pytest.raises(UsageError, match="gamma must be inside"):
        fqe.make(fqe.Config(gamma=1.0), problem.spec, problem.policy)
