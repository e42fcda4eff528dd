"""`offline-mbrl evaluate RUN`: plays the policies of a run's last checkpoint or of an export."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from offline_mbrl import export, policies
from offline_mbrl.commands import arguments
from offline_mbrl.data.catalog import official
from offline_mbrl.runs import display, folder, playing, recording, results
from offline_mbrl.runs.report import tables
from offline_mbrl.training import compilation
from offline_mbrl.types import UsageError


@dataclass(frozen=True)
class Options:
    """Plays episodes with the policies of a run's last checkpoint, greedily and by sampling."""

    # run folder, or a folder written by `offline-mbrl export`
    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    episodes: int = 500  # per seed and way of acting
    seed: int = 2  # of the simulator and of sampling; training and its own result use 0 and 1
    simulator_processes: int = 0  # that step the simulators; 0: a thread of this process
    simulator: str | None = None  # default: the dataset's; for example bsuite/catch?noise=0.1
    # Of algorithms that plan: the policy without its planner, or the planner; default: as trained
    acting: Literal["policy", "planner"] | None = None
    # Model steps of the planner for each action; default: what all of its candidates take
    budget: int | None = None


def main(argv: list[str]) -> int:
    """Runs the command; see `cli`. Exit code 1 when the simulator did not finish."""
    options = arguments.parse(Options, argv, prog="offline-mbrl evaluate")
    if options.episodes < 1:
        raise UsageError(f"--episodes must be at least 1, got {options.episodes}")
    if not 0 <= options.seed < 2**32:
        raise UsageError(f"--seed must be from 0 to 2^32 - 1, got {options.seed}")
    exported = loaded(options)
    about = exported.description
    simulator = options.simulator or about.get("simulator")
    if simulator is None:
        raise UsageError(f"{options.run} was trained without a simulator; name one by --simulator")
    playing.check(simulator, exported.spec)
    compilation.enable()
    console = display.console()
    num_seeds = len(about["seeds"])
    total = playing.num_played(num_seeds, options.episodes)
    with (
        playing.opened(
            exported.policy,
            simulator,
            num_seeds=num_seeds,
            processes=options.simulator_processes,
        ) as player,
        display.bar(console, "evaluation", total) as show,
    ):
        played = player.play(
            exported.params, seed=options.seed, num_episodes=options.episodes, show=show
        )
    human = official.human_reference(simulator)
    outcome = {
        "step": about.get("step"),
        "seeds": about["seeds"],
        "failures": {},
        "evaluation": playing.summarize(played, reference(simulator, about), human),
    }
    console.print(tables.table({"algorithm": about["algorithm"], "dataset": simulator}, outcome))
    for mode, summary in outcome["evaluation"].items():
        if summary["message"]:
            console.print(f"{mode}: {summary['message']}")
    return 0 if results.is_complete(outcome) else 1


def loaded(options: Options) -> export.Exported:
    """The policy, or its planner, as the options say.

    Raises:
      UsageError: the folder holds none, or the options do not fit it.
    """
    path = policy_folder(options.run)
    exported = export.load(path)
    changes = overrides(options)
    if not changes:
        return exported
    if not policies.is_actor(exported.policy):
        algorithm = exported.description["algorithm"]
        raise UsageError(f"{algorithm} acts without a planner: leave out --acting and --budget")
    return export.load(path, overrides=changes)


def overrides(options: Options) -> dict[str, int | None]:
    """Settings in the place of those that the policy was trained with.

    Raises:
      UsageError: a budget of the policy alone, or a negative one.
    """
    if options.budget is not None and options.budget < 0:
        raise UsageError(f"--budget must be at least 0, got {options.budget}")
    if options.acting == "policy":
        if options.budget:
            raise UsageError("--acting policy takes no model steps: leave out --budget")
        return {"budget": 0}
    if options.acting == "planner" or options.budget is not None:
        return {"budget": options.budget}
    return {}


def reference(simulator: str, about: Mapping[str, Any]) -> Any:
    """The returns that count as 0 and 1.

    The simulator's own where they are published, else those of a run in that simulator.
    """
    plain = simulator.partition("?")[0]
    published = official.REFERENCES.get(plain)
    is_same = plain == (about.get("simulator") or "").partition("?")[0]
    return published or (about.get("reference") if is_same else None)


def policy_folder(path: Path) -> Path:
    """The policy inside a finished run's folder, or the folder itself when it is an exported one.

    Raises:
      UsageError: there is no such folder, or its run is not finished.
    """
    if not path.is_dir():
        raise UsageError(f"there is no folder {path}: give a run's folder or an exported one")
    if not (path / folder.RUN).exists():
        return path
    inside = path / recording.POLICY
    if not (path / folder.EVALUATION).exists():
        remedy = "repeat its command to go on"
        if (inside / export.POLICY).exists():
            remedy += f", or give its last checkpoint's policy: {inside}"
        raise UsageError(f"the run in {path} is not finished: {remedy}")
    return inside
