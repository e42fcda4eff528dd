"""Imports go downwards only: the table of who may import whom, checked on the syntax trees."""

import ast
from pathlib import Path

import pytest

import offline_mbrl

PACKAGE = Path(offline_mbrl.__file__).parent
BASE = {"types", "data.memory", "data.steps"}  # nouns, and the dataset that learners sample from
DATA = {"types", "files", "data"}
MODELS = BASE | {"networks", "targets"}
ALGORITHMS = MODELS | {"rollouts", "planning", "models", "learners"}
ALLOWED = {
    "types": set(), "data": DATA, "environments": {"types"}, "targets": {"types"}, "networks": {"types"},
    "evaluation": {"types", "environments", "evaluation"}, "rollouts": {"types"},
    "planning": {"types", "targets", "rollouts", "planning"}, "models": MODELS | {"models"},
    "learners": MODELS | {"learners"}, "ope": MODELS | {"rollouts", "ope"},
    "algorithms": ALGORITHMS, "sharding": {"types"}, "blocks": {"types"}, "feeding": {"types", "sharding"},
    "fit": {"types", "sharding", "blocks", "feeding"},
    "files": set(), "manifest": {"types"}, "checkpoint": {"types", "files", "manifest"}, "compilation": {"types"},
    "registry": {"types", "learners", "algorithms"}, "export": {"types", "files", "registry", "data"},
}  # fmt: skip
TOP = {"collect", "commands", "cli", "__init__"}  # may import everything
HEAVY = {  # library -> the files that may import it, inside functions alone
    "tensorflow": {"data/ingest_tfds.py", "data/writer.py", "data/ingest.py", "data/ingest_files.py"},
    "tensorflow_datasets": {"data/ingest_tfds.py", "data/writer.py", "data/ingest.py"},
    "rlds": {"data/ingest_tfds.py", "data/writer.py", "data/ingest.py"},
    "minari": {"data/ingest_files.py"},
    "distrax": {"networks/distributions.py"},
    **{name: {"environments/"} for name in ("bsuite", "dm_control", "gymnasium", "ale_py", "mujoco")},
}


def imports(tree: ast.AST) -> list[str]:
    """Dotted names of all imported modules, with the names imported from a package."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def violations(room: str, source: str) -> list[str]:
    """Imports of ours that this room may not have."""
    if room in TOP:
        return []
    ours = [
        name.removeprefix("offline_mbrl.") for name in imports(ast.parse(source)) if name.startswith("offline_mbrl.")
    ]
    own = {room} if (PACKAGE / room).is_dir() else set()
    return [name for name in ours if not any(f"{name}.".startswith(f"{room}.") for room in ALLOWED[room] | own)]


def heavy(path: str, source: str) -> list[str]:
    """Imports of heavy libraries in the wrong file, or anywhere at module level."""
    tree = ast.parse(source)
    outside = [node for node in tree.body if not isinstance(node, ast.FunctionDef)]
    top = set(imports(ast.Module(outside, [])))
    wrong = []
    for name in imports(tree):
        library = name.split(".")[0]
        if library in HEAVY and (name in top or not any(path.startswith(place) for place in HEAVY[library])):
            wrong.append(name)
    return wrong


FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES)
def test_imports_go_downwards(path):
    room = path.split("/")[0].removesuffix(".py")
    assert violations(room, (PACKAGE / path).read_text()) == []


@pytest.mark.parametrize("path", FILES)
def test_heavy_libraries_are_imported_in_their_place_inside_functions(path):
    assert heavy(path, (PACKAGE / path).read_text()) == []


def test_a_planted_upward_import_is_found_and_an_allowed_one_passes():
    assert violations("learners", "from offline_mbrl.models import muzero") == ["models.muzero"]
    assert violations("learners", "def f():\n  from offline_mbrl import models") == ["models"]
    assert violations("learners", "from offline_mbrl.networks import torsos") == []
    assert violations("models", "from offline_mbrl.data import catalog") == ["data.catalog"]
    assert violations("models", "from offline_mbrl.data import memory") == []
    assert heavy("data/store.py", "def f():\n  import tensorflow as tf") == ["tensorflow"]
    assert heavy("data/ingest_tfds.py", "import tensorflow as tf") == ["tensorflow"]
    assert heavy("data/ingest_tfds.py", "def f():\n  import tensorflow as tf") == []
