"""`offline-mbrl ope`, and the estimators behind it."""

import csv
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import running
from rich.console import Console

from offline_mbrl import cli, export
from offline_mbrl.commands import evaluate, ope
from offline_mbrl.data.memory import Dataset
from offline_mbrl.ope import intervals, support
from offline_mbrl.policies import as_policy
from offline_mbrl.problems import known
from offline_mbrl.selection import estimators, weighting
from offline_mbrl.types import DiscreteActions, Estimate, UsageError

TINY = estimators.Settings(
    model_updates=20, model_members=2, model_layers=(16,), masked_units=16, fqe_updates=20, fqe_layers=(16,),
    distributional_updates=20, ratio_updates=20, ratio_layers=(16,), ratio_batch=16, clone_updates=20,
    clone_layers=(16,), side_by_side=2)  # fmt: skip


@pytest.fixture(scope="module")
def problem():
    return known.linear_gaussian(0, num_episodes=40, horizon=10)


@pytest.fixture(scope="module")
def policies(problem):
    stacked = jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *problem.target_params)
    return estimators.Policies(problem.policy, stacked)


@pytest.mark.parametrize("group", estimators.GROUPS)
def test_every_group_gives_a_finite_estimate_of_every_policy(group, problem, policies):
    data = estimators.prepare(problem.dataset, problem.spec)
    learned = estimators.learn(group, data, TINY, seed=0)
    found = estimators.estimate(group, learned, data, policies, TINY, seed=0)
    assert set(found) == set(estimators.GROUPS[group].names)
    for one in found.values():
        assert one.value.shape == one.stderr.shape == (policies.count,)
        assert np.isfinite(one.value).all()
        told = [one.diagnostics[sign] for sign in ope.SIGNS if sign in one.diagnostics]
        assert told  # every estimator says somehow when not to trust it
        assert set(np.asarray(told).ravel().tolist()) <= {0.0, 1.0}
    for name in set(found) & {"fqe", "doubly_robust", "weighted_doubly_robust", "magic"}:
        np.testing.assert_array_equal(found[name].diagnostics["updates_too_few"], 1.0)  # 20 updates settle nothing


def test_a_fitted_model_ranks_linear_policies_as_their_exact_values_do(problem, policies):
    data = estimators.prepare(problem.dataset, problem.spec)
    settings = estimators.Settings(model_updates=1_500, model_members=2, model_layers=(32, 32))
    learned = estimators.learn("model_ff", data, settings, seed=0)
    found = estimators.estimate("model_ff", learned, data, policies, settings, seed=0)["model_ff"]
    exact = [problem.value(params) for params in problem.target_params]
    assert np.corrcoef(exact, found.value)[0, 1] > 0.95


def test_without_a_logged_density_only_cloned_weights_and_no_doubly_robust_estimate_are_there(problem, policies):
    data = estimators.prepare(problem.dataset._replace(extras={}), problem.spec)
    found = {}
    for group in ("importance", "fqe"):
        learned = estimators.learn(group, data, TINY, seed=0)
        found |= estimators.estimate(group, learned, data, policies, TINY, seed=0)
    assert set(found) == {"fqe", *(f"{name}_is_cloned" for name in weighting.WEIGHTINGS)}


def test_where_episodes_truly_end_models_learn_when(problem, policies):
    """Reward 1 a step, each the last with probability 1/5: the value is that of five steps, not of a whole horizon."""
    rng, size = np.random.default_rng(0), 4_000
    ends = rng.random(size) < 0.2
    ends[-1] = True
    observation = rng.normal(size=(size, problem.spec.observation.shape[0])).astype(np.float32)
    data = estimators.prepare(Dataset.from_arrays({
        "observation": observation, "next_observation": np.roll(observation, -1, axis=0),
        "action": rng.uniform(-1, 1, (size, 1)), "reward": 1 + 0.01 * rng.normal(size=size), "is_terminal": ends,
        "is_truncated": np.zeros(size, bool)}), problem.spec, gamma=0.95, horizon=60)  # fmt: skip
    settings = estimators.Settings(model_updates=1_001, model_members=2, model_layers=(16,))
    learned = estimators.learn("model_ff", data, settings, seed=0)
    found = estimators.estimate("model_ff", learned, data, policies, settings, seed=0)["model_ff"]
    np.testing.assert_allclose(found.value, 1 / (1 - 0.8 * 0.95), rtol=0.15)  # without: 19.1
    np.testing.assert_array_equal(found.diagnostics["missing_ends"], 0.0)


@pytest.mark.parametrize("group", ["model_ff", "importance", "fqe_distributional"])
def test_limits_decide_what_estimates_say_themselves(group):
    problem = known.linear_gaussian(0, num_episodes=200, horizon=10)
    behavior = estimators.Policies(problem.policy, jax.tree.map(lambda leaf: leaf[None], problem.behavior_params))
    uppers = ("unlikely_actions", "log_ratio", "disagreement", "outside_fraction", "diverged_fraction", "cut_fraction")
    flags = []
    for upper, lower in ((1e9, -1.0), (-1.0, 2.0)):  # nothing is low; everything is
        limits = support.Limits(**dict.fromkeys(uppers, upper), visited_share=lower)
        data = estimators.prepare(problem.dataset, problem.spec, limits=limits)
        learned = estimators.learn(group, data, TINY, seed=0)
        found = estimators.estimate(group, learned, data, behavior, TINY, seed=0)
        flags.append({float(one.diagnostics["low_support"][0]) for name, one in found.items() if "cloned" not in name})
    assert flags == [{0.0}, {1.0}]


@pytest.mark.parametrize(("settings", "message"), [
    ({"gamma": -0.5}, r"gamma must be inside \[0, 1\)"), ({"gamma": 1.0}, "gamma must be inside"),
    ({"horizon": 0}, "horizon at least 1 step"),
])  # fmt: skip
def test_settings_that_make_no_sense_are_refused_and_zero_is_one_of_them_or_taken(settings, message, problem):
    with pytest.raises(UsageError, match=message):
        estimators.prepare(problem.dataset, problem.spec, **settings)
    assert estimators.prepare(problem.dataset, problem.spec, gamma=0.0).gamma == 0.0


def test_a_single_episode_cannot_be_resampled_and_a_fit_that_breaks_down_is_no_estimate(problem, policies):
    short = known.linear_gaussian(0, num_episodes=1, horizon=10)
    data = estimators.prepare(short.dataset, short.spec)
    resampled = replace(TINY, bootstrap=True)
    with pytest.raises(UsageError, match="a single episode cannot be resampled"):
        estimators.estimate("fqe_distributional", (), data, policies, resampled, seed=0)
    data = estimators.prepare(problem.dataset, problem.spec)
    statistics = data.statistics.transitions
    broken = data.statistics._replace(transitions=statistics._replace(delta_std=np.nan * statistics.delta_std))
    with pytest.raises(UsageError, match="the model could not be fitted: seed 0"):
        estimators.learn("model_ff", data._replace(statistics=broken), TINY, seed=0)


# --- the command ---


@pytest.fixture(scope="module")
def run(data_root, tmp_path_factory):
    """A finished run with continuous actions, two seeds, and its data."""
    root = tmp_path_factory.mktemp("ope")
    path = running.write_hdf5(root / "own.hdf5", actions=running.continuous())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OFFLINE_MBRL_DATA", str(data_root))
        assert running.train(root / "run", "--episodes", "0", dataset=path) == 0
    return root / "run", path


FAST = ["--seeds", "1", "--horizon", "3", *(
    part for name in ("model", "fqe", "clone") for part in (f"--settings.{name}-updates", "5"))]  # fmt: skip


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
    assert "the policies act on" in running.refused(["ope", str(run[0]), "--dataset", str(other), *FAST], capsys)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["ope"], "name at least one run"),
        (["ope", "RUN", "--estimators", "fqee"], "unknown estimator 'fqee'"),
        (["ope", "RUN", "--estimators", ","], "names none"),
        (["ope", "RUN", "--seeds", "0"], "--seeds must be at least 1"),
        (["ope", "nowhere"], "there is no folder nowhere"),
    ],
)
def test_bad_input_is_one_line(run, argv, message, capsys):
    argv = [str(run[0]) if part == "RUN" else part for part in argv]
    assert message in running.refused(argv, capsys)


def test_importance_weights_are_refused_before_any_fit_where_a_policy_has_no_density(run):
    (exported,) = (export.load(evaluate.policy_folder(run[0])),)
    bare = exported._replace(policy=exported.policy._replace(log_prob=None))
    kinds = {"kind": (bare, ["run seed 0", "run seed 1"])}
    with pytest.raises(UsageError, match=r"run seed 0 has no log_prob.*--estimators model_ff,fqe"):
        ope._check_densities(kinds, ["fqe", "importance"])
    ope._check_densities(kinds, ["fqe"])


def test_actions_are_those_that_a_simulator_would_take():
    wild = as_policy(lambda params, observation, key: 3.0 * jnp.ones(1))
    exported = type("Exported", (), {"policy": wild, "spec": known.linear_gaussian(0, num_episodes=2).spec})
    np.testing.assert_array_equal(ope.acting(exported).sample((), jnp.zeros(2), jax.random.key(0)), [1.0])


# --- what it says ---


def estimate(value, stderr=0.1, **diagnostics):
    return Estimate(jnp.float32(value), jnp.float32(stderr), (), {k: jnp.float32(v) for k, v in diagnostics.items()})


def test_fits_that_disagree_widen_the_interval():
    found = ope.over_seeds([estimate(1.0, a=0.0), estimate(3.0, a=1.0)], resampled=True)
    np.testing.assert_allclose(found.value, 2.0)
    student = 12.7062 / 1.959964  # of one degree of freedom, over the normal quantile
    np.testing.assert_allclose(found.stderr, np.sqrt(0.01 + 1.5 * 2.0 * student**2), rtol=1e-5)
    np.testing.assert_allclose(found.diagnostics["a"], 0.5)


def judged(name, value, rank, reasons=()):
    return ope.Judged(name, {"fqe": estimate(value)}, support.Verdict(bool(reasons), reasons), rank)


def test_the_advice_names_rivals_and_warns_of_low_support():
    lines = ope.advice([judged("a", 2.0, 1.0, ("fqe: far",)), judged("b", 1.9, 2.0), judged("c", 0.0, 3.0)])
    text = "\n".join(lines)
    assert "Highest mean rank over 1 estimators: a." in text
    assert "tell it from: b." in text
    assert "far" in text
    assert "The best without such a warning: b." in text
    assert "Warning" not in "\n".join(ope.advice([judged("a", 2.0, 1.0), judged("b", 0.0, 2.0)]))


def test_an_estimate_that_is_not_finite_ranks_last():
    ranks = ope._mean_ranks({"a": {"fqe": estimate(np.nan)}, "b": {"fqe": estimate(-5.0)}})
    assert ranks == {"a": 2.0, "b": 1.0}


def test_policies_with_fewer_estimates_are_ranked_by_those_that_all_have():
    both, one = {"fqe": estimate(1.0), "doubly_robust": estimate(9.0)}, {"fqe": estimate(2.0)}
    assert ope._mean_ranks({"a": both, "b": one}) == {"a": 2.0, "b": 1.0}
    supported = support.Verdict(False, ())
    judged = [ope.Judged("b", one, supported, 1.0), ope.Judged("a", both, supported, 2.0)]
    assert "over 1 estimators: b" in ope.advice(judged)[0]
    shown = ope.table(judged, "data", estimators.Data(None, None, None, 0.9, 10))
    cells = [list(column.cells) for column in shown.columns]
    assert [column.header for column in shown.columns] == ["policy", "mean rank", "fqe", "doubly_robust"]
    assert cells[3][0] == "-"
    assert cells[3][1].startswith("9.00")
    turned = ope.table(judged[1:], "data", estimators.Data(None, None, None, 0.9, 10))  # more estimators than policies
    assert [column.header for column in turned.columns] == ["policy", "a"]
    assert list(turned.columns[0].cells) == ["mean rank", "fqe", "doubly_robust"]


def test_estimators_that_give_the_same_reason_are_named_together():
    low = {name: estimate(1.0, effective_sample_size=1.0) for name in ("weighted", "magic")}
    found = ope._verdict({**low, "fqe": estimate(1.0, visited_share=0.9)}, support.Limits())
    assert len(found.reasons) == 1
    assert found.reasons[0].startswith("weighted, magic: the importance weights leave 1 effective episodes")


def test_only_fits_that_were_resampled_stand_for_the_data(monkeypatch):
    """Members of models and cloned densities see the same data whatever the seed; fitted values see a resample."""

    def made(group, learned, data, policies, settings, *, seed):
        stacked = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], estimate(float(seed)))
        return dict.fromkeys(estimators.GROUPS[group].names[:1], stacked)

    monkeypatch.setattr(estimators, "learn", lambda *args, **named: ())
    monkeypatch.setattr(estimators, "estimate", made)
    exported = type("Exported", (), {"policy": None, "params": {}, "spec": SimpleNamespace(action=DiscreteActions(2))})
    options = ope.Options((), seeds=4)
    (found,) = ope.judge({"kind": (exported, ["a"])}, None, ["model_ff", "fqe"], options, Console(quiet=True))
    spread = np.std(np.arange(4.0), ddof=1) * intervals.widening(4)
    for name, counts in (("model_ff", 1 / 4), ("fqe", 1 + 1 / 4)):
        np.testing.assert_allclose(found.estimates[name].stderr, np.sqrt(0.01 + counts * spread**2), rtol=1e-5)
