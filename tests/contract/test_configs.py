"""Configs of every registered algorithm: settings, presets, and what they refuse."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from contract_cases import CASES, KEY, config, problem, stages, start

from offline_mbrl import registry
from offline_mbrl.problems import toy
from offline_mbrl.training import fit
from offline_mbrl.training.stages import of_algorithm
from offline_mbrl.types import (
    Algorithm,
    BoundedActions,
    Case,
    DiscreteActions,
    Learner,
    UsageError,
)


@pytest.mark.parametrize("name", CASES)
def test_every_setting_is_read(name):
    """A setting that nothing reads is a silent no-op: a config that counts its reads proves it."""
    read, counted = counting(config(name))
    entry = of_algorithm(CASES[name][0], counted, problem(name).spec)
    for stage_name, stage in entry.items():
        case_of_stage = stages(name)[stage_name]
        learner = stage.learner
        fit.template(
            learner, case_of_stage.dataset, key=KEY, seeds=None, context=case_of_stage.context
        )
        _, dataset, context, state, cache, batch = start(name, stage_name)
        jax.eval_shape(learner.step, state, context, batch, KEY)
        jax.eval_shape(learner.refresh, state, context, dataset, cache, jnp.int32(0), KEY)
    READ.setdefault(name.split("/")[0], set()).update(read)
    names = [other for other in CASES if other.split("/")[0] == name.split("/")[0]]
    if name == names[-1]:  # what one kind of problem does not read another does
        unread = settings_of(counted, "") - READ[name.split("/")[0]]
        assert sorted(unread) == []


READ: dict[str, set[str]] = {}


def settings_of(config, prefix):
    names = set()
    for field in dataclasses.fields(config):
        value = object.__getattribute__(config, field.name)
        if dataclasses.is_dataclass(value):
            names |= settings_of(value, f"{prefix}{field.name}.")
        else:
            names.add(f"{prefix}{field.name}")
    return names


def counting(config, prefix="", read=None):
    """(names of the settings read so far, a config of the same class that notes its reads)."""
    read = set() if read is None else read
    kind = type(config)

    def note(self, name):
        if name in kind.__dataclass_fields__:
            read.add(f"{prefix}{name}")
        return object.__getattribute__(self, name)

    counted = type(
        kind.__name__, (kind,), {"__getattribute__": note, "__module__": kind.__module__}
    )
    fields = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            value = counting(value, f"{prefix}{field.name}.", read)[1]
        fields[field.name] = value
    made = counted(**fields)
    return read, made


@pytest.mark.parametrize(
    ("name", "preset"), [(n, p) for n, a in registry.ALGORITHMS.items() for p in a.presets]
)
def test_every_preset_makes_a_learner(name, preset):
    algorithm = registry.ALGORITHMS[name]
    config = algorithm.config(**algorithm.presets[preset])
    assert isinstance(algorithm.make(config, problem(name).spec), Learner)


def takes(algorithm: Algorithm, action: type) -> bool:
    return any(isinstance(case.problem().spec.action, action) for case in algorithm.cases)


@pytest.mark.parametrize("name", registry.ALGORITHMS)
def test_actions_of_a_kind_without_a_case_are_refused(name):
    algorithm = registry.ALGORITHMS[name]
    others = {
        DiscreteActions: toy.chain(0, num_episodes=2),
        BoundedActions: toy.bandit(0, num_steps=4),
    }
    for action, other in others.items():
        if not takes(algorithm, action):
            with pytest.raises(UsageError, match="actions"):
                algorithm.make(algorithm.config(), other.spec)


def test_an_unknown_algorithm_names_the_closest():
    with pytest.raises(UsageError, match="rosmo"):
        registry.lookup("rosmoo")


def test_a_case_is_a_record_of_the_registration():
    assert all(isinstance(case, Case) for _, case in CASES.values())
