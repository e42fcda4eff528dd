"""What a program can hold of the house's style; `ruff` holds the rest."""

import ast
import collections
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for room in ("offline_mbrl", "experiments", "tests")
    for path in (ROOT / room).rglob("*.py")
)
CODE = [path for path in FILES if not path.startswith("tests/")]
MAX_FILE_LINES = 400
MAX_BODY_LINES = 60
WINDOW = 6  # lines
MOST_COPIED = 0.02
NAMELESS = {
    "one",
    "found",
    "told",
    "known",
    "seen",
    "wanted",
    "taken",
    "made",
    "what",
    "of",
    "said",
}
EXEMPTIONS = re.compile(r"# fmt: (skip|off)|noqa: (E501|E731)")


def source(path: str) -> str:
    return (ROOT / path).read_text()


def body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function's body without its docstring."""
    has_docstring = ast.get_docstring(node) is not None and len(node.body) > 1
    first = node.body[1] if has_docstring else node.body[0]
    return (node.end_lineno or 0) - first.lineno + 1


def functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def bound_names(tree: ast.AST) -> set[str]:
    """Variables, arguments and functions."""
    stored = {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    arguments = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    return stored | arguments | {node.name for node in functions(tree)}


@pytest.mark.parametrize("path", FILES)
def test_files_and_bodies_keep_their_ceilings_without_exemptions(path):
    text = source(path)
    assert text.count("\n") <= MAX_FILE_LINES
    long = [node.name for node in functions(ast.parse(text)) if body_lines(node) > MAX_BODY_LINES]
    assert long == []
    if path != "tests/test_style.py":
        assert not EXEMPTIONS.search(text)


@pytest.mark.parametrize("path", [path for path in CODE if path.startswith("offline_mbrl/")])
def test_things_have_names(path):
    assert bound_names(ast.parse(source(path))) & NAMELESS == set()


def code_lines(path: str) -> list[str]:
    """Lines without docstrings, imports, comments and blanks."""
    text = source(path)
    left_out: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        holds_docstring = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if holds_docstring and ast.get_docstring(node):
            docstring = node.body[0]
            left_out |= set(range(docstring.lineno, (docstring.end_lineno or 0) + 1))
        if isinstance(node, ast.Import | ast.ImportFrom):
            left_out |= set(range(node.lineno, (node.end_lineno or 0) + 1))
    return [
        line.strip()
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.strip().startswith("#") and number not in left_out
    ]


def copied_share(lines: dict[str, list[str]]) -> float:
    """Share of the lines that stand in a window of six which stands somewhere else too."""
    places = collections.defaultdict(list)
    for path, content in lines.items():
        for start in range(len(content) - WINDOW + 1):
            places[tuple(content[start : start + WINDOW])].append((path, start))
    copied = {
        (path, start + offset)
        for windows in places.values()
        if len(windows) > 1
        for path, start in windows
        for offset in range(WINDOW)
    }
    return len(copied) / sum(map(len, lines.values()))


def test_little_code_is_written_twice():
    assert copied_share({path: code_lines(path) for path in CODE}) < MOST_COPIED
    planted = [f"line {number}" for number in range(10)]
    assert copied_share({"a": planted, "b": ["other"] * 5 + planted}) == pytest.approx(20 / 25)


def test_nothing_that_is_ignored_or_generated_is_tracked():
    listed = subprocess.run(
        ["git", "ls-files", "-i", "-c", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert listed.stdout == ""
