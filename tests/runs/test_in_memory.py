"""`offline_mbrl.train`: from the reader's own arrays to a policy that acts."""

import dataclasses

import jax
import numpy as np
import pytest

import offline_mbrl
from offline_mbrl.learners import bc
from offline_mbrl.training.stages import MAIN
from offline_mbrl.types import UsageError

NUM_UPDATES = 30


def arrays(num_rows=400):
    rng = np.random.default_rng(0)
    return {
        "observation": rng.normal(size=(num_rows, 3)),
        "action": rng.uniform(-1, 1, (num_rows, 1)),
        "reward": rng.normal(size=num_rows),
        "is_terminal": np.zeros(num_rows, bool),
        "is_truncated": np.arange(num_rows) % 40 == 39,
    }


DATASET = offline_mbrl.Dataset.from_arrays(arrays(), action_bounds=(-1, 1))


@pytest.fixture(scope="module")
def run():
    config = bc.Config(batch_size=16, num_updates=NUM_UPDATES)
    return offline_mbrl.train(
        "bc", DATASET, config=config, seeds=2, validation=DATASET, progress=False
    )


def test_the_history_has_a_row_for_each_block_and_seed_with_held_out_losses(run):
    last = [row for row in run.history if row["step"] == NUM_UPDATES]
    assert [(row["stage"], row["seed"]) for row in last] == [(MAIN, 0), (MAIN, 1)]
    assert all(np.isfinite(row["loss/total"]) for row in run.history)
    assert all(np.isfinite(row["validation/loss/total"]) for row in run.history)


def test_the_report_names_the_last_figures(run):
    report = run.report()
    assert f"## train, update {NUM_UPDATES}" in report
    assert "| loss/total |" in report


def test_an_exported_policy_acts_as_the_run_does(run, tmp_path):
    policy = offline_mbrl.load_policy(run.export(tmp_path / "policy"), seed=1)
    observation = np.array([0.1, -0.2, 0.3], np.float32)
    params = jax.tree.map(lambda leaf: leaf[1], run.policy_params)
    np.testing.assert_allclose(policy(observation), run.policy.mode(params, observation), rtol=1e-5)


def test_evaluation_plays_each_seed(run):
    returns = run.evaluate("gym/Pendulum-v1", num_episodes=1)
    assert returns.shape == (2, 1)
    assert (returns < 0).all()


def test_a_simulator_of_other_bounds_is_refused_where_none_are_stated(run):
    spec = offline_mbrl.spec_of(offline_mbrl.Dataset.from_arrays(arrays()))
    unknown = dataclasses.replace(run, spec=spec)
    with pytest.raises(UsageError, match=r"those of gym/Pendulum-v1 are \[-2, 2\]"):
        unknown.evaluate("gym/Pendulum-v1", num_episodes=1)


def test_the_number_of_updates_overrides_the_config_and_seeds_are_numbers_or_a_list():
    run = offline_mbrl.train("bc", DATASET, num_updates=3, seeds=[4, 7], progress=False)
    assert run.config.num_updates == 3
    assert run.seeds == (4, 7)
    assert {row["seed"] for row in run.history} == {4, 7}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": arrays()}, r"dataset is dict: pass a Dataset"),
        ({"algorithm": "bcc"}, r"did you mean bc"),
        ({"algorithm": bc}, r"algorithm is module: pass a name"),
        ({"config": object()}, r"config is object, but bc takes offline_mbrl.learners.bc.Config"),
        ({"preset": "fast"}, r"bc has no preset 'fast'"),
        ({"algorithm": "rosmo"}, r"needs discrete actions"),
    ],
)
def test_bad_input_is_refused_in_words(arguments, message):
    settings = {"algorithm": "bc", "dataset": DATASET, "progress": False, **arguments}
    with pytest.raises(UsageError, match=message):
        offline_mbrl.train(settings.pop("algorithm"), settings.pop("dataset"), **settings)


def test_a_run_that_fails_says_which_figure_became_non_finite():
    spoiled = DATASET._replace(reward=DATASET.reward * np.nan)
    with pytest.raises(UsageError, match=r"stage train: all seeds became non-finite: .*loss"):
        offline_mbrl.train("sac", spoiled, num_updates=5, progress=False)


def test_updates_in_bfloat16_leave_float32_parameters_that_act_in_float32(run, tmp_path):
    config = bc.Config(batch_size=16, num_updates=NUM_UPDATES)
    rounded = offline_mbrl.train(
        "bc", DATASET, config=config, seeds=2, progress=False, precision="bfloat16"
    )
    pairs = zip(*(jax.tree.leaves(each.policy_params) for each in (run, rounded)), strict=True)
    for exact, other in pairs:
        assert other.dtype == "float32"
        assert np.any(exact != other)
    observation = np.array([0.1, -0.2, 0.3], np.float32)
    params = jax.tree.map(lambda leaf: leaf[0], rounded.policy_params)
    acts = offline_mbrl.load_policy(rounded.export(tmp_path / "policy"), seed=0)
    exact = run.policy.mode(params, observation)
    np.testing.assert_allclose(acts(observation), exact, rtol=1e-5)
    assert rounded.precision == "bfloat16"


def test_an_unknown_precision_is_refused():
    with pytest.raises(UsageError, match="precision must be one of float32, bfloat16, got half"):
        offline_mbrl.train("bc", DATASET, precision="half")  # type: ignore[arg-type]
