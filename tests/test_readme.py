"""The Python of the README, of the docs and of their notebooks runs as it is printed."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SNIPPETS = [
    pytest.param(snippet, id=f"{page.relative_to(ROOT)}-{i}")
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    for i, snippet in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippet_runs(snippet: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torchattacks")
    pytest.importorskip("art")
    if "import foolbox" in snippet:
        pytest.importorskip("foolbox")
    exec(compile(snippet, "snippet", "exec"), {})
    printed = capsys.readouterr().out
    if "robust:" in snippet:
        assert 0 <= float(printed.split("robust:")[1]) <= 1


NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.py"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(notebook: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the program that it is: its cells in their order, in one process."""
    pytest.importorskip("torchattacks")
    pytest.importorskip("matplotlib").use("agg")
    runpy.run_path(str(notebook))


def test_a_notebook_is_one() -> None:
    jupytext = pytest.importorskip("jupytext")
    for path in NOTEBOOKS:
        kinds = {cell.cell_type for cell in jupytext.read(path, fmt="py:percent").cells}
        assert kinds == {"code", "markdown"}, path
