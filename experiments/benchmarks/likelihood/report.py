"""Tables, figures and paragraphs of the likelihood study, from the table of runs alone."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from experiments.benchmarks import claims, pages, rows
from experiments.benchmarks.claims import Claim, Interval
from experiments.benchmarks.likelihood import claims as likelihood_claims
from experiments.benchmarks.likelihood import figures, runs, settings
from experiments.benchmarks.likelihood.claims import BEST, SOURCES, Runs, values
from experiments.benchmarks.likelihood.figures import Line
from experiments.benchmarks.likelihood.settings import (
    AUTOREGRESSIVE,
    FAMILIES,
    TASKS,
    TITLES,
    Preset,
    Setting,
)

HEADER = [
    "parameters",
    "updates",
    "CPU s",
    "NLL",
    "95 %",
    "seeds",
    "median",
    "p99",
    "reward",
    "NLL unit",
    "NLL raw",
    "floor",
    "inside 50 / 90 %",
]
MEANS = ("median_z", "p99_z", "reward_z", "nll_unit", "nll_raw", "floor_z")


def write(
    folder: Path,
    preset: Preset,
    studies: Iterable[str],
    table: Sequence[runs.Row],
    *,
    preset_name: str,
) -> Path:
    """Writes `<study>.md`, `<study>.png` and the summary, whose path is returned.

    Args:
      folder: of the results.
      preset: how much was to run.
      studies: their names.
      table: all rows.
      preset_name: for the summary.
    """
    finished = runs.finished(table)
    judged = likelihood_claims.judge(finished, preset)
    makers = {"time": time_page, "parameters": parameters_page, "grid": grid_page}
    for study in studies:
        figure = folder / f"{study}.png"
        text = [f"# {TITLES[study]}", *makers[study](figure, finished, preset)]
        if figure.exists():
            text.append(f"![{TITLES[study]}]({figure.name})")
        for source, words in SOURCES.items():
            own = [claim for claim in judged if claim.source == source and claim.study == study]
            if own:
                heading = f"**{words[0].upper()}{words[1:]}:**"
                text.append("\n".join([heading, "", *claims.sentences(own)]))
        pages.write(folder / f"{study}.md", "\n\n".join(text))
    pages.write(folder / pages.SUMMARY, summary(preset, preset_name, finished, judged))
    return folder / pages.SUMMARY


# --- cells ---


def shown(measured: Interval | None) -> list[str]:
    """Cells: the mean and its interval."""
    if measured is None:
        return ["-", "-"]
    value, low, high = measured
    return [f"{value:.2f}", f"{low:.2f} to {high:.2f}" if low == low else "one run"]


def figures_of(finished: Runs, setting: Setting) -> list[str]:
    """Cells of a setting: NLL with its interval and seeds, means over seeds of everything else."""
    nll = values(finished, setting)

    def mean(figure: str) -> float:
        return values(finished, setting, figure).mean()

    return [
        f"{mean('parameters') / 1e3:.0f}k",
        f"{mean('updates'):.0f}",
        f"{mean('train_seconds'):.0f}",
        *shown(likelihood_claims.interval(nll)),
        ", ".join(f"{value:.2f}" for value in nll),
        *(f"{mean(name):.2f}" for name in MEANS),
        f"{mean('coverage_50'):.0%} / {mean('coverage_90'):.0%}",
    ]


def name(setting: Setting) -> str:
    """Family and size."""
    return f"{FAMILIES[setting.family].label}, {setting.depth} x {setting.hidden}"


def line(finished: Runs, family: str, x: Sequence[float], models: Sequence[Setting]) -> Line:
    """Models of one family, all of which have runs, as a line of a figure."""
    samples = [values(finished, setting) for setting in models]
    points = [likelihood_claims.interval(sample) for sample in samples]
    return Line(family=family, x=x, points=[point for point in points if point is not None])


# --- study: equal training time ---


def time_page(figure: Path, finished: Runs, preset: Preset) -> list[str]:
    """Every model's figures, then the gaps."""
    lines = []
    gaps = []
    panels = {}
    for task in preset.tasks:
        models = {
            family: setting
            for family, setting in settings.equal_time(preset, task).items()
            if len(values(finished, setting))
        }
        lines += [[task, name(own), *figures_of(finished, own)] for own in models.values()]
        gaps += gap_lines(finished, task, models)
        if models:
            panels[task] = [
                line(finished, family, [position], [setting])
                for position, (family, setting) in enumerate(models.items())
            ]
    figures.draw(figure, TITLES["time"], panels, ticks=list(preset.widths))
    gap_header = [
        "task",
        "against feedforward",
        "gap of means",
        "95 %",
        "gap of medians",
        "95 %",
        "source, top-1",
    ]
    return [
        pages.markdown(["task", "model", *HEADER], lines),
        "Gaps, nats per entry, positive where feedforward is worse:",
        pages.markdown(gap_header, gaps),
    ]


def gap_lines(finished: Runs, task: str, models: dict[str, Setting]) -> list[list[str]]:
    """A line for each model against feedforward; none where that was not run.

    Args:
      finished: all runs.
      task: of the models.
      models: by family, those with runs.
    """
    if "feedforward" not in models:
        return []
    lines = []
    for family, setting in models.items():
        if family != "feedforward":
            cells = []
            for figure in ("nll_z", "median_z"):
                base = values(finished, models["feedforward"], figure)
                cells += shown(likelihood_claims.gap(base, values(finished, setting, figure)))
            lines.append([task, name(setting), *cells, source_gap(task, family)])
    return lines


def source_gap(task: str, family: str) -> str:
    """The source's gap of top-1; "-" of what it does not have."""
    if family not in AUTOREGRESSIVE:
        return "-"
    feedforward, autoregressive = TASKS[task].top_1
    return f"{feedforward - autoregressive:.2f}"


# --- study: parameters ---


def parameters_page(figure: Path, finished: Runs, preset: Preset) -> list[str]:
    """All sizes; those of study `time` belong to the curves too."""
    lines = []
    panels: dict[str, list[Line]] = {}
    for task in preset.tasks:
        for family, models in all_sizes(finished, preset, task).items():
            lines += [[task, name(own), *figures_of(finished, own)] for own in models]
            if models:
                sizes = [float(values(finished, own, "parameters")[0]) for own in models]
                panels.setdefault(task, []).append(line(finished, family, sizes, models))
    figures.draw(figure, TITLES["parameters"], panels, horizontal="parameters")
    return [pages.markdown(["task", "model", *HEADER], lines)]


def all_sizes(finished: Runs, preset: Preset, task: str) -> dict[str, list[Setting]]:
    """Family -> models with runs, the smallest first."""
    models = {family: {own} for family, own in settings.equal_time(preset, task).items()}
    for family, curve in settings.curves(preset, task).items():
        models.setdefault(family, set()).update(curve.values())
    return {
        family: sorted(
            (own for own in group if len(values(finished, own))), key=lambda own: own.hidden
        )
        for family, group in models.items()
    }


# --- study: the best of a sweep ---


def grid_page(figure: Path, finished: Runs, preset: Preset) -> list[str]:
    """Top-1 and top-5 beside the source's, then every configuration."""
    lines = []
    every = []
    panels: dict[str, list[Line]] = {}
    for task in preset.tasks:
        for family in preset.grid_families:
            ranked = likelihood_claims.ranked(finished, preset, task, family)
            every += [configuration(row) for row in ranked]
            if not ranked:
                continue
            best = ranked[0]
            source = source_best(task, family)
            ours = [float(likelihood_claims.top(ranked, count).mean()) for count in (1, BEST)]
            cells = [f"{value:.2f}" if value == value else "-" for value in (*ours, *source)]
            size = f"{best.depth} x {best.hidden}, {best.learning_rate:g}"
            lines.append([task, FAMILIES[family].label, *cells, size])
            points = [Interval(value) for value in (*ours, *source)]
            panels.setdefault(task, []).append(Line(family, range(4), points))
    ticks = ["top-1", "top-5", "source\ntop-1", "source\ntop-5"]
    figures.draw(figure, TITLES["grid"], panels, ticks=ticks)
    header = [
        "task",
        "model",
        "top-1",
        "top-5",
        "source: top-1",
        "source: top-5",
        "best: layers, learning rate",
    ]
    every_header = [
        "task",
        "model",
        "learning rate",
        "decay",
        "parameters",
        "updates",
        "CPU s",
        "median, selecting",
        "NLL",
        "median",
    ]
    return [
        pages.markdown(header, lines),
        "Every configuration, the best of each model first:",
        pages.markdown(every_header, every),
    ]


def source_best(task: str, family: str) -> list[float]:
    """The source's top-1 and top-5; NaN of what it does not have."""
    pairs = (TASKS[task].top_1, TASKS[task].top_5)
    if family == "feedforward":
        return [feedforward for feedforward, _ in pairs]
    if family in AUTOREGRESSIVE:
        return [autoregressive for _, autoregressive in pairs]
    return [float("nan")] * len(pairs)


def configuration(row: runs.Row) -> list[str]:
    """Cells of one run of a sweep."""
    return [
        row.task,
        f"{FAMILIES[row.family].label}, {row.depth} x {row.hidden}",
        f"{row.learning_rate:g}",
        f"{row.weight_decay:g}",
        f"{row.parameters / 1e3:.0f}k",
        f"{row.updates}",
        f"{row.train_seconds:.0f}",
        f"{row.selection_z:.2f}",
        f"{row.nll_z:.2f}",
        f"{row.median_z:.2f}",
    ]


# --- the summary ---


def summary(preset: Preset, preset_name: str, finished: Runs, judged: Sequence[Claim]) -> str:
    """The page that says what was run, how, and what became of each claim.

    Args:
      preset: how much was to run.
      preset_name: its name.
      finished: all runs.
      judged: all claims.
    """
    table = [row for seeds in finished.values() for row in seeds.values()]
    verdicts = []
    for source, words in SOURCES.items():
        own = [claim for claim in judged if claim.source == source]
        verdicts.append([words, claims.summary(own, "cases")])
    links = ", ".join(f"[{title}]({study}.md)" for study, title in TITLES.items())
    method = pages.method(
        __file__,
        lowest_log_std=runs.LOWEST_LOG_STD,
        selected=runs.SELECTED,
        batch_size=settings.PRESETS["quick"].batch_size,
    )
    short = "".join(f", {share:g} of that on {task}" for task, share in preset.short_tasks.items())
    minutes = sum(row.cpu_seconds for row in table) / 60
    lines = [
        *(
            f"- failed: {name(rows.setting_of(row, Setting))}, {row.task}, seed {row.seed}: "
            f"{row.failure}"
            for row in table
            if row.failure
        ),
        f"- preset: {preset_name}; {', '.join(preset.tasks)}; {preset.seeds} seeds; "
        f"{preset.seconds:g} s of updates a run, {preset.grid_seconds:g} s in the sweep{short}",
        f"- runs: {len(table)}, {minutes:.0f} CPU minutes",
        *pages.origins(table),
    ]
    return "\n\n".join(
        [
            "# Likelihood of dynamics models",
            pages.markdown(["claim", "here"], verdicts, rule="---"),
            f"Studies: {links}",
            method,
            "\n".join(lines),
        ]
    )
