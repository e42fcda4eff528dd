"""Two processes with two devices each train one model on one batch, of which each has read its part
when streaming."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import linear_learner
import numpy as np
import pytest

from offline_mbrl.data import stream
from offline_mbrl.training import checkpoint
from offline_mbrl.training.fit import fit, template

KEY = jax.random.key(7)
OPTIONS = {"num_updates": 30, "block_updates": 20, "seeds": [3, 5]}
PROCESSES = 2
HERE = Path(__file__).parent


def data(learner, how):
    """The dataset, or a stream of it whose stacks hold three updates of two seeds."""
    dataset = linear_learner.dataset(640)
    return (
        stream.bind(dataset, learner.sample, block_bytes=6 * 16 * 9 * 4)
        if how == "stream"
        else dataset
    )


PROGRAM = """
import sys
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[1], num_processes=int(sys.argv[2]), process_id=int(sys.argv[3]))
import linear_learner, test_distributed
from offline_mbrl.training import checkpoint, sharding
from offline_mbrl.training.fit import fit
assert jax.device_count() == 4 and jax.local_device_count() == 2
key = jax.random.key(7)
learner = linear_learner.make(refresh=linear_learner.refresh, refresh_every=15)
rows = []
result = fit(
    learner, test_distributed.data(learner, sys.argv[5]), key=key, mesh=sharding.mesh(),
    hooks=[lambda progress: rows.append(float(progress.metrics["loss/value"][0]))],
    **test_distributed.OPTIONS)
digest = checkpoint.sha256(result.state)
if jax.process_index() == 0:
    checkpoint.save(sys.argv[4], 30, result.state, {})
print(len(rows), digest, flush=True)
"""


@pytest.mark.parametrize("how", ["dataset", "stream"])
def test_two_processes_equal_one(tmp_path, how):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PYTHONPATH": os.pathsep.join(map(str, (HERE, HERE.parent / "support"))),
        "JAX_PLATFORMS": "cpu",
    }
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                PROGRAM,
                address,
                str(PROCESSES),
                str(index),
                str(tmp_path),
                how,
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(PROCESSES)
    ]
    try:
        finished = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, finished, strict=True):
        assert process.returncode == 0, errors[-3000:]
    printed = {output.split()[-1] for output, _ in finished}
    assert len(printed) == 1  # both hold the same bits

    learner = linear_learner.make(refresh=linear_learner.refresh, refresh_every=15)
    alone = fit(learner, data(learner, how), key=KEY, **OPTIONS).state
    together = checkpoint.restore(
        tmp_path, template(learner, linear_learner.dataset(), key=KEY, seeds=[3, 5])
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), together.state, alone
    )
    assert any("processes" in message for message in together.messages)
