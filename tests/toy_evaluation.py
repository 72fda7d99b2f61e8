"""Defences, attacks and runs that workers can import, shared by the tests of the evaluation."""

from __future__ import annotations

import dataclasses
import os
import signal
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from toys import bent, labels, smooth_classifier

from scoreopt_defense import DefendedModel, OneShot, ScoreOpt
from scoreopt_defense.evaluation import Judging, Result, Store, Unit, evaluate
from scoreopt_defense.evaluation.record import store as storing
from scoreopt_defense.evaluation.record.rows import UnitResult

EPS = 0.1
#: Of the adaptive suite, for tests of a few images.
SMALL = {"eps": 0.1, "steps": 4, "queries": 20, "probed": 4}


@dataclass(frozen=True)
class Toy:
    norm: str = "linf"
    eps: float = EPS

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Ascent(Toy):
    """Signed gradient steps from a random start, on any module."""

    steps: int = 2
    pause: float = 0.0

    def run(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        time.sleep(self.pause)
        start = x + self.eps * (2 * torch.rand_like(x) - 1)
        attacked = start.clamp(0, 1)
        for _ in range(self.steps):
            leaf = attacked.detach().requires_grad_()
            loss = nn.functional.cross_entropy(model(leaf), y)
            step = self.eps / 2 * torch.autograd.grad(loss, leaf)[0].sign()
            attacked = (x + (leaf.detach() + step - x).clamp(-self.eps, self.eps)).clamp(0, 1)
        return attacked


@dataclass(frozen=True)
class Failing(Toy):
    """Fails on the batch that has an image of label 3, in the way that is asked for."""

    how: str = "raise"

    def run(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if not (y == 3).any():
            return x
        if self.how == "raise":
            raise KeyError("no such thing")
        if self.how == "nan":
            return x * float("nan")
        if self.how == "far":
            return (x + 3 * self.eps).clamp(0, 1)
        if self.how == "shape":
            return x[:, :1]
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


@dataclass(frozen=True)
class Greedy(Toy):
    """Fits into memory with ``most`` images."""

    most: int = 2
    error: str = "cuda"

    def run(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if len(x) > self.most:
            if self.error == "cuda":
                raise torch.OutOfMemoryError("CUDA out of memory")
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 1e9 bytes")
        return x


class Noisy(nn.Module):
    """A randomised module that is none of this library's: torch's global generator drives it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = smooth_classifier(torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + 0.3 * torch.randn_like(x))


class Unreadable(Noisy):
    """Cannot be loaded, however large it is."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("ballast", torch.zeros(10**6))

    def __setstate__(self, state: dict[str, Any]) -> None:
        raise RuntimeError("unreadable")


def images(count: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.rand(count, 3, 8, 8, generator=generator), labels(count)


def defences() -> dict[str, nn.Module]:
    classifier, denoiser = smooth_classifier(torch.float32), bent(torch.float32)
    return {
        "one-shot": DefendedModel(classifier, OneShot(denoiser, sigma=0.3)),
        "scoreopt": DefendedModel(classifier, ScoreOpt(denoiser, steps=2, lr=0.05, sigma=0.3)),
        "noisy": Noisy().eval(),
    }


def run(out: Path | None, *, pause: float = 0.0, **options: Any) -> Result:
    settings: dict[str, Any] = {
        "attacks": {"ascent": Ascent(pause=pause), "long": Ascent(steps=3, pause=pause)},
        "batch": 4,
        "trials": 2,
        "judging": Judging(purifications=3),
        "checks": False,
    } | options
    given = {"defences": defences(), "images": images()} | settings
    return evaluate(given.pop("defences"), given.pop("images"), out=out, **given)


def found(result: Result | Path) -> list[dict[str, Any]]:
    """All that a run found, bit for bit, in the plan's order: a unit each, but for the times."""
    result = Result(Store(result)) if isinstance(result, Path) else result
    return [_of_unit(result.store, unit, done) for unit, done in result.units()]


def kept(out: Path) -> dict[str, bytes]:
    """The images that a record has, as they are kept, by their digests."""
    return dict(in_images(out, "SELECT digest, content FROM images"))


def in_images(out: Path, statement: str, given: Any = ()) -> list[Any]:
    """What SQLite says to a statement about a record's images."""
    with closing(sqlite3.connect(out / "images.sqlite")) as database, database:
        return database.execute(statement, given).fetchall()


def _of_unit(store: Store, unit: Unit, done: UnitResult) -> dict[str, Any]:
    values = {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in vars(done).items()
        if name not in ("defence", "task", "seconds", "finished")
    }
    named = {"defence": unit.defence, "attack": unit.attack, "seed": unit.seed}
    whose = {"fingerprint": done.defence, "content": done.task}
    images = b"".join(image.tobytes() for image in store.adversarial(done).values())
    return named | whose | values | {"bytes": images or None}


def run_here(out: str, options: dict[str, Any], together: float = 0.0) -> None:
    """For a process of its own, to be killed.

    Args:
        together: seconds, within which units are put on the disk together.
    """
    torch.set_num_threads(1)
    storing._TOGETHER = together
    run(Path(out), **options)
