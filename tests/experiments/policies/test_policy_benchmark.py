"""The benchmark of policy learners: settings, runs that go on, verdicts, pages."""

import filecmp
import shutil

import numpy as np
import pytest
from rich.console import Console

from experiments.benchmarks import claims, command, rows
from experiments.benchmarks.policies import claims as policy_claims
from experiments.benchmarks.policies import main, presets, published, report, runs
from experiments.benchmarks.policies.arms import ARMS
from experiments.benchmarks.policies.runs import Piece, Row, Setting
from offline_mbrl import environments, registry
from offline_mbrl.data import memory, normalize
from offline_mbrl.data.catalog.load import Loaded
from offline_mbrl.data.catalog.official import Reference
from offline_mbrl.training.stages import of_algorithm
from offline_mbrl.types import UsageError

DATA = presets.PRESETS["quick"].datasets[0]
TINY = presets.PRESETS["quick"]._replace(
    datasets=(DATA,),
    arms=("bc", "percentile_bc"),
    seeds=2,
    updates=6,
    batch_size=8,
    episodes=1,
    evaluations=3,
    changes={"continuous.layers": (8,)},
)
ORIGIN = command.Origin(revision="abc", command="python x")
SIMULATOR = "gym/Pendulum-v1?max_steps=5"


@pytest.fixture(scope="module")
def load():
    """Uniform actions in a short pendulum, whatever dataset is asked for."""
    rng = np.random.default_rng(0)
    size = 40
    last = np.arange(size) % 6 == 5
    dataset = memory.Dataset.from_arrays(
        {
            "observation": rng.normal(size=(size, 3)).astype(np.float32),
            "action": rng.uniform(-1, 1, (size, 1)).astype(np.float32),
            "reward": rng.normal(size=size).astype(np.float32),
            "is_last": last,
            "is_terminal": np.zeros(size, bool),
        }
    )
    loaded = Loaded(
        name=DATA.name,
        dataset=dataset,
        validation=None,
        spec=environments.spec(SIMULATOR),
        statistics=normalize.statistics(dataset),
        fingerprint="",
        simulator=SIMULATOR,
        reference=Reference(random=-40.0, expert=0.0),
    )
    return lambda name: loaded


def study(folder, load=None, preset=TINY, **options):
    return main.make(main.Options(folder=folder, **options), preset, folder, load)


def row(arm="bc", seed=0, curve=(0.5, 0.5, 0.5), failure="", dataset=DATA.name):
    updates, batch_size, episodes, _ = runs.length(TINY, arm, DATA)
    return Row(
        arm=arm,
        dataset=dataset,
        seed=seed,
        updates=updates,
        batch_size=batch_size,
        episodes=episodes,
        evaluations=len(curve),
        settings="default",
        curve=" ".join(f"{value:.4f}" for value in curve),
        last_ten=float(np.mean(curve[-10:])),
        best=max(curve),
        cpu_seconds=1.0,
        train_seconds=0.5,
        failure=failure,
        revision="abc",
        command="python x",
    )


# --- settings ---


@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_arm_of_a_preset_makes_a_learner_of_the_presets_size(name):
    preset = presets.PRESETS[name]
    for data in preset.datasets:
        for arm in preset.arms:
            config = presets.configure(ARMS[arm], data, preset)
            assert (data.updates or preset.updates) in (None, config.num_updates)
            if data is preset.datasets[0]:
                entry = registry.lookup(ARMS[arm].algorithm)
                of_algorithm(entry, config, presets.CONTINUOUS)


def test_an_arm_has_the_settings_that_were_published_for_the_dataset():
    preset = presets.PRESETS["d4rl"]
    data = {data.published: data for data in preset.datasets}

    def chosen(arm, name):
        arm = ARMS[arm]
        return presets.preset_name(arm, registry.lookup(arm.algorithm), data[name])

    assert chosen("rebrac", "hopper-medium-replay") == "hopper_medium_replay"
    assert chosen("edac", "hopper-medium-expert") == "hopper"
    assert chosen("edac", "walker2d-medium-expert") == "medium_expert"
    assert chosen("sac_n", "walker2d-medium") == "sac_n_walker2d"
    assert chosen("brac_v", "hopper-medium") == "value"
    assert chosen("td3_bc", "hopper-medium") == ""
    config = presets.configure(ARMS["edac"], data["hopper-medium"], preset)
    assert (config.num_critics, config.num_updates) == (50, 3_000_000)


# --- runs ---


def test_a_study_goes_on_where_it_stopped_and_reports(tmp_path, load):
    console = Console(quiet=True)
    first = study(tmp_path, load, TINY._replace(seeds=1))
    command.share_work(first, tmp_path, console)
    half = rows.read(tmp_path, Row)
    assert {(own.arm, own.seed) for own in half} == {("bc", 0), ("percentile_bc", 0)}
    whole = study(tmp_path, load)
    command.share_work(whole, tmp_path, console)
    table = rows.read(tmp_path, Row)
    assert table[:2] == half
    assert {own.seed for own in table[2:]} == {1}
    assert all(map(whole.is_done, whole.pieces))
    for own in table:
        assert len(runs.curve_of(own)) == 3
        assert own.last_ten == pytest.approx(runs.curve_of(own).mean(), abs=1e-3)
        assert own.best == runs.curve_of(own).max() <= 1
    page = whole.report().read_text()
    assert "percentile_bc beats behavior cloning" in page
    assert DATA.name in page
    assert (tmp_path / "profiles.png").exists()


def test_a_run_that_outlasts_its_time_goes_on_bit_for_bit(tmp_path, load):
    piece = Piece(Setting("bc", DATA.name), (0, 1))
    arguments = (piece, DATA, TINY, load, ORIGIN)
    whole = runs.run(*arguments, runs.Place(tmp_path / "whole"))
    late = runs.Place(tmp_path / "parts", deadline=0.0)
    assert runs.run(*arguments, late) == []
    assert runs.run(*arguments, late) == []  # an evaluation later
    assert len([*(late.folder / runs.UNFINISHED).iterdir()]) == 1
    parts = runs.run(*arguments, late._replace(deadline=np.inf))
    assert [own.curve for own in parts] == [own.curve for own in whole]
    assert [*(late.folder / runs.UNFINISHED).iterdir()] == []


def test_a_run_that_fails_counts_as_uniform_actions_and_is_named(tmp_path, load):
    loaded = load("any")
    broken = loaded.dataset._replace(reward=loaded.dataset.reward * np.nan)
    preset = TINY._replace(arms=("td3_bc",), changes={"actor_layers": (8,), "critic_layers": (8,)})
    piece = Piece(Setting("td3_bc", DATA.name), (0,))
    (own,) = runs.run(
        piece,
        DATA,
        preset,
        lambda name: loaded._replace(dataset=broken),
        ORIGIN,
        runs.Place(tmp_path),
    )
    assert own.failure
    np.testing.assert_array_equal(runs.curve_of(own), 0)


def test_data_without_reference_scores_are_refused(tmp_path, load):
    place = runs.Place(tmp_path)
    piece = Piece(Setting("bc", DATA.name), (0,))
    with pytest.raises(UsageError, match="no scores to normalize by"):
        runs.run(piece, DATA, TINY, lambda name: load(name)._replace(reference=None), ORIGIN, place)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"arms": "ppo"}, "unknown arm"), ({"datasets": "mine"}, "unknown dataset")],
)
def test_an_unknown_name_is_refused(tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        study(tmp_path, **options)


# --- verdicts ---


def judged(mine, cloned):
    table = {
        Setting("iql", DATA.name): {own.seed: own for own in mine},
        Setting("bc", DATA.name): {own.seed: own for own in cloned},
    }
    return policy_claims.beats_cloning("iql", DATA.name, table)


def test_a_learner_beats_cloning_where_the_whole_interval_is_above_zero():
    cloned = [row(seed=seed, curve=[0.3 + 0.01 * seed] * 3) for seed in range(3)]
    better = [row("iql", seed, [0.6 + 0.01 * seed] * 3) for seed in range(3)]
    worse = [row("iql", seed, [0.1 + 0.01 * seed] * 3) for seed in range(3)]
    alike = [row("iql", seed, [0.1 + 0.2 * seed] * 3) for seed in range(3)]
    assert judged(better, cloned).verdict == claims.HOLDS
    assert judged(worse, cloned).verdict == claims.FAILS
    assert judged(alike, cloned).verdict == claims.UNSETTLED
    assert judged(better[:1], cloned).verdict == claims.MISSING


def test_a_learner_that_still_improves_is_not_judged_to_fail():
    cloned = [row(seed=seed, curve=[0.6 + 0.01 * seed] * 3) for seed in range(3)]
    rising = [row("iql", seed, [0.0, 0.1 + 0.01 * seed, 0.3]) for seed in range(3)]
    claim = judged(rising, cloned)
    assert claim.measured.high < 0
    assert (claim.verdict, claim.reason) == (claims.UNSETTLED, "iql still rising at the end")
    assert policy_claims.gain(rising) == pytest.approx(0.3 - 0.11)


def test_nobody_is_judged_to_beat_a_cloning_that_still_improves():
    cloned = [row(seed=seed, curve=[0.0, 0.1 + 0.01 * seed, 0.3]) for seed in range(3)]
    better = [row("iql", seed, [0.6 + 0.01 * seed] * 3) for seed in range(3)]
    claim = judged(better, cloned)
    assert claim.measured.low > 0
    assert (claim.verdict, claim.reason) == (claims.UNSETTLED, "bc still rising at the end")
    worse = [row("iql", seed, [0.01 * seed] * 3) for seed in range(3)]
    assert judged(worse, cloned).verdict == claims.FAILS


def test_the_difference_has_welchs_interval():
    scores = np.array([0.5, 0.6, 0.9])
    others = np.array([0.1, 0.2, 0.2, 0.3])
    measured = policy_claims.difference(scores, others)
    variances = [values.var(ddof=1) / len(values) for values in (scores, others)]
    freedom = sum(variances) ** 2 / (variances[0] ** 2 / 2 + variances[1] ** 2 / 3)
    from scipy import stats

    half = stats.t.ppf(0.975, freedom) * sum(variances) ** 0.5
    value = scores.mean() - others.mean()
    np.testing.assert_allclose(measured, (value, value - half, value + half))


# --- pages ---


def test_published_figures_stand_with_the_version_of_their_data():
    assert published.shown("iql", "hopper-medium-replay") == "94.7 (v2)"
    assert published.shown("td3_bc", "walker2d-medium-expert") == "101.1 (v0)"
    assert published.shown("fql", "cube-single-play-singletask-task3") == "96 (mean of 5 tasks)"
    assert published.shown("iql", "") == "-"


def test_the_table_has_the_last_ten_beside_the_best_and_names_failures(tmp_path):
    table = [
        row(seed=0),
        row(seed=1, curve=(0.1, 0.9, 0.2)),
        row("percentile_bc", 0, (0.0, 0.0, 0.0), failure="loss/total at update 3"),
        row("percentile_bc", 1),
    ]
    page = report.write(tmp_path, TINY, table, "quick").read_text()
    assert "0.50 / 0.50, 0.40 / 0.90" in page
    assert "1 failed" in page
    assert f"failed: percentile_bc, {DATA.name}, seed 0: loss/total at update 3" in page


@pytest.mark.parametrize("name", ["quick", "models"])
def test_the_committed_page_is_what_the_code_makes_of_the_committed_rows(name, tmp_path):
    committed = command.RESULTS / "policies" / name
    shutil.copy(committed / rows.TABLE, tmp_path)
    page = report.write(tmp_path, presets.PRESETS[name], rows.read(tmp_path, Row), name)
    made = [line for line in page.read_text().splitlines() if "report made on" not in line]
    lines = (committed / page.name).read_text().splitlines()
    assert made == [line for line in lines if "report made on" not in line]
    assert filecmp.cmp(tmp_path / rows.TABLE, committed / rows.TABLE)
