"""An algorithm in a file outside the package: trained, evaluated, judged, exported and loaded."""

import json

import h5py
import numpy as np
import pytest

import offline_mbrl
from offline_mbrl import cli

ALGORITHM = '''
"""Cloning with a wider network."""

from dataclasses import dataclass

from offline_mbrl.learners import bc


@dataclass(frozen=True)
class Config:
    num_updates: int = 40
    width: int = 24


def make(config, spec):
    continuous = bc.ContinuousConfig(layers=(config.width,))
    return bc.make(bc.Config(batch_size=16, continuous=continuous), spec)
'''
NUM_ROWS = 600


@pytest.fixture(scope="module")
def trained(data_root, tmp_path_factory):
    """A folder with the file, a dataset, and a run of two seeds."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "mine.py").write_text(ALGORITHM)
    rng = np.random.default_rng(0)
    ends = np.arange(NUM_ROWS) % 30 == 29
    with h5py.File(folder / "data.hdf5", "w") as file:
        file["observations"] = rng.normal(size=(NUM_ROWS, 3)).astype(np.float32)
        file["actions"] = rng.uniform(-1, 1, (NUM_ROWS, 1)).astype(np.float32)
        file["rewards"] = rng.normal(size=NUM_ROWS).astype(np.float32)
        file["terminals"] = np.zeros(NUM_ROWS, bool)
        file["timeouts"] = ends
        file.attrs["action_minimum"] = -2.0
        file.attrs["action_maximum"] = 2.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OFFLINE_MBRL_DATA", str(data_root))
        patch.chdir(folder)
        command = "train mine.py:make --dataset data.hdf5 --seeds 2 --episodes 0 --devices 1"
        assert cli.main([*command.split(), "--config.width", "8", "--run-dir", "run"]) == 0
    return folder


def test_its_settings_are_flags_and_stand_in_the_run(trained):
    run = json.loads((trained / "run" / "run.json").read_text())
    assert run["config"] == {"num_updates": 40, "width": 8}


def test_its_policies_are_evaluated_in_a_simulator(trained, capsys):
    command = ["evaluate", str(trained / "run"), "--simulator", "gym/Pendulum-v1"]
    assert cli.main([*command, "--episodes", "1"]) == 0
    assert "IQM" in capsys.readouterr().out


def test_its_policies_are_judged_by_logged_data(trained, capsys):
    data = ["--dataset", str(trained / "data.hdf5"), "--gamma", "0.9"]
    fits = ["--estimators", "importance", "--seeds", "1", "--settings.clone-updates", "20"]
    assert cli.main(["ope", str(trained / "run"), *data, *fits]) == 0
    assert "run seed 0" in capsys.readouterr().out


def test_without_a_discount_factor_anywhere_judging_asks_for_one(trained, capsys):
    fits = ["--estimators", "importance", "--seeds", "1"]
    assert cli.main(["ope", str(trained / "run"), "--dataset", str(trained / "data.hdf5"), *fits])
    assert "give one, for example --gamma 0.99" in capsys.readouterr().err


def test_its_export_acts_from_another_folder(trained, tmp_path):
    assert cli.main(["export", str(trained / "run"), str(tmp_path / "policy")]) == 0
    policy = offline_mbrl.load_policy(tmp_path / "policy", seed=1)
    action = np.asarray(policy(np.zeros(3, np.float32)))
    assert action.shape == (1,)
    assert (np.abs(action) <= 2.0).all()
