"""MBOP and PETS on logged data: their own parts, and what reduces them to the clone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offline_mbrl.algorithms.planned import mbop, pets, return_head
from offline_mbrl.algorithms.planned.return_head import ReturnConfig
from offline_mbrl.data import memory, normalize
from offline_mbrl.data.memory import Dataset
from offline_mbrl.learners import bc
from offline_mbrl.models import feedforward, kinds
from offline_mbrl.problems import linear_quadratic
from offline_mbrl.training import fit
from offline_mbrl.types import Actor, Context, Trajectory, UsageError

KEY = jax.random.key(0)
STATE = jnp.array([0.5, -0.2])
PROBLEM = linear_quadratic.linear_quadratic(0, num_episodes=20)
COMMON = {
    "dynamics": feedforward.FeedforwardConfig(hidden_layers=(8,), num_members=2),
    "policy": bc.Config(continuous=bc.ContinuousConfig(layers=(8,))),
    "termination": "never",
    "horizon": 3,
    "num_candidates": 8,
}
RETURNS = ReturnConfig(num_steps=2, num_members=2, layers=(8,), batch_size=4)


def planner(module, **settings):
    """(actor, params as they start)"""
    heads = {"returns": RETURNS} if module is mbop else {}
    config = module.Config(**{**COMMON, **heads, **settings})
    statistics = normalize.full_statistics(PROBLEM.dataset)
    upstream = {"model": kinds.make(config.dynamics, PROBLEM.spec).init(KEY, statistics)}
    context = Context(statistics=statistics, upstream=upstream)
    if module is mbop:
        head = return_head.make(config.returns, PROBLEM.spec, gamma=config.gamma)
        upstream["returns"] = head.policy_params(head.init(KEY, None, context), context)
    learner = module.make(config, PROBLEM.spec)
    example = memory.Transitions(4)(PROBLEM.dataset, None, KEY)
    state = learner.init(KEY, example, context)
    return learner.policy, learner.policy_params(state, context)


def first_action(actor, params, key=KEY):
    act = jax.jit(actor.act_greedily)
    return act(params, actor.init(params, STATE, key), STATE, key)[0]


def clone_action(params):
    policy = bc.make(COMMON["policy"], PROBLEM.spec).policy
    return jax.jit(policy.mode)(params["policy"], STATE)


@pytest.mark.parametrize("module", [mbop, pets])
def test_without_a_budget_the_clone_acts(module):
    actor, params = planner(module, budget=0)
    np.testing.assert_array_equal(first_action(actor, params), clone_action(params))


@pytest.mark.parametrize(
    ("module", "settings"),
    [
        (mbop, {}),
        (mbop, {"aggregate": "best", "num_best": 2}),
        (pets, {"num_particles": 2}),
        (pets, {"num_particles": 2, "search": "icem", "num_elites": 2, "num_iterations": 2}),
        (pets, {"num_particles": 2, "penalty_coef": 0.5}),
    ],
)
def test_planners_are_actors_whose_key_decides(module, settings):
    actor, params = planner(module, **settings)
    assert isinstance(actor, Actor)
    actions = [first_action(actor, params, jax.random.key(seed)) for seed in (0, 0, 1)]
    assert float(jnp.max(jnp.abs(jnp.stack(actions)))) <= 1.0
    np.testing.assert_array_equal(actions[0], actions[1])
    assert float(jnp.abs(actions[0] - actions[2]).max()) > 0.0


# --- MBOP ---


def test_without_noise_and_mixing_mbop_carries_out_its_clone():
    actor, params = planner(mbop, noise=0.0, mixing=0.0)
    np.testing.assert_allclose(first_action(actor, params), clone_action(params), rtol=1e-5)


def test_at_horizon_zero_and_without_noise_too():
    actor, params = planner(mbop, horizon=0, noise=0.0, mixing=0.0)
    np.testing.assert_allclose(first_action(actor, params), clone_action(params), rtol=1e-5)


def test_noise_is_in_deviations_of_the_data_s_actions():
    """Twice the deviation and half the noise propose alike."""
    full, params = planner(mbop, horizon=0)
    half, _ = planner(mbop, horizon=0, noise=0.4)
    model = params["model"]
    std = model.statistics.action_std
    wide = model._replace(statistics=model.statistics._replace(action_std=2.0 * std))
    drawn = [
        jax.jit(actor.act)({**params, "model": model}, jnp.zeros((1, 1)), STATE, KEY)[0]
        for actor, model in ((full, model), (half, wide), (half, model))
    ]
    np.testing.assert_allclose(drawn[0], drawn[1], rtol=1e-5)
    assert float(jnp.abs(drawn[0] - drawn[2]).max()) > 0.0


def window(reward, discount, mask):
    length = len(reward)
    return Trajectory(
        observation=jnp.zeros((length + 1, 2)),
        action=jnp.zeros((length, 1)),
        reward=jnp.asarray(reward),
        discount=jnp.asarray(discount),
        mask=jnp.asarray(mask),
    )


@pytest.mark.parametrize(
    ("discount", "mask", "value", "weight"),
    [
        ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), 1.0 + 0.5 * 2.0 + 0.25 * 4.0, 1.0),
        ((1.0, 0.0, 0.0), (1.0, 1.0, 0.0), 1.0 + 0.5 * 2.0, 1.0),  # a true terminal
        ((1.0, 1.0, 1.0), (1.0, 1.0, 0.0), 1.0 + 0.5 * 2.0, 0.0),  # cut by a time limit
    ],
)
def test_a_return_over_n_steps_counts_where_all_of_them_are_known(discount, mask, value, weight):
    reward = jnp.array([1.0, 2.0, 4.0]) * jnp.asarray(mask)
    target = return_head.target(window(reward, discount, mask), gamma=0.5)
    np.testing.assert_allclose(target, (value, weight), rtol=1e-6)


def test_the_head_learns_the_returns_of_the_data_and_leaves_cut_windows_out():
    """Reward 1 - x at a state x that stays for 2 of 3 steps, its last window cut."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (300, 1, 1))
    observation = np.repeat(x, 4, axis=1).astype(np.float32)
    reward = np.where(np.arange(4) < 3, 1.0 - observation[..., 0], 0.0)
    columns = {
        "observation": np.concatenate([observation, -observation], axis=-1).reshape(-1, 2),
        "action": rng.uniform(-1, 1, (1_200, 1)),
        "reward": reward.ravel(),
        "is_last": np.tile(np.arange(4) == 3, 300),
        "is_terminal": np.zeros(1_200, bool),
    }
    data = Dataset.from_arrays(columns)
    config = dataclasses.replace(RETURNS, learning_rate=1e-2, batch_size=64)
    context = Context(statistics=normalize.full_statistics(data))
    learner = return_head.make(config, PROBLEM.spec, gamma=0.5)
    result = fit.fit(learner, data, key=KEY, num_updates=400, context=context)
    params = {"returns": learner.policy_params(result.state.learner, context)}
    tail = return_head.tail(config, PROBLEM.spec, gamma=0.5)
    for state in (-0.5, 0.0, 0.8):
        value = tail(params, jnp.array([state, -state]), jnp.zeros(1), KEY)
        np.testing.assert_allclose(value, 1.5 * (1.0 - state), atol=0.1)


# --- PETS ---


def test_a_penalty_lowers_what_members_disagree_about():
    config = pets.Config(**COMMON, penalty_coef=0.5)
    _, params = planner(pets)
    task = pets.assembly.task(config, PROBLEM.spec, None, horizon=1, gamma=1.0)
    penalized = pets._penalized(config, task)
    state, action = STATE, jnp.array([0.3])
    _, prediction = task.model.step(params["model"], state, action, KEY)
    adjusted = penalized.adjust.apply(params["model"], state, action, prediction, KEY)
    means = prediction.members.mean[:, :-1]
    disagreement = jnp.linalg.norm(means[0] - means[1])
    assert float(disagreement) > 0.0
    np.testing.assert_allclose(adjusted.reward, prediction.reward - 0.5 * disagreement, rtol=1e-5)


def test_a_setting_of_another_search_is_refused():
    with pytest.raises(UsageError, match="exponent"):
        pets.make(pets.Config(**COMMON, exponent=1.0), PROBLEM.spec)
    with pytest.raises(UsageError, match="penalty"):
        pets.make(pets.Config(**COMMON, penalty="ensemble_std"), PROBLEM.spec)
