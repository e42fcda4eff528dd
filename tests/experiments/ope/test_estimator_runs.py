"""The benchmark of estimators: its pieces and their tables, its metrics and claims, and what is written from them."""

import dataclasses
import zlib

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import rows as table
from experiments.benchmarks.ope import main as ope
from experiments.benchmarks.ope import report as ope_report
from experiments.benchmarks.ope import runs as ope_runs
from offline_mbrl.collect import control, control_policies, policy_set
from offline_mbrl.selection import estimators as estimating
from offline_mbrl.selection import metrics
from offline_mbrl.types import Estimate, UsageError

QUICK = ope_runs.PRESETS["quick"]
TASKS = QUICK.tasks
VALUES = np.array([1.0, 2.0, 3.0, 5.0])
NAMES = tuple(f"run3-step{number}" for number in range(4))


def truth(task=TASKS[0], names=NAMES, values=VALUES, episodes=QUICK.episodes):
    return [ope_runs.Truth(task, policy, name, episodes, float(value), 0.1, 0.995, "abc", "python x")
            for policy, (name, value) in enumerate(zip(names, values, strict=True))]  # fmt: skip


def estimated(
    estimator,
    values,
    *,
    seed=0,
    task=TASKS[0],
    group="fqe",
    low=0.0,
    settings=QUICK.settings,
    **later,
):
    return [ope_runs.Row(task, group, estimator, seed, policy, repr(settings), float(value), 0.2, low, 1.5, "abc", "x",
                         **later) for policy, value in enumerate(values)]  # fmt: skip


def written(folder, rows, known=None):
    (folder / ope_runs.TRUTH).mkdir(parents=True)
    table.append(folder / ope_runs.TRUTH, ope_runs.Truth, known or truth())
    table.append(folder, ope_runs.Row, rows)
    return folder


@pytest.fixture
def faked(monkeypatch):
    """Preparation, simulator and fits replaced by made-up figures; what was estimated is recorded."""
    done = []
    targets = control.Targets(
        None, {"w": np.zeros((4, 1))}, NAMES, policy_set.PolicySet(None, *[np.zeros(4)] * 5, np.zeros(())))  # fmt: skip
    ready = lambda task, preset, console: ope_runs.Prepared(task, targets, None, "none")  # noqa: E731

    def estimate(group, learned, data, policies, settings, *, seed):
        done.append((group, seed))
        noise = np.random.default_rng(seed).normal(size=4)
        told = {"low_support": jnp.ones(4), "updates_too_few": jnp.array([0.0, 1.0, 0.0, 1.0])}
        found = Estimate(jnp.asarray(VALUES + noise), jnp.ones(4), jnp.zeros((4, 2)), told)
        return dict.fromkeys(estimating.GROUPS[group].names, found)

    monkeypatch.setattr(ope_runs, "prepare", ready)
    monkeypatch.setattr(ope_runs, "true_values", lambda ready, episodes: [
        (ready.task, policy, name, episodes, float(value), 0.1, 0.995)
        for policy, (name, value) in enumerate(zip(NAMES, VALUES, strict=True))])  # fmt: skip
    monkeypatch.setattr(estimating, "learn", lambda group, data, settings, *, seed: ())
    monkeypatch.setattr(estimating, "estimate", estimate)
    monkeypatch.setattr(ope.compilation, "enable", lambda: None)
    return done


# --- the work ---


def test_the_quick_preset_is_what_was_promised():
    assert TASKS == ("cartpole_swingup", "cheetah_run")
    assert (QUICK.seeds, QUICK.episodes, QUICK.settings.fqe_layers) == (3, 200, (64, 64))
    assert QUICK.settings.fqe_updates >= 100_000
    assert QUICK.policies == 16
    assert min(QUICK.fewer.values()) >= 10
    for task in TASKS:
        targets = control.target_policies(task, QUICK.fewer.get(task, QUICK.policies))
        policies = policy_set.load(control_policies.location(task))
        behavior = policy_set.with_role(policies, policy_set.BEHAVIOR)
        assert not set(targets.info.run) & set(behavior.run)


def test_true_values_come_first_and_every_estimator_once_for_each_task_and_seed():
    pieces = ope_runs.pieces(QUICK, list(estimating.GROUPS))
    assert len(set(pieces)) == len(pieces) == len(TASKS) * (1 + 3 * len(estimating.GROUPS))
    for task in TASKS:
        of_task = [piece for piece in pieces if piece.task == task]
        assert of_task[0].group == ope_runs.TRUTH
        assert [piece.seed for piece in of_task] == sorted(piece.seed for piece in of_task)


def test_a_stopped_benchmark_goes_on_with_what_is_missing(tmp_path, faked, monkeypatch):
    options = ope.Options(tasks=TASKS[0], groups="model_ff,fqe", folder=tmp_path)
    real = ope_runs.run

    def stop_at_second_seed(folder, piece, *rest, **named):
        if piece.seed == 1:
            raise KeyboardInterrupt
        real(folder, piece, *rest, **named)

    monkeypatch.setattr(ope_runs, "run", stop_at_second_seed)
    with pytest.raises(KeyboardInterrupt):
        ope.main(options)
    assert faked == [("model_ff", 0), ("fqe", 0)]
    monkeypatch.setattr(ope_runs, "run", real)
    assert ope.main(options) == 0
    assert faked == [(group, seed) for seed in range(3) for group in ("model_ff", "fqe")]
    rows = table.read(tmp_path, ope_runs.Row)
    assert len(rows) == 3 * 4 * 5  # seeds, policies, estimators
    assert {(row.policy, row.low_support, row.unsettled) for row in rows} == {
        (0, 1.0, 0.0), (1, 1.0, 1.0), (2, 1.0, 0.0), (3, 1.0, 1.0)}  # fmt: skip
    assert ope.main(options) == 0
    assert len(faked) == 6
    assert {path.name for path in tmp_path.iterdir()} >= {
        "summary.md",
        "cartpole_swingup.md",
        "cartpole_swingup.png",
    }
    ope.main(dataclasses.replace(options, fresh=True))
    assert len(faked) == 12


def test_work_at_one_task_leaves_the_rows_and_the_report_of_the_other(tmp_path, faked, monkeypatch):
    monkeypatch.setattr(ope_report, "draw", lambda *given: None)
    options = ope.Options(groups="fqe", folder=tmp_path)
    ope.main(options)
    rows, known = table.read(tmp_path, ope_runs.Row), ope_runs.truths(tmp_path)
    summary = (tmp_path / "summary.md").read_text()
    assert all(f"[{task}]({task}.md) (3 seeds)" in summary for task in TASKS)
    ope.main(dataclasses.replace(options, tasks=TASKS[0], groups=""))
    assert f"[{TASKS[1]}]({TASKS[1]}.md) (3 seeds)" in (tmp_path / "summary.md").read_text()
    table.discard(tmp_path, ope_runs.Row, lambda row: row.group != "fqe")
    done = len(faked)
    ope.main(dataclasses.replace(options, tasks=TASKS[0], fresh=True))
    assert faked[done:] == [("fqe", seed) for seed in range(3)]
    other = [row for row in rows if row.task == TASKS[1]]
    assert table.read(tmp_path, ope_runs.Row)[: len(other)] == other
    assert [row for row in ope_runs.truths(tmp_path) if row.task == TASKS[1]] == [
        row for row in known if row.task == TASKS[1]]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "left", "true_values"),
    [((), set(), set()), ((TASKS[:1], ()), {(TASKS[1], "fqe"), (TASKS[1], "vpm")}, {TASKS[1]}),
     (((), ("vpm",)), {(task, "fqe") for task in TASKS}, set(TASKS)),
     ((TASKS[:1], ("fqe",)), {(TASKS[0], "vpm"), *((TASKS[1], name) for name in ("fqe", "vpm"))}, set(TASKS))],
)  # fmt: skip
def test_what_is_forgotten_is_what_was_named(tmp_path, given, left, true_values):
    rows = [
        row
        for task in TASKS
        for name in ("fqe", "vpm")
        for row in estimated(name, VALUES, task=task, group=name)
    ]
    ope.forget(written(tmp_path, rows, [*truth(), *truth(TASKS[1])]), *(given or ((), ())))
    assert {(row.task, row.group) for row in table.read(tmp_path, ope_runs.Row)} == left
    assert {row.task for row in ope_runs.truths(tmp_path)} == true_values


def test_a_damaged_table_can_be_started_over(tmp_path, faked, monkeypatch):
    monkeypatch.setattr(ope_report, "draw", lambda *given: None)
    (tmp_path / table.TABLE).write_text("no table\n1\n")
    with pytest.raises(UsageError, match="start over with --fresh"):
        ope.main(
            ope.Options(groups="vpm", folder=tmp_path, fresh=True)
        )  # the others' rows would be lost
    ope.main(ope.Options(seeds=1, folder=tmp_path, fresh=True))
    assert len(table.read(tmp_path, ope_runs.Row)) == 2 * 4 * len(
        ope_report.known_estimators()
    )  # tasks, policies


def test_a_piece_that_another_process_is_at_is_left_to_it(tmp_path, faked):
    piece = ope_runs.Piece(TASKS[0], "fqe", 0)
    with table.locked(tmp_path, repr(piece)):
        ope.main(ope.Options(tasks=TASKS[0], groups="fqe", folder=tmp_path))
    assert faked == [("fqe", 1), ("fqe", 2)]


def test_true_values_of_other_policies_are_refused(tmp_path, faked):
    other = truth(names=("a", "b", "c", "d"))
    written(tmp_path, [], other)
    with pytest.raises(UsageError, match="are of other policies"):
        ope.main(ope.Options(tasks=TASKS[0], groups="fqe", folder=tmp_path))
    assert table.read(tmp_path, ope_runs.Row) == []


def test_a_value_is_the_mean_of_discounted_returns_and_its_error_theirs(monkeypatch):
    returns = np.array([[1.0, 3.0], [2.0, 2.0], [0.0, 4.0], [5.0, 5.0]])
    asked = {}

    def make_evaluator(policy, simulator, **settings):
        asked.update(settings)
        found = type("Found", (), {"complete": True, "returns": returns, "message": ""})
        return lambda params, seed: found

    monkeypatch.setattr(ope_runs.episodes, "make_evaluator", make_evaluator)
    targets = control.Targets(None, {}, NAMES, None)
    ready = ope_runs.Prepared(TASKS[0], targets, type("Data", (), {"gamma": 0.9}), "control/x")
    rows = ope_runs.true_values(ready, 2)
    assert (asked["gamma"], asked["greedy"], asked["num_seeds"], asked["num_episodes"]) == (
        0.9,
        False,
        4,
        2,
    )
    np.testing.assert_allclose([row[4] for row in rows], returns.mean(axis=1))
    np.testing.assert_allclose([row[5] for row in rows], [1, 0, 2, 0])


@pytest.mark.parametrize(
    ("given", "message"),
    [({"tasks": "hopper"}, "unknown task 'hopper'"), ({"groups": "sorcery"}, "unknown group 'sorcery'"),
     ({"seeds": 1}, "--seeds differs from the preset: give a --folder")],
)  # fmt: skip
def test_what_cannot_be_run_is_refused(given, message):
    with pytest.raises(UsageError, match=message):
        ope.main(ope.Options(**given))


@pytest.mark.parametrize(
    ("told", "low", "unsettled"),
    [({}, np.nan, np.nan), ({"low_support": 0.0, "updates_too_few": 1.0}, 0.0, 1.0),
     ({"low_support": 0.0, "unlikely_actions": 0.9}, 1.0, np.nan), ({"visited_share": 0.01}, 1.0, np.nan),
     ({"low_support": 1.0, "visited_share": 0.9, "updates_too_few": 0.0}, 1.0, 0.0), ({"drift": 3.0}, np.nan, np.nan)],
)  # fmt: skip
def test_support_is_low_by_any_sign_and_what_an_estimator_does_not_tell_is_not_a_number(
    told, low, unsettled
):
    stacked = {name: jnp.full(3, value) for name, value in told.items()}
    found = ope_runs.flags(Estimate(jnp.zeros(3), jnp.zeros(3), jnp.zeros((3, 2)), stacked))
    np.testing.assert_array_equal(found, [[low] * 3, [unsettled] * 3])


def test_a_table_from_before_there_was_a_column_can_be_read_and_added_to(tmp_path):
    table.append(tmp_path, ope_runs.Row, estimated("fqe", VALUES))
    path = tmp_path / table.TABLE
    path.write_text(
        "".join(line.rpartition(",")[0] + "\n" for line in path.read_text().splitlines())
    )
    assert "unsettled" not in path.read_text()
    old = table.read(tmp_path, ope_runs.Row)
    assert np.isnan([row.unsettled for row in old]).all()
    assert [row.value for row in old] == list(VALUES)
    table.append(tmp_path, ope_runs.Row, estimated("fqe", VALUES, seed=1, unsettled=1.0))
    found = [row.unsettled for row in table.read(tmp_path, ope_runs.Row)]
    np.testing.assert_array_equal(found, [np.nan] * 4 + [1.0] * 4)
    path.write_text(
        path.read_text().replace("low_support", "support")
    )  # this column was there from the start
    with pytest.raises(UsageError, match="is not a table of runs"):
        table.read(tmp_path, ope_runs.Row)


# --- the report ---


def report(folder, preset=QUICK):
    ope_report.write(folder, preset, preset_name="quick")
    return (folder / ope_report.SUMMARY).read_text(), (folder / f"{TASKS[0]}.md").read_text()


def cells(page, name, number=0):
    """Cells of an estimator in one of a page's tables, by heading."""
    lines = page.splitlines()
    header = [line for line in lines if line.startswith("| estimator")][number]
    line = [line for line in lines if line.startswith(f"| `{name}`")][number]
    return {
        head.strip(): cell.strip()
        for head, cell in zip(header.split("|"), line.split("|"), strict=True)
    }


def test_metrics_are_of_the_estimates_beside_the_true_values(tmp_path):
    rows = [row for seed in range(3) for row in (
        *estimated("fqe", VALUES + 1.0, seed=seed),
        *estimated("model_ff", -VALUES, seed=seed, group="model_ff", low=1.0))]  # fmt: skip
    _, page = report(written(tmp_path, rows))
    lines = {
        line.split("`")[1]: line
        for line in page.split("Mean ±")[0].splitlines()
        if line.startswith("| `")
    }
    assert "| 1.00 [" in lines["fqe"]
    assert "| 0.25 [0.25, 0.25] |" in lines["fqe"]  # 1 over the range of 4
    assert "| -1.00 [" in lines["model_ff"]
    assert cells(page, "fqe")["low support"] == "0%"
    assert cells(page, "model_ff")["low support"] == "100%"
    assert "1.00, 1.00, 1.00" in lines["fqe"]


def test_means_and_deviations_over_resamples_are_shown_for_each_task_and_over_tasks(tmp_path):
    estimates, tasks = [2.0, 1.0, 3.5, 4.0], dict.fromkeys(TASKS)
    for task in TASKS:
        one = metrics.score(VALUES, estimates, seed=zlib.crc32(task.encode()))
        tasks[task] = one._replace(metrics={name: one.metrics[name] for name in ope_report.METRICS})
    rows = [row for task in TASKS for row in estimated("fqe", estimates, task=task)]
    text, page = report(written(tmp_path, rows, [*truth(), *truth(TASKS[1])]))
    for shown, known in ((page, tasks[TASKS[0]]), (text, metrics.aggregate(tasks))):
        found = list(cells(shown, "fqe", 1).values())[2:]
        assert found == [f"{one.mean:.2f} ± {one.std:.2f}" for one in known.metrics.values()]
        assert list(cells(shown, "fqe", 0).values())[2] != found[0]


def test_estimators_of_a_task_share_draws_of_policies_and_tasks_do_not():
    found = ope_report.Estimates(*np.broadcast_to(VALUES[::-1], (4, 2, 4)))
    other = ope_report.Estimates(*np.broadcast_to(VALUES[::-1] + 1.0, (4, 2, 4)))
    draws = lambda task, one: (
        ope_report.score(truth(task), one).over_seeds.metrics["bias"].replicates
    )  # noqa: E731
    first = draws(TASKS[0], found)
    np.testing.assert_allclose(draws(TASKS[0], other), first + 1.0)
    assert abs(np.corrcoef(draws(TASKS[1], found), first)[0, 1]) < 0.1


def test_claims_are_judged_by_the_difference_and_left_open_where_it_may_be_none(tmp_path):
    good, bad = VALUES + 0.01, VALUES[::-1]
    names = {"fqe": good, "best_dice": bad, "doubly_robust": good}
    rows = [
        row
        for task in TASKS
        for name, values in names.items()
        for row in estimated(name, values, task=task)
    ]
    preset = dataclasses.replace(QUICK, seeds=1)
    text, _ = report(written(tmp_path, rows, [*truth(), *truth(TASKS[1])]), preset)
    lines = {line for line in text.splitlines() if line.startswith("- ")}
    dice = next(line for line in lines if "DICE" in line and "absolute error" in line)
    assert "**holds**" in dice
    doubly = next(line for line in lines if "doubly robust" in line and "rank correlation" in line)
    assert "**cannot be told**; ahead by 0.00" in doubly
    assert any("feedforward ones" in line and line.endswith("not run.") for line in lines)


def test_claims_about_estimators_that_have_not_settled_say_so(tmp_path):
    names = {"fqe": [0.0, 0.0, 0.0], "best_dice": [1.0, 1.0, 0.0], "fqe_distributional": [1.0, 0.0, np.nan],
             "model_ar": [np.nan] * 3}  # fmt: skip
    rows = [row for name, each in names.items() for seed, flag in enumerate(each)
            for row in estimated(name, VALUES + seed, seed=seed, unsettled=flag)]  # fmt: skip
    text, page = report(written(tmp_path, rows))
    shown = {name: cells(page, name)["unsettled"] for name in names}
    assert shown == {"fqe": "0%", "best_dice": "67%", "fqe_distributional": "50%", "model_ar": "-"}
    judged = [line for line in text.splitlines() if line.startswith("- ") and "ahead by" in line]
    told = {line for line in judged if "has not settled" in line}
    assert told == {line for line in judged if "DICE" in line}
    assert len(told) == 2
    assert all(
        line.endswith("]; `best_dice` says of 67% of its estimates that it has not settled.")
        for line in told
    )
    assert "the rows do not say whether these have: `model_ar`." in text


def test_what_a_group_took_is_counted_once(tmp_path):
    rows = [row for name in ("fqe", "magic") for row in estimated(name, VALUES)]
    text, _ = report(written(tmp_path, [row._replace(cpu_seconds=60.0) for row in rows]))
    assert "- 4 CPU minutes of fits" in text


def test_estimates_of_other_settings_do_not_count(tmp_path):
    other = dataclasses.replace(QUICK.settings, fqe_updates=5)
    rows = [*estimated("fqe", VALUES), *estimated("vpm", VALUES, group="vpm", settings=other)]
    text, page = report(written(tmp_path, rows))
    assert "`fqe`" in page
    assert "`vpm`" not in page
    assert "vpm" not in text.split("## What")[0]


def test_an_estimator_that_failed_on_some_policies_says_so(tmp_path):
    values = VALUES.copy()
    values[1] = np.nan
    _, page = report(written(tmp_path, estimated("fqe", values)))
    assert next(line for line in page.splitlines() if "`fqe`" in line).rstrip(" |").endswith("1")


def test_the_committed_pages_are_what_the_code_makes_of_the_committed_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(ope_report, "draw", lambda *given: None)
    folder = ope.RESULTS / "quick"
    known, _ = ope_report.read(folder, QUICK)
    written(
        tmp_path, table.read(folder, ope_runs.Row), [row for of in known.values() for row in of]
    )
    text, page = report(tmp_path)
    assert page == (folder / f"{TASKS[0]}.md").read_text()
    assert (tmp_path / f"{TASKS[1]}.md").read_text() == (folder / f"{TASKS[1]}.md").read_text()
    made = lambda whole: whole.split("## Made with")[0]  # noqa: E731, what follows tells of this machine
    assert made(text) == made((folder / ope_report.SUMMARY).read_text())


def test_the_committed_results_are_those_of_the_quick_preset():
    folder = ope.RESULTS / "quick"
    rows = table.read(folder, ope_runs.Row)
    assert {row.settings for row in rows} == {repr(QUICK.settings)}
    for task in TASKS:
        names = control.target_policies(task, QUICK.fewer.get(task, QUICK.policies)).names
        assert tuple(row.name for row in ope_runs.truths(folder) if row.task == task) == names
        assert {row.estimator for row in rows if row.task == task} == set(
            ope_report.known_estimators()
        )
    known, found = ope_report.read(folder, QUICK)
    for task, estimators in found.items():
        for name, one in estimators.items():
            assert one.values.shape == (QUICK.seeds, len(known[task])), (task, name)
