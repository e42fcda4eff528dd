"""Runs of the studies on BSuite, and the pages made of their table."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from simulator_examples import random_catch

from experiments.benchmarks import command, pages, rows
from experiments.benchmarks.bsuite import grid, main, report, runs
from offline_mbrl import environments
from offline_mbrl.data import memory, normalize
from offline_mbrl.data.catalog.load import Loaded, lookup
from offline_mbrl.data.store import write
from offline_mbrl.evaluation import aggregate, episodes
from offline_mbrl.evaluation.episodes import Evaluation, Evaluator
from offline_mbrl.types import Policy, UsageError

QUICK = grid.PRESETS["quick"]
TINY = QUICK._replace(noises=(0.0,), seeds=2, updates=20, batch_size=8, episodes=10)
SIZE = runs.size_of(TINY)
ORIGIN = command.Origin(revision="abc", command="python x")


def row(arm="bc", seed=0, greedy=0.5, failure="", **setting):
    """A run with these scores."""
    scores = runs.Scores(greedy, greedy, 0.0, 0.0)
    return runs.Row(
        study="coverage",
        **grid.Setting(arm, **setting)._asdict(),
        seed=seed,
        **SIZE._asdict(),
        **scores._asdict(),
        cpu_seconds=1.0,
        wall_seconds=1.0,
        failure=failure,
        **ORIGIN._asdict(),
    )


def study(folder, load=None, preset=TINY, **options):
    options = main.Options(studies="noise", folder=folder, **options)
    return main.make(options, preset, folder, load)


@pytest.fixture(scope="module")
def load():
    """Thirty episodes of a uniform policy in catch, whatever dataset is asked for."""
    entry = lookup("local/catch")
    rng = np.random.default_rng(0)
    environment = environments.make(entry.simulator, seed=0)
    records = []
    for _ in range(30):
        timestep = environment.reset()
        while not timestep.last():
            action = int(rng.integers(3))
            following = environment.step(action)
            records.append((timestep.observation, action, following.reward, False, False))
            timestep = following
        records.append((timestep.observation, 0, 0.0, True, True))
    observation, action, reward, last, terminal = map(np.array, zip(*records, strict=True))
    dataset = memory.Dataset.from_arrays(
        {
            "observation": observation.astype(np.float32),
            "action": action.astype(np.int32),
            "reward": reward.astype(np.float32),
            "is_last": last,
            "is_terminal": terminal,
        }
    )
    loaded = Loaded(
        entry.name,
        dataset,
        None,
        environments.spec(entry.simulator),
        normalize.statistics(dataset),
        "",
        entry.simulator,
        entry.reference,
    )
    return lambda name: loaded


# --- runs ---


def test_a_tiny_study_runs_stops_goes_on_and_reports(tmp_path, load):
    silent = Console(quiet=True)
    command.share_work(study(tmp_path, load, arms="bc"), tmp_path, silent)
    kept = rows.read(tmp_path, runs.Row)
    assert [(own.arm, own.seed) for own in kept] == [("bc", 0), ("bc", 1)]
    whole = study(tmp_path, load, arms="bc,rosmo")
    command.share_work(whole, tmp_path, silent)
    table = rows.read(tmp_path, runs.Row)
    assert table[:2] == kept  # finished runs did not run again
    assert [(own.arm, own.seed) for own in table[2:]] == [("rosmo", 0), ("rosmo", 1)]
    for own in table:
        assert np.isfinite([own.greedy, own.sampled]).all()
        assert own.cpu_seconds > 0
        assert not own.failure
    whole.report()
    page = (tmp_path / "noise.md").read_text()
    assert "| behavior cloning | 0 |" in page
    study(tmp_path).report()
    assert (tmp_path / "noise.md").read_text() == page  # from the table alone


def test_a_seed_trained_alone_is_the_seed_trained_with_others(load):
    prepared = runs.prepare(grid.Setting("bc"), SIZE, load)
    together = runs.run(prepared, "coverage", [0, 1], SIZE, ORIGIN)
    alone = runs.run(prepared, "coverage", [1], SIZE, ORIGIN)
    scores = [(own.seed, own.greedy, own.sampled) for own in (together[1], alone[0])]
    assert scores[0] == scores[1]


def score(data, evaluation, failure=""):
    """The scores when every evaluation ends like this one."""
    evaluator = Evaluator(lambda params, **settings: evaluation, None, None)
    return runs.score(data, evaluator, (), 0, SIZE.episodes, failure)


def test_an_evaluation_that_does_not_finish_is_no_result(load):
    broken = Evaluation(np.array([np.nan]), np.array([0]), False, "the simulator hung")
    with pytest.raises(UsageError, match="the simulator hung"):
        score(load(""), broken)


def test_scores_are_normalized_and_a_run_that_failed_scores_as_a_random_policy(load):
    data = load("")
    random, expert = data.reference
    best = Evaluation(np.full(SIZE.episodes, expert), np.ones(SIZE.episodes), True, "")
    assert score(data, best) == runs.Scores(1.0, 1.0, round(expert, 4), round(expert, 4))
    failed = score(data, best, failure="loss became non-finite")
    assert failed == runs.Scores(0.0, 0.0, round(random, 4), round(random, 4))


def test_runs_of_another_length_do_not_count():
    assert runs.finished([row()], SIZE) == {grid.Setting("bc"): {0: row()}}
    assert runs.finished([row()], SIZE._replace(updates=21)) == {}


# --- pages ---


def test_a_report_says_what_the_numbers_say(tmp_path):
    levels = {"muzero": {0.0: 0.9, 0.5: 0.1}, "rosmo": {0.0: 0.9, 0.5: 0.85}}
    table = [
        row(arm, seed, level + 0.01 * seed, noise=noise, simulations=4 * (arm == "muzero"))
        for arm, noises in levels.items()
        for noise, level in noises.items()
        for seed in range(2)
    ]
    rows.append(tmp_path, runs.Row, table)
    summary = study(tmp_path, preset=TINY._replace(noises=QUICK.noises)).report().read_text()
    page = (tmp_path / "noise.md").read_text()
    holds = next(line for line in page.splitlines() if line.startswith("- Holds here"))
    tree = "tree, visits (MuZero), N = 4"
    assert f"from noise 0 to 0.5 {tree} loses more than one-step exact + behavior term" in holds
    assert "(+0.75, +0.7" in holds
    cells = r" \| 0.5 \| 0.1\d \| 0.10 to 0.11 \| 0.10, 0.11 \|"
    assert re.search(re.escape(f"| {tree}") + cells, page)
    assert (tmp_path / "noise.png").read_bytes().startswith(b"\x89PNG")
    verdict = "holds in part (of 6 claims: 3 holds, 3 not measured)"
    assert f"| 5. one-step lookahead holds up under noise | {verdict}" in summary
    assert "`python x`" in summary
    assert "code: abc" in summary


def test_an_empty_table_reports_that_nothing_was_measured(tmp_path):
    assert "not measured" in study(tmp_path).report().read_text()
    assert not (tmp_path / "noise.png").exists()


def test_a_run_in_one_environment_of_several_waits_for_the_others():
    preset = grid.PRESETS["full"]._replace(seeds=2)
    table = [
        row(seed=seed, environment=environment)
        for seed in range(2)
        for environment in preset.environments[: 2 + seed]
    ]
    scores = report.complete_scores(runs.finished(table, SIZE), preset, "greedy")
    assert scores[grid.Setting("bc")].shape == (1, 3)  # seed 1 alone has all three


def test_pages_say_what_share_of_the_run_trains(tmp_path):
    """100 % of a dataset's episodes are not 100 % of the run: the store holds some out."""
    num_episodes = lookup("local/catch").variant.episodes
    trained = [episode for episode in range(num_episodes) if not write.held_out(episode)]
    share = 100 * len(trained) / num_episodes
    rows.append(tmp_path, runs.Row, [row(seed=seed) for seed in range(2)])
    whole = main.make(main.Options(folder=tmp_path), TINY, tmp_path, None)
    text = " ".join(whole.report().read_text().split())
    assert f"{share:g} % of the run" in text
    assert f"{len(trained):,}, 190, 19" in text
    header = (tmp_path / "coverage.md").read_text().split("\n")[2]
    assert f"1 episode in {write.VALIDATION_EVERY} held out" in header


def test_the_summary_lists_the_scores_that_greedy_acting_can_have_in_catch():
    listed = report.starts()
    policy = Policy(sample=random_catch, mode=lambda side, _: jnp.where(side > 0, 2, 0))
    reference = lookup("local/catch").reference
    for side in (0, 1):  # each catches the ball of one start in five
        settings = {"seed": 0, "num_episodes": 5, "greedy": True}
        played = episodes.evaluate(policy, jnp.asarray(side), "bsuite/catch", **settings)
        score = aggregate.normalized_score(played.returns.mean(), *reference)
        assert listed["values"].split(", ")[1] == f"{score:.2f}"
    assert (listed["starts"], listed["values"].split(" or ")[1]) == (5, "1.00")


def test_failures_are_named_in_the_summary(tmp_path):
    failure = "loss/total became non-finite at update 3"
    rows.append(tmp_path, runs.Row, [row(failure=failure)])
    assert f"failed: bc, catch, seed 0: {failure}" in study(tmp_path).report().read_text()


def test_the_committed_pages_are_what_the_code_makes_of_the_committed_rows(tmp_path):
    folder = command.RESULTS / "bsuite" / "quick"
    rows.append(tmp_path, runs.Row, rows.read(folder, runs.Row))
    main.make(main.Options(folder=tmp_path), QUICK, tmp_path, None).report()
    for study_name in grid.studies(QUICK):
        name = f"{study_name}.md"
        assert (tmp_path / name).read_text() == (folder / name).read_text()

    def of_the_rows(path):  # the last line tells of this machine
        return (path / pages.SUMMARY).read_text().split("- report made on")[0]

    assert of_the_rows(tmp_path) == of_the_rows(folder)
    pieces = grid.pieces(QUICK, grid.studies(QUICK))
    finished = runs.finished(rows.read(folder, runs.Row), runs.size_of(QUICK))
    assert all(set(piece.seeds) <= set(finished[piece.setting]) for piece in pieces)
