"""Estimators by name: each group on a small log, and what they refuse."""

import dataclasses

import jax
import numpy as np
import pytest
from selection_examples import TINY, targets

from offline_mbrl.data.memory import Dataset
from offline_mbrl.ope import support
from offline_mbrl.problems import known
from offline_mbrl.selection import estimators, weighting
from offline_mbrl.types import UsageError

FLAGS = ("low_support", "updates_too_few")


@pytest.fixture(scope="module")
def problem():
    return known.linear_gaussian(0, num_episodes=40, horizon=10)


@pytest.fixture(scope="module")
def policies(problem):
    return targets(problem)


def estimated(group, data, policies, settings=TINY):
    learned = estimators.learn(group, data, settings, seed=0)
    return estimators.estimate(group, learned, data, policies, settings, seed=0)


@pytest.mark.parametrize("group", estimators.GROUPS)
def test_every_group_gives_a_finite_estimate_of_every_policy(group, problem, policies):
    data = estimators.prepare(problem.dataset, problem.spec)
    estimates = estimated(group, data, policies)
    assert set(estimates) == set(estimators.GROUPS[group].names)
    for estimate in estimates.values():
        assert estimate.value.shape == estimate.stderr.shape == (policies.count,)
        assert np.isfinite(estimate.value).all()
        flags = [estimate.diagnostics[flag] for flag in FLAGS if flag in estimate.diagnostics]
        assert flags  # every estimator says somehow when not to trust it
        assert set(np.asarray(flags).ravel().tolist()) <= {0.0, 1.0}
    for name in set(estimates) & {"fqe", "doubly_robust", "weighted_doubly_robust", "magic"}:
        # 20 updates settle nothing.
        np.testing.assert_array_equal(estimates[name].diagnostics["updates_too_few"], 1.0)


def test_a_fitted_model_ranks_linear_policies_as_their_exact_values_do(problem, policies):
    data = estimators.prepare(problem.dataset, problem.spec)
    settings = estimators.Settings(model_updates=1_500, model_members=2, model_layers=(32, 32))
    estimates = estimated("model_ff", data, policies, settings)["model_ff"]
    exact = [problem.value(params) for params in problem.target_params]
    assert np.corrcoef(exact, estimates.value)[0, 1] > 0.95


def test_without_a_logged_density_there_are_only_cloned_weights(problem, policies):
    data = estimators.prepare(problem.dataset._replace(extras={}), problem.spec)
    names = [*estimated("importance", data, policies), *estimated("fqe", data, policies)]
    assert set(names) == {"fqe", *(f"{name}_is_cloned" for name in weighting.WEIGHTINGS)}


def test_where_episodes_truly_end_models_learn_when(problem, policies):
    """Reward 1 a step, each the last with probability 1/5: the value is that of five steps."""
    rng = np.random.default_rng(0)
    size = 4_000
    ends = rng.random(size) < 0.2
    ends[-1] = True
    shape = (size, problem.spec.observation.shape[0])
    observation = rng.normal(size=shape).astype(np.float32)
    dataset = Dataset.from_arrays(
        {
            "observation": observation,
            "next_observation": np.roll(observation, -1, axis=0),
            "action": rng.uniform(-1, 1, (size, 1)),
            "reward": 1 + 0.01 * rng.normal(size=size),
            "is_terminal": ends,
            "is_truncated": np.zeros(size, bool),
        }
    )
    data = estimators.prepare(dataset, problem.spec, gamma=0.95, horizon=60)
    settings = estimators.Settings(model_updates=1_001, model_members=2, model_layers=(16,))
    estimates = estimated("model_ff", data, policies, settings)["model_ff"]
    # Over a whole horizon it would be 19.1.
    np.testing.assert_allclose(estimates.value, 1 / (1 - 0.8 * 0.95), rtol=0.15)
    np.testing.assert_array_equal(estimates.diagnostics["missing_ends"], 0.0)


@pytest.mark.parametrize("group", ["model_ff", "importance", "fqe_distributional"])
def test_limits_decide_when_estimates_report_low_support(group):
    problem = known.linear_gaussian(0, num_episodes=200, horizon=10)
    behavior = estimators.Policies(
        problem.policy, jax.tree.map(lambda leaf: leaf[None], problem.behavior_params)
    )
    upper_limits = (
        "unlikely_actions",
        "log_ratio",
        "disagreement",
        "outside_fraction",
        "diverged_fraction",
        "cut_fraction",
    )
    flags = []
    for upper, lower in ((1e9, -1.0), (-1.0, 2.0)):  # nothing is low; everything is
        limits = support.Limits(**dict.fromkeys(upper_limits, upper), visited_share=lower)
        data = estimators.prepare(problem.dataset, problem.spec, limits=limits)
        estimates = estimated(group, data, behavior)
        flags.append(
            {
                float(estimate.diagnostics["low_support"][0])
                for name, estimate in estimates.items()
                if "cloned" not in name
            }
        )
    assert flags == [{0.0}, {1.0}]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": -0.5}, r"gamma must be inside \[0, 1\)"),
        ({"gamma": 1.0}, "gamma must be inside"),
        ({"horizon": 0}, "horizon at least 1 step"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message, problem):
    with pytest.raises(UsageError, match=message):
        estimators.prepare(problem.dataset, problem.spec, **settings)


def test_a_discount_factor_of_zero_is_one_and_a_missing_one_is_asked_for(problem):
    assert estimators.prepare(problem.dataset, problem.spec, gamma=0.0).gamma == 0.0
    spec = dataclasses.replace(problem.spec, gamma=None)
    with pytest.raises(UsageError, match="these data name none; pass gamma"):
        estimators.prepare(problem.dataset, spec)
    assert estimators.prepare(problem.dataset, spec, gamma=0.9).gamma == 0.9


def test_a_single_episode_cannot_be_resampled(policies):
    short = known.linear_gaussian(0, num_episodes=1, horizon=10)
    data = estimators.prepare(short.dataset, short.spec)
    resampled = dataclasses.replace(TINY, bootstrap=True)
    with pytest.raises(UsageError, match="a single episode cannot be resampled"):
        estimators.estimate("fqe_distributional", None, data, policies, resampled, seed=0)


def test_a_fit_that_fails_is_no_estimate(problem):
    data = estimators.prepare(problem.dataset, problem.spec)
    transitions = data.statistics.transitions
    broken = data.statistics._replace(
        transitions=transitions._replace(delta_std=np.nan * transitions.delta_std)
    )
    with pytest.raises(UsageError, match="the model could not be fitted: seed 0"):
        estimators.learn("model_ff", data._replace(statistics=broken), TINY, seed=0)
