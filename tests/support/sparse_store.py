"""A store of 20 GiB that takes no disk: files of zeros that were never written, with true hashes.

Run as a program, `python sparse_store.py DATA_ROOT NAME`, it trains on that store from the disk and
prints what it took as JSON.
"""

import hashlib
import json
import sys
import time
from pathlib import Path

import numpy as np

from offline_mbrl.data import specs
from offline_mbrl.data.store import read as store
from offline_mbrl.types import DiscreteActions, EnvironmentSpec, Learner

FRAME = (84, 84, 1)
BYTES = 20 * 2**30
ROWS, EPISODE = BYTES // 7056, 1000
FRAME_STACK, WINDOW = 4, 10


def write(directory: Path, name: str) -> Path:
    """Writes the store of `ROWS` black frames in episodes of `EPISODE` records; the file of
    observations."""
    import jax

    directory.mkdir(parents=True)
    shapes = {
        "observation": (ROWS, *FRAME),
        "action": (ROWS,),
        "reward": (ROWS,),
        "discount": (ROWS,),
    }
    dtypes = {"observation": "uint8", "action": "int32", "reward": "float32", "discount": "float32"}
    entries = []
    for field, shape in shapes.items():
        size, file = (
            int(np.prod(shape)) * np.dtype(dtypes[field]).itemsize,
            directory / f"train.{field}.bin",
        )
        with file.open("wb") as opened:
            opened.truncate(size)
        whole, rest = (
            hashlib.sha256(bytes(part)).hexdigest() for part in (store.CHUNK, size % store.CHUNK)
        )
        hashes = [whole] * (size // store.CHUNK) + [rest] * (size % store.CHUNK > 0)
        entries.append(
            {
                "path": ["columns", field],
                "file": file.name,
                "dtype": dtypes[field],
                "shape": list(shape),
                "sha256": hashes,
            }
        )
    ends = np.append(np.arange(EPISODE - 1, ROWS - 1, EPISODE), ROWS - 1).astype(np.int64)
    (directory / "train.ends.bin").write_bytes(ends.tobytes())
    entries.append(
        {
            "path": list(store.ENDS),
            "file": "train.ends.bin",
            "dtype": "int64",
            "shape": [len(ends)],
            "sha256": store.chunk_hashes(directory / "train.ends.bin"),
        }
    )
    observation = jax.ShapeDtypeStruct((*FRAME[:2], FRAME_STACK), np.uint8)
    spec = specs.to_json(EnvironmentSpec(observation, DiscreteActions(3), frame_stack=FRAME_STACK))
    health = {"train": {"nonfinite": [], "action_range": []}}
    store.write_manifest(
        directory,
        {
            "name": name,
            "counts": {"dropped": {}},
            "spec": spec,
            "simulator": None,
            "health": health,
            "fingerprint": store.fingerprint({"train": entries}, spec),
            "columns": {"train": entries},
        },
    )
    return directory / "train.observation.bin"


def train(name: str, *, batch_size: int, num_updates: int) -> dict[str, float]:
    """Trains a tiny learner on windows of stacked frames; bytes in memory, and windows per second
    with checking."""
    import jax
    import jax.numpy as jnp

    from offline_mbrl.data import memory, stream
    from offline_mbrl.data.catalog import load as catalog
    from offline_mbrl.runs import memory as process_memory
    from offline_mbrl.training.fit import fit

    def step(state, context, batch, key):
        del context, key
        assert batch.observation.shape[1:] == (WINDOW + 1, *FRAME[:2], FRAME_STACK)
        return state + jnp.mean(batch.observation[:, 0, ::21, ::21]) + jnp.sum(batch.mask), {
            "mask": batch.mask.mean()
        }

    sample = memory.Windows(batch_size, WINDOW, frame_stack=FRAME_STACK)
    learner = Learner(
        sample=sample,
        init=lambda key, example, context: jnp.zeros(()),
        step=step,
        policy=None,
        policy_params=lambda state, context: state,
    )
    loaded, began = catalog.load(name, stream_above=2**30), time.perf_counter()
    watch, largest = process_memory.watching()
    result = fit(
        learner,
        stream.bind(loaded.dataset, sample),
        key=jax.random.key(0),
        num_updates=num_updates,
        block_updates=4,
        hooks=[watch],
    )
    assert int(result.state.step) == num_updates
    return {
        **largest()._asdict(),
        "windows_per_second": num_updates * batch_size / result.update_seconds,
        "seconds": time.perf_counter() - began,
    }


if __name__ == "__main__":
    print(json.dumps(train(sys.argv[1], batch_size=int(sys.argv[2]), num_updates=int(sys.argv[3]))))
