"""`offline-mbrl diagnose`: of runs and of kinds of models, what it writes, what it refuses."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import running

from offline_mbrl import cli
from offline_mbrl.commands import diagnose as command
from offline_mbrl.data.catalog import load as catalog
from offline_mbrl.runs import fitted_models
from offline_mbrl.selection import diagnose
from offline_mbrl.types import UsageError

TENANT = Path(__file__).parents[1] / "tenants" / "toy_mopo.py"
FAST = [
    "--settings.num-windows",
    "8",
    "--settings.num-rollouts",
    "1",
    "--settings.num-transitions",
    "20",
    "--simulator-steps",
    "20",
]


def write(path):
    """Thirty episodes of Pendulum's shapes, four steps each."""
    rng = np.random.default_rng(0)
    ends = np.arange(120) % 4 == 3
    observation = rng.normal(size=(120, 3)).astype(np.float32)
    return running.write_hdf5(
        path,
        observations=observation,
        next_observations=(0.9 * observation).astype(np.float32),
        actions=rng.uniform(-1, 1, (120, 1)).astype(np.float32),
        rewards=observation[:, 0],
        terminals=np.zeros(120, bool),
        timeouts=ends,
    )


@pytest.fixture(scope="module")
def run(data_root, tmp_path_factory):
    """A finished run that fitted a model, two seeds, and its data."""
    root = tmp_path_factory.mktemp("diagnose")
    path = f"{write(root / 'own.hdf5')}?actions=-1:1"
    options = "--seeds 2 --episodes 0 --block-updates 20 --devices 1 --config.num-updates 20"
    arguments = ["train", f"{TENANT}:ALGORITHM", "--dataset", str(path), *options.split()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OFFLINE_MBRL_DATA", str(data_root))
        assert cli.main([*arguments, "--run-dir", str(root / "run")]) == 0
    return root / "run", path


def content(directory):
    return json.loads((directory / "diagnose.json").read_text())


def test_a_run_is_judged_by_held_out_episodes_and_its_policys_own_visits(run, tmp_path, capsys):
    folder, _ = run
    arguments = ["diagnose", str(folder), *FAST, "--simulator", "gym/Pendulum-v1"]
    assert cli.main([*arguments, "--seed", "1", "--out", str(tmp_path / "out")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    written = content(tmp_path / "out")
    sources = ["held out", "policy", "perturbed policy", "uniform actions"]
    assert list(written["sources"]) == sources
    assert all(f"- {name}: " in shown for name in sources)
    correlations = written["sources"]["held out"]["rank_correlations"]
    assert {"max_aleatoric", "nearest_data", "own_likelihood"} <= set(correlations)
    assert all(set(rank) == {"value", "low", "high"} for rank in correlations.values())
    assert written["expected_horizon"] == []
    pictures = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert pictures == {"horizons.png", "calibration.png", "penalties.png", "trust_map.png"}


def test_the_table_shows_the_best_penalty_with_its_interval():
    best = diagnose.Correlation(value=0.5, low=0.25, high=0.75)
    assert command.ranked(("nearest_data", best)) == "0.50 [0.25, 0.75] nearest_data"
    nan = float("nan")
    assert command.ranked(("mixture_std", best._replace(low=nan, high=nan))) == "0.50 mixture_std"
    assert command.ranked(None) == "-"


def test_a_kind_of_model_is_fitted_first_and_what_is_missing_is_said(run, capsys, tmp_path):
    arguments = ["diagnose", "feedforward", "--dataset", str(run[1]), "--fit-updates", "2", *FAST]
    assert cli.main(arguments) == 0
    assert "name one by --simulator" in " ".join(capsys.readouterr().out.split())
    assert list(content(tmp_path / "diagnosis")["sources"]) == ["held out"]


def test_the_model_of_a_seed_is_that_of_its_checkpoint(run, monkeypatch, data_root):
    monkeypatch.setenv("OFFLINE_MBRL_DATA", str(data_root))
    data = catalog.flattened(catalog.load(str(run[1])))
    first, second = (fitted_models.restore(run[0], data, seed=seed) for seed in (0, 1))
    again = fitted_models.restore(run[0], data)
    np.testing.assert_array_equal(weights(first), weights(again))
    assert np.abs(weights(first) - weights(second)).max() > 0
    assert first.params.elites.shape == (3,)
    with pytest.raises(UsageError, match="has changed since"):
        fitted_models.restore(run[0], data._replace(fingerprint="other"))


def weights(fitted):
    leaves = jax.tree.leaves(fitted.params.network["members"])
    return np.concatenate([np.ravel(leaf) for leaf in leaves])


def test_the_expected_horizon_is_read_from_the_rows_of_a_run(run, tmp_path):
    folder = shutil.copytree(run[0], tmp_path / "copy")
    row = {"stage": "train", "step": 5, "seed": 0, "expansion/expected_horizon": 1.5}
    percentile = {"expansion/expected_horizon_10": 0.1}
    (folder / "metrics.jsonl").write_text(json.dumps(row | percentile) + "\n")
    assert fitted_models.expected_horizon(folder) == ({"step": 5, "seed": 0, "value": 1.5},)
    assert fitted_models.expected_horizon(run[0]) == ()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["diagnose", "nowhere"], "there is no run folder nowhere"),
        (["diagnose", "feedforwrd"], "did you mean feedforward?"),
        (["diagnose", "feedforward"], "by --dataset"),
        (["diagnose", "RUN", "--seed", "7"], "has no seed 7: it has 0, 1"),
        (["diagnose", "RUN", "--gamma", "2"], "--gamma must be from 0 to 1"),
        (["diagnose", "RUN", "--fit-updates", "0"], "--fit-updates at least 1"),
        (["diagnose", "RUN", "--simulator", "gym/Hopper-v4", *FAST], "observations have shape"),
    ],
)
def test_bad_input_is_one_line_of_diagnose(run, argv, message, capsys):
    argv = [str(run[0]) if part == "RUN" else part for part in argv]
    assert message in running.refused(argv, capsys)


def test_a_run_that_fits_no_model_is_refused(data_root, tmp_path, capsys):
    run_folder = tmp_path / "bc"
    data = write(tmp_path / "own.hdf5")
    assert running.train(run_folder, "--episodes", "0", dataset=data) == 0
    capsys.readouterr()
    assert "bc fits no explicit model" in running.refused(["diagnose", str(run_folder)], capsys)
