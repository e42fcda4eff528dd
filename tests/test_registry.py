"""Algorithms by name: the table, files of one's own, and installed packages."""

import importlib.metadata
import subprocess
import sys

import pytest

from offline_mbrl import outside, registry
from offline_mbrl.learners import bc
from offline_mbrl.types import Algorithm, UsageError

FILE = """
from dataclasses import dataclass
from typing import Annotated
from offline_mbrl.settings import at_least
from offline_mbrl.learners import bc
from offline_mbrl.types import Algorithm

@dataclass(frozen=True)
class Config:
    num_updates: Annotated[int, at_least(1)] = 10

def make(config, spec):
    return bc.make(bc.Config(num_updates=config.num_updates), spec)

def pretrain(config, spec):
    return {}

PRESETS = {"long": {"num_updates": 100}}
ENTRY = Algorithm(config=Config, make=make)
number = 3
"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def test_the_whole_table_is_loaded_by_name():
    assert set(registry.ALGORITHMS) == set(registry.ENTRIES)
    assert all(isinstance(algorithm, Algorithm) for algorithm in registry.ALGORITHMS.values())
    assert registry.lookup("bc") is registry.ALGORITHMS["bc"]


def test_every_algorithm_has_a_case_whose_settings_it_takes():
    for algorithm in registry.ALGORITHMS.values():
        assert algorithm.cases
        for case in algorithm.cases:
            algorithm.config(**{**case.config, **case.learning})


def test_looking_an_algorithm_up_loads_no_other():
    code = (
        "import sys; from offline_mbrl import registry; registry.lookup('bc'); "
        "print([name for name in sys.modules if name.startswith('offline_mbrl.algorithms')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_misspelled_name_is_refused_with_the_closest():
    with pytest.raises(UsageError, match="did you mean rosmo"):
        registry.lookup("rosmoo")
    with pytest.raises(UsageError, match=r"known: .*bc, .*skeleton"):
        registry.lookup("xyz")


def test_a_file_with_config_and_make_is_an_algorithm(path):
    algorithm = registry.lookup(f"{path}:make")
    assert algorithm.config().num_updates == 10
    assert algorithm.presets == {"long": {"num_updates": 100}}
    assert algorithm.pretrain(algorithm.config(), None) == {}
    assert registry.lookup(str(path)).config is algorithm.config  # loaded once
    assert registry.lookup(f"{path}:ENTRY").config is algorithm.config


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.py:make", "there is no file nowhere.py"),
        ("{path}:train", "has no 'train'; write FILE.py:NAME"),
        ("{path}:number", "is int: give an Algorithm, or a function"),
    ],
)
def test_a_name_that_is_not_an_algorithm_is_refused_in_words(name, message, path):
    with pytest.raises(UsageError, match=message):
        registry.lookup(name.format(path=path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("class Config:", "class Other:"), "its module has no 'Config'"),
        (("@dataclass(frozen=True)", ""), "its Config is not a dataclass"),
        (("num_updates: Annotated[int, at_least(1)] = 10", "steps: int = 10"), "no field num_upd"),
        (("number = 3", "raise RuntimeError('no luck')"), "does not load: RuntimeError: no luck"),
    ],
)
def test_a_file_that_is_not_an_algorithm_is_refused_in_words(change, message, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        FILE.replace("ENTRY = Algorithm(config=Config, make=make)", "").replace(*change)
    )
    with pytest.raises(UsageError, match=message):
        registry.lookup(f"{path}:make")


def test_names_of_files_have_a_short_form_and_hold_from_any_folder(monkeypatch, path):
    monkeypatch.chdir(path.parent)
    assert outside.label("mine.py:make") == "mine"
    assert outside.label("a/mine.py:ENTRY") == "mine-ENTRY"
    assert outside.absolute("mine.py") == f"{path.resolve()}:make"
    assert (outside.label("bc"), outside.absolute("bc")) == ("bc", "bc")


def test_an_installed_package_adds_an_algorithm_by_an_entry_point(monkeypatch):
    point = importlib.metadata.EntryPoint("cloning", "offline_mbrl.learners.bc:make", outside.GROUP)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point])
    assert registry.lookup("cloning").config is bc.Config
    with pytest.raises(UsageError, match="did you mean cloning"):
        registry.lookup("clonning")


def test_an_entry_point_that_does_not_load_is_refused_in_words(monkeypatch):
    point = importlib.metadata.EntryPoint("cloning", "offline_mbrl.nothing:make", outside.GROUP)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point])
    with pytest.raises(UsageError, match="does not load: ModuleNotFoundError"):
        registry.lookup("cloning")
