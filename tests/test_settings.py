"""Bounds beside the field, and settings that a problem does not read."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import pytest
import tyro

from offline_mbrl import settings
from offline_mbrl.settings import above, at_least, between, increasing, read_if, sizes
from offline_mbrl.types import BoundedActions, DiscreteActions, EnvironmentSpec, UsageError

OBSERVATION = jax.ShapeDtypeStruct((2,), jnp.float32)
DISCRETE = EnvironmentSpec(observation=OBSERVATION, action=DiscreteActions(2))
CONTINUOUS = EnvironmentSpec(observation=OBSERVATION, action=BoundedActions((-1.0,), (1.0,)))


def has_mixture(scope: settings.Scope) -> bool:
    return scope.config.head == "mixture"


def is_discrete(scope: settings.Scope) -> bool:
    return isinstance(scope.spec.action, DiscreteActions)


@dataclass(frozen=True)
class Head:
    head: Literal["normal", "mixture"] = "normal"
    num_components: Annotated[int, at_least(1), read_if(has_mixture, "a mixture")] = 5
    bounds: Annotated[tuple[float, float], increasing()] = (-5.0, 2.0)


@dataclass(frozen=True)
class Config:
    num_updates: Annotated[int, at_least(1)]
    gamma: Annotated[float, between(0, 1)] = 0.99
    rate: Annotated[float, above(0)] = 1e-3
    temperature: Annotated[float | None, at_least(0)] = None
    layers: Annotated[tuple[int, ...], sizes()] = (8,)
    logits: Annotated[Head, read_if(is_discrete, "discrete actions")] = field(default_factory=Head)
    normal: Head = field(default_factory=lambda: Head(num_components=3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_updates": 0}, "num_updates must be at least 1, got 0"),
        ({"num_updates": 2.5}, "num_updates must be a whole number, got 2.5"),
        ({"num_updates": True}, "num_updates must be a whole number, got True"),
        ({"gamma": 1.5}, "gamma must be at most 1, got 1.5"),
        ({"gamma": -0.5}, "gamma must be at least 0, got -0.5"),
        ({"gamma": math.nan}, "gamma must be a finite number, got nan"),
        ({"gamma": "0.9"}, "gamma must be a finite number, got 0.9"),
        ({"gamma": None}, "gamma must be a finite number, got None"),
        ({"rate": 0}, "rate must be above 0, got 0"),
        ({"temperature": -1.0}, "temperature must be at least 0, got -1.0"),
        ({"layers": ()}, "layers must be one or more sizes of at least 1, got none"),
        ({"layers": (4, 0)}, "layers must be one or more sizes of at least 1, got 4 0"),
        ({"normal": Head(bounds=(2.0, 2.0))}, "normal.bounds must be increasing, got 2.0 2.0"),
        ({"normal": Head(head="x")}, "normal.head must be one of normal, mixture, got x"),
    ],
)
def test_a_setting_out_of_bounds_is_named_with_both_numbers(changes, message):
    with pytest.raises(UsageError) as refused:
        settings.require_valid(Config(**{"num_updates": 1, **changes}), "bc")
    assert str(refused.value) == f"bc: {message}"


def test_a_command_names_the_flag():
    with pytest.raises(
        UsageError, match=r"--config\.normal.num-components must be at least 1, got 0"
    ):
        settings.require_bounds(Config(1, normal=Head(num_components=0)), settings.config_flag)


def test_a_name_that_is_not_in_the_table_is_refused_with_the_list():
    @dataclass(frozen=True)
    class Named:
        operator: Annotated[str, settings.one_of({"one_step": 1, "gumbel": 2})] = "one_step"

    with pytest.raises(UsageError, match="operator must be one of one_step, gumbel, got mcts"):
        settings.require_valid(Named("mcts"), "search")


def test_settings_within_bounds_pass():
    settings.require_valid(Config(1, gamma=1, temperature=0.0), "bc", DISCRETE)
    settings.require_valid(Config(jnp.int32(3).item()), "bc", CONTINUOUS)


def test_a_setting_that_is_not_read_must_keep_its_default():
    with pytest.raises(UsageError, match=r"normal.num_components is 7, but .* a mixture: .* at 3"):
        settings.require_valid(Config(1, normal=Head(num_components=7)), "bc", DISCRETE)
    settings.require_valid(Config(1, normal=Head("mixture", num_components=7)), "bc", DISCRETE)


def test_all_settings_of_a_config_that_is_not_read_must_keep_their_defaults():
    changed = Config(1, logits=Head(bounds=(0.0, 1.0)))
    settings.require_valid(changed, "bc", DISCRETE)
    with pytest.raises(UsageError, match=r"logits\.bounds is .* only with discrete actions"):
        settings.require_valid(changed, "bc", CONTINUOUS)


def test_a_config_that_was_built_from_its_class_passes_whatever_the_outer_default():
    settings.require_valid(Config(1, normal=Head()), "bc", DISCRETE)


def test_settings_in_use_are_those_that_are_read():
    assert settings.in_use(Config(1), CONTINUOUS) == {
        "num_updates": 1,
        "gamma": 0.99,
        "rate": 1e-3,
        "temperature": None,
        "layers": (8,),
        "normal.head": "normal",
        "normal.bounds": (-5.0, 2.0),
    }


def test_command_lines_read_bounded_fields():
    parsed = tyro.cli(Config, args=["--num-updates", "4", "--gamma", "0.5", "--layers", "3", "4"])
    assert parsed == dataclasses.replace(Config(4), gamma=0.5, layers=(3, 4))
