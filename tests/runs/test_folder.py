"""A damaged or unfinished run is one line on stderr that names it, and exit code 2."""

import shutil

import pytest
import running

TRAIN = ["train", "bc", "--dataset", running.DATASET, *running.TINY]


@pytest.fixture
def copied(finished, tmp_path):
    """A finished run that may be damaged."""
    return shutil.copytree(finished, tmp_path / "run")


def write(path, text):
    path.write_text(text)


DAMAGED = {
    "run.json": (lambda run: write(run / "run.json", '{"algorithm": "b'), "run.json is damaged"),
    "run.json of another kind": (lambda run: write(run / "run.json", "[]"), "run.json is damaged"),
    "evaluation.json": (
        lambda run: write(run / "evaluation.json", "\0"),
        "evaluation.json is damaged",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_run_is_one_line(case, copied, capsys):
    damage, named = DAMAGED[case]
    damage(copied)
    command = [
        "train",
        "bc",
        "--dataset",
        running.DATASET,
        "--seeds",
        "2",
        *running.TINY,
        "--run-dir",
        str(copied),
    ]
    assert named in running.refused(command, capsys)
    assert named in running.refused(["report", str(copied)], capsys)


def test_a_run_without_any_good_checkpoint_is_one_line(copied, capsys):
    (copied / "evaluation.json").unlink()
    for manifest in copied.rglob("manifest.json"):
        manifest.write_text(manifest.read_text().replace("1", "2", 1))
    command = [
        "train",
        "bc",
        "--dataset",
        running.DATASET,
        "--seeds",
        "2",
        *running.TINY,
        "--run-dir",
        str(copied),
    ]
    assert "no good checkpoint is left" in running.refused(command, capsys)


def test_checkpoints_of_another_config_are_one_line(copied, capsys):
    (copied / "evaluation.json").unlink()
    (copied / "run.json").unlink()
    command = [
        "train",
        "bc",
        "--dataset",
        running.DATASET,
        "--seeds",
        "2",
        *running.TINY,
        "--run-dir",
        str(copied),
    ]
    changed = [*command, "--config.optimizer.learning-rate", "0.5"]
    assert (
        "was made with optimizer.learning_rate = 0.0007, and this run has 0.5"
        in running.refused(changed, capsys)
    )


def test_an_unfinished_run_is_neither_evaluated_nor_exported(copied, capsys):
    (copied / "evaluation.json").unlink()
    assert "is not finished: repeat its command to go on" in running.refused(
        ["evaluate", str(copied)], capsys
    )
    assert str(copied / "policy") in running.refused(["export", str(copied), "there"], capsys)
    assert "holds a complete run" in running.refused(["report", str(copied)], capsys)


def test_an_unknown_seed_and_an_unwritable_folder_of_an_export_are_one_line(finished, capsys):
    assert "the run has no seed 7: it holds 0, 1" in running.refused(
        ["export", str(finished), "there", "--seed", "7"], capsys
    )
    assert "cannot write /dev/null/there" in running.refused(
        ["export", str(finished), "/dev/null/there"], capsys
    )


def test_a_simulator_that_the_policy_does_not_fit_is_one_line(finished, capsys):
    wrong = running.refused(["evaluate", str(finished), "--simulator", "bsuite/cartpole"], capsys)
    assert "observations have shape [10, 5], those of bsuite/cartpole [1, 6]" in wrong
    assert "bsuite/catch" in running.refused(
        ["evaluate", str(finished), "--simulator", "bsuite/cacth"], capsys
    )
