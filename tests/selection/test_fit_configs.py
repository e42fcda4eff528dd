"""Lengths of fits know the horizon: on one state, values are rewards over `1 - gamma`."""

import dataclasses

import jax
import numpy as np
import pytest
from learned_examples import context, over_policies

from offline_mbrl import policies
from offline_mbrl.data.memory import Dataset
from offline_mbrl.ope import convergence
from offline_mbrl.ope.values import fqe, fqe_distributional
from offline_mbrl.selection import configs
from offline_mbrl.selection.records import Settings
from offline_mbrl.training.fit import fit
from offline_mbrl.types import DiscreteActions, EnvironmentSpec

GAMMA = 0.98
REWARDS = np.array([0.05, 0.95], np.float32)  # of the two actions
SHORT = Settings(fqe_updates=2_000, distributional_updates=4_000, fqe_layers=(16,))
SPEC = EnvironmentSpec(
    observation=jax.ShapeDtypeStruct((1,), np.float32),
    action=DiscreteActions(2),
    gamma=GAMMA,
    horizon=20,
)
VALUES = {"fqe": fqe, "fqe_distributional": fqe_distributional}
CONFIGS = {"fqe": configs.fqe_config, "fqe_distributional": configs.distributional_config}
FEW_ATOMS = {"fqe": {}, "fqe_distributional": {"num_atoms": 11}}


def constant(params, observation, key):
    """The action that the policy always takes."""
    del observation, key
    return params


@pytest.fixture(scope="module")
def dataset():
    """Both actions in turn, in episodes of 20 steps without an end of their own."""
    action = np.arange(400) % 2
    return Dataset.from_arrays(
        {
            "observation": np.ones((400, 1), np.float32),
            "next_observation": np.ones((400, 1), np.float32),
            "action": action,
            "reward": REWARDS[action],
            "is_terminal": np.zeros(400, bool),
            "is_truncated": np.arange(400) % 20 == 19,
        }
    )


@pytest.mark.parametrize("name", VALUES)
def test_short_fits_reach_the_values_of_a_single_state_over_a_long_horizon(name, dataset):
    config = dataclasses.replace(CONFIGS[name](SHORT, GAMMA), batch_size=8, **FEW_ATOMS[name])
    learner, read_out = VALUES[name].make(config, SPEC, policies.as_policy(constant))
    run_context = context(dataset, np.arange(2))
    settings = {"num_updates": config.num_updates, "block_updates": config.num_updates}
    result = fit(
        learner, dataset, key=jax.random.key(0), seeds=[0, 1], context=run_context, **settings
    )
    estimates = jax.jit(over_policies(read_out))(
        result.state.learner, run_context, np.ones((1, 1), np.float32), jax.random.key(1)
    )
    # The data's mean is 25, from where values come.
    np.testing.assert_allclose(estimates.value, REWARDS / (1 - GAMMA), rtol=0.02, atol=0.25)
    np.testing.assert_array_equal(estimates.diagnostics["updates_too_few"], 0.0)


@pytest.mark.parametrize(
    ("name", "updates", "too_few"),
    [
        ("fqe_distributional", 30_000, 1.0),  # 22 % of where it began is left in it
        ("fqe_distributional", 50_000, 1.0),
        ("fqe_distributional", 60_000, 0.0),
        ("fqe", 100_000, 1.0),
        ("fqe", 120_000, 0.0),
    ],
)
def test_fits_shorter_than_three_horizons_say_so_even_if_their_value_stands(
    name, updates, too_few, dataset
):
    """Published lags at gamma 0.995: 100 updates, and a two-hundredth an update."""
    config = VALUES[name].Config(hidden_layers=(4,), gamma=0.995)
    learner, read_out = VALUES[name].make(config, SPEC, policies.as_policy(constant))
    run_context = context(dataset, np.int32(0))
    state = learner.init(jax.random.key(0), None, run_context)
    track = convergence.Track(
        updates=np.int32(updates), fast=np.float32(43.6), slow=np.float32(43.6)
    )
    estimate = read_out(
        state._replace(convergence=track), run_context, np.ones((1, 1)), jax.random.key(0)
    )
    assert estimate.diagnostics["updates_too_few"] == too_few


@pytest.mark.parametrize("gamma", [0.9, 0.99, 0.995, 0.999])
@pytest.mark.parametrize("updates", [30_000, 100_000])
def test_short_fits_have_backups_for_more_than_the_horizons_that_are_asked_for(gamma, updates):
    settings = Settings(fqe_updates=updates, distributional_updates=updates)
    of_values = configs.fqe_config(settings, gamma)
    of_distributions = configs.distributional_config(settings, gamma)
    for backups in (updates * of_values.tau, updates / of_distributions.target_period):
        assert backups * (1 - gamma) >= 4 - 1e-6
    assert of_values.tau >= fqe.Config().tau
    assert of_distributions.target_period <= fqe_distributional.Config().target_period


@pytest.mark.parametrize("name", VALUES)
def test_a_fit_of_the_published_length_has_the_published_settings(name):
    published = VALUES[name].Config()
    length = published.num_updates
    settings = Settings(fqe_updates=length, distributional_updates=length, fqe_layers=(256, 256))
    expected = dataclasses.replace(published, gamma=0.995)
    assert CONFIGS[name](settings, 0.995) == expected


def test_ratios_of_short_fits_learn_faster_and_finish_their_power_steps():
    long = Settings(ratio_updates=100_000, ratio_batch=2048)
    short = Settings(ratio_updates=50_000, ratio_batch=256)
    assert configs.best_dice_config(long, 0.995).zeta_learning_rate == 1e-4
    assert configs.best_dice_config(short, 0.995).zeta_learning_rate == 1e-3
    assert configs.best_dice_config(short, 0.995).nu_learning_rate == 1e-3
    assert configs.vpm_config(short, 0.995).power_period == 31
    assert configs.vpm_config(short, 0.9).power_period == 50
