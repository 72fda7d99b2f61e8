"""How large units are, and how many workers there are, by what memory there is."""

from __future__ import annotations

from contextlib import suppress
from itertools import chain

import psutil
import torch

from scoreopt_defense._foreign import as_it_was, contained
from scoreopt_defense._memory import Alive, free_bytes
from scoreopt_defense.defended import EOT, DefendedModel
from scoreopt_defense.evaluation.judging.fresh import placed
from scoreopt_defense.evaluation.plan import Materials
from scoreopt_defense.evaluation.plan.tasks import Task
from scoreopt_defense.noise import seeded
from scoreopt_defense.settings import Settings

__all__ = ["MOST", "fitting", "image_bytes"]

#: Images of a unit, as by default: where memory holds so many, figures are those of the default.
MOST = 32


def fitting(
    materials: Materials,
    *,
    device: torch.device,
    cores: int,
    batch: int | None = None,
    threads: int | None = None,
    workers: int | None = None,
) -> tuple[int, int, int]:
    """Images a unit, threads a worker, and workers; what is given stays.

    On a CPU there is a worker a core, as far as half of the free memory holds them with what they
    compute, and fewer workers have more threads. On GPUs, half of the first one's.

    Args:
        cores: of this machine.
        workers: needed where they are on GPUs, each of which has memory of its own.
    """
    if batch is None or (threads is None and workers is None):
        image, half = image_bytes(materials), free_bytes(device) // 2
        on_cpu = device.type == "cpu"
        own = psutil.Process().memory_info().rss if on_cpu else 0
        if workers is None:
            fit = half // (own + (batch or 1) * image)
            workers = max(1, min(cores // (threads or 1), fit))
        each = half // workers if on_cpu else half
        batch = batch or max(1, min(MOST, (each - own) // image))
    threads = threads or max(1, cores // (workers or cores))
    return batch, threads, workers or max(1, cores // threads)


def image_bytes(materials: Materials) -> int:
    """The most that one image's gradient holds at once, of any defence.

    It is taken through as many purifications as an attack's EOT has, and of a suite's defence
    through every step, and counts the tensors alone: a kernel's scratch space comes on top.
    """
    x, _ = materials.images.batch(0, 1)
    found = [1]
    for name, model in materials.defences.items():
        samples = max(_samples(of[name]) for of in materials.tasks.values() if name in of)
        asked = model
        if (
            materials.owners
            and isinstance(model, DefendedModel)
            and "exact" in model.purifier.modes
        ):
            asked = model.with_gradient("exact")
        held = Alive(chain(model.parameters(), model.buffers()))
        # of one that offers no gradient, or fails, it is what it took until then
        with as_it_was(model), seeded(0), suppress(RuntimeError, ValueError), contained(), held:
            leaf = placed(model, x).requires_grad_()
            torch.autograd.grad(EOT(asked, samples)(leaf).sum(), leaf)
        found.append(held.most)
    return max(found)


def _samples(task: Task) -> int:
    """Of EOT; 1 where it is not known how to take fewer, as of somebody's own attack."""
    return getattr(task.attack, "eot", 1) if isinstance(task.attack, Settings) else 1
