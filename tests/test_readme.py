"""The Python of the README and of the docs runs as it is printed."""

import re
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
