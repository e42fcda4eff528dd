"""A latent model of Atari from frames to scores: data, training, play in the ALE, report.

    python experiments/benchmarks/atari.py --preset smoke
    python experiments/benchmarks/atari.py --preset full --games Pong \\
        --data "rlu_atari/{game}_run_1"

`smoke` shows that the whole path works on two cores: a small network, little data, a few hundred
updates, short games; its scores say nothing about the method. `full` is ROSMO's released size and
budget, for a GPU. The same command goes on where an earlier one was stopped; what is finished is
skipped.
"""

import csv
import dataclasses
import functools
import io
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.benchmarks import figures
from offline_mbrl import cli, config_json, environments, export, files, registry
from offline_mbrl.commands import arguments
from offline_mbrl.data.catalog import atari_scores
from offline_mbrl.data.memory import Dataset
from offline_mbrl.evaluation import aggregate
from offline_mbrl.runs import folder, playing
from offline_mbrl.runs import memory as process_memory
from offline_mbrl.training import blocks, compilation, flops
from offline_mbrl.types import Array, Context, Key, PyTree, UsageError

RESULTS = Path(__file__).resolve().parents[1] / "results" / "atari"
LAYOUT = figures.Layout(columns=99, width=5.0, height=3.0, head=0.6, dpi=120)


class Preset(NamedTuple):
    """How much is done."""

    data: str  # name of the dataset of a game
    updates: int
    episodes: int  # of evaluation, a way of acting
    max_steps: int  # of a game that is played; 0 for half an hour
    settings: tuple[str, ...]  # of the algorithm


PRESETS = {
    "smoke": Preset(
        data="local/atari/{game}-steps12000",
        updates=300,
        episodes=4,
        max_steps=1_000,
        settings=(
            "batch-size=16",
            "unroll-steps=3",
            "td-steps=3",
            "target-period=50",
            "optimizer.warmup-updates=50",
            "model.resnet.channels=16",
            "model.resnet.blocks-representation=1",
            "model.resnet.blocks-transition=1",
            "model.resnet.blocks-prediction=1",
            "model.resnet.head-channels=32",
            "model.resnet.head-layers=64,64",
        ),
    ),
    "full": Preset(
        data="local/atari/{game}",
        updates=200_000,
        episodes=50,
        max_steps=0,
        settings=("batch-size=512", "unroll-steps=5", "td-steps=5", "model.num-bins=601"),
    ),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Trains and evaluates a latent model on Atari games."""

    preset: Literal["smoke", "full"] = "smoke"
    games: str = "Pong,Breakout"  # comma-separated
    algorithm: str = "rosmo"
    data: str = ""  # name of the dataset of a {game}; default: the preset's
    updates: int | None = None  # default: the preset's; the next two likewise
    episodes: int | None = None
    max_steps: int | None = None
    folder: Path | None = None  # of all; default: runs in ./runs, results beside this file


def main(options: Options) -> int:
    """Trains, plays and reports what is missing; the exit code."""
    compilation.enable()
    console = Console(highlight=False, soft_wrap=True)
    began = time.perf_counter()
    values = {name: getattr(options, name) for name in ("data", "updates", "episodes", "max_steps")}
    changes = {name: value for name, value in values.items() if value not in (None, "")}
    preset = PRESETS[options.preset]._replace(**changes)
    root = options.folder or Path("runs") / f"atari-{options.preset}"
    results = options.folder or RESULTS / options.preset
    games = [game for game in options.games.split(",") if game]
    check(games, preset)
    for game in games:
        if code := train(options.algorithm, preset, game, root / game):
            return code
    rows = [row for game in games for row in evaluated(preset, game, root / game, console)]
    write(results, root, rows, games)
    console.print(table(rows))
    minutes = (time.perf_counter() - began) / 60
    resident = process_memory.describe(process_memory.now())
    console.print(
        f"written: {results}; {minutes:.1f} minutes in this process; resident memory now: "
        f"{resident}"
    )
    return 0


def check(games: Sequence[str], preset: Preset) -> None:
    """Refuses what would fail, or be wrong, after an hour of training."""
    if not games or preset.episodes < 1:
        raise UsageError("give at least one of --games and one of --episodes")
    if "{game}" not in preset.data and len(games) > 1:
        raise UsageError(
            f"--data {preset.data!r} names no {{game}}: all {len(games)} games would train on one "
            "dataset"
        )
    atari_scores.human_normalized(np.zeros(len(games)), games)  # names an unknown game
    for game in games:
        environments.spec(f"atari/{game}")  # and says what is missing to play it


def train(algorithm: str, preset: Preset, game: str, run: Path) -> int:
    """`offline-mbrl train`, streaming from the disk, without a simulator; the exit code.

    A finished run is passed over.

    Args:
      algorithm: its name.
      preset: data, updates and settings.
      game: its name.
      run: folder of the run.
    """
    command = ["train", algorithm, "--dataset", preset.data.format(game=game)]
    command += ["--stream", "always", "--episodes", "0", "--run-dir", str(run)]
    command += ["--config.num-updates", str(preset.updates)]
    for setting in preset.settings:
        name, values = setting.split("=")
        command += [f"--config.{name}", *values.split(",")]
    return cli.main(command)


def evaluated(preset: Preset, game: str, run: Path, console: Console) -> list[dict[str, Any]]:
    """A row for each seed and way of acting; games are played once.

    Args:
      preset: how much is played.
      game: its name.
      run: folder of the run.
      console: where progress is printed.
    """
    path = run / "scores.json"
    simulator = f"atari/{game}" + (f"?max_steps={preset.max_steps}" if preset.max_steps else "")
    played = {"simulator": simulator, "episodes": preset.episodes}
    if not path.exists() or not played.items() <= folder.read_json(path).items():
        console.print(f"playing {simulator}: {preset.episodes} episodes, greedy and sampled")
        scores = play(run, simulator, preset.episodes)
        folder.write_json(path, played | {"scores": scores} | speed(run))
    result = folder.read_json(path)
    about = folder.read_json(run / folder.RUN)
    shared = {
        "game": game,
        "algorithm": about["algorithm"],
        "dataset": about["dataset"],
        **played,
        "updates": about["config"]["num_updates"],
        "revision": about["revision"],
        "updates_per_second": result["updates_per_second"],
        "share_of_peak": result["share_of_peak"],
        "anonymous_mib": result["anonymous_mib"],
    }
    return [
        {"acting": way, "seed": seed, "return": score} | normalized(game, score) | shared
        for way, scores in result["scores"].items()
        for seed, score in zip(about["seeds"], scores["returns"], strict=True)
    ]


def play(run: Path, simulator: str, num_episodes: int) -> dict[str, Any]:
    """Scores of the run's exported policies by way of acting.

    Args:
      run: folder of the run.
      simulator: its name.
      num_episodes: of each seed and way.

    Raises:
      UsageError: an evaluation did not finish.
    """
    exported = export.load(run / "policy")
    num_seeds = len(exported.description["seeds"])
    with playing.opened(exported.policy, simulator, num_seeds=num_seeds) as player:
        played = player.play(exported.params, seed=1, num_episodes=num_episodes)
    scores = playing.summarize(played, None)
    for own in scores.values():
        if not own["complete"]:
            raise UsageError(f"{simulator}: {own['message']}")
    return scores


def normalized(game: str, score: float | None) -> dict[str, float]:
    """The two published scales; NaN for a seed that finished no game."""
    raw = np.array([np.nan if score is None else score])
    scales = {
        "dqn_normalized": atari_scores.dqn_normalized,
        "human_normalized": atari_scores.human_normalized,
    }
    return {name: round(float(scale(raw, [game])[0]), 4) for name, scale in scales.items()}


# --- speed ---


def speed(run: Path) -> dict[str, float]:
    """Updates per second, their share of a matrix product's speed here, and training's memory."""
    outcome = folder.read_json(run / folder.EVALUATION)
    rate = outcome["updates_per_second"]
    return {
        "updates_per_second": round(rate, 3),
        "share_of_peak": round(rate * update_flops(run) / product_flops(), 4),
        "anonymous_mib": outcome["resident_bytes"]["anonymous"] // 2**20,
    }


def update_flops(run: Path) -> float:
    """FLOPs of the products and convolutions of one update of one seed."""
    exported = export.load(run / "policy")
    spec = exported.spec
    algorithm = registry.lookup(exported.description["algorithm"])
    config = config_json.from_json(algorithm.config, exported.description["config"])
    learner = algorithm.make(config, spec)
    image = jax.tree.leaves(spec.observation)[0]
    shape = (2, *image.shape[:2], image.shape[2] // spec.frame_stack)
    rows: Any = jax.ShapeDtypeStruct((2,), jnp.int32)
    values: Any = jax.ShapeDtypeStruct((2,), jnp.float32)
    dataset = Dataset(
        observation=jax.ShapeDtypeStruct(shape, image.dtype),
        action=rows,
        reward=values,
        discount=values,
        episode_end=rows,
        starts=rows,
    )
    context = Context()

    def update(state: PyTree, dataset: Dataset, key: Key) -> PyTree:
        return blocks.update(learner, state, context, dataset, (), key)

    key = jax.random.key(0)
    state = jax.eval_shape(lambda key: learner.init(key, None, context), key)
    return flops.count(update, state, dataset, key)


def product_flops(size: int = 2048, chained: int = 20) -> float:
    """FLOPs per second of float32 matrix products in one dispatch, the fastest of five."""

    @jax.jit
    def products(x: Array) -> Array:
        return jax.lax.fori_loop(0, chained, lambda _, y: y @ x, x)

    x = jnp.eye(size)
    seconds = []
    for _ in range(6):
        began = time.perf_counter()
        jax.block_until_ready(products(x))
        seconds.append(time.perf_counter() - began)
    return chained * 2 * size**3 / min(seconds[1:])


# --- what is written ---


def write(results: Path, root: Path, rows: Sequence[dict[str, Any]], games: Sequence[str]) -> None:
    """`scores.csv` and `learning_curve.png`.

    Args:
      results: folder of both.
      root: folder of the runs.
      rows: of the scores.
      games: their names.
    """
    results.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write_whole(results / "scores.csv", lambda place: place.write_text(text.getvalue()))
    panels = {}
    for game in games:
        own = [row for row in rows if row["game"] == game]
        scores = ", ".join(f"{row['acting']} {row['return']:.1f}" for row in own)
        panels[f"{game}: {scores}"] = functools.partial(draw_losses, root / game)
    figures.draw(
        results / "learning_curve.png",
        "",
        panels,
        LAYOUT,
        vertical="training loss",
        horizontal="updates",
    )


def draw_losses(run: Path, axes: Any) -> None:
    """The panel of one game."""
    lines = [row for row in folder.read_rows(run) if row["stage"] == "train"]
    for name in sorted({name for row in lines for name in row if name.startswith("loss/")}):
        values = [row.get(name) for row in lines]
        axes.plot([row["step"] for row in lines], values, label=name.removeprefix("loss/"))


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """The scores for a person."""
    names = {
        "game": "game",
        "acting": "acting",
        "seed": "seed",
        "return": "return",
        "dqn_normalized": "DQN",
        "human_normalized": "human",
        "updates_per_second": "updates/s",
        "share_of_peak": "of peak",
        "anonymous_mib": "MiB",
    }
    shown = Table(*names.values())
    for row in rows:
        cells = [row[name] for name in names]
        shown.add_row(*(f"{cell:g}" if isinstance(cell, float) else str(cell) for cell in cells))
    statistics = {"IQM": aggregate.interquartile_mean, "median": np.median, "mean": np.mean}
    for way in dict.fromkeys(row["acting"] for row in rows):
        own = [row for row in rows if row["acting"] == way]
        for name, statistic in statistics.items():
            cells = []
            for scale in ("dqn_normalized", "human_normalized"):
                scores = np.array([[row[scale]] for row in own])
                cells.append(f"{float(statistic(scores)):.4g}")
            shown.add_row(f"{name} of all", way, "", "", *cells)
    return shown


if __name__ == "__main__":
    try:
        sys.exit(main(arguments.parse(Options, sys.argv[1:], prog="atari.py", description=__doc__)))
    except UsageError as error:
        sys.exit(f"error: {error}")
