"""`offline-mbrl evaluate RUN`: plays the policies of a run's last checkpoint, or of an exported folder."""

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.table import Table

from offline_mbrl import compilation, export
from offline_mbrl.commands import arguments, display, folder, playing, recording, results
from offline_mbrl.types import UsageError


@dataclass(frozen=True)
class Options:
    """Plays episodes with the policies of a run's last checkpoint, greedily and by sampling."""

    run: tyro.conf.Positional[Path]  # run folder, or a folder written by `offline-mbrl export`
    episodes: int = 500  # per seed and way of acting
    seed: int = 2  # of the simulator and of sampling; training and its own result use 0 and 1
    simulator: str | None = None  # default: the dataset's; for example bsuite/catch?noise=0.1


def main(argv: list[str]) -> int:
    """Runs the command; see `cli`. Exit code 1 when the simulator did not finish."""
    options = arguments.parse(Options, argv, prog="offline-mbrl evaluate")
    exported = export.load(policy_folder(options.run))
    about = exported.description
    simulator = options.simulator or about.get("simulator")
    if simulator is None:
        raise UsageError(f"{options.run} was trained without a simulator; name one by --simulator")
    if options.episodes < 1:
        raise UsageError(f"--episodes must be at least 1, got {options.episodes}")
    compilation.enable()
    play = playing.make(
        exported.policy, simulator, num_seeds=len(about["seeds"]), num_episodes=options.episodes
    )  # fmt: skip
    played = play(exported.params, seed=options.seed)
    outcome = {
        "step": about.get("step"), "seeds": about["seeds"], "failures": {}, "simulator": simulator,
        "evaluation": playing.summarize(played, about.get("reference")),
    }  # fmt: skip
    shown: Table = results.table({"algorithm": about["algorithm"], "dataset": simulator}, outcome)
    display.console().print(shown)
    for how, one in outcome["evaluation"].items():
        if one["message"]:
            print(f"{how}: {one['message']}")
    return 0 if all(one["complete"] for one in outcome["evaluation"].values()) else 1


def policy_folder(path: Path) -> Path:
    """The policy inside a run's folder, or the folder itself when it is an exported one."""
    if (path / folder.RUN).exists() and not (path / recording.POLICY / export.POLICY).exists():
        raise UsageError(f"{path} has no checkpoint of a policy yet")
    return path / recording.POLICY if (path / folder.RUN).exists() else path
