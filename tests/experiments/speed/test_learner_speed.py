"""Speeds of the policy learners: what is counted, what is compared, and the script itself."""

import importlib
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offline_mbrl import registry, settings
from offline_mbrl.types import Learner, UsageError

SPEED = Path(__file__).parents[3] / "experiments/speed"
TINY = {
    "layers": (8,),
    "discrete_layers": (8,),
    "batch_size": 4,
    "discrete_batch_size": 4,
    "transitions": 50,
    "rounds": 1,
    "seconds": 0.01,
}
ANSWERING = """
import json, sys
for line in sys.stdin:
    request = json.loads(line)
    seconds = {"fit": 2.0, "update": 1.0}[request["way"]] * request["count"]
    print(json.dumps({"seconds": seconds}), flush=True)
"""


@pytest.fixture(scope="module")
def scripts():
    """The modules of the folder, which import each other as scripts do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SPEED))
        before = set(sys.modules)
        yield importlib.import_module
        for name in set(sys.modules) - before:
            if str(SPEED) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]


def alternating(width, turns):
    """A learner that multiplies matrices in a loop at every second update."""

    def product(x):
        return jax.lax.fori_loop(0, turns, lambda _, x: x @ x, x)

    def step(state, context, batch, key):
        del context, batch, key
        number, x = state
        number = number + 1
        return (number, jax.lax.cond(number % 2 == 0, product, lambda x: x, x)), {}

    return Learner(
        sample=lambda dataset, cache, key: dataset,
        init=lambda key, batch, context: (jnp.zeros((), jnp.int32), jnp.eye(width)),
        step=step,
        policy=None,
        policy_params=lambda state, context: state,
    )


def test_flops_are_those_of_the_branch_taken_and_of_every_turn(scripts):
    stopwatch = scripts("stopwatch")
    width, turns = 32, 3
    flops = stopwatch.update_flops(alternating(width, turns), jnp.zeros(1))
    np.testing.assert_allclose(flops, turns * 2 * width**3 / 2, rtol=1e-2)


def test_the_fastest_of_runs_here_and_elsewhere(scripts):
    stopwatch = scripts("stopwatch")
    answers = iter([1.0, 8.0, 2.0, 4.0])
    seconds = stopwatch.in_turn([lambda count: next(answers)], 0.1, 3, summary=min)
    assert seconds == [2.0]


def test_every_policy_learner_is_measured(scripts):
    cases = scripts("learner_cases")
    learners = {
        name
        for name, make in registry.ENTRIES.items()
        if make.__module__.endswith((".policy_learners", ".discrete"))
    }
    assert {*cases.CONTINUOUS, *cases.DISCRETE} == learners


def test_learners_have_equal_sizes(scripts):
    cases = scripts("learner_cases")
    options = cases.Options(**TINY)
    for name in (*cases.CONTINUOUS, *cases.DISCRETE):
        data = cases.on_device(cases.measured(name, 50))
        algorithm = registry.lookup(name)
        config = cases.resized(algorithm, data.spec, cases.sizes_of(name, options))
        read = settings.in_use(config, data.spec)
        layers = {value for key, value in read.items() if key.endswith("layers")}
        assert {value for value in layers if type(value) is tuple} == {(8,)}
        assert read["batch_size"] == 4


def test_the_script_prints_each_learner(scripts, tmp_path, monkeypatch, capsys):
    script = tmp_path / "answering.py"
    script.write_text(ANSWERING)
    monkeypatch.setattr(scripts("peer"), "D3RLPY", script)
    monkeypatch.setattr(scripts("stopwatch"), "one_core", lambda core: 0)
    options = scripts("learner_cases").Options(
        learners="dqn", seed_learners="dqn", seeds=(2,), peer_python=Path(sys.executable), **TINY
    )
    scripts("learners").main(options)
    titles = [line for line in capsys.readouterr().out.splitlines() if "updates of" in line]
    assert len(titles) == 3


def test_an_interpreter_without_d3rlpy(scripts, tmp_path):
    peer = scripts("peer")
    with (
        pytest.raises(UsageError, match="no interpreter"),
        peer.start(tmp_path / "python", peer.D3RLPY, 0),
    ):
        pass
    with (
        pytest.raises(UsageError, match="does not run d3rlpy_peer"),
        peer.start(Path(sys.executable), peer.D3RLPY, 0) as ask,
    ):
        ask({"name": "dqn", "way": "fit", "count": 1})
