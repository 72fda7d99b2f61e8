from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings
from toys import bent, gaussian, labels, mid_images, smooth_classifier

settings.register_profile("suite", max_examples=25, deadline=None, derandomize=True)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def _same_random_state_for_every_test() -> Iterator[None]:
    torch.manual_seed(0)
    return


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
