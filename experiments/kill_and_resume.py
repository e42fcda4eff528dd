r"""Kills `offline-mbrl train` at random moments and checks that the run ends as if undisturbed.

    python experiments/kill_and_resume.py --kills 20
    python experiments/kill_and_resume.py --kills 20 --algorithm mopo --num-updates 1500 \
      --dataset local/mujoco/pendulum-medium-replay-steps2000 --episodes 4 --flags="\
      --config.dynamics.hidden-layers 16 16 16 16 --config.dynamics.fit.num-updates 500 \
      --config.dynamics.fit.refresh-every 100 --config.policy.actor-layers 16 16 \
      --config.policy.critic-layers 16 16 --config.imagination.num-starts 200 \
      --config.imagination.every 100"

One run goes through undisturbed. Then, for each kill, the same command starts in a new folder, is
killed by SIGKILL at a moment drawn uniformly over the whole duration (start-up, training,
evaluation and report included), and is repeated until it ends. With `--kills-per-run 3` it is
killed three times before it may end. Compared with the undisturbed run:

* the sha256 of the final checkpoint's state: parameters, optimizer, step;
* the rows of metrics.jsonl, one by one and with every figure: none twice, none missing;
* the scores in evaluation.json, and the exported policy's arrays.

Prints a table; the exit code is 1 if anything differs. With `--generate` the dataset is generated
anew within each run, so that kills hit that as well.
"""

import hashlib
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tyro
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Options:
    """Kills training at random moments and compares the resumed runs with an undisturbed one."""

    kills: int = 20  # runs that are killed
    kills_per_run: int = 1  # how often each is killed before it may end
    seed: int = 0  # of the moments
    algorithm: str = "bc"
    dataset: str = "local/catch-episodes30"
    num_updates: int = 2000
    block_updates: int = 50
    checkpoint_seconds: float = 0.2
    episodes: int = 100  # of each evaluation
    flags: str = "--config.batch-size 16"  # further ones of the command, as a shell has them
    generate: bool = False  # generate the dataset within each run
    folder: Path | None = None  # where the runs go; default: a temporary folder that is removed


class Outcome(NamedTuple):
    """What is compared."""

    state: str  # sha256 over all leaves of the last checkpoint
    rows: tuple[str, ...]
    scores: str
    policy: str


def main(options: Options) -> int:
    """Runs all; 0 when every resumed run equals the undisturbed one."""
    console = Console(soft_wrap=True)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="kill_and_resume-"))
    run(options, folder / "warm-up")  # builds the dataset and fills the compilation cache
    seconds = run(options, folder / "undisturbed")
    expected = read(folder / "undisturbed")
    console.print(
        f"undisturbed: {seconds:.1f} s, {len(expected.rows)} rows, state {expected.state[:16]}"
    )
    rng = random.Random(options.seed)
    table = Table("kill", "after s", "during", "state", "differs in")
    num_different = 0
    for number in range(options.kills):
        moments = [rng.uniform(0, seconds) for _ in range(options.kills_per_run)]
        place = folder / f"killed-{number}"
        phases = ", ".join(kill(options, place, moment) for moment in moments)
        run(options, place)
        outcome = read(place)
        different = [
            name for name in Outcome._fields if getattr(outcome, name) != getattr(expected, name)
        ]
        num_different += bool(different)
        after = " ".join(f"{moment:.1f}" for moment in moments)
        words = ", ".join(different) or "nothing"
        table.add_row(str(number), after, phases, outcome.state[:16], words)
        verdict = "DIFFERS" if different else "same"
        console.print(f"kill {number}: after {after} s, during {phases}: {verdict}")
        shutil.rmtree(place)
    console.print(table)
    same = options.kills - num_different
    console.print(f"{same} of {options.kills} runs equal the undisturbed one")
    if options.folder is None:
        shutil.rmtree(folder)
    return 1 if num_different else 0


def start(options: Options, folder: Path) -> subprocess.Popen:
    """The command under test; its own process, so that nothing of this one survives in it."""
    flags = {
        "--dataset": options.dataset,
        "--run-dir": folder,
        "--block-updates": options.block_updates,
        "--episodes": options.episodes,
        "--evaluation-share": 1,  # else time decides which of them a run plays
        "--seeds": 2,
        "--checkpoint-seconds": options.checkpoint_seconds,
        "--config.num-updates": options.num_updates,
    }
    command = [sys.executable, "-m", "offline_mbrl.cli", "train", options.algorithm, "--plain"]
    for flag, value in flags.items():
        command += [flag, str(value)]
    command += shlex.split(options.flags)
    environment = dict(os.environ)
    if options.generate:
        environment["OFFLINE_MBRL_DATA"] = f"{folder}-data"
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run(options: Options, folder: Path) -> float:
    """Runs the command to its end; seconds."""
    began = time.monotonic()
    process = start(options, folder)
    output, _ = process.communicate()
    if process.returncode:
        sys.exit(f"the run in {folder} failed with exit code {process.returncode}:\n{output}")
    return time.monotonic() - began


def kill(options: Options, folder: Path, seconds: float) -> str:
    """Starts the command and kills it; its phase, as far as its folder tells."""
    process = start(options, folder)
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
    process.communicate()
    return phase(options, folder)


def phase(options: Options, folder: Path) -> str:
    """How far a killed run had come."""
    if (folder / "report.md").exists():
        return "exit"
    if (folder / "evaluation.json").exists():
        return "report"
    if not (folder / "metrics.jsonl").exists():
        return "compilation" if (folder / "run.json").exists() else "start-up"
    stage, step = last_row(folder)
    if stage == "train" and step >= options.num_updates:
        return "evaluation"
    return f"update {step} of {stage}" if step else "training"


def last_row(folder: Path) -> tuple[str, int]:
    """Stage and update of the last whole row."""
    lines = (folder / "metrics.jsonl").read_text().split("\n")[:-1]
    row = json.loads(lines[-1]) if lines else {"stage": "", "step": 0}
    return row["stage"], row["step"]


def read(folder: Path) -> Outcome:
    """The files of a finished run."""
    newest = max((folder / "checkpoints" / "train").glob("[0-9]*"))
    state = hashlib.sha256()  # as offline_mbrl.training.checkpoint.sha256, of the restored state
    for leaf in json.loads((newest / "manifest.json").read_text())["leaves"]:
        state.update(json.dumps(leaf).encode())
    scores = json.dumps(json.loads((folder / "evaluation.json").read_text())["evaluation"])
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    require_valid(rows)
    policy = hashlib.sha256((folder / "policy" / "params.npz").read_bytes()).hexdigest()
    return Outcome(state=state.hexdigest(), rows=tuple(rows), scores=scores, policy=policy)


def require_valid(rows: list[str]) -> None:
    """Every row is JSON, and there is a single row for each (stage, step, seed)."""

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    parsed = [json.loads(row, parse_constant=refuse) for row in rows]
    keys = [(row["stage"], row["step"], row["seed"]) for row in parsed]
    if len(keys) != len(set(keys)):
        sys.exit("a row is there twice")


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
