"""README and docs: links resolve, commands and names exist, and Python blocks compile or run."""

import ast
import importlib
import importlib.util
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from offline_mbrl import cli, registry
from offline_mbrl.data.catalog import names, official

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [
    README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
BLOCK = re.compile(r"(<!-- runnable -->\n)?```(\w+)\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
QUOTED = re.compile(r"`[^`\n]*`")
FEWER_UPDATES = re.compile(r"num_updates=[\d_]+"), "num_updates=20"  # enough to run every line
FEWER_EPISODES = re.compile(r"num_episodes=[\d_]+"), "num_episodes=1"
MADE_LATER = ("my_policy", "mydata.hdf5", "path/to/")  # what a reader has or makes


def blocks(page: Path, language: str) -> list[tuple[bool, str]]:
    """(is runnable, code) of all blocks of a language."""
    return [
        (bool(mark), code)
        for mark, name, code in BLOCK.findall(page.read_text())
        if name == language
    ]


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return BLOCK.sub("", page.read_text())


def commands() -> list[list[str]]:
    """All lines of shell blocks as words, continued lines joined and comments removed."""
    lines = []
    for page in PAGES:
        for _, code in blocks(page, "sh"):
            joined = code.replace("\\\n", " ").splitlines()
            lines += [shlex.split(line, comments=True) for line in joined]
    return [words for words in lines if words]


def pages_with_code() -> list[Path]:
    return [page for page in PAGES if any(mark for mark, _ in blocks(page, "python"))]


def id_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# --- pages ---


def test_readme_is_under_150_lines():
    assert len(README.read_text().splitlines()) < 150


@pytest.mark.parametrize("page", PAGES, ids=id_of)
def test_relative_links_resolve(page):
    targets = [target for target in LINK.findall(prose(page)) if not re.match(r"\w+:|#", target)]
    missing = [target for target in targets if not (page.parent / target.split("#")[0]).exists()]
    assert not missing


def test_every_page_of_docs_is_linked_from_the_readme():
    linked = set(LINK.findall(README.read_text()))
    pages = {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} - {"docs/README.md"}
    assert pages <= linked


@pytest.mark.parametrize("page", PAGES, ids=id_of)
def test_files_and_folders_in_quotes_exist(page):
    roots = "|".join(("offline_mbrl", "experiments", "tests", "notebooks", "docs"))
    paths = [
        quoted.strip("`")
        for quoted in QUOTED.findall(prose(page))
        if re.fullmatch(rf"`({roots})/[\w/.]*`", quoted)
    ]
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_every_room_of_the_package_is_in_the_table_of_rooms():
    table = (ROOT / "docs/architecture.md").read_text()
    rooms = [path for path in (ROOT / "offline_mbrl").iterdir() if not path.name.startswith("_")]
    names = [f"`{path.name}/`" for path in rooms if (path / "__init__.py").exists()]
    names += [f"`{path.name}`" for path in rooms if path.suffix == ".py"]
    assert not [name for name in names if name not in table]


# --- commands ---


def test_commands_exist():
    named = {words[1] for words in commands() if words[0] == "offline-mbrl"}
    assert named
    assert named <= {*cli.COMMANDS, "--version"}


def test_algorithms_in_commands_are_registered():
    trained = {words[2] for words in commands() if words[:2] == ["offline-mbrl", "train"]}
    ours = {name for name in trained if not name.startswith(MADE_LATER)}
    assert ours
    assert ours <= set(registry.ALGORITHMS)


def test_scripts_and_constraints_in_commands_exist():
    paths = {
        word
        for words in commands()
        for word in words
        if re.fullmatch(r"[\w./-]+\.(py|txt)", word) and not word.startswith(MADE_LATER)
    }
    assert paths
    assert not [path for path in sorted(paths) if not (ROOT / path).exists()]


def test_make_targets_exist():
    rules = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {words[1] for words in commands() if words[0] == "make"} <= set(rules)


def test_make_train_compares_cloning_with_an_algorithm_on_data_that_exist():
    listed = dict(re.findall(r"^([A-Z]+) := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE))
    algorithms = listed["ALGORITHMS"].split()
    assert "bc" in algorithms
    assert len(set(algorithms) & set(registry.ENTRIES)) >= 2
    entries = [names.lookup(f"local/{data}") for data in listed["DATA"].split()]
    behaviors = {official.local(entry.location).behavior for entry in entries}
    assert len(entries) == len(behaviors) == 2
    assert {entry.simulator for entry in entries} == {"bsuite/catch"}


def test_extras_in_commands_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {
        extra
        for words in commands()
        for word in words
        for group in re.findall(r"^\.\[([\w,]+)\]$", word)
        for extra in group.split(",")
    }
    assert extras
    assert extras <= set(project["optional-dependencies"])


# --- the table of algorithms ---


@pytest.mark.parametrize("page", [README, ROOT / "docs/algorithms.md"], ids=id_of)
def test_the_registered_algorithms_are_those_in_the_table(page):
    rows = re.findall(r"^\| (`[^|]*`) \|.*(?:discrete|continuous)", page.read_text(), re.MULTILINE)
    names = [name.strip("` ") for row in rows for name in row.split(",")]
    assert sorted(names) == sorted(registry.ALGORITHMS)


# --- Python ---


@pytest.mark.parametrize("page", PAGES, ids=id_of)
def test_python_blocks_compile_and_their_names_exist(page):
    for _, code in blocks(page, "python"):
        for node in ast.walk(ast.parse(code)):
            for module, name in imported(node):
                home = importlib.import_module(module)
                assert hasattr(home, name) or importlib.util.find_spec(f"{module}.{name}"), name


def imported(node: ast.AST) -> list[tuple[str, str]]:
    """(module, name) of everything of this package that a statement or expression names."""
    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("offline_mbrl"):
        return [(node.module or "", alias.name) for alias in node.names]
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return [("offline_mbrl", node.attr)] if node.value.id == "offline_mbrl" else []
    return []


@pytest.mark.filterwarnings("ignore")  # of simulators
@pytest.mark.parametrize("page", pages_with_code(), ids=id_of)
def test_it_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": page.stem}
    for mark, code in blocks(page, "python"):
        if mark:
            for pattern, fewer in (FEWER_UPDATES, FEWER_EPISODES):
                code = pattern.sub(fewer, code)
            exec(compile(code, id_of(page), "exec"), namespace)
