"""Formulas as MathML, which browsers draw without a script; roles of docstrings as links."""

from __future__ import annotations

import re
import textwrap

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.preprocessors import Preprocessor

FENCE = re.compile(r"^\s*(```|~~~)")
ROLE = re.compile(r":(attr|class|data|func|meth|mod):`(~?)([^`]+)`")
LINKED = re.compile(r"scoreopt_defense\.")
FORMULA = re.compile(r":math:`([^`]+)`|(?<![\w$\\`])\$(?![\s$])([^$`]+?)(?<!\s)\$(?!\w)")
BLOCK = re.compile(
    r"^( *)\.\. math::[ ]*(?P<one>\S.*)?\n(?P<more>(?:\1[ ]+.*\n|[ ]*\n)*)"
    r"|^( *)\$\$(?P<dollars>(?s:.+?))\$\$",
    re.MULTILINE,
)


class Docstrings(Extension):
    """As Markdown's other extensions."""

    def extendMarkdown(self, md: Markdown) -> None:
        md.preprocessors.register(_Converted(md), "formulas and roles", 28)  # before fences


class _Converted(Preprocessor):
    def run(self, lines: list[str]) -> list[str]:
        parts: list[str] = []  # by turns outside and inside of fences
        inside = False
        for line in lines:
            opens = bool(FENCE.match(line))
            if not parts or (opens and not inside):
                parts.append("")
            parts[-1] += line + "\n"
            if opens and inside:
                parts.append("")
            inside ^= opens
        return "".join(
            part if FENCE.match(part) else _converted(part, self.md) for part in parts
        ).split("\n")[:-1]


def _converted(text: str, md: Markdown) -> str:
    def block(found: re.Match[str]) -> str:
        indent = found[1] or found[4] or ""
        tex = found["dollars"] or f"{found['one'] or ''} {found['more'] or ''}"
        return f"\n{indent}{_kept(tex, md, 'block')}\n\n"

    def inline(found: re.Match[str]) -> str:
        return _kept(found[1] or found[2], md, "inline")

    text = BLOCK.sub(block, text)
    text = ROLE.sub(_role, text)
    text = re.sub(r"\.\. code-block:: python\n", "\n", text)
    return FORMULA.sub(inline, text)


def _kept(tex: str, md: Markdown, display: str) -> str:
    """MathML that nothing else looks into."""
    tex = " ".join(textwrap.dedent(tex).split())
    if "&" in tex:  # equations below each other
        tex = rf"\begin{{split}}{tex}\end{{split}}"
    made = convert(tex, display=display)
    return md.htmlStash.store(f"<p>{made}</p>" if display == "block" else made)


def _role(found: re.Match[str]) -> str:
    """A link, where it says in full what it means."""
    kind, short, name = found.groups()
    said = name.rpartition(".")[2] if short else name
    return f"[`{said}`][{name}]" if LINKED.match(name) and kind != "mod" else f"`{said}`"
