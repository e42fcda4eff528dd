"""The family's masks, value and policy targets, and the advantages that decide what is cloned."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from latent_examples import (
    CONFIG,
    KEY,
    A,
    K,
    N,
    as_clone,
    records,
    table_model,
    table_targets,
    window,
)

from offline_mbrl.algorithms import advantages, latent_targets
from offline_mbrl.planning import one_step


def test_the_masks_of_the_worked_example():
    trajectory = window(records(12, [2, 11]), 0)
    np.testing.assert_array_equal(trajectory.mask, [1, 1, 0, 0, 0, 0])  # dead transitions [0, 0, 1]
    targets = table_targets(trajectory, dataclasses.replace(CONFIG, gamma=0.5))
    np.testing.assert_allclose(targets.reward, [1, 2, 0])
    np.testing.assert_allclose(targets.value, [1 + 0.5 * 2, 2, 0, 0])
    np.testing.assert_allclose(targets.policy[2:], np.full((2, A), 1 / 3), rtol=1e-6)
    np.testing.assert_array_equal(targets.behavior[2:], [0, 0])
    np.testing.assert_array_equal(targets.mask, np.ones(4))


def test_a_window_that_starts_on_a_terminal_record_is_dead_throughout():
    targets = table_targets(window(records(12, [2, 11]), 2))
    np.testing.assert_allclose(targets.reward, np.zeros(K))
    np.testing.assert_allclose(targets.value, np.zeros(K + 1))
    np.testing.assert_allclose(targets.policy, np.full((K + 1, A), 1 / 3), rtol=1e-6)
    np.testing.assert_array_equal(targets.behavior, np.zeros(K + 1))


def test_a_truncation_bootstraps_at_the_cut_and_is_left_out_after_it():
    dataset = records(12, [2, 11], terminal=False)
    trajectory = window(dataset, 0)
    targets = table_targets(trajectory, dataclasses.replace(CONFIG, gamma=0.5))
    at_cut = dataset.observation[2][0]  # the table model's value of the last observation
    expected = [1 + 0.5 * 2 + 0.25 * at_cut, 2 + 0.5 * at_cut]
    np.testing.assert_allclose(targets.value[:2], expected, rtol=1e-5)
    np.testing.assert_array_equal(targets.mask, [1, 1, 0, 0])
    np.testing.assert_array_equal(targets.behavior[2:], [0, 0])


def test_the_released_option_takes_a_truncation_for_a_terminal():
    cut = window(records(12, [2, 11], terminal=False), 0, K + N + 1)
    ended = window(records(12, [2, 11]), 0, K + N + 1)
    as_released = latent_targets.truncation_terminates(cut)
    np.testing.assert_array_equal(as_released.discount, window(records(12, [2, 11]), 0).discount)
    same = table_targets(latent_targets.truncation_terminates(ended))
    jax.tree.map(np.testing.assert_allclose, table_targets(as_released), same)


def test_the_released_option_sees_a_cut_at_the_very_end_of_the_window():
    for end, discount in ((6, 0.0), (7, 1.0)):  # record 6 is the last observation that is used
        cut = window(records(12, [end, 11], terminal=False), 0, K + N + 1)
        assert latent_targets.truncation_terminates(cut).discount[-1] == discount


def test_value_targets_are_n_step_returns_of_the_target_values():
    dataset = records(12, [11])
    targets = table_targets(window(dataset, 0))
    gamma = CONFIG.gamma
    value = dataset.observation[:, 0]
    expected = [
        sum(gamma**j * dataset.reward[i + j] for j in range(N)) + gamma**N * value[i + N]
        for i in range(K + 1)
    ]
    np.testing.assert_allclose(targets.value, expected, rtol=1e-5)


# --- the behavior term ---


@pytest.mark.parametrize("name", ["model", "encoded_next", "data_td"])
def test_the_three_advantages_are_what_they_say(name):
    dataset = records(12, [11])
    gamma = CONFIG.gamma
    trajectory = window(dataset, 0)
    model = table_model()
    value = dataset.observation[: K + 2, 0]
    following = dataset.observation[1 : K + 2]
    actions = dataset.action[: K + 1]
    stepped = dataset.observation[: K + 1] * (1.0 + actions[:, None])
    expected = {
        "model": stepped[:, 1] + gamma * stepped[:, 0] - value[:-1],
        "encoded_next": following[:, 1] + gamma * following[:, 0] - value[:-1],
        "data_td": dataset.reward[: K + 1] + gamma * value[1:] - value[:-1],
    }[name]
    planner = one_step.exact(model, num_actions=A, gamma=gamma)
    plan = planner((), trajectory.observation[: K + 1], KEY)
    advantage = advantages.make(name, model, gamma)
    values = advantage((), trajectory.observation, trajectory, plan, trajectory.observation[:, 0])
    if name == "model":
        planned = advantages.planned((), (), trajectory, plan, ())
        np.testing.assert_allclose(planned, values, rtol=1e-6)
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)
    cloned = table_targets(trajectory, clone=as_clone(advantage)).behavior
    np.testing.assert_array_equal(cloned, (expected >= 0).astype(float))


@pytest.mark.parametrize("at_zero", [0.0, 1.0])
def test_an_advantage_of_zero_is_cloned_as_the_setting_says(at_zero):
    def zero(params, embeddings, trajectory, plan, values):
        return jnp.zeros(K + 1)

    targets = table_targets(window(records(12, [11]), 0), clone=as_clone(zero, at_zero))
    np.testing.assert_array_equal(targets.behavior, np.full(K + 1, at_zero))
