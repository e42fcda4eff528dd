"""`offline-mbrl ope`: its options, what it prints and writes, what it refuses."""

import csv
import io
import json

import numpy as np
import pytest
import running
from rich.console import Console
from selection_examples import estimate

from offline_mbrl import cli, export
from offline_mbrl.commands import evaluate, ope, ope_page
from offline_mbrl.selection import candidates as candidate_policies
from offline_mbrl.selection import estimators, judging
from offline_mbrl.selection.comparison.behavior import Logged
from offline_mbrl.selection.records import EFFORTS
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


def test_the_command_judges_all_seeds_of_a_run_and_leaves_a_page(run, capsys):
    folder, _ = run
    assert cli.main(["ope", str(folder), *FAST, "--all"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "logged behavior" in shown
    assert "run seed 0" in shown
    assert "run seed 1" in shown
    page = folder / "ope"
    assert "No choice" in shown or "Deploy" in shown or "Keep the behavior" in shown
    with (page / "estimates.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert {line["policy"] for line in lines} == {"run seed 0", "run seed 1"}
    assert {"model_ff", "fqe"} <= {line["estimator"] for line in lines}
    assert np.isfinite([float(line["value"]) for line in lines]).all()
    text = (page / "README.md").read_text()
    assert "| logged behavior |" in text
    assert "![forest.png](forest.png)" in text
    assert (page / "forest.png").stat().st_size > 1000


def test_json_alone_is_printed_where_it_is_asked_for(run, tmp_path, capsys):
    assert cli.main(["ope", str(run[0]), *FAST, "--json", "--out", str(tmp_path / "page")]) == 0
    described = json.loads(capsys.readouterr().out)
    assert {policy["name"] for policy in described["policies"]} == {"run seed 0", "run seed 1"}
    assert described == json.loads((tmp_path / "page" / "judgement.json").read_text())


def test_an_effort_is_where_flags_start_from():
    thorough = EFFORTS["thorough"]
    options = ope._defaults(["run", "--effort", "thorough", "--seeds", "2"])
    assert (options.settings, options.seeds) == (thorough.settings, thorough.seeds)
    assert ope._defaults(["--effort=thorough"]).settings == thorough.settings
    assert ope._defaults(["run"]).settings == EFFORTS["quick"].settings


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
        candidate_policies.require_kind("run seed 0", bare, groups)
    candidate_policies.require_kind("run seed 0", bare, {"fqe": groups["fqe"]})


def test_seeds_and_runs_of_one_configuration_share_their_functions(run, tmp_path):
    exported = export.load(evaluate.policy_folder(run[0]))
    again = export.load(evaluate.policy_folder(run[0]))
    policies = ope.candidates([(tmp_path / "a" / "run", exported), (tmp_path / "b" / "run", again)])
    names = [f"{folder}/run seed {seed}" for folder in "ab" for seed in (0, 1)]
    assert list(policies) == names
    assert len({policy for policy, _ in policies.values()}) == 1


def test_policies_inside_runs_go_by_the_names_of_the_runs(run, tmp_path):
    exported = export.load(evaluate.policy_folder(run[0]))
    paths = [tmp_path / name / "policy" for name in ("first", "second")]
    policies = ope.candidates([(path, exported) for path in paths])
    assert list(policies)[::2] == ["first seed 0", "second seed 0"]
    with pytest.raises(UsageError, match="first is named twice"):
        ope.candidates([(tmp_path / "first", exported), (tmp_path / "first", exported)])


# --- what it prints ---


def test_the_table_begins_with_the_behavior_and_is_no_wider_than_a_hundred_columns():
    logged = Logged(estimate(1.0), estimate(1.0), undiscounted=2.0)
    supported = {"model_ff": estimate(3.0, undiscounted=5.0), "fqe": estimate(3.1)}
    lonely = {"fqe": estimate(-2.5e9, low_support=1.0)}
    judgement = judging.judgement({"b": supported, "a": lonely}, logged)
    heads, behavior, first, second = ope_page.rows(judgement)
    assert heads[-1] == "undiscounted"
    assert behavior == ["logged behavior", "1.00 ± 0.20", "", "", "", "", "2.00"]
    assert first[0] == "b"
    assert first[2:4] == ["100%", "100%"]
    assert first[5:] == ["model_ff, fqe", "5.00"]
    assert second == ["a", "-", "-", "-", "-", "none may vote", "-"]
    data = estimators.Data(None, None, None, gamma=0.9, horizon=10)
    console = Console(width=ope.WIDTH, file=io.StringIO())
    console.print(ope_page.table(judgement, "data", data))
    console.print(ope_page.all_estimates(judgement))
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 100
    assert "-2.50e+09 ± 0.20 │ low" in text


def test_distributional_values_add_the_worst_tenth_of_the_returns():
    returns = np.linspace(0.0, 19.0, 20)
    logged = estimate(9.5)._replace(per_episode=returns)
    judgement = judging.judgement(
        {"a": {"fqe_distributional": estimate(3.0, cvar_10=-2.0)}, "b": {"fqe": estimate(2.0)}},
        Logged(logged, logged, undiscounted=9.5),
    )
    columns = [line[-1] for line in ope_page.rows(judgement)]
    assert columns == ["worst 10 %", "0.50", "-2.00", "-"]
