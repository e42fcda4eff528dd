"""Settings of a training run, whatever the algorithm."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from offline_mbrl.settings import Precision, at_least, between


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of the run; the algorithm's own are under `--config`."""

    # Name from `offline-mbrl data list`, or a path (RLDS directory, HDF5 file, Minari dataset)
    dataset: str
    # Least and largest action in the simulator's units, or "measured"; default: what the data state
    action_bounds: tuple[str, ...] = ()
    seeds: Annotated[int, at_least(1)] = 1  # number of seeds, trained side by side in one program
    first_seed: Annotated[int, at_least(0)] = 0  # seeds are first_seed, first_seed + 1, ...
    run_dir: Path | None = None  # default: runs/ALGORITHM-DATASET
    evaluations: Annotated[int, at_least(0)] = 10  # during training, spread evenly; 0 for none
    # Of the run's time, for those at most; 1 plays all of them
    evaluation_share: Annotated[float, between(0, 1)] = 0.1
    # Of the last evaluation, per seed, greedy and again sampled; 0 trains without a simulator
    episodes: Annotated[int, at_least(0)] = 500
    # Of each evaluation during training, per seed
    episodes_during: Annotated[int, at_least(1)] = 50
    # That step the simulators; 0: a thread of this process
    simulator_processes: Annotated[int, at_least(0)] = 0
    # Updates per dispatch; default: about a second's worth, measured
    block_updates: Annotated[int | None, at_least(1)] = None
    # Between checkpoints; one is always written at the end and at SIGTERM
    checkpoint_seconds: Annotated[float, at_least(0)] = 20.0
    # Devices to split every batch over; default: all
    devices: Annotated[int | None, at_least(1)] = None
    # Which chunks of the dataset are compared with their hashes
    verify: Literal["touched", "full"] = "touched"
    # What to do with NaN and infinity in the data
    on_nonfinite: Literal["refuse", "drop-episode"] = "refuse"
    # Read batches from the disk; auto: where columns exceed 2 GiB
    stream: Literal["auto", "always", "never"] = "auto"
    # Of batches that are read for one dispatch while streaming
    stream_mib: Annotated[int, at_least(1)] = 256
    # In which hidden layers compute while training; parameters, losses and what acts are float32
    precision: Precision = "float32"
    plain: bool = False  # lines instead of a progress bar
