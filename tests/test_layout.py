"""The package as a house: no import circle, no file that is two."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import scoreopt_defense

ROOT = Path(scoreopt_defense.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
LINES = 300


def name_of(path: Path) -> str:
    parts = [ROOT.name, *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def imported(body: list[ast.stmt]) -> Iterator[str]:
    """What a module imports when it is imported, and not later."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                yield inside if inside in MODULES else str(node.module)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from imported(node.orelse)
        elif isinstance(node, (ast.If, ast.Try)):
            yield from imported([*node.body, *node.orelse])


def test_imports_go_one_way() -> None:
    graph = {
        name: {other for other in imported(ast.parse(path.read_text()).body) if other in MODULES}
        for name, path in MODULES.items()
    }
    assert sum(map(len, graph.values())) > 3 * len(FILES) / 2  # they are found at all
    TopologicalSorter(graph).prepare()  # CycleError names a circle


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_one_idea(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LINES, "two ideas, or say at its head why not"
