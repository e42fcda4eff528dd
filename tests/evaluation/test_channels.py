"""Simulators in processes of their own: the same episodes, and no process that stays behind."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import psutil
import pytest
import simulator_examples
from simulator_examples import CATCH, constant, counter

from offline_mbrl.evaluation.episodes import evaluate, opened
from offline_mbrl.types import UsageError

COUNTED = {"seed": 0, "num_episodes": 4, "greedy": True, "batch_size": 2}


def children():
    """Processes of simulators that this one has started."""
    processes = psutil.Process().children()
    return [one for one in processes if "offline_mbrl.evaluation.worker" in one.cmdline()]


def test_the_episodes_do_not_depend_on_the_number_of_processes():
    def play(processes):
        with opened(
            CATCH,
            "bsuite/catch?noise=0.5",
            num_seeds=2,
            batch_size=2,
            processes=processes,
        ) as evaluator:
            assert len(children()) == 0
            played = [
                evaluator.evaluate(jnp.zeros(2), seed=seed, num_episodes=size, greedy=greedy)
                for seed, size, greedy in ((0, 7, True), (1, 1, False), (0, 7, True))
            ]
            assert len(children()) == processes
        assert not children()
        return played

    here = play(0)
    for processes in (1, 3):
        for ours, theirs in zip(here, play(processes), strict=True):
            assert theirs.complete, theirs.message
            np.testing.assert_array_equal(ours.returns, theirs.returns)
            np.testing.assert_array_equal(ours.lengths, theirs.lengths)


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (simulator_examples.raise_at_4, "the simulator raised RuntimeError: physics diverged"),
        (simulator_examples.hang_at_4, "no answer from the simulator within 3 s"),
        (simulator_examples.exit_at_4, "the process of the simulators ended with exit code 3"),
    ],
)
def test_trouble_ends_the_evaluation_with_what_was_finished_and_the_processes(trouble, message):
    make = counter(trouble=trouble)
    found = evaluate(constant(1), (), "any", **COUNTED, make=make, processes=2, timeout=3.0)
    assert found.message == f"any: {message}; 2 of 4 episodes were finished"
    np.testing.assert_array_equal(found.returns, [3, 3, np.nan, np.nan])
    assert not children()


def test_the_users_error_is_raised_as_such():
    with pytest.raises(UsageError, match="no licence for any"):
        evaluate(constant(1), (), "any", **COUNTED, make=simulator_examples.refuse, processes=1)
    assert not children()


def test_what_cannot_be_imported_there_is_refused():
    make = counter(trouble=lambda step: None)
    with pytest.raises(UsageError, match=r"can be imported from a module .*; use processes=0"):
        evaluate(constant(1), (), "any", **COUNTED, make=make, processes=1)


def test_signals_are_the_parents_to_answer():
    def interrupt(count):
        for process in children():
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGTERM)

    with opened(constant(1), "any", make=counter(), processes=1) as evaluator:
        found = evaluator.evaluate((), seed=0, num_episodes=3, greedy=True, ended=interrupt)
    assert found.complete


PARENT = """if True:
    import os, signal, threading, time
    import simulator_examples as examples, test_channels

    def end():
        time.sleep(1)  # until the second episode hangs
        os.write(1, b"%d\\n" % test_channels.children()[0].pid)  # a line at once, or none
        os.kill(os.getpid(), signal.SIGKILL)

    def ended(count):
        threading.Thread(target=end).start()

    make = examples.counter(trouble=examples.hang_at_4)
    with test_channels.opened(examples.constant(1), "any", make=make, processes=1) as evaluator:
        evaluator.evaluate((), seed=0, num_episodes=101, greedy=True, ended=ended)
"""


def test_a_process_ends_with_its_parent_though_a_simulator_hangs():
    folder = pathlib.Path(__file__).parent
    support = pathlib.Path(simulator_examples.__file__).parent
    result = subprocess.run(
        [sys.executable, "-c", PARENT],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(support), str(folder), *sys.path])},
    )
    process = int(result.stdout.splitlines()[0])
    deadline = time.monotonic() + 30
    while psutil.pid_exists(process):
        assert time.monotonic() < deadline
        time.sleep(0.1)
