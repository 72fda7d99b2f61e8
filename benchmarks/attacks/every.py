"""Whether every attack class of four libraries runs on a defended model.

    python -m benchmarks.attacks.every                # what the result file lacks
    python -m benchmarks.attacks.every --afresh       # all of it again
    python -m benchmarks.attacks.every --library art --only HopSkipJump

Each class attacks two images through each door: the bare classifier, a ``DefendedModel`` and, in
ART, the classifier behind ``PurifierPreprocessor``. One that runs on the bare classifier and fails
on a ``DefendedModel`` is tried on one with ``deterministic=True``. Each try is a process, which is
killed at the time limit. How well an attack does is not asked: budgets are a few steps.
Some classes import packages that their libraries do not install:
``pip install 'scoreopt-defense[every-attack]'`` brings those.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import random
import tempfile
import time
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.attacks import classes as attack_classes
from benchmarks.attacks.classes import COLOUR, LEFT_OUT, LIBRARIES, as_preprocessor
from benchmarks.common.results_file import resumed, weights
from scoreopt_defense import DefendedModel, ScoreOpt, data, pretrained

IMAGES, STEPS, SEED, SECONDS = 2, 2, 0, 300
BARE, DEFENDED, PREPROCESSED, FIXED = (
    "bare", "DefendedModel", "PurifierPreprocessor", "deterministic DefendedModel",
)  # fmt: skip
RUNS, TOO_LONG = "runs", "stopped at the time limit"
FAILS, NEEDS_MORE = "fails also without a defence", "needs what the defence does not give"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", choices=LIBRARIES, help="only this one")
    parser.add_argument("--only", metavar="NAME", help="only this class")
    parser.add_argument("--afresh", action="store_true", help="drop what the result file has")
    parser.add_argument("--workers", type=int, default=1, help="processes at a time")
    options = parser.parse_args()
    wanted = [
        {"library": library, "attack": name}
        for library in LIBRARIES
        for name in attack_classes.classes(library)
        if options.library in (None, library) and options.only in (None, name)
    ]
    if not wanted:
        parser.error(f"no attack class {options.only!r} in {options.library or LIBRARIES}")
    rows = resumed(
        "every_attack",
        versions={
            name: version(name) for name in ("torchattacks", _ART, "foolbox", "pyautoattack")
        },
        weights=weights("mnist-tiny"),
        colour_weights=weights("cifar10-tiny"),
        seed=SEED,
        images=IMAGES,
        purifier_steps=STEPS,
        time_limit_seconds=SECONDS,
        left_out=LEFT_OUT,
    )
    if options.afresh:
        rows.rows = [row for row in rows.rows if not _is_one_of(row, wanted)]
    missing = [key for key in wanted if not rows.has(key)]
    with ThreadPoolExecutor(options.workers) as pool:
        for row in pool.map(lambda key: measure(**key), missing):
            print(f"{row['library']} {row['attack']}: {row['outcome']}", flush=True)
            rows.add(row)


_ART = "adversarial-robustness-toolbox"


def _is_one_of(row: dict[str, Any], keys: list[dict[str, str]]) -> bool:
    return any(key.items() <= row.items() for key in keys)


def measure(library: str, attack: str) -> dict[str, Any]:
    """One row of the result file: what came of each door, and the outcome of all."""
    doors = [BARE, DEFENDED, *([PREPROCESSED] if library == "art" else [])]
    found = {door: in_a_process(library, attack, door) for door in doors}
    outcome = outcome_of(found)
    if outcome == NEEDS_MORE:
        found[FIXED] = in_a_process(library, attack, FIXED)
    return {"library": library, "attack": attack, "outcome": outcome, **found}


def outcome_of(found: dict[str, dict[str, Any]]) -> str:
    """From what came of each door."""
    outcomes = {door: tried["outcome"] for door, tried in found.items()}
    if all(outcome == RUNS for door, outcome in outcomes.items() if door != BARE):
        return RUNS
    if outcomes[BARE] == "fails":
        return FAILS
    return TOO_LONG if TOO_LONG in outcomes.values() else NEEDS_MORE


def in_a_process(library: str, name: str, door: str) -> dict[str, Any]:
    """:func:`attempt` in a process that is killed at the time limit."""
    # a server that has imported the libraries once forks each process in no time
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([
        "torchattacks", "art.attacks.evasion", "art.estimators.classification", "foolbox",
        "pyautoattack.autoattack",
        "scoreopt_defense.pretrained",
    ])  # fmt: skip
    receiver, sender = processes.Pipe(duplex=False)
    process = processes.Process(target=_send, args=(sender, library, name, door, digits()))
    process.start()
    sender.close()
    try:
        return receiver.recv() if receiver.poll(SECONDS) else {"outcome": TOO_LONG}
    except EOFError:
        process.join()
        return {"outcome": "fails", "error": f"the process ended with code {process.exitcode}"}
    finally:
        process.kill()
        process.join()


@functools.cache
def digits() -> np.ndarray:
    """The digits: their text file takes seconds to read, so it is read once for all processes."""
    return data.load("mnist", n=IMAGES, seed=SEED, order="index").x.numpy()


def _send(sender: Connection, library: str, name: str, door: str, x: np.ndarray) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:  # ART's GeoDA writes a file where it stands
        os.chdir(folder)
        sender.send(attempt(library, name, door, torch.from_numpy(x)))


def attempt(library: str, name: str, door: str, digits: Tensor) -> dict[str, Any]:
    """Attack two images through one door, and say what came of it."""
    random.seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002 (the libraries draw from it)
    torch.manual_seed(SEED)
    model, x, y = problem(door, None if name in COLOUR[library] else digits)
    queries = Queries(model.model.purifier if isinstance(model, as_preprocessor) else model)
    start = time.perf_counter()
    try:
        attacked = attack_classes.attack(library, name, model, x, y)
    except Exception as error:
        traceback.print_exc()
        outcome = {
            "outcome": "fails",
            "error": f"{type(error).__name__}: {error}".strip(": ").splitlines()[0],
            "raised in": _place(traceback.extract_tb(error.__traceback__)[-1].filename),
        }
    else:
        outcome = {
            "outcome": RUNS,
            "shape kept": attacked.shape[1:] == x.shape[1:],
            "finite": bool(attacked.isfinite().all()),
            "values": [round(value.item(), 4) for value in attacked.aminmax()],
        }
    if queries.low <= queries.high:  # else it failed before it asked anything
        outcome["queried values"] = [round(queries.low, 4), round(queries.high, 4)]
    return outcome | {
        "asks for a gradient": queries.gradient,
        "seconds": round(time.perf_counter() - start, 2),
    }


def _place(filename: str) -> str:
    """A source file as its library knows it."""
    return filename.split("site-packages/")[-1].removeprefix(f"{Path(__file__).parents[2]}/")


def problem(door: str, digits: Tensor | None) -> tuple[nn.Module, Tensor, Tensor]:
    """The model behind the door, two images of two classes, and the classifier's labels of them."""
    name = "cifar10-tiny" if digits is None else "mnist-tiny"
    classifier = pretrained.classifier(name)
    x = smooth_colours() if digits is None else digits
    y = classifier(x).argmax(1)
    two = [0, int((y != y[0]).nonzero()[0])]
    x, y = x[two], y[two]
    if door == BARE:
        return classifier, x, y
    purifier = ScoreOpt.from_preset(
        f"{name}/N",
        pretrained.denoiser(name),
        steps=STEPS,
        seed=SEED,
        deterministic=door == FIXED,
    )
    defended = DefendedModel(classifier, purifier)
    return (as_preprocessor(defended) if door == PREPROCESSED else defended), x, y


def smooth_colours() -> Tensor:
    """Images for the networks of CIFAR-10, of which none ships."""
    coarse = torch.rand(32, 3, 4, 4, generator=torch.Generator().manual_seed(SEED))
    return nn.functional.interpolate(coarse, size=32, mode="bicubic").clamp(0, 1)


class Queries:
    """What a module is asked, seen from a hook before its forward pass."""

    def __init__(self, module: nn.Module) -> None:
        self.gradient = False
        self.low, self.high = np.inf, -np.inf
        module.register_forward_pre_hook(self)

    def __call__(self, module: nn.Module, inputs: tuple[Tensor]) -> None:
        (x,) = inputs
        self.gradient |= torch.is_grad_enabled() and x.requires_grad
        if x.numel():
            low, high = x.detach().aminmax()
            self.low, self.high = min(self.low, low.item()), max(self.high, high.item())

    def __deepcopy__(self, memo: dict[int, Any]) -> Queries:
        return self  # an attack that copies the model still asks through it


if __name__ == "__main__":
    main()
