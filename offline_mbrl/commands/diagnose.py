"""`offline-mbrl diagnose RUN`: when and where the model of a run can be trusted."""

import dataclasses
import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from offline_mbrl import export
from offline_mbrl.collect import online, visits
from offline_mbrl.commands import arguments, datasets
from offline_mbrl.data import splits
from offline_mbrl.data.catalog import bounded
from offline_mbrl.data.catalog.load import Loaded
from offline_mbrl.data.memory import Dataset
from offline_mbrl.models import explicit, kinds
from offline_mbrl.runs import display, fitted_models, folder, playing, recording
from offline_mbrl.runs.fitted_models import FittedModel
from offline_mbrl.selection import diagnose
from offline_mbrl.selection.diagnose import Correlation, Diagnosis
from offline_mbrl.training import compilation
from offline_mbrl.types import EnvironmentSpec, Policy, UsageError

RESULT = "diagnose.json"
GAMMA = 0.99  # where neither the command nor the dataset says another
PERTURBATION = 0.3  # deviation of the noise on a policy's actions
SHOWN = (1, 10, 100)  # horizons in the table


@dataclass(frozen=True)
class Options:
    """Says when and where an explicit model can be trusted."""

    # run folder with a stage `model`; or a kind of model, which is fitted to the dataset first:
    # feedforward, autoregressive, autoregressive_shared, coupled, gaussian_ensemble
    model: tyro.conf.Positional[str]
    dataset: str = ""  # the data to judge by; default: the run's, its held-out episodes
    # Least and largest action in the simulator's units, or "measured"; default: what the data state
    action_bounds: tuple[str, ...] = ()
    out: Path | None = None  # folder of diagnose.json and pictures; default: RUN/diagnosis
    seed: int | None = None  # of the run; default: its first
    gamma: float | None = None  # discount factor of returns; default: the dataset's, or 0.99
    policy: Path | None = None  # run or export whose policy is played; default: the run's own
    simulator: str | None = None  # default: the dataset's
    simulator_steps: int = 2_000  # of each behavior in the simulator; 0: none is played
    fit_updates: int = 10_000  # of a kind of model that is fitted here
    settings: diagnose.Settings = field(default_factory=diagnose.Settings)


class Subject(NamedTuple):
    """What is judged, and by which logged episodes."""

    fitted: FittedModel
    spec: EnvironmentSpec
    training: Dataset
    held_out: Dataset
    simulator: str | None
    gamma: float
    policy: Path | None
    notes: tuple[str, ...]


def main(argv: list[str]) -> int:
    """Runs the command; see `cli`."""
    options = arguments.parse(Options, argv, prog="offline-mbrl diagnose")
    _check(options)
    if options.dataset:
        named = bounded.joined(options.dataset, options.action_bounds)
        options = dataclasses.replace(options, dataset=named)
    compilation.enable()
    console = display.console()
    is_run = Path(options.model).is_dir()
    subject = (_from_run if is_run else _from_kind)(options, console)
    played, notes = _played(options, subject, console)
    model, params, predictive = subject.fitted
    diagnosis = diagnose.diagnose(
        model,
        params,
        {"held out": subject.held_out} | played,
        gamma=subject.gamma,
        settings=options.settings,
        predictive=predictive,
        penalties=diagnose.penalties_of(model, params, subject.training),
    )
    diagnosis = diagnosis._replace(
        notes=(*subject.notes, *notes),
        expected_horizon=fitted_models.expected_horizon(Path(options.model)) if is_run else (),
    )
    directory = options.out or Path(options.model if is_run else ".") / "diagnosis"
    _write(diagnosis, directory, options)
    console.print(table(diagnosis, options.model))
    for sentence in diagnose.advice(diagnosis):
        console.print(f"- {sentence}")
    console.print(f"written: {directory}")
    return 0


def _check(options: Options) -> None:
    if not Path(options.model).is_dir() and options.model not in kinds.KINDS:
        close = difflib.get_close_matches(options.model, kinds.KINDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"kinds: {', '.join(kinds.KINDS)}"
        raise UsageError(
            f"there is no run folder {options.model}, nor a kind of model of that name; {hint}"
        )
    if options.action_bounds and not options.dataset:
        raise UsageError("--action-bounds is of the data that --dataset names")
    if options.simulator_steps < 0 or options.fit_updates < 1:
        raise UsageError("--simulator-steps must be at least 0, and --fit-updates at least 1")
    if options.gamma is not None and not 0 <= options.gamma <= 1:
        raise UsageError(f"--gamma must be from 0 to 1, got {options.gamma:g}")


# --- what is judged ---


def _from_run(options: Options, console: Console) -> Subject:
    run_folder = Path(options.model)
    run = folder.read_json(run_folder / folder.RUN)
    data = datasets.load(run["dataset"], console)
    fitted = fitted_models.restore(run_folder, data, seed=options.seed)
    judged_by = datasets.load(options.dataset, console) if options.dataset else data
    _check_spec(data.spec, judged_by)
    held_out, notes = judged_by.validation, ()
    if held_out is None:
        held_out = judged_by.dataset
        if judged_by.name == data.name:
            notes = ("no episode of the data was held out: the model was fitted to these, too",)
    own = run_folder / recording.POLICY
    has_policy = (own / export.POLICY).exists()
    return Subject(
        fitted=fitted,
        spec=data.spec,
        training=data.dataset,
        held_out=held_out,
        simulator=options.simulator or judged_by.simulator,
        gamma=_gamma(options, data.spec),
        policy=options.policy or (own if has_policy else None),
        notes=notes,
    )


def _from_kind(options: Options, console: Console) -> Subject:
    if not options.dataset:
        raise UsageError(f"name the data that {options.model} is fitted to by --dataset")
    data = datasets.load(options.dataset, console)
    training, held_out = data.dataset, data.validation
    if held_out is None:
        training = splits.hold_out(data.dataset, by="episode")
        held_out = training._replace(starts=training.held_out, held_out=None)
    config: Any = kinds.KINDS[options.model].config()
    config = dataclasses.replace(
        config, fit=dataclasses.replace(config.fit, num_updates=options.fit_updates)
    )
    with display.bar(console, f"fit of {options.model}", options.fit_updates) as show:
        fitted = fitted_models.fit(config, training, data.spec, show=show)
    return Subject(
        fitted=fitted,
        spec=data.spec,
        training=training,
        held_out=held_out,
        simulator=options.simulator or data.simulator,
        gamma=_gamma(options, data.spec),
        policy=options.policy,
        notes=(),
    )


def _gamma(options: Options, spec: EnvironmentSpec) -> float:
    candidates = (options.gamma, spec.gamma, GAMMA)
    return next(value for value in candidates if value is not None)


def _check_spec(spec: EnvironmentSpec, data: Loaded) -> None:
    if explicit.sizes(spec) != explicit.sizes(data.spec):
        raise UsageError(
            f"the model is of observations and actions of sizes {explicit.sizes(spec)}, but "
            f"{data.name} has {explicit.sizes(data.spec)}"
        )


# --- the simulator ---


def _played(
    options: Options, subject: Subject, console: Console
) -> tuple[dict[str, Dataset], list[str]]:
    """Episodes of each behavior in the simulator, and what could not be played."""
    if not options.simulator_steps:
        return {}, []
    if subject.simulator is None:
        return {}, [
            "without a simulator nothing is known off the data's distribution; name one by "
            "--simulator"
        ]
    policy = _policy(subject, options.seed)
    notes = [] if policy else ["no policy without memory is there to play; name a run by --policy"]
    played: dict[str, Dataset] = {}
    behaviors = _behaviors(policy, explicit.sizes(subject.spec)[1], options.settings.seed)
    with display.bar(console, "simulator", len(behaviors)) as show:
        for name, act in behaviors.items():
            try:
                playing.check(subject.simulator, subject.spec)
                played[name] = visits.play(
                    subject.simulator,
                    act,
                    num_steps=options.simulator_steps,
                    seed=options.settings.seed,
                )
            except UsageError as error:
                if options.simulator:
                    raise
                return played, [*notes, f"the simulator could not be played: {error}"]
            show(len(played), name)
    return played, notes


def _behaviors(policy: tuple[Policy, Any] | None, size: int, seed: int) -> dict[str, online.Act]:
    """By name: the policy's own actions, these with noise, and uniform ones of `size` entries."""
    uniform = {"uniform actions": visits.uniform(size, seed)}
    if policy is None:
        return uniform
    perturbed = visits.perturbed(visits.sampling(*policy, seed), PERTURBATION, seed)
    return {
        "policy": visits.sampling(*policy, seed),
        "perturbed policy": perturbed,
    } | uniform


def _policy(subject: Subject, seed: int | None) -> tuple[Policy, Any] | None:
    """A policy and the parameters of one seed; None where there is none without a memory."""
    if subject.policy is None:
        return None
    place = subject.policy
    inside = place / recording.POLICY
    exported = export.load(inside if (inside / export.POLICY).exists() else place)
    if not isinstance(exported.policy, Policy):
        return None
    seeds = exported.description["seeds"]
    row = seeds.index(seed) if seed in seeds else 0
    return exported.policy, jax.tree.map(lambda leaf: leaf[row], exported.params)


# --- what is shown ---


def _write(diagnosis: Diagnosis, directory: Path, options: Options) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write {directory}: {error.strerror}; choose --out") from error
    about = {
        "model": options.model,
        "dataset": options.dataset,
        "advice": diagnose.advice(diagnosis),
    }
    folder.write_json(directory / RESULT, about | diagnose.to_json(diagnosis))
    diagnose.draw(diagnosis, directory)


def table(diagnosis: Diagnosis, model: str) -> Table:
    """A line a source: errors at some horizons, the trusted one, coverage, the best penalty.

    Args:
      diagnosis: of the model.
      model: its name, for the title.
    """
    shown = Table(
        title=f"trust in {model}, gamma {diagnosis.gamma:g}",
        caption="errors in standard deviations of the data; trusted: steps up to which they stay "
        "below those of predicting the mean; rank: the best penalty's correlation with the true "
        "error, and its 95 % interval over episodes",
    )
    heads = ("episodes of", *[f"error at {step}" for step in SHOWN], "trusted", "90 % hold", "rank")
    for index, head in enumerate(heads):
        shown.add_column(head, justify="right" if index else "left")
    for name, source in diagnosis.sources.items():
        errors = source.errors.error
        cells = [f"{errors[step - 1]:.3g}" if step <= len(errors) else "-" for step in SHOWN]
        row = int(np.argmin(np.abs(source.calibration.level - 0.9)))
        shown.add_row(
            name,
            *cells,
            f"{diagnose.trusted_steps(source.errors)} of {len(errors)}",
            f"{source.calibration.coverage[row]:.0%}",
            ranked(diagnose.best_penalty(source.correlations)),
        )
    return shown


def ranked(best: tuple[str, Correlation] | None) -> str:
    """A penalty's correlation with its interval, and its name; a dash where there is none."""
    if best is None:
        return "-"
    name, rank = best
    interval = f" [{rank.low:.2f}, {rank.high:.2f}]" if np.isfinite(rank.low) else ""
    return f"{rank.value:.2f}{interval} {name}"
