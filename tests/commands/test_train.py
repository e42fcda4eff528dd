import contextlib
import json
import struct

import numpy as np
import running
from tensorboardX.proto.event_pb2 import Event

import offline_mbrl
from offline_mbrl import cli, registry
from offline_mbrl.environments import simulators
from offline_mbrl.runs import playing
from offline_mbrl.training import manifest
from offline_mbrl.types import UsageError


def events(folder):
    """(step, name) of every figure in an event file."""
    (path,) = folder.iterdir()
    data, found = path.read_bytes(), []
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + size])
        found += [(event.step, value.tag) for value in event.summary.value]
        data = data[16 + size :]
    return found


def test_a_run_leaves_a_complete_folder(finished):
    assert {path.name for path in finished.iterdir() if not path.name.startswith(".")} == {
        "run.json",
        "metrics.jsonl",
        "blocks.json",
        "tensorboard",
        "checkpoints",
        "policy",
        "evaluation.json",
        "report.md",
        "learning_curve.png",
    }
    assert (finished / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    rows = running.rows(finished)
    assert [(row["step"], row["seed"]) for row in rows] == [
        (s, i) for s in (20, 40, 60) for i in (0, 1)
    ]
    assert all(
        {"loss/total", "validation/loss/total", "evaluation/greedy"} <= row.keys() for row in rows
    )
    names = {
        (step, tag)
        for step, tag in events(finished / "tensorboard/train/seed_1")
        if tag == "loss/total"
    }
    assert names == {(20, "loss/total"), (40, "loss/total"), (60, "loss/total")}
    outcome = json.loads((finished / "evaluation.json").read_text())
    assert outcome["step"] == 60
    assert outcome["evaluation"]["greedy"]["episodes"] == [10, 10]
    assert outcome["evaluation"]["greedy"]["normalized"]
    report = (finished / "report.md").read_text()
    assert "interquartile mean" in report
    assert "learning_curve.png" in report
    assert '"batch_size": 8' in report


def test_a_complete_run_is_not_trained_again(finished, capsys):
    before = {
        path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.name not in (".lock",)
    }
    assert running.train(finished) == 0
    shown = capsys.readouterr()
    assert "is complete; nothing is trained again" in shown.out
    assert "IQM" in shown.out
    assert str(finished / "report.md") in shown.out
    assert shown.err == ""
    after = {
        path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.name not in (".lock",)
    }
    assert after == before


def test_another_setting_is_refused_by_name(finished, capsys):
    assert running.train(finished, "--config.optimizer.learning-rate", "0.1") == 2
    assert (
        "config.optimizer.learning_rate = 0.0007, and this one has 0.1" in capsys.readouterr().err
    )
    assert running.train(finished, "--seeds", "3") == 2
    assert "seeds = [0, 1], and this one has [0, 1, 2]" in capsys.readouterr().err
    assert running.train(finished, algorithm="rosmo") == 2
    assert 'algorithm = "bc", and this one has "rosmo"' in capsys.readouterr().err
    assert running.train(finished, "--precision", "bfloat16") == 2
    assert 'precision = "float32", and this one has "bfloat16"' in capsys.readouterr().err


def test_plain_output_is_ten_lines_and_a_table(tmp_path, capsys):
    assert (
        running.train(tmp_path / "run", "--plain", "--block-updates", "1", "--evaluations", "0")
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("train ")] == [
        f"{n}/60" for n in range(6, 61, 6)
    ]
    assert len([line for line in lines if line.startswith("evaluation ")]) == 10


def test_own_data_without_simulator_reports_held_out_figures(tmp_path, capsys):
    path = running.write_hdf5(tmp_path / "mine.hdf5")
    assert running.train(tmp_path / "run", dataset=path) == 0
    shown = capsys.readouterr()
    outcome = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert "evaluation" not in outcome
    figures = outcome["figures"]["1"]
    assert (
        figures["validation/loss/total"]
        == running.rows(tmp_path / "run")[-1]["validation/loss/total"]
    )
    assert "validation/loss/total" in shown.out
    assert "validation/loss/total" in (tmp_path / "run/report.md").read_text()
    assert cli.main(["evaluate", str(tmp_path / "run")]) == 2
    assert "trained without a simulator; name one by --simulator" in capsys.readouterr().err


def test_data_without_validation_split_report_the_training_figures(tmp_path, capsys):
    short = {
        name: value[:3]
        for name, value in {
            "observations": np.eye(3, 4),
            "actions": np.arange(3),
            "rewards": np.ones(3),
            "terminals": np.arange(3) == 2,
            "timeouts": np.zeros(3),
            "next_observations": np.eye(3, 4, 1),
        }.items()
    }
    assert (
        running.train(tmp_path / "run", dataset=running.write_hdf5(tmp_path / "one.hdf5", **short))
        == 0
    )
    figures = json.loads((tmp_path / "run/evaluation.json").read_text())["figures"]
    assert set(figures) == {"0", "1"}
    assert "loss/total" in figures["0"]
    assert "loss/total" in capsys.readouterr().out


def test_pretraining_stages_are_trained_first_and_recorded(tmp_path):
    path = running.write_hdf5(tmp_path / "mine.hdf5", actions=running.continuous())
    assert running.train(tmp_path / "run", algorithm="skeleton", dataset=path) == 0
    rows = running.rows(tmp_path / "run")
    assert [row["stage"] for row in rows] == ["model"] * 6 + ["train"] * 6
    policy = offline_mbrl.load_policy(tmp_path / "run/policy")
    assert policy(np.zeros(4)).shape == (2,)
    assert json.loads((tmp_path / "run/blocks.json").read_text()) == {"model": 20, "train": 20}


def test_a_dataset_whose_simulator_it_does_not_fit_is_refused_before_training(
    tmp_path, monkeypatch, capsys
):

    def wrong(simulator):
        return simulators.spec("bsuite/cartpole")

    monkeypatch.setattr(playing.environments, "spec", wrong)
    assert running.train(tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert (
        "observations have shape [10, 5], those of bsuite/catch [1, 6]; --episodes 0 trains without"
        in error
    )
    assert not (tmp_path / "run").exists()


def test_a_missing_simulator_is_named_before_training(tmp_path, monkeypatch, capsys):
    def missing(simulator):
        raise UsageError("simulator bsuite/catch needs a package that is not installed (bsuite)")

    monkeypatch.setattr(playing.environments, "spec", missing)
    assert running.train(tmp_path / "run") == 2
    assert (
        "not installed (bsuite); --episodes 0 trains without a simulator" in capsys.readouterr().err
    )
    assert running.train(tmp_path / "run", "--episodes", "0") == 0


class Failing:
    """A simulator that raises in its fifth step."""

    def __init__(self, environment):
        self.environment, self.steps = environment, 0

    def __getattr__(self, name):
        return getattr(self.environment, name)

    def step(self, action):
        self.steps += 1
        if self.steps == 5:
            raise RuntimeError("the licence has expired")
        return self.environment.step(action)


def test_a_failing_simulator_leaves_a_result_marked_incomplete_and_is_tried_again(
    tmp_path, monkeypatch, capsys
):
    make, spec = playing.environments.make, playing.environments.spec
    monkeypatch.setattr(
        playing.environments, "make", lambda name, *, seed: Failing(make(name, seed=seed))
    )
    folder = tmp_path / "run"
    assert running.train(folder, "--episodes", "400", "--evaluations", "0") == 1
    shown = capsys.readouterr()
    assert "incomplete" in shown.out
    assert "the licence has expired" in shown.out
    outcome = json.loads((folder / "evaluation.json").read_text())["evaluation"]["greedy"]
    assert not outcome["complete"]
    assert outcome["interquartile_mean"] is None
    monkeypatch.setattr(playing.environments, "make", make)
    assert playing.environments.spec is spec
    assert running.train(folder, "--episodes", "400", "--evaluations", "0") == 0
    assert json.loads((folder / "evaluation.json").read_text())["evaluation"]["greedy"]["complete"]


# --- the last parameters, not the best ---


def wrapping(learner):
    """The learner for states whose first entry is its own state."""

    def validate(state, context, batch, key):
        return learner.validate(state[0], context, batch, key)

    def policy_params(state, context):
        return learner.policy_params(state[0], context)

    return learner._replace(validate=validate, policy_params=policy_params)


def worsening(algorithm, *, after):
    """The algorithm with parameters that grow without bound after some updates."""
    import jax
    import jax.numpy as jnp

    def make(config, spec):
        learner = algorithm.make(config, spec)

        def init(key, example, context):
            return learner.init(key, example, context), jnp.zeros((), jnp.int32)

        def step(state, context, batch, key):
            inner, count = state
            stepped, metrics = learner.step(inner, context, batch, key)
            factor = jnp.where(count >= after, 1.3, 1.0)
            params = jax.tree.map(lambda leaf: leaf * factor, stepped.params)
            return (stepped._replace(params=params), count + 1), metrics

        return wrapping(learner)._replace(init=init, step=step)

    return algorithm._replace(make=make)


def saved_params(folder, step):
    """Policy parameters of a checkpoint: path -> [dtype, shape, sha256]."""
    leaves = json.loads((folder / f"checkpoints/train/{step:09d}/manifest.json").read_text())[
        "leaves"
    ]
    return {name.partition(".params")[2]: about for name, *about in leaves if ".params[" in name}


def test_the_last_parameters_are_exported_and_evaluated_though_earlier_ones_were_better(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(registry.ALGORITHMS, "bc", worsening(registry.lookup("bc"), after=40))
    played = []
    opened = playing.opened

    @contextlib.contextmanager
    def watched(*arguments, **settings):
        with opened(*arguments, **settings) as player:

            def play(params, **more):
                played.append(params)
                return player.play(params, **more)

            yield player._replace(play=play)

    monkeypatch.setattr(playing, "opened", watched)
    folder = tmp_path / "run"
    assert running.train(folder) == 0
    losses = {
        (row["step"], row["seed"]): row["validation/loss/total"] for row in running.rows(folder)
    }
    assert all(losses[40, seed] < losses[60, seed] for seed in (0, 1))
    last, better = (saved_params(folder, step) for step in (60, 40))
    assert last
    assert last != better
    with np.load(folder / "policy/params.npz", allow_pickle=False) as arrays:
        exported = {
            "".join(f"['{part}']" for part in name.split("/")): arrays[name]
            for name in arrays.files
        }
    assert {name: manifest.describe(array) for name, array in exported.items()} == last
    assert len(played) == 4  # three evaluations during the run, and the one that is reported
    assert {
        name: manifest.describe(array) for name, array in manifest.host_leaves(played[-1]).items()
    } == last
    outcome = json.loads((folder / "evaluation.json").read_text())
    assert outcome["step"] == json.loads((folder / "policy/policy.json").read_text())["step"] == 60


# --- seeds that become non-finite ---


def poisoned(algorithm, *, after, seeds):
    """The algorithm with a loss of NaN after some updates, for all seeds or for half of them."""
    import jax
    import jax.numpy as jnp

    def make(config, spec):
        learner = algorithm.make(config, spec)

        def init(key, example, context):
            coin = jax.random.bernoulli(jax.random.fold_in(key, 1)) if seeds == "some" else True
            inner = learner.init(key, example, context)
            return inner, jnp.zeros((), jnp.int32), jnp.asarray(coin)

        def step(state, context, batch, key):
            inner, count, bad = state
            inner, metrics = learner.step(inner, context, batch, key)
            loss = jnp.where(bad & (count >= after), jnp.nan, metrics["loss/total"])
            return (inner, count + 1, bad), {**metrics, "loss/total": loss}

        return wrapping(learner)._replace(init=init, step=step)

    return algorithm._replace(make=make)


def test_when_all_seeds_fail_the_run_ends_keeps_the_last_good_checkpoint_and_says_so_again(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(
        registry.ALGORITHMS, "bc", poisoned(registry.lookup("bc"), after=30, seeds="all")
    )
    for _ in range(2):
        assert running.train(tmp_path / "run") == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert error.startswith(
            "error: stage train: all seeds became non-finite: seed 0: loss/total"
        )
        assert "checkpoints/train/000000020" in error
        assert [row["loss/total"] is None for row in running.rows(tmp_path / "run")] == [
            False
        ] * 2 + [True] * 2
    assert [path.name for path in (tmp_path / "run/checkpoints/train").iterdir()] == ["000000020"]
    assert not (tmp_path / "run/evaluation.json").exists()


def test_a_run_that_fails_in_its_first_block_says_that_nothing_is_kept(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(
        registry.ALGORITHMS, "bc", poisoned(registry.lookup("bc"), after=30, seeds="all")
    )
    assert running.train(tmp_path / "run", "--block-updates", "60") == 1
    assert "no checkpoint was made before that" in capsys.readouterr().err


def test_a_seed_that_fails_is_reported_by_number_and_the_others_go_on(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(
        registry.ALGORITHMS, "bc", poisoned(registry.lookup("bc"), after=30, seeds="some")
    )
    folder = tmp_path / "run"
    assert running.train(folder, "--seeds", "4") == 0
    outcome = json.loads((folder / "evaluation.json").read_text())
    frozen = [int(seed) for seed in outcome["failures"]]
    assert 0 < len(frozen) < 4
    assert "loss/total became non-finite at update 31" in outcome["failures"][str(frozen[0])]
    last = running.rows(folder)[-4:]
    assert [row["seed"] for row in last if row["loss/total"] is None] == frozen
    assert f"seed {frozen[0]} was frozen" in capsys.readouterr().out
    assert f"seed {frozen[0]} was frozen" in (folder / "report.md").read_text()
