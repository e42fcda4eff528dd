"""Kills `offline-mbrl train` at random moments and checks that the run goes on as if nothing had happened.

    python experiments/kill_and_resume.py --kills 20

One run goes through undisturbed. Then, for each kill, the same command starts in a new folder, is killed by SIGKILL at
a moment drawn uniformly over the whole duration (start-up, training, evaluation and report included), and is repeated
until it ends. With `--kills-per-run 3` it is killed three times before it may end. Compared with the undisturbed run:

* the sha256 of the final checkpoint's state: parameters, optimizer, step;
* the rows of metrics.jsonl, one by one and with every figure: none twice, none missing;
* the scores in evaluation.json, and the exported policy's arrays.

Prints a table; the exit code is 1 if anything differs. With `--generate` the dataset is generated anew within each
run, so that kills hit that as well.
"""

import hashlib
import json
import random
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
    wanted = read(folder / "undisturbed")
    console.print(f"undisturbed: {seconds:.1f} s, {len(wanted.rows)} rows, state {wanted.state[:16]}")
    rng, table, differing = random.Random(options.seed), Table("kill", "after s", "during", "state", "differs in"), 0
    for number in range(options.kills):
        moments = [rng.uniform(0, seconds) for _ in range(options.kills_per_run)]
        place = folder / f"killed-{number}"
        found = [kill(options, place, moment) for moment in moments]
        run(options, place)
        outcome = read(place)
        wrong = [name for name, a, b in zip(Outcome._fields, outcome, wanted, strict=True) if a != b]
        differing += bool(wrong)
        cells = [" ".join(f"{moment:.1f}" for moment in moments), ", ".join(found), outcome.state[:16]]
        table.add_row(str(number), *cells, ", ".join(wrong) or "nothing")
        console.print(f"kill {number}: after {cells[0]} s, during {cells[1]}: {'DIFFERS' if wrong else 'same'}")
        shutil.rmtree(place)
    console.print(table)
    console.print(f"{options.kills - differing} of {options.kills} runs equal the undisturbed one")
    if options.folder is None:
        shutil.rmtree(folder)
    return 1 if differing else 0


def start(options: Options, folder: Path) -> subprocess.Popen:
    """The command under test; its own process, so that nothing of this one survives in it."""
    command = [
        sys.executable, "-m", "offline_mbrl.cli", "train", options.algorithm, "--dataset", options.dataset, "--plain",
        "--run-dir", str(folder), "--block-updates", str(options.block_updates), "--episodes", "100", "--seeds", "2",
        "--checkpoint-seconds", str(options.checkpoint_seconds), "--config.num-updates", str(options.num_updates),
        "--config.batch-size", "16",
    ]  # fmt: skip
    environment = {"OFFLINE_MBRL_DATA": str(folder) + "-data"} if options.generate else {}
    return subprocess.Popen(
        ["env", *(f"{name}={value}" for name, value in environment.items()), *command],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def run(options: Options, folder: Path) -> float:
    """Runs the command to its end; seconds."""
    began = time.monotonic()
    process = start(options, folder)
    output, _ = process.communicate()
    if process.returncode:
        sys.exit(f"the run in {folder} failed with exit code {process.returncode}:\n{output}")
    return time.monotonic() - began


def kill(options: Options, folder: Path, seconds: float) -> str:
    """Starts the command and kills it; what it was doing, as far as its folder tells."""
    process = start(options, folder)
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
    process.communicate()
    for file, phase in (
        ("report.md", "exit"), ("evaluation.json", "report"), ("metrics.jsonl", "training"), ("run.json", "compilation")
    ):  # fmt: skip
        if (folder / file).exists():
            done = last_step(folder) if phase == "training" else 0
            return "evaluation" if done >= options.num_updates else f"update {done}" if done else phase
    return "start-up"


def last_step(folder: Path) -> int:
    """Update of the last whole row."""
    lines = (folder / "metrics.jsonl").read_text().split("\n")[:-1]
    return json.loads(lines[-1])["step"] if lines else 0


def read(folder: Path) -> Outcome:
    """What a finished run left behind."""
    newest = max((folder / "checkpoints" / "train").glob("[0-9]*"))
    state = hashlib.sha256()  # as offline_mbrl.training.checkpoint.sha256 has it, of the restored state
    for leaf in json.loads((newest / "manifest.json").read_text())["leaves"]:
        state.update(json.dumps(leaf).encode())
    scores = json.dumps(json.loads((folder / "evaluation.json").read_text())["evaluation"])
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    assert_valid(rows)
    policy = hashlib.sha256((folder / "policy" / "params.npz").read_bytes()).hexdigest()
    return Outcome(state.hexdigest(), tuple(rows), scores, policy)


def assert_valid(rows: list[str]) -> None:
    """Every row is JSON, and of each (stage, step, seed) there is one."""

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    keys = [
        (row["stage"], row["step"], row["seed"]) for row in (json.loads(row, parse_constant=refuse) for row in rows)
    ]
    if len(keys) != len(set(keys)):
        sys.exit("a row is there twice")


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
