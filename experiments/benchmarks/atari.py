"""A latent model of Atari from frames to scores: collect or convert data, train, play in the ALE, report. For example

    python experiments/benchmarks/atari.py --preset smoke
    python experiments/benchmarks/atari.py --preset full --games Pong --data "rlu_atari/{game}_run_1"

`smoke` shows that the whole path works on two cores: a small network, little data, a few hundred updates, short games;
its scores say nothing about the method. `full` is ROSMO's released size and budget, for a GPU. The same command goes
on where an earlier one was stopped; what is finished is skipped.
"""

import csv
import dataclasses
import io
import sys
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from offline_mbrl import cli, environments, export, files, registry
from offline_mbrl.commands import arguments
from offline_mbrl.data.catalog import atari_scores
from offline_mbrl.data.memory import Dataset
from offline_mbrl.evaluation import aggregate
from offline_mbrl.runs import folder, playing
from offline_mbrl.runs import memory as process_memory
from offline_mbrl.training import blocks, compilation
from offline_mbrl.types import UsageError

RESULTS = Path(__file__).resolve().parents[1] / "results" / "atari"


class Preset(NamedTuple):
    """How much is done."""

    data: str  # name of the dataset of a game
    updates: int
    episodes: int  # of evaluation, a way of acting
    max_steps: int  # of a game that is played; 0 for half an hour
    settings: str  # of the algorithm


PRESETS = {
    "smoke": Preset(
        "local/atari/{game}-steps12000", updates=300, episodes=4, max_steps=1_000,
        settings="batch-size=16 unroll-steps=3 td-steps=3 target-period=50 optimizer.warmup-updates=50 "
        "model.resnet.channels=16 model.resnet.blocks-representation=1 model.resnet.blocks-transition=1 "
        "model.resnet.blocks-prediction=1 model.resnet.head-channels=32 model.resnet.head-layers=64,64"),
    "full": Preset(
        "local/atari/{game}", updates=200_000, episodes=50, max_steps=0,
        settings="batch-size=512 unroll-steps=5 td-steps=5 model.num-bins=601"),
}  # fmt: skip


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
    console, began = Console(highlight=False, soft_wrap=True), time.perf_counter()
    given = {name: value for name in ("data", "updates", "episodes", "max_steps")
             if (value := getattr(options, name)) not in (None, "")}  # fmt: skip
    preset = PRESETS[options.preset]._replace(**given)
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
    console.print(f"written: {results}; {(time.perf_counter() - began) / 60:.1f} minutes in this process; "
                  f"resident memory now: {process_memory.describe(process_memory.now())}")  # fmt: skip
    return 0


def check(games: list[str], preset: Preset) -> None:
    """Refuses what would fail, or be wrong, after an hour of training."""
    if not games or preset.episodes < 1:
        raise UsageError("give at least one of --games and one of --episodes")
    if "{game}" not in preset.data and len(games) > 1:
        raise UsageError(
            f"--data {preset.data!r} names no {{game}}: all {len(games)} games would train on one dataset"
        )
    atari_scores.human_normalized(np.zeros(len(games)), games)  # names an unknown game
    for game in games:
        environments.spec(f"atari/{game}")  # and says what is missing to play it


def train(algorithm: str, preset: Preset, game: str, run: Path) -> int:
    """`offline-mbrl train`, streaming from the disk, without a simulator; a finished run is passed over."""
    flags = [part for setting in preset.settings.split() for part in _flag(*setting.split("="))]
    return cli.main([
        "train", algorithm, "--dataset", preset.data.format(game=game), "--stream", "always", "--episodes", "0",
        "--run-dir", str(run), "--config.num-updates", str(preset.updates), *flags])  # fmt: skip


def _flag(name: str, value: str) -> list[str]:
    return [f"--config.{name}", *value.split(",")]


def evaluated(preset: Preset, game: str, run: Path, console: Console) -> list[dict[str, Any]]:
    """A row for each seed and way of acting; games are played once."""
    path = run / "scores.json"
    simulator = f"atari/{game}" + (f"?max_steps={preset.max_steps}" if preset.max_steps else "")
    asked = {"simulator": simulator, "episodes": preset.episodes}
    if not path.exists() or not asked.items() <= folder.read_json(path).items():
        exported = export.load(run / "policy")
        seeds = exported.description["seeds"]
        console.print(f"playing {simulator}: {preset.episodes} episodes, greedy and sampled")
        with playing.opened(exported.policy, simulator, num_seeds=len(seeds)) as player:
            played = player.play(exported.params, seed=1, num_episodes=preset.episodes)
        scores = playing.summarize(played, None)
        if broken := next((one for one in scores.values() if not one["complete"]), None):
            raise UsageError(f"{simulator}: {broken['message']}")
        folder.write_json(path, asked | {"scores": scores} | speed(run))
    found, about = folder.read_json(path), folder.read_json(run / folder.RUN)
    shared = {
        "game": game, "algorithm": about["algorithm"], "dataset": about["dataset"], **asked,
        "updates": about["config"]["num_updates"], "revision": about["revision"],
    } | {name: found[name] for name in ("updates_per_second", "share_of_peak", "anonymous_mib")}  # fmt: skip
    return [
        {"acting": how, "seed": seed, "return": score} | normalized(game, score) | shared
        for how, one in found["scores"].items() for seed, score in zip(about["seeds"], one["returns"], strict=True)
    ]  # fmt: skip


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
    """Updates per second, the share of what a matrix product reaches here, and the memory that training held."""
    outcome = folder.read_json(run / folder.EVALUATION)
    rate = outcome["updates_per_second"]
    return {
        "updates_per_second": round(rate, 3), "share_of_peak": round(rate * update_flops(run) / product_flops(), 4),
        "anonymous_mib": outcome["resident_bytes"]["anonymous"] // 2**20,
    }  # fmt: skip


def update_flops(run: Path) -> float:
    """Floating point operations of one update of one seed, as the compiler counts them before it simplifies."""
    exported = export.load(run / "policy")
    algorithm, spec = registry.lookup(exported.description["algorithm"]), exported.spec
    learner = algorithm.make(
        export.config_from_json(algorithm.config, exported.description["config"]), spec
    )
    image = jax.tree.leaves(spec.observation)[0]
    frame = jax.ShapeDtypeStruct(
        (2, *image.shape[:2], image.shape[2] // spec.frame_stack), image.dtype
    )
    rows: Any = jax.ShapeDtypeStruct((2,), jnp.int32)
    values: Any = jax.ShapeDtypeStruct((2,), jnp.float32)
    dataset, key = Dataset(frame, rows, values, values, rows, rows), jax.random.key(0)
    state = jax.eval_shape(lambda key: learner.init(key, None, (), ()), key)
    update = jax.jit(lambda *inputs: blocks.update(learner, *inputs))
    return float(
        (update.lower(state, dataset, key).cost_analysis() or {}).get("flops", float("nan"))
    )


def product_flops(size: int = 2048, chained: int = 20) -> float:
    """Operations per second of float32 matrix products in one dispatch, the fastest of five."""
    products = jax.jit(lambda x: jax.lax.fori_loop(0, chained, lambda _, y: y @ x, x))
    x, seconds = jnp.eye(size), []
    for _ in range(6):
        began = time.perf_counter()
        jax.block_until_ready(products(x))
        seconds.append(time.perf_counter() - began)
    return chained * 2 * size**3 / min(seconds[1:])


# --- what is written ---


def write(results: Path, root: Path, rows: list[dict[str, Any]], games: list[str]) -> None:
    """`scores.csv` and `learning_curve.png`."""
    results.mkdir(parents=True, exist_ok=True)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write_whole(results / "scores.csv", lambda place: place.write_text(text.getvalue()))
    figure = Figure(figsize=(5 * len(games), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, game in zip(figure.subplots(1, len(games), squeeze=False)[0], games, strict=True):
        lines = [row for row in folder.read_rows(root / game) if row["stage"] == "train"]
        for name in sorted({name for row in lines for name in row if name.startswith("loss/")}):
            axes.plot(
                [row["step"] for row in lines],
                [row.get(name) for row in lines],
                label=name.removeprefix("loss/"),
            )
        scores = ", ".join(
            f"{row['acting']} {row['return']:.1f}" for row in rows if row["game"] == game
        )
        axes.set(title=f"{game}: {scores}", xlabel="updates", ylabel="training loss")
        axes.legend(fontsize=8)
    files.write_whole(
        results / "learning_curve.png", lambda place: figure.savefig(place, dpi=120, format="png")
    )


def table(rows: list[dict[str, Any]]) -> Table:
    """The scores for a person."""
    names = {"game": "game", "acting": "acting", "seed": "seed", "return": "return", "dqn_normalized": "DQN",
             "human_normalized": "human", "updates_per_second": "updates/s", "share_of_peak": "of peak",
             "anonymous_mib": "MiB"}  # fmt: skip
    made = Table(*names.values())
    for row in rows:
        made.add_row(
            *(
                f"{row[name]:g}" if isinstance(row[name], float) else str(row[name])
                for name in names
            )
        )
    for how in dict.fromkeys(row["acting"] for row in rows):
        for name, over in (
            ("IQM", aggregate.interquartile_mean),
            ("median", np.median),
            ("mean", np.mean),
        ):
            scales = [np.array([[row[scale]] for row in rows if row["acting"] == how]) for scale in (
                "dqn_normalized", "human_normalized")]  # fmt: skip
            made.add_row(
                f"{name} of all", how, "", "", *(f"{float(over(one)):.4g}" for one in scales)
            )
    return made


if __name__ == "__main__":
    try:
        sys.exit(main(arguments.parse(Options, sys.argv[1:], prog="atari.py", description=__doc__)))
    except UsageError as error:
        sys.exit(f"error: {error}")
