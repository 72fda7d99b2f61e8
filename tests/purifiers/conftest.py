"""Authors' own code, which is run from clones and never copied."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def load(monkeypatch):
    """A module of the clone that a variable names; nothing of it stays loaded.

    ``bare`` are packages whose own imports are left out, as they need a GPU, TensorFlow or
    downloads; ``stubs`` stand for whole modules.
    """

    def loaded(variable: str, name: str, *bare: str, **stubs: object) -> ModuleType:
        if not os.environ.get(variable):
            pytest.skip(f"set {variable} to a clone")
        for package in bare:
            stubs[package] = ModuleType(package)
            stubs[package].__path__ = [str(Path(os.environ[variable], *package.split(".")))]
        before = set(sys.modules)
        for stub, module in stubs.items():
            monkeypatch.setitem(sys.modules, stub, module)
        monkeypatch.syspath_prepend(os.environ[variable])
        found = importlib.import_module(name)
        for other in set(sys.modules) - before - set(stubs):
            file = getattr(sys.modules[other], "__file__", None) or ""
            if file.startswith(os.environ[variable]):
                monkeypatch.delitem(sys.modules, other)
        return found

    return loaded
