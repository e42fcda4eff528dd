"""Known traps of off-policy evaluation: mixed-up rewards, discounts and ends are noticed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learned_examples import GAMMA, START, assert_on_policy, chain, context, exact

from offline_mbrl.data import episodes, normalize
from offline_mbrl.ope import model_based
from offline_mbrl.ope.ratios import dice, vpm
from offline_mbrl.ope.ratios import shared as ratios
from offline_mbrl.ope.values import fqe, fqe_distributional
from offline_mbrl.ope.weights import importance
from offline_mbrl.problems import known
from offline_mbrl.selection import metrics
from offline_mbrl.types import DynamicsModel, ModelParams, Prediction

SIZE = {"hidden_layers": (8,), "batch_size": 16}
LEARNERS = {
    "fqe": (fqe, fqe.Config(**SIZE)),
    "fqe_distributional": (fqe_distributional, fqe_distributional.Config(**SIZE)),
    "best_dice": (dice, dice.Config(**SIZE)),
    "dual_dice": (dice, dice.Config(**{**dice.PRESETS["dual_dice"], **SIZE})),
    "vpm": (vpm, vpm.Config(**SIZE)),
}


# --- every example has its own reward, value and ratio: no (B,) against (B, 1) ---


@pytest.mark.parametrize("name", LEARNERS)
def test_the_loss_of_a_batch_is_the_mean_of_those_of_its_examples(name):
    problem = chain(num_episodes=20)
    module, config = LEARNERS[name]
    policy = problem.policy._replace(sample=lambda params, observation, key: jnp.int32(1))
    learner, _ = module.make(config, problem.spec, policy)
    batch = learner.sample(problem.dataset, None, jax.random.key(0))
    # All examples share one start, because a loss has the mean over starts in it.
    first = jnp.repeat(batch.initial_observation[:1], 16, axis=0)
    batch = batch._replace(initial_observation=first, initial_weight=jnp.ones(16))
    run_context = context(problem.dataset, problem.behavior_params)
    state = learner.init(jax.random.key(1), batch, run_context)

    def loss(batch):
        _, metrics = learner.step(state, run_context, batch, jax.random.key(2))
        return metrics["loss/lagrangian" if "loss/lagrangian" in metrics else "loss/total"]

    def in_batches_of_one(leaf):
        return leaf[:, None] if jnp.ndim(leaf) else jnp.full(16, leaf)

    alone = jax.jit(jax.vmap(loss))(jax.tree.map(in_batches_of_one, batch))
    whole = jax.jit(loss)(batch)
    np.testing.assert_allclose(whole, jnp.mean(alone), rtol=1e-4)
    assert np.std(alone) > 1e-3 * abs(whole)  # else mixing examples would not show


def test_the_estimate_of_a_ratio_pairs_each_ratio_with_its_own_reward():
    problem = chain(num_episodes=20)
    size = 200
    learner, _ = dice.make(
        dice.Config(hidden_layers=(8,), batch_size=size), problem.spec, problem.policy
    )
    transitions = learner.sample(problem.dataset, None, jax.random.key(0)).transition
    ratio = 1.0 + np.asarray(transitions.reward) ** 2  # far from independent of the reward
    averaging = ratios.Averaging(gamma=GAMMA, normalize=False, over=10.0)
    moments = ratios.follow(
        ratios.start(jnp.float32(size)), jnp.asarray(ratio), transitions, jnp.ones(size), averaging
    )
    estimate = ratios.read_out(moments, averaging, width=jnp.float32(5.0))
    by_hand = np.mean(ratio * np.asarray(transitions.reward)) / (1 - GAMMA)
    np.testing.assert_allclose(estimate.value, by_hand, rtol=1e-4)
    assert (
        abs(by_hand - np.mean(ratio) * np.mean(transitions.reward) / (1 - GAMMA)) > 0.05 * by_hand
    )


# --- discounted and undiscounted returns rank policies differently ---


def test_policies_are_ranked_by_the_discount_that_was_asked_for():
    """Going right costs at once and pays later: worth it for who waits, and only then."""
    problems = {gamma: known.tabular(0, num_episodes=5_000, gamma=gamma) for gamma in (0.1, 1.0)}
    policies = problems[1.0].target_params
    truth = {
        gamma: np.array([of.value(params) for params in policies]) for gamma, of in problems.items()
    }
    assert metrics.rank_correlation(truth[0.1], truth[1.0]) < -0.9
    batch = episodes.trajectories(problems[1.0].dataset)

    @jax.jit
    def values(params, gamma):
        log_ratios = importance.log_ratios(
            problems[1.0].policy, params, batch, batch.extras["behavior_log_prob"]
        )
        return importance.weighted_per_decision(batch, log_ratios, gamma=gamma).value

    for gamma, other in ((0.1, 1.0), (1.0, 0.1)):
        found = np.array([values(params, gamma) for params in policies])
        assert metrics.rank_correlation(truth[gamma], found) > 0.8
        assert metrics.rank_correlation(truth[other], found) < 0


# --- the chain of five states, for the estimators whose other tests are elsewhere ---


def tabular_model():
    """Tables of probabilities and rewards behind `DynamicsModel`, for one-hot states."""

    def step(params, state, action, key):
        member = jax.tree.map(lambda leaf: leaf[0], params.network["members"])
        now = jnp.argmax(state)
        following = jax.random.categorical(key, member["log_transition"][now, action])
        prediction = Prediction(
            observation=jax.nn.one_hot(following, 5),
            reward=member["reward"][now, action],
            discount=1.0 - member["terminal"][following],
        )
        return prediction.observation, prediction

    def member(params, e):
        alone = jax.tree.map(lambda leaf: leaf[e][None], params.network["members"])
        return params._replace(
            network={"members": alone, "shared": {}}, elites=jnp.zeros(1, jnp.int32)
        )

    def unused(*_):
        raise AssertionError

    def reset(params, observation, key):
        del params, key
        return observation

    return DynamicsModel(
        init=unused, loss=unused, log_prob=unused, reset=reset, step=step, member=member
    )


def counted(problem):
    """The model of maximum likelihood: frequencies and mean rewards of the logged transitions."""
    data = problem.dataset
    rows = data.starts
    state = data.observation[rows].argmax(1)
    action = data.action[rows]
    following = data.observation[rows + 1].argmax(1)
    visits = np.full((5, 2, 5), 1e-9)
    paid = np.zeros((5, 2))
    ended = np.zeros(5)
    np.add.at(visits, (state, action, following), 1.0)
    np.add.at(paid, (state, action), data.reward[rows])
    ended[following[data.discount[rows] == 0]] = 1.0
    total = visits.sum(axis=2)
    members = {
        "log_transition": np.log(visits / total[:, :, None]),
        "reward": paid / total,
        "terminal": ended,
    }
    statistics = normalize.transition_statistics(data)._replace(
        observation_min=np.zeros(5, np.float32),
        observation_max=np.ones(5, np.float32),
        action_mean=np.zeros(()),  # this model takes integers
        terminates=np.asarray(False),
    )
    members = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32)[None], members)
    return ModelParams(
        network={"members": members, "shared": {}},
        statistics=jax.tree.map(jnp.asarray, statistics),
        elites=jnp.zeros(1, jnp.int32),
    )


@pytest.mark.parametrize("terminal", [False, True])
def test_rollouts_of_a_counted_model_find_the_values_of_a_chain(terminal):
    problem = chain(terminal=terminal)
    policies = [problem.behavior_params, problem.target_params[1], problem.target_params[3]]
    rollouts = model_based.explicit_rollouts(
        tabular_model(), problem.policy, gamma=GAMMA, horizon=50, bounds=None
    )
    estimator = jax.jit(model_based.make(rollouts, num_rollouts=4_000))
    params = counted(problem)
    start = jnp.asarray(START)
    estimates = [estimator(params, policy, start, jax.random.key(0)) for policy in policies]
    values = [estimate.value for estimate in estimates]
    np.testing.assert_allclose(values, exact(problem, policies), rtol=0.02)
    assert_on_policy(problem, estimates[0])
    assert (estimates[0].diagnostics["terminated_fraction"] > 0) == terminal
