"""Pages of the likelihood study, made of the table of runs alone."""

import re

from likelihood_rows import QUICK, TASK, row, rows_of_sweep, rows_of_time

from experiments.benchmarks import command, pages, rows
from experiments.benchmarks.likelihood import main, runs, settings


def report(folder, table, **options):
    """Writes the pages; the summary."""
    rows.append(folder, runs.Row, table)
    study = main.make(main.Options(folder=folder, **options), QUICK, folder, None)
    return study.report().read_text()


def test_a_report_says_what_the_numbers_say(tmp_path):
    levels = {"feedforward": -2.0, "masked": -2.5, "shared": -1.9}
    summary = report(tmp_path, rows_of_time(levels))
    page = (tmp_path / "time.md").read_text()
    cells = r"\| cheetah_run \| masked autoregressive, 3 x 512 \| 0.50 \| 0.4\d to 0.5\d \|"
    assert re.search(cells + r".*\| 1.46 \|", page)
    lines = page.splitlines()
    holds = next(line for line in lines if line.startswith("- Holds here"))
    fails = next(line for line in lines if line.startswith("- Does not hold here"))
    assert "cheetah_run: masked autoregressive, 3 x 512" in holds
    assert "walker_walk: shared autoregressive, 3 x 256" in fails
    assert (tmp_path / "time.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "grid.png").exists()
    size = next(line for line in summary.splitlines() if "at least 0.3" in line)
    assert "| holds (2 of 2 cases) |" in size
    assert "`python x`" in summary
    assert "code: abc" in summary


def test_a_sweep_is_shown_beside_the_sources_figures(tmp_path):
    report(tmp_path, rows_of_sweep([TASK]), studies="grid")
    page = (tmp_path / "grid.md").read_text()
    assert f"| {TASK} | masked autoregressive | -3.70 | -3.50 | -7.21 | -7.14 |" in page
    assert (tmp_path / "grid.png").exists()


def test_what_the_source_does_not_have_is_compared_with_none_of_its_figures(tmp_path):
    preset = settings.only(QUICK, ["coupled"])
    families = ["feedforward", "coupled"]
    levels = dict(zip(families, (-2.0, -2.5), strict=True))
    table = [
        row(settings.equal_time(preset, TASK)[family], seed, level + 0.01 * seed)
        for family, level in levels.items()
        for seed in range(3)
    ]
    rows.append(tmp_path, runs.Row, [*table, *rows_of_sweep([TASK], families)])
    main.make(main.Options(folder=tmp_path), preset, tmp_path, None).report()
    gap = r"\| cartpole_swingup \| coupled, 3 x 256 \| 0.50 \| 0.4\d to 0.5\d \|.*\| - \|"
    assert re.search(gap, (tmp_path / "time.md").read_text())
    best = f"| {TASK} | coupled | -3.70 | -3.50 | - | - |"
    assert best in (tmp_path / "grid.md").read_text()
    assert (tmp_path / "grid.png").exists()


def test_failures_are_named_and_count_nowhere(tmp_path):
    setting = settings.equal_time(QUICK, TASK)["masked"]
    failure = "loss/total became non-finite at update 3"
    failed = row(setting, 0, float("nan"), failure=failure)
    summary = report(tmp_path, [failed, row(setting, 1, -2.0)])
    assert failure in summary
    assert "| -2.00 | one run | -2.00 |" in (tmp_path / "time.md").read_text()


def test_the_committed_pages_are_what_the_code_makes_of_the_committed_rows(tmp_path):
    folder = command.RESULTS / "dynamics_nll" / "quick"
    table = rows.read(folder, runs.Row)
    summary = report(tmp_path, table)
    for study in settings.TITLES:
        name = f"{study}.md"
        assert (tmp_path / name).read_text() == (folder / name).read_text()
    committed = (folder / pages.SUMMARY).read_text()
    # The last line tells of this machine.
    assert summary.split("- report made on")[0] == committed.split("- report made on")[0]
    finished = {(rows.setting_of(row, settings.Setting), row.seed) for row in table}
    pieces = settings.pieces(QUICK, settings.TITLES)
    assert {(piece.setting, piece.seed) for piece in pieces} == finished
