"""Imports go downwards only: the table of who may import whom, checked on the syntax trees."""

import ast
from pathlib import Path

import pytest

import offline_mbrl

PACKAGE = Path(offline_mbrl.__file__).parent
SEEN = {  # what learners see of `data`
    f"data.{name}"
    for name in (
        "memory",
        "monte_carlo",
        "steps",
        "splits",
        "normalize",
        "trees",
        "ring",
        "specs",
        "reverse",
    )
}
GROUND = {"types", "streams", "files", "provenance"}
MODELS = {"types", "settings", "networks", "targets"} | SEEN
OPE = MODELS | {"policies", "rollouts", "models"}
ALGORITHMS = MODELS | {"policies", "environments", "rollouts", "planning", "models", "learners"}
REGISTRY = {
    "types",
    "outside",
    "problems",
    "networks",
    "models",
    "rollouts",
    "learners",
    "algorithms",
}
EXPORT = {"types", "config_json", "policies", "files", "registry", "data"}
SELECTION = (
    ALGORITHMS
    | OPE
    | GROUND
    | {"data", "problems", "ope", "algorithms", "training", "registry", "export"}
)
ALLOWED = {
    "types": set(),
    "streams": {"types"},
    "settings": {"types"},
    "config_json": {"types"},
    "outside": {"types"},
    "files": set(),
    "provenance": set(),
    "policies": {"types"},
    "targets": {"types"},
    "networks": {"types", "settings"},
    "environments": {"types"},
    "rollouts": {"types", "policies", "settings", "models.diffusion"} | SEEN,
    "data": GROUND,
    "planning": {"types", "settings", "targets", "rollouts"},
    "models": MODELS,
    "learners": MODELS,
    "problems": {"types", "policies", "data", "models", "targets"},
    "ope": OPE,
    "algorithms": ALGORITHMS,
    "evaluation": {"types", "policies", "environments"},
    "training": GROUND | {"settings"},
    "registry": REGISTRY,
    "export": EXPORT,
    "selection": SELECTION - {"environments"},
    "runs": SELECTION | {"settings", "config_json", "environments", "evaluation", "selection"},
}
TOP = {"collect", "commands", "cli", "__init__"}  # may import everything
HEAVY = {  # library -> the files that may import it, inside functions alone
    "tensorflow": {"data/sources/"},
    "tensorflow_datasets": {"data/sources/"},
    "rlds": {"data/sources/"},
    "minari": {"data/sources/minari.py"},
    "distrax": {"networks/distributions.py"},
    **{
        name: {"environments/"}
        for name in ("bsuite", "dm_control", "gymnasium", "ale_py", "mujoco")
    },
    "ogbench": {"environments/", "data/sources/ogbench.py"},
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
        name.removeprefix("offline_mbrl.")
        for name in imports(ast.parse(source))
        if name.startswith("offline_mbrl.")
    ]
    own = {room} if (PACKAGE / room).is_dir() else set()
    return [
        name
        for name in ours
        if not any(f"{name}.".startswith(f"{room}.") for room in ALLOWED[room] | own)
    ]


def heavy(path: str, source: str) -> list[str]:
    """Imports of heavy libraries in the wrong file, or anywhere at module level."""
    tree = ast.parse(source)
    outside = [node for node in tree.body if not isinstance(node, ast.FunctionDef)]
    top = set(imports(ast.Module(outside, [])))
    wrong = []
    for name in imports(tree):
        library = name.split(".")[0]
        if library in HEAVY and (
            name in top or not any(path.startswith(place) for place in HEAVY[library])
        ):
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
    assert violations("models", "from offline_mbrl.data.catalog import load") == [
        "data.catalog.load"
    ]
    assert violations("models", "from offline_mbrl.data import memory") == []
    assert heavy("data/store/read.py", "def f():\n  import tensorflow as tf") == ["tensorflow"]
    assert heavy("data/sources/tfds.py", "import tensorflow as tf") == ["tensorflow"]
    assert heavy("data/sources/tfds.py", "def f():\n  import tensorflow as tf") == []


def modules_of(names: list[str], modules: set[str]) -> set[str]:
    """The longest prefix of each imported name that is a module of ours."""
    matches = set()
    for name in names:
        parts = name.split(".")
        prefixes = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
        matches |= set([prefix for prefix in prefixes if prefix in modules][:1])
    return matches


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The modules that are left when those without imports are taken away again and again."""
    left = {name: set(imported) for name, imported in graph.items()}
    while free := [name for name, imported in left.items() if not imported & left.keys()]:
        for name in free:
            del left[name]
    return sorted(left)


def test_imports_have_no_circle():
    names = {path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in FILES}
    modules = {f"offline_mbrl.{name}" for name in names if name != "__init__"}
    graph = {}
    for path in FILES:
        name = (
            f"offline_mbrl.{path.removesuffix('.py').removesuffix('/__init__').replace('/', '.')}"
        )
        if name in modules:
            tree = ast.parse((PACKAGE / path).read_text())
            graph[name] = modules_of(imports(tree), modules) - {name}
    assert circle(graph) == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["a", "b", "c"]


def test_no_folder_holds_more_than_14_files():
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    crowded = [
        folder.name
        for folder in folders
        if sum(1 for path in folder.iterdir() if path.is_file()) > 14
    ]
    assert crowded == []
