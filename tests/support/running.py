"""What the tests of the commands share: a tiny run, and what is compared between two of them."""

import json
from pathlib import Path

import h5py
import numpy as np

from offline_mbrl import cli

DATASET = "local/catch-episodes30"
TINY = [
    "--config.batch-size",
    "8",
    "--config.num-updates",
    "60",
    "--block-updates",
    "20",
    "--episodes",
    "10",
    "--episodes-during",
    "10",
    "--evaluations",
    "3",
    "--devices",
    "1",
    "--checkpoint-seconds",
    "0",
]
TRAIN = ["train", "bc", "--dataset", DATASET, "--seeds", "2", *TINY]


def train(folder, *more, algorithm="bc", dataset=DATASET):
    """Runs the tiny run in this process; the exit code."""
    return cli.main(
        [
            "train",
            algorithm,
            "--dataset",
            str(dataset),
            "--seeds",
            "2",
            *TINY,
            "--run-dir",
            str(folder),
            *more,
        ]
    )


def rows(folder):
    """The rows of a run, strictly JSON, of each (stage, step, seed) one."""

    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    found = [
        json.loads(line, parse_constant=refuse)
        for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    keys = [(row["stage"], row["step"], row["seed"]) for row in found]
    assert len(keys) == len(set(keys)), "a row is there twice"
    return found


def leaves(folder, stage="train"):
    """[name, dtype, shape, sha256] of every leaf of the last checkpoint: what `checkpoint.sha256`
    is made of."""
    newest = max((folder / "checkpoints" / stage).glob("[0-9]*"))
    return json.loads((newest / "manifest.json").read_text())["leaves"]


def assert_same(folder, undisturbed):
    """Equal parameters, optimizer, rows, scores and exported policies, bit for bit."""
    assert leaves(folder) == leaves(undisturbed)
    assert rows(folder) == rows(undisturbed)
    scores = [
        json.loads((run / "evaluation.json").read_text())["evaluation"]
        for run in (folder, undisturbed)
    ]
    assert scores[0] == scores[1]
    policies = [(run / "policy" / "params.npz").read_bytes() for run in (folder, undisturbed)]
    assert policies[0] == policies[1]
    assert (folder / "report.md").exists()


def write_hdf5(path, **changes):
    """Ten episodes of three steps; `changes` replace fields, None removes them."""
    rng = np.random.default_rng(0)
    ends = np.arange(30) % 3 == 2
    fields = {
        "observations": rng.normal(size=(30, 4)).astype(np.float32),
        "actions": rng.integers(0, 3, 30),
        "rewards": rng.normal(size=30).astype(np.float32),
        "terminals": ends,
        "timeouts": np.zeros(30, bool),
        "next_observations": rng.normal(size=(30, 4)).astype(np.float32),
    } | changes
    with h5py.File(path, "w") as file:
        for name, value in fields.items():
            if value is not None:
                file[name] = value
    return Path(path)


def continuous():
    """Actions in [-1, 1] for `write_hdf5`."""
    return np.random.default_rng(1).uniform(-1, 1, (30, 2)).astype(np.float32)


def refused(argv, capsys):
    """The one line that a command answers with."""
    assert cli.main(argv) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert "Traceback" not in shown.out + shown.err
    return shown.err
