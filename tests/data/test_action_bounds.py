"""Bounds of actions: stated beside arrays or a name, measured, or assumed and then said to be."""

import h5py
import jax
import numpy as np
import pytest

import offline_mbrl
from offline_mbrl import Dataset, cli, export
from offline_mbrl.data import action_bounds, audit, specs
from offline_mbrl.data.catalog import load as catalog
from offline_mbrl.data.store import read as store
from offline_mbrl.runs import playing
from offline_mbrl.types import UsageError

LOW, HIGH = -2.0, 2.0


def arrays(largest=1.9, size=1, steps=60):
    """Transitions `[steps]` whose actions lie within `largest`, which one of them has."""
    random = np.random.default_rng(0)
    action = random.uniform(-largest, largest, (steps, size)).astype(np.float32)
    action[0], action[1] = largest, -largest
    return {
        "observations": random.normal(size=(steps, 3)).astype(np.float32),
        "actions": action,
        "rewards": random.normal(size=steps).astype(np.float32),
        "terminals": np.zeros(steps, bool),
        "timeouts": np.arange(steps) % 20 == 19,
    }


@pytest.fixture
def file(tmp_path):
    """An HDF5 file without bounds."""

    def write(**options):
        path = tmp_path / "own.hdf5"
        with h5py.File(path, "w") as opened:
            for name, column in arrays(**options).items():
                opened[name] = column
        return str(path)

    return write


# --- arrays ---


def test_actions_of_arrays_are_scaled_by_the_stated_bounds():
    dataset = Dataset.from_arrays(arrays(), action_bounds=(LOW, HIGH))
    taken = np.asarray(dataset.action)[np.asarray(dataset.starts)]
    np.testing.assert_allclose([taken.min(), taken.max()], [-0.95, 0.95], atol=1e-6)
    action = specs.spec_of(dataset).action
    assert (action.minimum, action.maximum, action.assumed) == ((LOW,), (HIGH,), False)


def test_measured_bounds_are_those_of_the_data():
    dataset = Dataset.from_arrays(arrays(1.5, size=2), action_bounds="measured")
    action = specs.spec_of(dataset).action
    np.testing.assert_allclose([action.minimum, action.maximum], [[-1.5] * 2, [1.5] * 2])
    assert np.abs(np.asarray(dataset.action)[np.asarray(dataset.starts)]).max() <= 1 + 1e-6


def test_without_bounds_they_are_assumed_or_the_way_out_is_named():
    assert specs.spec_of(Dataset.from_arrays(arrays(0.9))).action.assumed
    with pytest.raises(UsageError, match=r"outside \[-1, 1\]; state the bounds of the actions: -"):
        specs.spec_of(Dataset.from_arrays(arrays()))


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ((2.0, -2.0), "entry 0 are 2 and -2: they must be finite, and the first below"),
        ((2.0, 2.0), "entry 0 are 2 and 2"),
        ((-2.0, np.nan), "entry 0 are -2 and nan"),
        ((-2.0, np.inf), "entry 0 are -2 and inf"),
        (((-2.0, -2.0), 2.0), r"do not fit actions of 1 entries: give one number, or 1"),
        ((-1.5, 1.5), r"transition 0: \[1.9\] is outside the stated bounds"),
        ("guessed", "action bounds 'guessed' are not understood"),
        ((1.0,), "action bounds are two"),
    ],
)
def test_bounds_that_make_no_sense_are_refused(bounds, message):
    with pytest.raises(UsageError, match=message):
        Dataset.from_arrays(arrays(), action_bounds=bounds)


def test_a_policy_trained_from_arrays_acts_in_their_units(tmp_path):
    dataset = Dataset.from_arrays(arrays(), action_bounds=(LOW, HIGH))
    run = offline_mbrl.train("bc", dataset, num_updates=2, progress=False)
    policy = offline_mbrl.load_policy(run.export(tmp_path / "policy"))
    observation = arrays()["observations"][0]
    params = jax.tree.map(lambda leaf: leaf[0], run.policy_params)
    unit = float(run.policy.mode(params, observation)[0])
    assert abs(unit) > 1e-3
    assert float(policy(observation)[0]) == pytest.approx(2 * unit, rel=1e-5)


# --- names ---


def test_a_name_states_bounds_and_the_data_are_scaled_by_them(file):
    name = f"{file()}?actions=-2:2"
    loaded = catalog.load(name)
    assert (loaded.name, loaded.spec.action.maximum) == (name, (HIGH,))
    taken = np.asarray(loaded.dataset.action)[np.asarray(loaded.dataset.starts)]
    largest = np.abs(taken).max()
    assert 0.9 < largest <= 0.95 + 1e-6
    plain = catalog.open_named(file())
    assert loaded.fingerprint != plain.manifest["fingerprint"]
    np.testing.assert_allclose(loaded.dataset.action_bounds, [[LOW], [HIGH]])


def test_data_beyond_the_assumed_bounds_are_refused_with_a_way_out(file):
    with pytest.raises(UsageError, match=r"outside \[-1, 1\].* state the bounds of the actions"):
        catalog.load(file())
    assert catalog.load(f"{file()}?actions=measured").spec.action.maximum == (pytest.approx(1.9),)
    with pytest.raises(UsageError, match=r"is outside \[-1.5, 1.5\]"):
        catalog.load(f"{file()}?actions=-1.5:1.5")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2:-2", "the first below the second"),
        ("-2", "write LOW:HIGH"),
        ("a:b", "write LOW:HIGH"),
        ("-2,-2:2,2", "do not fit actions of 1 entries"),
    ],
)
def test_stated_bounds_that_are_not_understood_are_refused(file, text, message):
    with pytest.raises(UsageError, match=message):
        catalog.load(f"{file()}?actions={text}")


def test_data_that_state_their_bounds_take_no_others():
    with pytest.raises(UsageError, match="local/catch states the bounds of its actions itself"):
        catalog.lookup("local/catch?actions=-2:2")


def test_the_audit_says_that_bounds_are_assumed(file, capsys):
    name = file(largest=0.95)
    assert cli.main(["data", "audit", name]) == 0
    assert "bounds that are assumed, [-1, 1], not stated (the largest is 0.95)" in (
        " ".join(capsys.readouterr().out.split())
    )
    assert cli.main(["data", "audit", name, "--action-bounds", "-3", "3"]) == 0
    assert "assumed" not in capsys.readouterr().out


def test_bounds_survive_the_store(file):
    opened = catalog.open_named(file(largest=0.95))
    assert specs.from_json(opened.manifest["spec"]).action.assumed
    part = store.aligned(opened, "train")
    [finding] = audit.assumed_bounds(part, action_bounds.assumed(1))
    assert (finding.severity, finding.field) == (audit.WARNING, "action")


# --- simulators ---


def spec_with(loaded_name):
    return catalog.load(loaded_name).spec


@pytest.fixture
def four_observations(tmp_path):
    """Data of the shapes of InvertedPendulum, whose actions lie in [-3, 3]."""
    path = tmp_path / "cart.hdf5"
    columns = arrays(largest=0.95)
    columns["observations"] = np.random.default_rng(2).normal(size=(60, 4)).astype(np.float32)
    with h5py.File(path, "w") as opened:
        for name, column in columns.items():
            opened[name] = column
    return str(path)


def test_assumed_bounds_are_no_match_for_a_simulator_of_others(four_observations):
    pytest.importorskip("mujoco")
    simulator = "gym/InvertedPendulum-v5"
    with pytest.raises(
        UsageError,
        match=r"are assumed, for none are stated.*are \[-3, 3\].*--action-bounds .* or -1 1 if",
    ):
        playing.check(simulator, spec_with(four_observations))
    playing.check(simulator, spec_with(f"{four_observations}?actions=-3:3"))
    playing.check(simulator, spec_with(f"{four_observations}?actions=-1:1"))
    with pytest.raises(UsageError, match=r"are stated: \[-2, 2\]"):
        playing.check(simulator, spec_with(f"{four_observations}?actions=-2:2"))


def test_bounds_of_one_flag_reach_the_run(file, tmp_path):
    folder = tmp_path / "run"
    arguments = ["train", "bc", "--dataset", file(), "--action-bounds", "-2", "2", "--plain"]
    arguments += ["--config.num-updates", "4", "--run-dir", str(folder)]
    assert cli.main(arguments) == 0
    assert export.load(folder / "policy").spec.action.maximum == (HIGH,)
    assert cli.main(arguments) == 0  # the same command finds its run
    other = [*arguments]
    other[other.index("-2")] = "-4"
    assert cli.main(other) == 2
