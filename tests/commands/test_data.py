"""`offline-mbrl data ...`: what it prints and what it refuses."""

import json

import h5py
import numpy as np
import pytest
from data_examples import collect

from offline_mbrl import cli
from offline_mbrl.collect import bsuite
from offline_mbrl.data.catalog import load as catalog
from offline_mbrl.data.catalog import names
from offline_mbrl.types import UsageError


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("OFFLINE_MBRL_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "200")

    def without_training(environment, *, progress, **options):
        progress(1, options["num_episodes"])
        return collect(environment, **options)

    monkeypatch.setattr(bsuite, "collect", without_training)
    return tmp_path / "data"


def run(capsys, *arguments):
    code = cli.main(["data", *arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def write_hdf5(path, **changes):
    fields = {
        "observations": np.random.default_rng(0).normal(size=(40, 3)),
        "rewards": np.ones(40),
        "actions": np.zeros((40, 2)),
        "terminals": np.arange(40) % 10 == 9,
    } | changes
    with h5py.File(path, "w") as file:
        for name, value in fields.items():
            file[name] = value


def test_list_shows_what_is_here(capsys):
    catalog.build("local/catch-episodes30", collect=collect)
    code, out, _ = run(capsys, "list")
    assert code == 0
    assert "not built" in out
    assert "local/catch-episodes30" in out
    assert "rlu_atari/Alien_run_1, ..." in out
    assert run(capsys, "list", "--all")[1].split() == names.names()


def test_build_makes_the_variant_that_the_flags_say(capsys, root):
    flags = ("--episodes", "30", "--seed", "2", "--noise", "0.1", "--fraction", "50")
    code, out, _ = run(capsys, "build", "local/catch", *flags)
    assert code == 0
    assert "local/catch-noise0.1-fraction50-episodes30-seed2: 30 episodes" in out
    assert (root / "store" / "local" / "catch-noise0.1-fraction50-episodes30-seed2").is_dir()


def test_one_episode_and_one_transition_are_said_in_the_singular(capsys, tmp_path):
    one = {
        "observations": np.ones((1, 3)),
        "rewards": np.ones(1),
        "actions": np.zeros((1, 2)),
        "terminals": np.ones(1, bool),
    }
    write_hdf5(tmp_path / "one.hdf5", **one)
    _, out, _ = run(capsys, "build", str(tmp_path / "one.hdf5"))
    assert "one.hdf5: 1 episode, 1 transition in" in out
    assert " 1 transition\n" in "\n".join(
        line.rstrip() + "\n" for line in run(capsys, "list")[1].splitlines()
    )


def test_build_with_force_makes_it_anew(capsys, root):
    run(capsys, "build", "local/catch-episodes30")
    manifest = root / "store" / "local" / "catch-episodes30" / "manifest.json"
    before = manifest.stat().st_ino
    run(capsys, "build", "local/catch-episodes30")
    assert manifest.stat().st_ino == before
    run(capsys, "build", "local/catch-episodes30", "--force")
    assert manifest.stat().st_ino != before


def test_info_tells_counts_and_origin(capsys):
    code, out, err = run(capsys, "info", "local/catch-episodes30", "--verify", "full")
    assert code == 0
    assert "30 (2 of them for validation)" in out
    assert "bsuite/catch" in out
    assert "chunks verified" in err
    manifest = json.loads(run(capsys, "info", "local/catch-episodes30", "--json")[1])
    assert manifest["provenance"]["written_by"]["episodes"] == 30


@pytest.mark.parametrize(
    ("suffix", "kept", "expected"),
    [
        ("", 40, "38 of the run's 40 episodes (95 %)"),
        ("-fraction10", 4, "3 of the run's 40 episodes (7.5 %)"),
    ],
)
def test_info_says_which_share_of_the_run_trains(capsys, monkeypatch, suffix, kept, expected):
    def kept_of_40(environment, *, progress, **options):
        del progress
        assert options.pop("num_episodes") == 40
        return collect(environment, num_episodes=kept, **options)

    monkeypatch.setattr(bsuite, "collect", kept_of_40)
    _, out, _ = run(capsys, "info", f"local/catch{suffix}-episodes40")
    (line,) = (line for line in out.splitlines() if line.strip().startswith("for training"))
    assert line.split(None, 2)[2].strip() == expected


def test_info_of_other_data_says_which_share_of_it_trains(capsys, tmp_path):
    write_hdf5(tmp_path / "four.hdf5")
    _, out, _ = run(capsys, "info", str(tmp_path / "four.hdf5"))
    assert "3 of 4 episodes (75 %)" in out


def test_uniform_episodes_are_played_by_no_agent(capsys):
    _, out, _ = run(capsys, "info", "local/catch-random-episodes40")
    assert '"behavior": "uniform actions"' in " ".join(out.split())
    assert "40 (2 of them for validation)" in out


def test_audit_names_faults_and_its_exit_code_counts_errors(capsys, tmp_path):
    write_hdf5(tmp_path / "good.hdf5")
    code, out, _ = run(capsys, "audit", str(tmp_path / "good.hdf5"))
    assert code == 0
    assert "a time limit stored as a terminal?" in out
    assert "return_mean" in out
    rewards = np.ones(40)
    rewards[7] = np.nan
    write_hdf5(tmp_path / "bad.hdf5", rewards=rewards, actions=np.full((40, 2), 1.5))
    code, out, _ = run(capsys, "audit", str(tmp_path / "bad.hdf5"))
    assert code == 1
    assert "error: reward (episode 0, step 7, row 7, train split): is not finite (nan)" in out
    assert (
        "error: action (episode 0, step 0, row 0, train split): [1.5, 1.5] is outside [-1, 1]"
        in out
    )


def test_audit_and_refusal_name_the_episode_of_the_source(capsys, tmp_path):
    observations = np.random.default_rng(0).normal(size=(40, 3))
    # Episode 1 is held out, episode 2 is the second of the training split
    observations[[13, 25], 1] = np.nan
    path = tmp_path / "nan.hdf5"
    write_hdf5(
        path,
        observations=observations,
        terminals=np.zeros(40, bool),
        timeouts=np.arange(40) % 10 == 9,
    )
    code, out, _ = run(capsys, "audit", str(path))
    assert code == 1
    assert (
        "error: observation (episode 1, step 3, row 13, validation split): is not finite (nan)"
        in out
    )
    assert "error: observation (episode 2, step 5, row 25, train split): is not finite (nan)" in out
    assert "(counted from 0 over the source's episodes, in the source's order)" in out
    with pytest.raises(
        UsageError, match=r"'observation' is not finite \(nan\) at step 5 of episode 2 \(counted"
    ):
        catalog.load(str(path))


def test_audit_says_when_episodes_were_dropped_from_the_count(capsys, tmp_path):
    rewards = np.ones(40)
    rewards[13] = np.nan
    # The first episode is a single step without an outcome
    ends = np.isin(np.arange(40), [0, 9, 19, 29, 39])
    write_hdf5(
        tmp_path / "single.hdf5", rewards=rewards, terminals=np.zeros(40, bool), timeouts=ends
    )
    _, out, _ = run(capsys, "audit", str(tmp_path / "single.hdf5"))
    assert "error: reward (episode 1, step 3, row 12, validation split): is not finite" in out
    assert "over the source's episodes that hold a transition" in out


def test_help_is_printed(capsys):
    assert run(capsys)[0] == 0
    assert "Makes a dataset's column store" in run(capsys, "--help")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lst"], "unknown command 'data lst'; did you mean list?"),
        (["zzz"], "unknown command 'data zzz'; choose one of list, info, build, audit"),
        (["info"], "data info --help"),
        (["info", "local/cach"], "did you mean local/catch"),
        (["info", "local/catch", "--verify", "some"], "some"),
        (["build", "local/catch", "--noise", "2"], "noise must be from 0 to 1"),
        (["build", "local/catch", "--fraction", "60"], "fraction must divide 100"),
        (["build", "local/catch", "--episodes", "many"], "many"),
        (["build", "local/catch", "--foo"], "foo"),
        (["build", "d4rl_mujoco_hopper/v2-medium", "--seed", "3"], "--seed is for local/ datasets"),
        (["audit", "./nothing.hdf5"], "there is no file or directory"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(capsys, arguments, message):
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert "Traceback" not in out + err


def test_damaged_empty_and_unwritable_data_are_one_line_too(capsys, tmp_path, monkeypatch):
    run(capsys, "build", "local/catch-episodes30")
    column = catalog.open_named("local/catch-episodes30").columns["train"]["columns", "reward"].file
    content = bytearray(column.read_bytes())
    content[5] ^= 4
    column.write_bytes(content)
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.hdf5").write_bytes(b"\x89HDF")
    write_hdf5(tmp_path / "short.hdf5", rewards=np.ones(39))
    write_hdf5(tmp_path / "wide.hdf5", next_observations=np.ones((40, 5)))
    for arguments, message in (
        (["info", "local/catch-episodes30", "--verify", "full"], "is damaged: chunk 0"),
        (["audit", str(tmp_path / "empty")], "is no RLDS dataset"),
        (["audit", str(tmp_path / "cut.hdf5")], "cannot be read as HDF5"),
        (["build", str(tmp_path / "short.hdf5")], "has 40 rows, but 'rewards' has 39"),
        (
            ["audit", str(tmp_path / "wide.hdf5")],
            "has shape [40, 5], but 'observations' has shape [40, 3]",
        ),
        (["info", "minari:nothing/at-all-v0"], "cannot be opened"),
    ):
        code, _, err = run(capsys, *arguments)
        assert (code, err.count("\n"), message in err) == (2, 1, True), err
    monkeypatch.setenv("OFFLINE_MBRL_DATA", "/proc/offline_mbrl")
    code, _, err = run(capsys, "build", "local/catch")
    assert (code, err.count("\n"), "OFFLINE_MBRL_DATA" in err) == (2, 1, True), err
