"""The README's Python runs as it is printed."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda code: code.splitlines()[1][:40])
def test_snippet_runs(snippet: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torchattacks")
    pytest.importorskip("art")
    exec(compile(snippet, str(README), "exec"), {})
    printed = capsys.readouterr().out
    if "robust:" in snippet:
        assert 0 <= float(printed.split("robust:")[1]) <= 1
