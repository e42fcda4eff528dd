"""Saves that fail or are killed: what was there before must survive."""

import errno
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

from offline_mbrl.training import checkpoint
from offline_mbrl.types import UsageError


def make_state(scale=1.0):
    return {"w": scale * jnp.arange(6.0), "b": jnp.ones(3)}


STATE = make_state()


@pytest.fixture
def two(tmp_path):
    """A folder with checkpoints of steps 100 and 200."""
    checkpoint.save(tmp_path, 100, make_state(1.0), {})
    checkpoint.save(tmp_path, 200, make_state(2.0), {})
    return tmp_path


def test_a_full_disk_leaves_the_earlier_checkpoint(two, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        UsageError, match=r"cannot write .*000000300: .*No space left.*free some space"
    ):
        checkpoint.save(two, 300, STATE, {})
    assert sorted(path.name for path in two.iterdir()) == ["000000100", "000000200"]
    assert checkpoint.restore(two, STATE).step == 200


def test_a_file_size_limit_in_the_array_writer_is_one_clear_error(two):
    program = f"""
import resource, jax.numpy as jnp
from offline_mbrl.training import checkpoint
from offline_mbrl.types import UsageError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoint.save({str(two)!r}, 300, [jnp.arange(1e6)], {{}})
except UsageError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert re.fullmatch(
        r"cannot write the checkpoint .*000000300: File too large; free .*", done.stdout.strip()
    )
    assert done.stderr == ""
    assert sorted(path.name for path in two.iterdir()) == ["000000100", "000000200"]


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot write the checkpoint .*Not a directory"):
        checkpoint.save(tmp_path / "file" / "run", 1, STATE, {})


def test_a_failed_replacement_puts_the_old_one_back(two, monkeypatch):
    rename = os.rename

    def fail(source, target):
        if checkpoint.UNFINISHED in str(source):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(UsageError):
        checkpoint.save(two, 200, make_state(9.0), {})
    assert checkpoint.sha256(checkpoint.restore(two, STATE).state) == checkpoint.sha256(
        make_state(2.0)
    )


def test_leftovers_are_ignored_by_reading_and_removed_by_the_next_save(two):
    shutil.copytree(two / "000000200", two / f"{checkpoint.UNFINISHED}000000300")
    # Killed between the two renames
    os.rename(two / "000000200", two / f"{checkpoint.REPLACED}000000200")
    assert checkpoint.steps(two) == [100, 200]
    assert checkpoint.restore(two, STATE).step == 200
    checkpoint.save(two, 250, STATE, {}, keep=3)
    assert sorted(path.name for path in two.iterdir()) == ["000000100", "000000200", "000000250"]


SAVER = """
import sys, jax.numpy as jnp
from offline_mbrl.training import checkpoint
for step in range(1, 10_000):
    state = {"w": jnp.full(1000, float(step))}
    checkpoint.save(sys.argv[1], step % 7 + 7 * (step // 14), state, {"value": step})
    print(step, flush=True)
"""


def test_a_killed_save_leaves_a_good_checkpoint(tmp_path):
    generator = random.Random(1)
    template = {"w": jnp.zeros(1000)}
    for attempt in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        for _ in range(3):
            process.stdout.readline()
        time.sleep(generator.random() * 0.2)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        restored = checkpoint.restore(tmp_path, template)
        damaged = [message for message in restored.messages if "damaged" in message]
        assert not damaged, attempt
        np.testing.assert_array_equal(restored.state["w"], restored.metadata["value"])
