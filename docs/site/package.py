"""What griffe is told of the package: examples, and functions that have the name of a file.

``scoreopt_defense.data.source`` is a function of ``data/__init__.py``, and a file beside it; who
imports the name is given the function, and griffe takes it for the file.
"""

from __future__ import annotations

import re
from typing import Any

import griffe


class Package(griffe.Extension):
    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:  # of which griffe knows the plural alone
            obj.docstring.value = re.sub(r"(?m)^Example:$", "Examples:", obj.docstring.value)

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **_: Any) -> None:
        for module in (pkg["data"], pkg["evaluation"]):
            for name in {str(name) for name in module.exports or ()} & set(module.modules):
                file = module.members[name]
                alone = griffe.visit(
                    module.name, module.filepath, module.filepath.read_text(), parent=module.parent,
                    extensions=loader.extensions, lines_collection=loader.lines_collection,
                ).members[name]  # fmt: skip
                function = file.members[name] if alone.is_alias else alone
                function.members.update(file.members)  # what is imported from the file
                module.members[name] = function
                if name in (pkg.exports or ()):
                    pkg.members[name] = griffe.Alias(name, function, parent=pkg)
