"""What the site has beyond the pages of docs/: the API, notebooks, and files that pages link to.

The API is read from the source: a page a module of the package, in which each name that is exported
has a docstring, or the build fails.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

import griffe
import jupytext
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.append(str(Path(__file__).parent))
import docstrings

ROOT = Path(__file__).parents[2]
PACKAGE = "scoreopt_defense"
EXTENSION = str(Path(__file__).parent / "package.py")
API = "reference/api"
LINK = re.compile(r"(\]\()(?!https?:|mailto:|#)([^)\s#]+)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    config.markdown_extensions.append(docstrings.Docstrings())
    nav = config.nav
    _section(nav, "Reference")[-1]["API"] = [
        {page.removesuffix(".md"): f"{API}/{page}"} for page in _api()
    ]
    named = str(nav)
    _section(nav, "How to").extend(  # what no menu names is a task
        page.name for page in sorted(ROOT.glob("docs/*.md")) if f"'{page.name}'" not in named
    )
    return config


def _section(nav: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return next(section[name] for section in nav if name in section)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for page, text in _api().items():
        files.append(File.generated(config, f"{API}/{page}", content=text))
    for source in sorted(ROOT.glob("docs/notebooks/*.py")):
        text = jupytext.writes(jupytext.read(source, fmt="py:percent"), fmt="md")
        text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)  # jupytext's own settings
        files.append(File.generated(config, f"notebooks/{source.stem}.md", content=text))
    waiting = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    waiting += ["CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]
    seen: set[str] = set()
    while waiting:  # pages of the repository link to more of its files
        path = waiting.pop()
        if path in seen or not (ROOT / path).is_file():
            continue
        seen.add(path)
        if not path.startswith(("docs/", f"{PACKAGE}/")):
            made = File.generated(config, f"repository/{path}", abs_src_path=str(ROOT / path))
            files.append(made)
        if path.endswith(".md"):
            links = LINK.findall((ROOT / path).read_text())
            waiting += [_joined(path, target) for _, target in links]
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Links to files outside of docs/ lead to their copies in the site."""
    here = page.file.src_uri
    path = here.removeprefix("repository/") if here.startswith("repository/") else f"docs/{here}"

    def moved(link: re.Match[str]) -> str:
        target = _joined(path, link[2])
        if not (ROOT / target).is_file():
            return link[0]
        return link[1] + posixpath.relpath(_place(target), posixpath.dirname(here) or ".")

    return LINK.sub(moved, markdown)


def _place(path: str) -> str:
    """Where a file of the repository is in the site."""
    if path.startswith(f"{PACKAGE}/"):  # a module: its page of the API
        _, inner, *_ = path.removesuffix(".py").split("/")
        return f"{API}/{PACKAGE if inner == '__init__' else inner}.md"
    if path.startswith("docs/notebooks/"):
        return f"notebooks/{Path(path).stem}.md"
    return path[5:] if path.startswith("docs/") else f"repository/{path}"


def _joined(page: str, target: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), target))


def _api() -> dict[str, str]:
    """The text of each page, by its name: a page for each module or folder of the package."""
    if not _PAGES:
        extensions = griffe.load_extensions("griffe_sphinx", EXTENSION)
        package = griffe.load(PACKAGE, search_paths=[ROOT], extensions=extensions)
        undocumented = []
        _PAGES[f"{PACKAGE}.md"] = _shown(package, set(), undocumented)
        for name, module in sorted(_public(package).items()):
            shown: set[str] = set()
            parts = [_shown(part, shown, undocumented) for part in _with_inner(module)]
            if any(parts):
                _PAGES[f"{name}.md"] = "\n\n".join(filter(None, parts))
        if undocumented:
            raise PluginError(f"public names without a docstring: {', '.join(undocumented)}")
    return _PAGES


_PAGES: dict[str, str] = {}


def _public(module: griffe.Module) -> dict[str, griffe.Module]:
    return {
        name: inner
        for name, inner in module.modules.items()
        if not name.startswith("_") and not inner.is_alias
    }


def _with_inner(module: griffe.Module) -> list[griffe.Module]:
    inner = [part for _, child in sorted(_public(module).items()) for part in _with_inner(child)]
    return [module, *inner]


def _shown(module: griffe.Module, shown: set[str], undocumented: list[str]) -> str:
    """The part of a page that is a module's, without what stands above it already."""
    exported = [str(name) for name in module.exports or ()]
    names = []
    for name in exported:
        if name not in module.all_members:
            undocumented.append(f"{module.path}.{name}, which is not there")
            continue
        member = module[name]
        target = member.final_target if member.is_alias else member
        if target.is_module or target.path in shown:
            continue
        shown.add(target.path)
        names.append(name)
        if not target.has_docstring:
            undocumented.append(target.path)
    if not names:
        return ""
    members = "".join(f"\n        - {name}" for name in names)
    return f"::: {module.path}\n    options:\n      members:{members}"
