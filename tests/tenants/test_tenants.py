"""Two algorithms written outside the package, through the public API and the command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import dm_env
import h5py
import jax
import numpy as np
import pytest
import toy_mopo
import toy_planner
from dm_env import specs

import offline_mbrl
from offline_mbrl import cli
from offline_mbrl.evaluation import episodes
from offline_mbrl.runs import folder, recording
from offline_mbrl.training import checkpoint

HERE = Path(__file__).parent
HORIZON = 20


class Regulator(dm_env.Environment):
    """`x' = x + 0.3 a`, reward `-x^2`, from a random start."""

    def __init__(self, seed):
        self._rng = np.random.default_rng(seed)

    def reset(self):
        self._x = self._rng.uniform(-1, 1, 1).astype(np.float32)
        self._t = 0
        return dm_env.restart(self._x)

    def step(self, action):
        reward = -float(self._x[0] ** 2)
        self._x = (self._x + 0.3 * np.asarray(action, np.float32)).astype(np.float32)
        self._t += 1
        make = dm_env.truncation if self._t == HORIZON else dm_env.transition
        return make(reward, self._x)

    def observation_spec(self):
        return specs.Array((1,), np.float32)

    def action_spec(self):
        return specs.BoundedArray((1,), np.float32, -1.0, 1.0)


def logged(num_episodes=60):
    """Episodes of uniform actions, one row a transition."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (num_episodes, 1))
    rows = {"observations": [], "actions": [], "rewards": [], "next_observations": []}
    for _ in range(HORIZON):
        action = rng.uniform(-1, 1, (num_episodes, 1))
        following = x + 0.3 * action
        for name, value in zip(rows, (x, action, -(x[:, 0] ** 2), following), strict=True):
            rows[name].append(value)
        x = following
    arrays = {
        name: np.stack(values, axis=1).reshape(num_episodes * HORIZON, *values[0].shape[1:])
        for name, values in rows.items()
    }
    ends = np.arange(num_episodes * HORIZON) % HORIZON == HORIZON - 1
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    return arrays | {"timeouts": ends, "terminals": np.zeros_like(ends)}


@pytest.fixture(scope="module")
def dataset():
    return offline_mbrl.Dataset.from_arrays(logged())


def play(run):
    """Mean return of each seed, greedily, in the true system."""
    evaluation = episodes.evaluate(
        run.policy,
        run.policy_params,
        "regulator",
        seed=0,
        num_episodes=4,
        greedy=True,
        num_seeds=len(run.seeds),
        make=lambda name, *, seed: Regulator(seed),
    )
    assert evaluation.complete, evaluation.message
    return evaluation.returns.mean(axis=-1)


@pytest.mark.parametrize("module", [toy_mopo, toy_planner])
def test_a_tenant_is_written_in_under_60_lines(module):
    lines = Path(module.__file__).read_text().splitlines()
    assert len([line for line in lines if line.strip()]) < 60


def test_toy_mopo_trains_on_imagined_rows_and_acts(dataset):
    run = offline_mbrl.train(toy_mopo.ALGORITHM, dataset, seeds=2, progress=False)
    assert {row["stage"] for row in run.history} == {"model", "train"}
    rewards = [row["imagination/reward"] for row in run.history if "imagination/reward" in row]
    assert rewards
    assert np.isfinite(rewards).all()
    assert np.isfinite(play(run)).all()


def test_the_toy_planner_carries_its_plan_and_beats_inaction(dataset):
    run = offline_mbrl.train(toy_planner.ALGORITHM, dataset, seeds=2, progress=False)
    inaction = -HORIZON / 3  # the mean of x^2 over uniform starts, at every step
    assert (play(run) > 0.5 * inaction).all()


# --- SIGKILL, in processes of their own ---

KILL = """
import os, signal, sys
from offline_mbrl import cli
from offline_mbrl.runs import recording
from offline_mbrl.training import fit
place, stage, count, calls = sys.argv[1], sys.argv[2], int(sys.argv[3]), []
module, name = {"block": (recording, "_rows"), "refresh": (fit, "_refresh_when_due")}[place]
function = getattr(module, name)

def killed(*arguments):
    result = function(*arguments)
    refreshed = place == "refresh" and bool(result[1]) and "imagination/reward" in result[1]
    if refreshed or (place == "block" and arguments[0].name == stage):
        calls.append(1)
    if len(calls) == count:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(module, name, killed)
sys.exit(cli.main(sys.argv[4:]))
"""


def command(run_folder, data):
    algorithm = f"{HERE / 'toy_mopo.py'}:ALGORITHM"
    options = "--episodes 0 --block-updates 10 --checkpoint-seconds 0 --devices 1"
    arguments = f"train {algorithm} --dataset {data} --seeds 2 {options} --run-dir {run_folder}"
    return arguments.split()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("tenants") / "regulator.hdf5"
    with h5py.File(path, "w") as file:
        for name, array in logged().items():
            file[name] = array
    return path


def final(run_folder):
    directory = run_folder / "checkpoints" / "train"
    step = checkpoint.latest(directory)
    manifest = (directory / f"{step:09d}" / "manifest.json").read_text()
    return step, json.loads(manifest)["leaves"]


def test_toy_mopo_resumes_bit_for_bit_after_sigkill_in_each_of_its_parts(
    tmp_path, data, monkeypatch
):
    monkeypatch.setenv("OFFLINE_MBRL_DATA", str(tmp_path / "store"))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(jax.config.jax_compilation_cache_dir))
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    whole = tmp_path / "whole"
    assert cli.main(command(whole, data)) == 0
    interrupted = tmp_path / "interrupted"
    for place in (("block", "model", "3"), ("refresh", "train", "2"), ("block", "train", "2")):
        process = subprocess.run(
            [sys.executable, "-c", KILL, *place, *command(interrupted, data)],
            capture_output=True,
            check=False,
            env=environment,
        )
        assert process.returncode == -9, process.stderr.decode()
    assert cli.main(command(interrupted, data)) == 0
    assert final(interrupted) == final(whole)


EARLY_STOP = (
    "--config.dynamics.fit.patience 1 --config.dynamics.fit.refresh-every 10 "
    "--config.dynamics.fit.num-updates 2000 --config.dynamics.fit.learning-rate 0.1 "
    "--config.dynamics.fit.patience-unit evaluations"
)


def test_a_model_stage_that_stops_early_is_finished_and_is_not_trained_again(
    tmp_path, data, monkeypatch, capsys
):
    monkeypatch.setenv("OFFLINE_MBRL_DATA", str(tmp_path / "store"))
    run = tmp_path / "run"
    arguments = [*command(run, data), *EARLY_STOP.split()]
    with monkeypatch.context() as patch:
        patch.setattr(recording, "_save", only_models(recording._save))
        with pytest.raises(Interrupted):
            cli.main(arguments)
    model = [row for row in folder.read_rows(run) if row["stage"] == "model"]
    assert 0 < max(row["step"] for row in model) < 2000
    capsys.readouterr()
    assert cli.main(arguments) == 0
    output = capsys.readouterr().out
    assert f"Resuming model from update {max(row['step'] for row in model)}." in output
    assert [row for row in folder.read_rows(run) if row["stage"] == "model"] == model


class Interrupted(BaseException):
    pass


def only_models(save):
    """Saves checkpoints of the model's stage, and interrupts the run at the next stage's first."""

    def interrupted(recorded, *arguments):
        if recorded.name != "model":
            raise Interrupted
        return save(recorded, *arguments)

    return interrupted
