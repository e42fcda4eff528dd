"""Rows of the likelihood study with figures that a test chooses."""

from experiments.benchmarks.likelihood import runs, settings

QUICK = settings.PRESETS["quick"]
TASK = "cartpole_swingup"


def row(setting, seed, nll, study="time", **fields):
    """A run whose likelihoods are all `nll`."""
    values = dict.fromkeys(runs.Row._fields, 0) | setting._asdict()
    values |= dict.fromkeys(("selection_z", "nll_z", "median_z", "nll_unit", "nll_raw"), nll)
    values |= {"failure": "", "revision": "abc", "command": "python x"}
    values["parameters"] = settings.num_parameters(settings.architecture(setting))
    return runs.Row(**values | {"study": study, "seed": seed} | fields)


def rows_of_time(levels, tasks=QUICK.tasks):
    """Rows of study `time`: family -> level of NLL; seeds differ by 0.01."""
    return [
        row(settings.equal_time(QUICK, task)[family], seed, level + 0.01 * seed)
        for task in tasks
        for family, level in levels.items()
        for seed in range(3)
    ]


def rows_of_sweep(tasks, families=("feedforward", "masked")):
    """Rows of study `grid`: configurations ever better by 0.1."""
    return [
        row(setting, 0, -3.0 - 0.1 * number, "grid")
        for task in tasks
        for family in families
        for number, setting in enumerate(settings.sweep(QUICK, task, family))
    ]
