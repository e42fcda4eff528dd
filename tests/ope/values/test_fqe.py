"""Fitted Q evaluation: closed forms, identities, the values of a chain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learned_examples import GAMMA, assert_finds_values, chain, fitted, single, statistics

from offline_mbrl.ope.values import fqe, fqe_distributional
from offline_mbrl.problems import known
from offline_mbrl.training.fit import fit
from offline_mbrl.types import Policy, UsageError

QUICK = fqe.Config(batch_size=128, hidden_layers=(32,), learning_rate=5e-3, weight_decay=0.0, tau=0.05)
TINY = fqe.Config(hidden_layers=(8,), batch_size=32)
ATOMS = fqe_distributional.Config(
    batch_size=128, hidden_layers=(32,), learning_rate=2e-3, target_period=10, num_atoms=21
)


# --- equations ---


def test_a_terminal_step_is_worth_its_reward_and_a_time_limit_bootstraps():
    backup = lambda discount: fqe.backup(  # noqa: E731
        jnp.float32(2.0), jnp.float32(discount), jnp.float32(3.0), gamma=0.9, low=jnp.float32(-9.0),
        high=jnp.float32(9.0))  # fmt: skip
    np.testing.assert_allclose(backup(0), 0.1 * 2.0, rtol=1e-6)
    np.testing.assert_allclose(backup(1), 0.1 * 2.0 + 0.9 * 3.0, rtol=1e-6)


def test_a_cut_episode_never_stops_a_bootstrap():
    problem = known.tabular(0, num_episodes=5, horizon=3)
    learner, _ = fqe.make(TINY, problem.spec, problem.policy)
    assert np.all(learner.sample(problem.dataset, jax.random.key(0)).transition.discount == 1)


@pytest.mark.parametrize("terminal", [False, True])
def test_targets_are_clipped_to_the_rewards_with_zero_where_episodes_end(terminal):
    problem = chain(terminal=terminal, num_episodes=20)
    raised = problem.dataset._replace(reward=problem.dataset.reward + 5.0)
    learner, _ = fqe.make(TINY, problem.spec, problem.policy)
    state = learner.init(jax.random.key(0), None, statistics(raised), {"target": problem.behavior_params})
    rewards = np.asarray(raised.reward)[np.asarray(raised.starts)]
    np.testing.assert_allclose(state.scales["low"], 0.0 if terminal else rewards.min(), rtol=1e-6)
    np.testing.assert_allclose(state.scales["high"], rewards.max(), rtol=1e-6)


def losses_by_hand(state, batch, actions, spec):
    """Per-example squared errors `[B]` of the first update, one example after the other in numpy."""

    def network(params, observation, action):
        x = (observation - state.scales["observation_mean"]) / state.scales["observation_std"]
        x = np.concatenate([x, np.eye(2)[action]])
        hidden = np.maximum(x @ params["layer_0"]["kernel"] + params["layer_0"]["bias"], 0)
        return (hidden @ params["layer_1"]["kernel"] + params["layer_1"]["bias"])[0]

    errors = []
    scales, data = state.scales, batch.transition
    standard = lambda reward: (reward - scales["reward_mean"]) / scales["reward_std"]  # noqa: E731
    for i, action in enumerate(actions):
        following = network(state.target_params, data.next_observation[i], action)
        target = (1 - spec.gamma) * standard(data.reward[i]) + spec.gamma * data.discount[i] * following
        target = np.clip(target, standard(scales["low"]), standard(scales["high"]))
        errors.append((target - network(state.params, data.observation[i], data.action[i])) ** 2)
    return np.array(errors)


def test_each_example_has_its_own_reward_in_its_error():
    problem = chain(terminal=True, num_episodes=20)
    policy = problem.policy._replace(sample=lambda params, observation, key: jnp.int32(1))
    learner, _ = fqe.make(TINY, problem.spec, policy)
    batch = learner.sample(problem.dataset, jax.random.key(0))
    state = learner.init(jax.random.key(1), batch, statistics(problem.dataset), {"target": problem.behavior_params})
    shifted = batch._replace(transition=batch.transition._replace(reward=jnp.roll(batch.transition.reward, 1)))
    step = jax.jit(learner.step)
    found = [step(state, one, jax.random.key(2))[1]["loss/total"] for one in (batch, shifted)]
    by_hand = [losses_by_hand(*jax.device_get((state, one)), [1] * 32, problem.spec).mean() for one in (batch, shifted)]
    np.testing.assert_allclose(found, by_hand, rtol=1e-4)
    assert abs(by_hand[0] - by_hand[1]) > 1e-3 * by_hand[0]  # which a mean over all pairs would not tell apart


def test_scaled_and_shifted_rewards_give_scaled_and_shifted_values():
    problem = chain(num_episodes=50)
    changed = problem.dataset._replace(reward=3.0 * problem.dataset.reward + 5.0)
    run = single(fqe.make(TINY, problem.spec, problem.policy), num_updates=30)
    plain, other = (
        run(0, problem.behavior_params, dataset, statistics(dataset)) for dataset in (problem.dataset, changed)
    )
    np.testing.assert_allclose(other.value, 3.0 * plain.value + 5.0 / (1 - GAMMA), rtol=1e-4)
    np.testing.assert_allclose(other.stderr, 3.0 * plain.stderr, rtol=1e-3)
    assert plain.diagnostics["updates_too_few"] == 1  # values need 1 / (0.005 * 0.2) updates to travel back


# --- known values ---


@pytest.mark.parametrize("terminal", [False, True])
def test_fitted_q_finds_the_values_of_a_chain(terminal):
    problem = chain(terminal=terminal)
    made = fqe.make(QUICK, problem.spec, problem.policy)
    policies, state, found = assert_finds_values(problem, made, num_updates=1_500)
    assert not np.any(found.diagnostics["updates_too_few"])
    values = fqe.values(QUICK, problem.spec, problem.policy)
    params = jax.vmap(made[0].policy_params)(state)
    states = jnp.eye(5)[: 4 if terminal else 5]
    q = jax.jit(jax.vmap(jax.vmap(jax.vmap(values.q_value, (None, None, 0)), (None, 0, None)), (0, None, None)))(
        params, states, jnp.arange(2))[:3]  # fmt: skip
    by_table = [[problem.q(each, states, np.full(len(states), a)) for a in (0, 1)] for each in policies]
    np.testing.assert_allclose(q, np.moveaxis(np.array(by_table), 1, 2), rtol=0.1, atol=0.05)


def test_the_value_of_a_state_is_the_mean_over_the_policys_actions():
    problem = chain(num_episodes=20)
    learner, _ = fqe.make(TINY, problem.spec, problem.policy)
    state = learner.init(jax.random.key(1), None, statistics(problem.dataset), {"target": problem.behavior_params})
    values, params = fqe.values(TINY, problem.spec, problem.policy), learner.policy_params(state)
    q = jnp.stack([values.q_value(params, jnp.eye(5)[1], action) for action in (0, 1)])
    chances = jax.nn.softmax(problem.behavior_params["logits"][1])
    found = values.state_value(params, jnp.eye(5)[1], jax.random.key(0), num_samples=5_000)
    np.testing.assert_allclose(found, chances @ q, atol=4 * float(jnp.std(q)) / np.sqrt(5_000))


def test_distributional_fitted_q_finds_the_values_of_a_chain():
    problem = chain(terminal=True)
    made = fqe_distributional.make(ATOMS, problem.spec, problem.policy)
    _, _, found = assert_finds_values(problem, made, num_updates=1_500)
    assert not np.any(found.diagnostics["updates_too_few"])


# --- distributions ---


def test_projection_equals_a_hand_computation():
    support, at = jnp.array([-1.0, 1.0, 3.0]), jnp.array([-2.0, -0.5, 2.5, 9.0])
    found = fqe_distributional.project(jnp.array([0.1, 0.4, 0.3, 0.2]), at, support)
    by_hand = [0.1 + 0.4 * 0.75, 0.4 * 0.25 + 0.3 * 0.25, 0.3 * 0.75 + 0.2]
    np.testing.assert_allclose(found, by_hand, rtol=1e-6)


def test_projection_keeps_mass_and_inside_the_support_the_mean():
    generator = np.random.default_rng(0)
    support = jnp.linspace(-1.3, 2.1, 13)
    at = jnp.asarray(generator.uniform(support[0], support[-1], 7), jnp.float32)
    probabilities = jnp.asarray(generator.dirichlet(np.ones(7)), jnp.float32)
    found = fqe_distributional.project(probabilities, at, support)
    np.testing.assert_allclose([found.sum(), found @ support], [1.0, probabilities @ at], rtol=1e-5)
    np.testing.assert_allclose(fqe_distributional.project(found, support, support), found, atol=1e-6)


def test_d4pgs_trunk_takes_two_layers_and_an_unknown_one_is_refused():
    problem = chain(num_episodes=20)
    config = fqe_distributional.Config(torso="d4pg", hidden_layers=(12, 8), num_atoms=5)
    learner, _ = fqe_distributional.make(config, problem.spec, problem.policy)
    state = jax.eval_shape(lambda: learner.init(
        jax.random.key(0), None, statistics(problem.dataset), {"target": problem.behavior_params}))  # fmt: skip
    assert state.params["logits"]["kernel"].shape == (8, 5)
    with pytest.raises(UsageError, match="d4pg with two hidden layers"):
        fqe_distributional.make(
            fqe_distributional.Config(torso="d4pg", hidden_layers=(8,)), problem.spec, problem.policy
        )


def test_the_lagging_network_is_copied_once_a_period():
    problem = chain(num_episodes=20)
    config = fqe_distributional.Config(hidden_layers=(8,), batch_size=16, num_atoms=5, target_period=3)
    learner, _ = fqe_distributional.make(config, problem.spec, problem.policy)
    batch = learner.sample(problem.dataset, jax.random.key(0))
    state = learner.init(jax.random.key(1), batch, statistics(problem.dataset), {"target": problem.behavior_params})
    step, copied = jax.jit(learner.step), []
    for _ in range(6):
        before, (state, _) = state, step(state, batch, jax.random.key(2))
        same = lambda tree, state=state: all(map(np.array_equal, *map(jax.tree.leaves, (tree, state.target_params))))  # noqa: E731
        copied.append(same(state.params))
        assert copied[-1] or same(before.target_params)
    assert copied == [False, False, True, False, False, True]


# --- many policies, resamples, bad input ---


def test_eight_policies_in_one_fit_equal_eight_fits_and_are_traced_as_often_as_one():
    problem = chain(num_episodes=20)
    traces = []

    def sample(params, observation, key):
        traces.append(0)
        return problem.policy.sample(params, observation, key)

    made = fqe.make(TINY, problem.spec, Policy(sample, problem.policy.mode))
    policies = [jax.tree.map(lambda x, i=i: x * i, problem.target_params[1]) for i in range(8)]
    _, together = fitted(problem, made, policies, num_updates=40)
    of_eight = len(traces)
    traces.clear()
    fitted(problem, made, policies[:1], num_updates=1)
    assert of_eight == len(traces)
    run, known_of_data = single(made, num_updates=40), statistics(problem.dataset)
    alone = [run(seed, params, problem.dataset, known_of_data).value for seed, params in enumerate(policies)]
    np.testing.assert_allclose(together.value, jnp.stack(alone), atol=1e-4)
    assert np.ptp(together.value) > 1e-3


def test_resampled_fits_differ_by_their_episodes_alone():
    problem = chain(num_episodes=20)
    step_states = {}
    for bootstrap in (False, True):
        config = fqe.Config(hidden_layers=(8,), batch_size=64, bootstrap=bootstrap)
        learner, _ = fqe.make(config, problem.spec, problem.policy)
        batch = learner.sample(problem.dataset, jax.random.key(0))
        state = learner.init(jax.random.key(1), batch, statistics(problem.dataset), {"target": problem.behavior_params})
        twice = [state, state._replace(key_bootstrap=jax.random.key(9))]
        step_states[bootstrap] = [
            jax.jit(learner.step)(one, batch, jax.random.key(2))[1]["loss/total"] for one in twice
        ]
    assert step_states[False][0] == step_states[False][1]
    assert step_states[True][0] != step_states[True][1]


def test_what_is_missing_is_named():
    problem = chain(num_episodes=20)
    learner, _ = fqe.make(TINY, problem.spec, problem.policy)
    settings = {"key": jax.random.key(0), "num_updates": 1}
    with pytest.raises(UsageError, match="statistics of the transitions"):
        fit(learner, problem.dataset, given={"target": problem.behavior_params}, **settings)
    with pytest.raises(UsageError, match="given="):
        fit(learner, problem.dataset, statistics=statistics(problem.dataset), **settings)
    with pytest.raises(UsageError, match="gamma must be inside"):
        fqe.make(fqe.Config(gamma=1.0), problem.spec, problem.policy)
