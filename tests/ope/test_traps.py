"""Known traps of off-policy evaluation, each with a test that it would not pass: mixed-up rewards, discounts, ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learned_examples import GAMMA, START, assert_on_policy, chain, exact, statistics

from offline_mbrl.data import episodes
from offline_mbrl.ope import model_based
from offline_mbrl.ope.ratios import dice, vpm
from offline_mbrl.ope.ratios import shared as ratios
from offline_mbrl.ope.values import fqe, fqe_distributional
from offline_mbrl.ope.weights import importance
from offline_mbrl.problems import known
from offline_mbrl.selection import metrics
from offline_mbrl.types import DynamicsModel, Prediction

SIZE = {"hidden_layers": (8,), "batch_size": 16}
LEARNERS = {
    "fqe": (fqe, fqe.Config(**SIZE)), "fqe_distributional": (fqe_distributional, fqe_distributional.Config(**SIZE)),
    "best_dice": (dice, dice.Config(**SIZE)), "dual_dice": (dice, dice.Config(**{**dice.PRESETS["dual_dice"], **SIZE})),
    "vpm": (vpm, vpm.Config(**SIZE)),
}  # fmt: skip


# --- every example has its own reward, value and ratio: no (B,) against (B, 1) ---


@pytest.mark.parametrize("name", LEARNERS)
def test_the_loss_of_a_batch_is_the_mean_of_those_of_its_examples(name):
    problem = chain(num_episodes=20)
    room, config = LEARNERS[name]
    policy = problem.policy._replace(sample=lambda params, observation, key: jnp.int32(1))
    learner, _ = room.make(config, problem.spec, policy)
    batch = learner.sample(problem.dataset, jax.random.key(0))
    first = jnp.repeat(batch.initial_observation[:1], 16, axis=0)  # the mean over them is no matter of examples
    batch = batch._replace(initial_observation=first, initial_weight=jnp.ones(16))
    state = learner.init(jax.random.key(1), batch, statistics(problem.dataset), {"target": problem.behavior_params})

    def loss(batch):
        told = learner.step(state, batch, jax.random.key(2))[1]
        return told["loss/lagrangian"] if "loss/lagrangian" in told else told["loss/total"]

    alone = jax.jit(jax.vmap(loss))(jax.tree.map(lambda leaf: leaf[:, None] if jnp.ndim(leaf) else jnp.full(16, leaf),
                                                 batch))  # fmt: skip
    whole = jax.jit(loss)(batch)
    np.testing.assert_allclose(whole, jnp.mean(alone), rtol=1e-4)
    assert np.std(alone) > 1e-3 * abs(whole)  # else mixing examples would not show


def test_the_estimate_of_a_ratio_pairs_each_ratio_with_its_own_reward():
    problem, size = chain(num_episodes=20), 200
    learner, _ = dice.make(dice.Config(hidden_layers=(8,), batch_size=size), problem.spec, problem.policy)
    transitions = learner.sample(problem.dataset, jax.random.key(0)).transition
    ratio = 1.0 + np.asarray(transitions.reward) ** 2  # far from independent of the reward
    settings = {"gamma": GAMMA, "normalize": False, "over": 10.0}
    moments = ratios.follow(
        ratios.start(jnp.float32(size)), jnp.asarray(ratio), transitions, jnp.ones(size), **settings
    )
    found = ratios.read_out(moments, width=jnp.float32(5.0), **settings)
    by_hand = np.mean(ratio * np.asarray(transitions.reward)) / (1 - GAMMA)
    np.testing.assert_allclose(found.value, by_hand, rtol=1e-4)
    assert abs(by_hand - np.mean(ratio) * np.mean(transitions.reward) / (1 - GAMMA)) > 0.05 * by_hand


# --- discounted and undiscounted returns rank policies differently ---


def test_policies_are_ranked_by_the_discount_that_was_asked_for():
    """Going right costs at once and pays later: worth it for who waits, and only then."""
    problems = {gamma: known.tabular(0, num_episodes=5_000, gamma=gamma) for gamma in (0.1, 1.0)}
    policies = problems[1.0].target_params
    truth = {gamma: np.array([of.value(params) for params in policies]) for gamma, of in problems.items()}
    assert metrics.rank_correlation(truth[0.1], truth[1.0]) < -0.9
    batch = episodes.trajectories(problems[1.0].dataset)

    @jax.jit
    def values(params, gamma):
        log_ratios = importance.log_ratios(problems[1.0].policy, params, batch, batch.extras["behavior_log_prob"])
        return importance.weighted_per_decision(batch, log_ratios, gamma=gamma).value

    for gamma, other in ((0.1, 1.0), (1.0, 0.1)):
        found = np.array([values(params, gamma) for params in policies])
        assert metrics.rank_correlation(truth[gamma], found) > 0.8
        assert metrics.rank_correlation(truth[other], found) < 0


# --- the chain of five states, for the estimators whose other tests are elsewhere ---


def tabular_model():
    """Tables of probabilities and rewards behind `DynamicsModel`, for one-hot states."""

    def step(params, state, action, key):
        member = jax.tree.map(lambda leaf: leaf[0], params["network"]["members"])
        now = jnp.argmax(state)
        following = jax.random.categorical(key, member["log_transition"][now, action])
        reward, going_on = member["reward"][now, action], 1.0 - member["terminal"][following]
        return jax.nn.one_hot(following, 5), Prediction(jax.nn.one_hot(following, 5), reward, going_on)

    def member(params, e):
        alone = jax.tree.map(lambda leaf: leaf[e][None], params["network"]["members"])
        return params | {"network": {"members": alone, "shared": {}}, "elites": jnp.zeros(1, jnp.int32)}

    def unused(*_):
        raise AssertionError

    return DynamicsModel(unused, unused, unused, lambda params, observation, key: observation, step, member)


def counted(problem):
    """The model of maximum likelihood: frequencies and mean rewards of the logged transitions."""
    data, rows = problem.dataset, problem.dataset.starts
    state, action, following = data.observation[rows].argmax(1), data.action[rows], data.observation[rows + 1].argmax(1)
    visits, paid, ended = np.full((5, 2, 5), 1e-9), np.zeros((5, 2)), np.zeros(5)
    np.add.at(visits, (state, action, following), 1.0)
    np.add.at(paid, (state, action), data.reward[rows])
    ended[following[data.discount[rows] == 0]] = 1.0
    total = visits.sum(axis=2)
    members = {"log_transition": np.log(visits / total[:, :, None]), "reward": paid / total, "terminal": ended}
    known_of_data = {
        "observation_min": np.zeros(5), "observation_max": np.ones(5), "reward_min": data.reward.min(),
        "reward_max": data.reward.max(), "action_mean": np.zeros(()), "delta_std": np.ones(5)}  # fmt: skip
    as_float = lambda tree: jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)  # noqa: E731
    return {"network": {"members": jax.tree.map(lambda leaf: leaf[None], as_float(members)), "shared": {}},
            "statistics": as_float(known_of_data), "elites": jnp.zeros(1, jnp.int32)}  # fmt: skip


@pytest.mark.parametrize("terminal", [False, True])
def test_rollouts_of_a_counted_model_find_the_values_of_a_chain(terminal):
    problem = chain(terminal=terminal)
    policies = [problem.behavior_params, problem.target_params[1], problem.target_params[3]]
    estimator = jax.jit(model_based.make(
        tabular_model(), problem.policy, gamma=GAMMA, horizon=50, num_rollouts=4_000, bounds=None))  # fmt: skip
    params = counted(problem)
    found = [estimator(params, one, jnp.asarray(START), jax.random.key(0)) for one in policies]
    np.testing.assert_allclose([one.value for one in found], exact(problem, policies), rtol=0.02)
    assert_on_policy(problem, found[0])
    assert (found[0].diagnostics["terminated_fraction"] > 0) == terminal
