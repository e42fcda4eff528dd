"""Bad input is one line on stderr that names it, exit code 2, and never a traceback."""

import json
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest
import running

from offline_mbrl import cli
from offline_mbrl.commands import arguments, train
from offline_mbrl.types import UsageError

TRAIN = ["train", "bc", "--dataset", running.DATASET, *running.TINY]


def own(**changes):
    """Training on an HDF5 file with these fields changed."""
    return lambda tmp: [
        "train",
        "bc",
        "--dataset",
        str(running.write_hdf5(tmp / "mine.hdf5", **changes)),
        *running.TINY,
    ]


def with_value(name, row, value):
    def argv(tmp):
        column = {
            "observations": np.zeros((30, 4), np.float32),
            "rewards": np.zeros(30, np.float32),
            "actions": np.zeros((30, 2), np.float32),
        }[name]
        column[row] = value
        return own(**{name: column})(tmp)

    return argv


def cut_short(tmp):
    path = running.write_hdf5(tmp / "mine.hdf5")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return ["train", "bc", "--dataset", str(path)]


def text_file(tmp):
    (tmp / "mine.hdf5").write_text("these are not the data you are looking for")
    return ["train", "bc", "--dataset", str(tmp / "mine.hdf5")]


def wrong_suffix(tmp):
    (tmp / "mine.csv").write_text("1,2,3")
    return ["train", "bc", "--dataset", str(tmp / "mine.csv")]


def empty_directory(tmp):
    (tmp / "nothing").mkdir()
    return ["train", "bc", "--dataset", str(tmp / "nothing")]


def attribute_bounds(tmp):
    path = running.write_hdf5(tmp / "mine.hdf5", actions=running.continuous() * 3)
    return ["train", "skeleton", "--dataset", str(path), *running.TINY]


def short_episodes(tmp):
    """Of no step is known what it led to."""
    ends = {"terminals": np.zeros(30, bool), "timeouts": np.ones(30, bool)}
    return own(**ends, next_observations=None)(tmp)


def empty(tmp):
    names = ("rewards", "terminals", "timeouts")
    rows = dict.fromkeys(("observations", "next_observations"), np.zeros((0, 4)))
    return own(actions=np.zeros(0, int), **rows, **dict.fromkeys(names, np.zeros(0)))(tmp)


def no_group(tmp):
    with h5py.File(tmp / "mine.hdf5", "w") as file:
        file["something"] = np.zeros(3)
    return ["train", "bc", "--dataset", str(tmp / "mine.hdf5")]


BAD = {
    # what was typed
    "command": (["trian"], "unknown command 'trian': did you mean 'train'?"),
    "subcommand": (["data", "lits"], "unknown command 'data lits'"),
    "algorithm": (["train", "rosmoo"], "unknown algorithm 'rosmoo': did you mean rosmo"),
    "no algorithm": (["train", "--dataset", "x"], "name the algorithm first"),
    "dataset": (["train", "bc", "--dataset", "local/cacth"], "did you mean local/catch"),
    "dataset variant": (
        ["train", "bc", "--dataset", "local/catch-noise2"],
        "noise must be from 0 to 1, got 2",
    ),
    "dataset of data": (["data", "info", "local/cacth"], "did you mean local/catch"),
    "flag": (
        [*TRAIN, "--config.num-update", "3"],
        "unknown option --config.num-update; did you mean --config.num-up",
    ),
    "flag without its group": (
        [*TRAIN, "--batch-size=3"],
        "unknown option --batch-size; did you mean --config.batch-",
    ),
    "flag of evaluate": (["evaluate", "run", "--episode", "3"], "did you mean --episodes?"),
    "argument too many": ([*TRAIN, "more"], "unexpected argument more"),
    "no dataset": (["train", "bc"], "--dataset must be given"),
    "empty dataset name": (["train", "bc", "--dataset", ""], "--dataset is empty"),
    "no value": (["train", "bc", "--dataset"], "Missing value for argument '--dataset'"),
    "type": ([*TRAIN, "--seeds", "two"], "cannot read --seeds INT: invalid literal"),
    "choice": ([*TRAIN, "--verify", "partly"], "invalid choice 'partly'"),
    "preset": (
        ["train", "rosmo", "--preset", "relesed"],
        "no preset 'relesed'; did you mean 'released'?",
    ),
    "preset where there is none": (["train", "bc", "--preset", "published"], "known: none"),
    # settings
    "no seeds": ([*TRAIN, "--seeds", "0"], "--seeds must be at least 1, got 0"),
    "negative seed": ([*TRAIN, "--first-seed", "-1"], "--first-seed must be at least 0"),
    "large seed": ([*TRAIN, "--first-seed", str(2**32)], "below 2^32"),
    "no updates": (
        [*TRAIN, "--config.num-updates", "0"],
        "--config.num-updates must be at least 1, got 0",
    ),
    "no batch": (
        [*TRAIN, "--config.batch-size", "0"],
        "--config.batch-size must be at least 1, got 0",
    ),
    "no block": ([*TRAIN, "--block-updates", "0"], "--block-updates must be at least 1"),
    "devices": ([*TRAIN, "--devices", "99"], "--devices must lie in 1..8 here, got 99"),
    "batch over devices": (
        [*TRAIN, "--config.batch-size", "3", "--devices", "2"],
        "cannot be split over 2 devices",
    ),
    "unroll": (
        ["train", "rosmo", *TRAIN[2:], "--config.unroll-steps", "0"],
        "--config.unroll-steps must be at least 1, got 0",
    ),
    "layers that disagree": (
        ["train", "rosmo", *TRAIN[2:], "--config.model.dynamics-layers", "16"],
        "dynamics_layers ends in 16 and encoder_layers in 32",
    ),
    "no layers": (
        [*TRAIN, "--config.encoder-layers"],
        "--config.encoder-layers must be one or more sizes",
    ),
    "operator": (
        ["train", "rosmo", *TRAIN[2:], "--config.search.operator", "mcts"],
        "--config.search.operator must be one of one_step, ",
    ),
    "a setting of the other kind of actions": (
        [*TRAIN, "--config.continuous.num-components", "3"],
        "continuous.num_components is 3, but it is read only with continuous actions",
    ),
    "a setting of another operator": (
        ["train", "rosmo", *TRAIN[2:], "--config.search.depth", "3"],
        "search.depth is 3, but it is read only with operator lookahead or lookahead_max",
    ),
    "an algorithm's file that is not there": (
        ["train", "nowhere/mine.py:make", *TRAIN[2:]],
        "there is no file nowhere/mine.py",
    ),
    "bins": (
        ["train", "rosmo", *TRAIN[2:], "--config.model.num-bins", "1"],
        "num-bins must be at least 2",
    ),
    "two rewards a step": (
        own(rewards=np.zeros((30, 2), np.float32)),
        "field 'rewards' has shape (30, 2)",
    ),
    "words for numbers": (
        own(observations=np.full((30, 4), b"x")),
        "field 'observations' has dtype",
    ),
    # kinds of actions
    "discrete data": (["train", "skeleton", *TRAIN[2:]], "skeleton needs continuous actions"),
    "continuous data": (
        lambda tmp: ["train", "rosmo", *own(actions=running.continuous())(tmp)[2:]],
        "needs discrete actions",
    ),
    # data
    "missing path": (
        ["train", "bc", "--dataset", "./none.hdf5"],
        "there is no file or directory ./none.hdf5",
    ),
    "kind of file": (wrong_suffix, "file of unknown kind"),
    "not HDF5": (text_file, "cannot be read as HDF5"),
    "HDF5 cut short": (cut_short, "cannot be read as HDF5, it may be cut short"),
    "directory without data": (empty_directory, "nothing"),
    "no field": (own(rewards=None), "has no field 'rewards'"),
    "other fields": (no_group, "has no field 'observations'"),
    "lengths": (
        own(actions=np.zeros(29, int)),
        "field 'actions' has 29 rows, but 'rewards' has 30",
    ),
    "rank": (
        own(actions=np.zeros((30, 2, 2), np.float32)),
        "field 'action' has dtype float32 and shape",
    ),
    "dtype": (own(actions=np.zeros(30, np.float32)), "discrete actions must be integers"),
    "action below the range": (
        own(actions=np.full(30, -1)),
        "discrete and holds -1: actions count from 0",
    ),
    "action above the bounds": (attribute_bounds, "action"),
    "empty": (empty, "holds no transition"),
    "episodes of length 1": (short_episodes, "holds no transition"),
    "NaN": (with_value("observations", 4, np.nan), "field 'observation'"),
    "infinity": (with_value("rewards", 4, np.inf), "field 'reward'"),
    # folders
    "folder below a file": ([*TRAIN, "--run-dir", "/dev/null/run"], "/dev/null is not a directory"),
    "read-only folder": (
        [*TRAIN, "--run-dir", "/proc/run"],
        "cannot write the run folder /proc/run",
    ),
    "run that is not there": (["evaluate", "nowhere"], "there is no folder nowhere"),
    "report of nothing": (["report"], "name at least one run folder"),
    "report of no run": (["report", "."], "holds a complete run"),
    "export of nothing": (["export"], "RUN and DIR must be given"),
    "tau": (["train", "sac", *TRAIN[2:], "--config.tau", "1.5"], "--config.tau must be at most 1"),
    "rate": (
        ["train", "sac", *TRAIN[2:], "--config.actor-learning-rate", "-1"],
        "rate must be at least 0, got -1",
    ),
    "gamma": (
        ["train", "rosmo", *TRAIN[2:], "--config.gamma", "2"],
        "--config.gamma must be at most 1",
    ),
    "learning rate": (
        [*TRAIN, "--config.optimizer.learning-rate", "nan"],
        "must be a finite number",
    ),
    "export of no run": (["export", "nowhere", "there"], "there is no folder nowhere"),
    "folder without policy": (["evaluate", "."], "holds no policy"),
    "no episodes": (["evaluate", ".", "--episodes", "0"], "--episodes must be at least 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case, tmp_path, capsys):
    argv, named = BAD[case]
    assert named in running.refused(argv(tmp_path) if callable(argv) else argv, capsys)
    assert not (tmp_path / "runs").exists()  # nothing is left of a run that could not begin


FULL = """
import resource, sys
from offline_mbrl import cli
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
sys.argv[1:] = sys.argv[2:]
sys.exit(cli.main())
"""


@pytest.mark.parametrize(
    ("size", "named"), [(100, "File too large"), (3_000, "cannot write the checkpoint")]
)
def test_a_full_disk_is_one_line(size, named, tmp_path, monkeypatch):
    """A limit on the size of files is a full disk to whoever writes them."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    command = [sys.executable, "-c", FULL, str(size), *TRAIN, "--run-dir", str(tmp_path / "run")]
    command += ["--episodes", "0", "--evaluations", "0"]  # less to compile
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert named in done.stderr


def test_an_error_of_ours_that_is_not_the_users_keeps_its_traceback(monkeypatch):
    def broken(argv):
        raise ValueError("a bug")

    monkeypatch.setattr(train, "main", broken)
    with pytest.raises(ValueError, match="a bug"):
        cli.main(["train"])


def test_the_help_goes_to_stdout(capsys):
    assert cli.main(["--help"]) == 0
    assert "train" in capsys.readouterr().out
    assert cli.main(["train"]) == 0
    assert "skeleton" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "rosmo", "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr()
    assert "--config.unroll-steps" in shown.out
    assert "published, released" in shown.out
    assert shown.err == ""
    assert cli.main(["--version"]) == 0


def test_a_preset_is_where_flags_start_from():
    from offline_mbrl import registry

    options, config, preset = train.parse(
        "rosmo",
        registry.lookup("rosmo"),
        ["--preset=released", "--dataset", "x", "--config.td-steps", "7"],
    )
    assert (options.dataset, preset) == ("x", "released")
    assert (config.behavior_advantage, config.td_steps) == ("encoded_next", 7)


def test_what_tyro_says_is_told_in_one_line():
    with pytest.raises(UsageError) as found:
        arguments.parse(train.Options, ["--dataset", "x", "--seeds", "3.5"], prog="p")
    assert str(found.value) == (
        "cannot read --seeds INT: invalid literal for int() with base 10: '3.5' (see p --help)"
    )


def test_interrupting_is_no_traceback(monkeypatch, capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "main", interrupted)
    assert cli.main(["train"]) == 130
    assert "resumes from the last checkpoint" in capsys.readouterr().err


def test_a_process_that_failed_leaves_without_waiting_for_threads(monkeypatch, capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    left = []
    monkeypatch.setattr(train, "main", interrupted)
    monkeypatch.setattr(os, "_exit", left.append)
    monkeypatch.setattr(sys, "argv", ["offline-mbrl", "train"])
    cli.main()
    assert left == [130]


def test_the_list_is_long_enough():
    assert len(BAD) >= 50
    assert json.dumps(sorted(BAD))
