"""`--config.dynamics KIND`: another kind of model is one flag."""

import pytest

from offline_mbrl import registry
from offline_mbrl.commands import train
from offline_mbrl.models import kinds
from offline_mbrl.types import UsageError


def dynamics(*arguments, algorithm="mopo"):
    """The config of the model that a command line gives."""
    argv = ["--dataset", "data", *arguments]
    return train.parse(algorithm, registry.lookup(algorithm), argv)[1].dynamics


@pytest.mark.parametrize("kind", kinds.KINDS)
@pytest.mark.parametrize("algorithm", ["mopo", "cbop"])
def test_a_kind_is_chosen_by_its_name(kind, algorithm):
    chosen = dynamics("--config.dynamics", kind, algorithm=algorithm)
    assert type(chosen) is kinds.KINDS[kind].config


def test_its_own_settings_follow_it():
    chosen = dynamics("--config.dynamics=autoregressive", "--config.dynamics.hidden-size", "32")
    assert chosen == kinds.KINDS["autoregressive"].config(hidden_size=32)


def test_without_it_settings_are_those_of_the_default_and_of_the_preset():
    layers = ("--config.dynamics.hidden-layers", "16", "16", "16", "16")
    default = dynamics(*layers)
    assert type(default) is kinds.KINDS["gaussian_ensemble"].config
    assert default.hidden_layers == (16, 16, 16, 16)
    preset = ("--preset", "kit_hopper_medium")
    kept = dynamics(*preset, "--config.dynamics", "gaussian_ensemble")
    assert kept == dynamics(*preset)
    assert type(dynamics(*preset, "--config.dynamics", "feedforward")) is not type(kept)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.dynamics", "ensemble"], "did you mean 'gaussian_ensemble'"),
        (["--config.dynamics"], "kinds: feedforward, autoregressive, "),
        (
            ["--config.dynamics", "feedforward", "--config.dynamics.hidden-size", "8"],
            "unknown option --config.dynamics.hidden-size; did you mean --config.dynamics.hidden-l",
        ),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        dynamics(*arguments)


def test_an_algorithm_without_a_model_has_none_to_choose():
    with pytest.raises(UsageError, match="bc has no model that --config"):
        dynamics("--config.dynamics", "feedforward", algorithm="bc")
