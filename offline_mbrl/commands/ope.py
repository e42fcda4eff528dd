"""`offline-mbrl ope RUN ...`: which of these policies to deploy, by logged data alone."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro
from rich.console import Console

from offline_mbrl import export
from offline_mbrl.commands import arguments, datasets, evaluate, ope_page
from offline_mbrl.data.catalog import bounded
from offline_mbrl.data.catalog import load as catalog
from offline_mbrl.ope import support
from offline_mbrl.runs import display, recording
from offline_mbrl.selection import calibration, estimators, judging, wording
from offline_mbrl.selection import candidates as candidate_policies
from offline_mbrl.selection.candidates import Candidates
from offline_mbrl.selection.records import EFFORTS, Data, Settings
from offline_mbrl.training import compilation
from offline_mbrl.types import Actor, EnvironmentSpec, Policy, UsageError

PAGE = "ope"  # folder of the results in the first run's
QUICK = EFFORTS["quick"]
WIDTH = 100  # of the tables, in columns


@dataclass(frozen=True)
class Options:
    """Estimates what policies are worth from logged data alone, and says which to deploy."""

    # run folders, or folders written by `offline-mbrl export`: all seeds of each
    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    dataset: str = ""  # the data to judge by; default: the first run's
    # Least and largest action in the simulator's units, or "measured"; default: what the data state
    action_bounds: tuple[str, ...] = ()
    # groups: model_ff, model_ar, model_coupled, fqe, fqe_distributional, importance, ...
    estimators: str = ",".join(judging.DEFAULT_ESTIMATORS)
    # how much is fitted: a first answer, or one with larger fits and more of them; --seeds and
    # --settings.* change either
    effort: Literal["quick", "thorough"] = "quick"
    # fits of each estimator; what they differ by joins the interval, the wider the fewer they are
    seeds: int = QUICK.seeds
    gamma: float | None = None  # discount factor; default: the dataset's
    horizon: int | None = None  # steps of an episode; default: the dataset's
    # folder of page, pictures, all estimates and judgement.json; default: ope/ in the first run's
    out: Path | None = None
    all: bool = False  # also print every estimate
    # also measure the estimators on clones of parts of the log, whose returns are known; takes as
    # long again
    calibrate: bool = False
    json: bool = False  # print the judgement as JSON and nothing else
    settings: Settings = QUICK.settings
    limits: Annotated[support.Limits, tyro.conf.arg(name="limits")] = field(
        default_factory=support.Limits
    )


def main(argv: list[str]) -> int:
    """Runs the command; see `cli`."""
    options = arguments.parse(Options, argv, prog="offline-mbrl ope", default=_defaults(argv))
    names = _estimators(options.estimators)
    if not options.runs:
        raise UsageError("name at least one run folder: offline-mbrl ope RUN ...")
    if options.seeds < 1:
        raise UsageError(f"--seeds must be at least 1, got {options.seeds}")
    exports = [(path, export.load(evaluate.policy_folder(path))) for path in options.runs]
    policies = candidates(exports)
    groups = {name: estimators.lookup(name) for name in names}
    for name, (policy, _) in policies.items():
        candidate_policies.require_kind(name, policy, groups)
    compilation.enable()
    console = Console(quiet=True) if options.json else display.console()
    data, dataset = _data(options, exports, console)
    fitted = {"estimators": names, "seeds": options.seeds, "settings": options.settings}
    with display.bar(console, "estimates", len(names) * options.seeds) as show:
        judgement = judging.judge(
            policies, data, key=jax.random.key(0), progress=_with_time_left(show), **fitted
        )
    calibrated = None
    if options.calibrate:
        with display.bar(console, "calibration", len(names) * options.seeds) as show:
            calibrated = calibration.calibrate(
                data, key=jax.random.key(1), progress=_with_time_left(show), **fitted
            )
    place = options.out or options.runs[0] / PAGE
    ope_page.write(place, judgement, dataset, data, calibrated)
    if options.json:
        print(json.dumps(ope_page.described(judgement, calibrated), indent=2))
        return 0
    console.print(ope_page.table(judgement, dataset, data), width=WIDTH)
    if options.all:
        console.print(ope_page.all_estimates(judgement), width=WIDTH)
    if calibrated is not None:
        console.print(ope_page.calibration_table(calibrated), width=WIDTH)
    console.print(wording.advice(judgement))
    console.print(f"written: {place / 'README.md'}")
    return 0


def _defaults(argv: Sequence[str]) -> Options:
    """The options of the effort that is asked for, from which flags then differ."""
    words = [word for argument in argv for word in argument.split("=", 1)]
    asked = words[words.index("--effort") + 1 :][:1] if "--effort" in words else []
    effort = EFFORTS.get(asked[0]) if asked else None
    if effort is None:
        return Options()  # the parser refuses an unknown name
    return Options(seeds=effort.seeds, settings=effort.settings)


def _with_time_left(show: display.Show) -> Callable[[int, int], None]:
    """Shows fits that are done, and how long the others take if they take as long."""
    began = time.monotonic()

    def progress(done: int, total: int) -> None:
        seconds = (time.monotonic() - began) / done * (total - done)
        show(done, f"fits, about {seconds:.0f} s left")

    return progress


def _data(
    options: Options, exports: Sequence[tuple[Path, export.Exported]], console: Console
) -> tuple[Data, str]:
    """The data to judge by, and their name."""
    dataset = options.dataset or str(exports[0][1].description.get("dataset", ""))
    if not dataset:
        raise UsageError(
            f"{options.runs[0]} does not say what it was trained on: name the data by --dataset"
        )
    loaded = datasets.load(bounded.joined(dataset, options.action_bounds), console)
    for _, exported in exports:
        _check_spec(exported.spec, loaded)
    if options.gamma is None and loaded.spec.gamma is None:
        raise UsageError(
            f"{loaded.name} names no discount factor: give one, for example --gamma 0.99"
        )
    data = estimators.prepare(
        loaded.dataset,
        loaded.spec,
        gamma=options.gamma,
        horizon=options.horizon,
        limits=options.limits,
    )
    return data, loaded.name


def _estimators(names: str) -> list[str]:
    listed = [name for name in names.split(",") if name]
    if not listed:
        raise UsageError(f"--estimators names none: choose from {', '.join(estimators.GROUPS)}")
    for name in listed:
        estimators.lookup(name)
    return listed


def candidates(exports: Sequence[tuple[Path, export.Exported]]) -> Candidates:
    """All seeds of all folders by name: the shortest end of its path that no other folder has.

    Policies of one algorithm and configuration share their functions, and so are evaluated in one
    compiled call.
    """
    names = _folder_names([path for path, _ in exports])
    functions: dict[str, Policy | Actor] = {}
    policies = {}
    for (_, exported), name in zip(exports, names, strict=True):
        description = exported.description
        kind = repr((description["algorithm"], description["config"]))
        policy = functions.setdefault(kind, exported.policy)
        for row, seed in enumerate(description["seeds"]):
            params = jax.tree.map(lambda leaf, row=row: leaf[row], exported.params)
            policies[f"{name} seed {seed}"] = (policy, params)
    return policies


def _folder_names(paths: Sequence[Path]) -> list[str]:
    """A name for each folder: the fewest last parts of its path that tell all of them apart.

    The folder `policy` inside a run goes by the run's name.

    Raises:
      UsageError: a folder is named twice.
    """
    parts = []
    for path in paths:
        whole = path.resolve().parts
        parts.append(whole[:-1] if whole[-1] == recording.POLICY and len(whole) > 2 else whole)
    if len(set(parts)) < len(parts):
        twice = next(path for path, own in zip(paths, parts, strict=True) if parts.count(own) > 1)
        raise UsageError(f"{twice} is named twice: name each run once")
    count = 1
    while len({own[-count:] for own in parts}) < len(parts):
        count += 1
    return [str(Path(*own[-count:])) for own in parts]


def _check_spec(spec: EnvironmentSpec, loaded: catalog.Loaded) -> None:
    if (spec.observation, spec.action) != (loaded.spec.observation, loaded.spec.action):
        raise UsageError(
            f"the policies act on {spec.observation} with {spec.action}, but {loaded.name} has "
            f"{loaded.spec.observation} and {loaded.spec.action}"
        )
