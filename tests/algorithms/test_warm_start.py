"""Clones and evaluations of the data that a learner starts from."""

import jax
import jax.numpy as jnp
import numpy as np

from offline_mbrl.algorithms import warm_start
from offline_mbrl.algorithms.warm_start import WarmStart
from offline_mbrl.learners import sac
from offline_mbrl.problems import linear_quadratic as lq
from offline_mbrl.training import fit
from offline_mbrl.types import Context, Transition

PROBLEM = lq.linear_quadratic(0, num_episodes=250)
CONFIG = sac.Config(actor_layers=(16,), critic_layers=(32,), batch_size=8)
STARTED = WarmStart(
    cloning_updates=1_000, evaluation_updates=3_000, batch_size=64, learning_rate=3e-3, tau=0.05
)
STAGES = warm_start.stages(
    STARTED, sac.networks(CONFIG, PROBLEM.spec), PROBLEM.spec, gamma=lq.GAMMA
)
KEY = jax.random.key(0)


def transition(reward, discount, follows):
    return Transition(
        observation=jnp.zeros(2),
        action=jnp.zeros(1),
        reward=jnp.float32(reward),
        discount=jnp.float32(discount),
        next_observation=jnp.zeros(2),
        extras={"has_next_action": jnp.float32(follows)},
    )


def fitted(name):
    stage = STAGES[name]
    result = fit.fit(
        stage.learner,
        PROBLEM.dataset,
        key=KEY,
        num_updates=stage.num_updates,
        block_updates=stage.num_updates,
    )
    outputs = stage.outputs or stage.learner.policy_params
    return outputs(result.state.learner, Context())


def test_targets_of_the_behavior():
    next_q = jnp.array([1.0, 3.0])
    rows = [(5.0, 1.0, 1.0), (5.0, 0.0, 0.0), (5.0, 1.0, 0.0)]
    results = [warm_start.behavior_target(transition(*row), next_q, gamma=0.5) for row in rows]
    assert [float(result.target) for result in results[:2]] == [6.0, 5.0]  # a terminal's: r
    assert [float(result.weight) for result in results] == [1.0, 1.0, 0.0]  # truncated: left out


def test_without_updates_there_is_no_stage_and_nothing_changes():
    networks = sac.networks(CONFIG, PROBLEM.spec)
    assert warm_start.stages(WarmStart(), networks, PROBLEM.spec, gamma=0.9) == {}
    learner = sac.make(CONFIG, PROBLEM.spec)
    state = warm_start.started(learner, WarmStart()).init(KEY, None, Context())
    jax.tree.map(np.testing.assert_array_equal, state, learner.init(KEY, None, Context()))


def test_a_learner_starts_from_what_the_stages_hand_on():
    learner = sac.make(CONFIG, PROBLEM.spec)
    other = learner.init(jax.random.key(1), None, Context())
    upstream = {"behavior": other.actor, "critic": other.critic}
    state = warm_start.started(learner, STARTED).init(KEY, None, Context(upstream=upstream))
    expected = (other.actor, other.critic, other.critic)
    actual = (state.actor, state.critic, state.target_critic)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_the_clone_is_worth_the_controller_of_the_data():
    score = PROBLEM.score(STAGES["behavior"].learner.policy, fitted("behavior"))
    # Without its noise 0.78; those of its actions that were clipped pull at a squashed normal.
    np.testing.assert_allclose(score, 0.78, atol=0.12)


def test_critics_are_those_of_the_data():
    dataset = PROBLEM.dataset
    rows = np.asarray(dataset.starts)
    states, actions = (np.asarray(leaf)[rows] for leaf in (dataset.observation, dataset.action))
    critics = sac.networks(CONFIG, PROBLEM.spec).critics
    q = jnp.mean(critics(fitted("critic"), jnp.asarray(states), jnp.asarray(actions)), axis=0)
    value = behavior_values(states, actions)
    assert np.corrcoef(q, value)[0, 1] > 0.95
    np.testing.assert_allclose(np.mean(q), np.mean(value), rtol=0.1)


def behavior_values(states, actions):
    """Action values of the noisy controller, without its clipping."""
    gain = lq.BEHAVIOR_GAIN * lq.optimal_gain()
    cost = lq.cost_of(gain)
    variance = lq.BEHAVIOR_STD**2
    per_step = variance * (1.0 + lq.GAMMA * (lq.DRIVE.T @ cost @ lq.DRIVE).item())
    noise = per_step / (1.0 - lq.GAMMA)  # of all actions from the next one on
    following = states @ lq.DYNAMICS.T + actions @ lq.DRIVE.T
    quadratic = np.sum(following @ cost * following, axis=1)
    reward = -np.sum(states**2, axis=1) - np.sum(actions**2, axis=1)
    return reward - lq.GAMMA * (quadratic + noise)
