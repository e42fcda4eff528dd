"""`offline-mbrl ope`: its options, what it prints and writes, what it refuses."""

import csv

import numpy as np
import pytest
import running
from selection_examples import estimate

from offline_mbrl import cli, export
from offline_mbrl.commands import evaluate, ope
from offline_mbrl.ope import support
from offline_mbrl.selection import estimators, judging
from offline_mbrl.types import UsageError


@pytest.fixture(scope="module")
def run(data_root, tmp_path_factory):
    """A finished run with continuous actions, two seeds, and its data."""
    root = tmp_path_factory.mktemp("ope")
    path = running.write_hdf5(root / "own.hdf5", actions=running.continuous())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OFFLINE_MBRL_DATA", str(data_root))
        assert running.train(root / "run", "--episodes", "0", dataset=path) == 0
    return root / "run", path


FAST = [
    "--seeds",
    "1",
    "--horizon",
    "3",
    "--gamma",
    "0.9",
    *(part for name in ("model", "fqe", "clone") for part in (f"--settings.{name}-updates", "5")),
]


def test_the_command_ranks_all_seeds_of_a_run_and_writes_a_file(run, tmp_path, capsys):
    folder, _ = run
    assert cli.main(["ope", str(folder), *FAST, "--out", str(tmp_path / "found.csv")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Highest mean rank" in shown
    assert "run seed 0" in shown
    assert "run seed 1" in shown
    with (tmp_path / "found.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert {line["policy"] for line in lines} == {"run seed 0", "run seed 1"}
    assert {"model_ff", "fqe"} <= {line["estimator"] for line in lines}
    assert np.isfinite([float(line["value"]) for line in lines]).all()


def test_policies_of_another_spec_are_refused(run, tmp_path, capsys):
    other = running.write_hdf5(tmp_path / "other.hdf5", actions=running.continuous()[:, :1])
    assert "the policies act on" in running.refused(
        ["ope", str(run[0]), "--dataset", str(other), *FAST], capsys
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["ope"], "name at least one run"),
        (["ope", "RUN", "--estimators", "fqee"], "unknown estimator 'fqee'"),
        (["ope", "RUN", "--estimators", ","], "names none"),
        (["ope", "RUN", "--seeds", "0"], "--seeds must be at least 1"),
        (["ope", "RUN"], "names no discount factor: give one, for example --gamma 0.99"),
        (["ope", "nowhere"], "there is no folder nowhere"),
    ],
)
def test_bad_input_is_one_line(run, argv, message, capsys):
    argv = [str(run[0]) if part == "RUN" else part for part in argv]
    assert message in running.refused(argv, capsys)


def test_importance_weights_are_refused_before_any_fit_where_a_policy_has_no_density(run):
    exported = export.load(evaluate.policy_folder(run[0]))
    bare = exported.policy._replace(log_prob=None)
    groups = {name: estimators.GROUPS[name] for name in ("fqe", "importance")}
    with pytest.raises(UsageError, match=r"run seed 0 has no log_prob.*for example fqe"):
        judging.require_kind("run seed 0", bare, groups)
    judging.require_kind("run seed 0", bare, {"fqe": groups["fqe"]})


def test_seeds_and_runs_of_one_configuration_share_their_functions(run, tmp_path):
    exported = export.load(evaluate.policy_folder(run[0]))
    again = export.load(evaluate.policy_folder(run[0]))
    policies = ope.candidates([(tmp_path / "a" / "run", exported), (tmp_path / "b" / "run", again)])
    names = [f"{tmp_path / folder / 'run'} seed {seed}" for folder in "ab" for seed in (0, 1)]
    assert list(policies) == names
    assert len({policy for policy, _ in policies.values()}) == 1


# --- what it prints ---


def shown(judged):
    data = estimators.Data(None, None, None, gamma=0.9, horizon=10)
    columns = ope.table(judged, "data", data).columns
    return {column.header: list(column.cells) for column in columns}


def test_the_table_has_a_line_a_policy_or_a_line_an_estimator():
    both = {"fqe": estimate(1.0), "doubly_robust": estimate(9.0, low_support=1.0)}
    supported = support.Verdict(low_support=False, reasons=())
    first = judging.Judged("b", {"fqe": estimate(2.0)}, supported, 1.0)
    second = judging.Judged("a", both, supported, 2.0)
    by_policy = shown([first, second])
    assert list(by_policy) == ["policy", "mean rank", "fqe", "doubly_robust"]
    assert by_policy["doubly_robust"] == ["-", "9.00 ± 0.20 low"]
    by_estimator = shown([second])  # more estimators than policies
    assert list(by_estimator) == ["policy", "a"]
    assert by_estimator["policy"] == ["mean rank", "fqe", "doubly_robust"]
