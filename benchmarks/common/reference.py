"""The command line and the configuration file as Markdown, from the code that reads them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from benchmarks.common.table_text import markdown
from scoreopt_defense.cli.app import app
from scoreopt_defense.evaluation.config import Config

__all__ = ["command_line", "configuration"]

_SECTIONS = {
    "Config": "Before the first section",
    "Images": "[images]",
    "Defence": "[defences.NAME]",
    "Attacked": "[attacks.NAME]",
    "SuiteSection": "[suites.NAME]",
    "Judged": "[judging]",
}


def command_line() -> str:
    """Each command: what it does, its arguments and options."""
    return "\n\n".join(
        part
        for name, command in get_command(app).commands.items()
        for part in _command(name, command)
    )


def _command(name: str, command: Any) -> Iterator[str]:
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    named = " ".join(_argument(param) for param in arguments)
    yield f"## scoreopt {name}"
    yield f"```text\nscoreopt {name} {named}{' ' * bool(named)}[OPTIONS]\n```"
    yield re.sub(r"\\b|\f", "", inspect.cleandoc(command.help or ""))
    rows = [
        [_argument(param) if param in arguments else _option(param),
         " ".join((getattr(param, "help", "") or "").split()).replace("|", "\\|"), _default(param)]
        for param in command.params
        if "--help" not in param.opts and not getattr(param, "hidden", False)
    ]  # fmt: skip
    if rows:
        yield markdown(["", "what it says", "default"], rows)
    if command.epilog:
        yield re.sub(r"Such as: (.*)", r"```console\n$ \1\n```", command.epilog)


def _argument(param: Any) -> str:
    name = (param.metavar or param.name).upper()
    return name + "..." * (param.nargs == -1)


def _option(param: Any) -> str:
    return ", ".join(f"`{name}`" for name in [*param.opts, *param.secondary_opts])


def _default(param: Any) -> str:
    default = param.default
    if default is None or default is False or default == () or "Sentinel" in type(default).__name__:
        return ""
    return f"`{param.opts[0]}`" if default is True else f"`{default}`"


def configuration() -> str:
    """Each section's keys: type, default, meaning."""
    schema = Config.model_json_schema()
    models = {"Config": schema} | schema["$defs"]
    return "\n\n".join(
        part
        for name, said in _SECTIONS.items()
        for part in (f"## {said}", _keys(models[name], models))
    )


def _keys(model: dict[str, Any], models: dict[str, Any]) -> str:
    sections = {f"#/$defs/{name}" for name in models}
    rows = []
    for key, about in model["properties"].items():
        inner = about.get("additionalProperties")
        if "$ref" in about or (isinstance(inner, dict) and inner.get("$ref") in sections):
            continue  # has a heading of its own
        default = about.get("default")
        said = "" if default in (None, {}) else f"`{_toml(default)}`"
        if key in model.get("required", ()):
            said = "must be said"
        meaning = re.sub(
            r":\w+:`~?([^`]+)`", r"`\1`", " ".join(about.get("description", "").split())
        )
        rows.append([f"`{key}`", _type(about), said, meaning.replace("``", "`")])
    return markdown(["key", "type", "default", "meaning"], rows)


def _type(about: dict[str, Any]) -> str:
    if "anyOf" in about:
        return " or ".join(_type(part) for part in about["anyOf"] if part.get("type") != "null")
    if "enum" in about:
        return ", ".join(f"`{_toml(value)}`" for value in about["enum"])
    words = {
        "integer": "whole number",
        "array": "list",
        "object": "table",
        "boolean": "true or false",
    }
    said = words.get(about.get("type", ""), about.get("type", "").replace("string", "text"))
    low = about.get("minimum", about.get("exclusiveMinimum"))
    if low is None:
        return said
    return f"{said}, {'from' if 'minimum' in about else 'above'} {low:g}"


def _toml(value: Any) -> str:
    return (
        str(value).lower()
        if isinstance(value, bool)
        else f'"{value}"'
        if isinstance(value, str)
        else str(value)
    )
