"""Settings of a training run, whatever the algorithm."""

import dataclasses
from pathlib import Path
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of the run; the algorithm's own are under `--config`."""

    # Name from `offline-mbrl data list`, or a path (RLDS directory, HDF5 file, Minari dataset)
    dataset: str
    seeds: int = 1  # number of seeds, trained side by side in one program
    first_seed: int = 0  # seeds are first_seed, first_seed + 1, ...
    run_dir: Path | None = None  # default: runs/ALGORITHM-DATASET
    evaluations: int = 10  # during training, spread evenly; 0 for none
    # Of the last evaluation, per seed, greedy and again sampled; 0 trains without a simulator
    episodes: int = 500
    episodes_during: int = 50  # of each evaluation during training, per seed
    # Updates per dispatch; default: about a second's worth, measured
    block_updates: int | None = None
    # Between checkpoints; one is always written at the end and at SIGTERM
    checkpoint_seconds: float = 20.0
    devices: int | None = None  # devices to split every batch over; default: all
    # Which chunks of the dataset are compared with their hashes
    verify: Literal["touched", "full"] = "touched"
    # What to do with NaN and infinity in the data
    on_nonfinite: Literal["refuse", "drop-episode"] = "refuse"
    # Read batches from the disk; auto: where columns exceed 2 GiB
    stream: Literal["auto", "always", "never"] = "auto"
    stream_mib: int = 256  # of batches that are read for one dispatch while streaming
    plain: bool = False  # lines instead of a progress bar
