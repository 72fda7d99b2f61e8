"""What attacked images take on the disk in several ways, bit for bit, and how long each takes.

    pip install zstandard 'blosc2<3' opencv-python-headless
    python -m benchmarks.speed.stored_images CIFAR10

Of real attacks on the tiny classifier, on CIFAR-10 and on the same images at 224 x 224, which it
meets as the mean of each 7 x 7 pixels. Each image by itself, as a record keeps it; 32 bits a number
are what float32 takes. "To clean" ways need the clean image to read the other: a record that has
none could not be read without its data set.
"""

from __future__ import annotations

import argparse
import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common.results_file import weights, write
from benchmarks.common.timing import short
from scoreopt_defense import data, pretrained
from scoreopt_defense.attacks import attack
from scoreopt_defense.evaluation.record.packing import pack, unpack
from scoreopt_defense.noise import seeded

NETWORK = "cifar10-tiny"
ATTACKS: dict[str, dict[str, Any]] = {
    "PGD, linf": {"name": "pgd-eot-linf", "steps": 10, "eot": 1},
    "PGD, l2": {"name": "pgd-eot-l2", "steps": 10, "eot": 1},
    "momentum PGD, linf": {"name": "momentum-pgd-linf", "steps": 20},
    "Square": {"name": "square", "steps": 50, "eot": 1},
    "AutoAttack": {"name": "autoattack-rand-linf", "steps": 5, "eot": 1},
}
LARGE = ("PGD, linf", "PGD, l2", "momentum PGD, linf")
Way = Callable[[np.ndarray, np.ndarray], bytes]


def planes(numbers: np.ndarray) -> bytes:
    """All first bytes, then all second ones, and so on."""
    return numbers.reshape(-1).view(np.uint8).reshape(-1, numbers.itemsize).T.tobytes()


def bits_off(x: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """How many floats lie between each number and the clean one: even above, odd below."""
    off = x.view(np.int32) - clean.view(np.int32)
    return (off << 1) ^ (off >> 31)


def ways() -> dict[str, Way]:
    """Bytes of an image, given the clean one too; of libraries that nothing else here needs."""
    import blosc2
    import cv2
    import zstandard

    zstd = zstandard.ZstdCompressor(3)

    def blosc(x: np.ndarray) -> bytes:
        how = {"codec": blosc2.Codec.ZSTD, "clevel": 5, "filters": [blosc2.Filter.BITSHUFFLE]}
        return blosc2.compress2(x, nthreads=1, **how)

    def png(x: np.ndarray) -> bytes:
        levels = np.rint(x.astype(float) * 65535).astype(np.uint16).transpose(1, 2, 0)
        return cv2.imencode(".png", levels)[1].tobytes()

    return {
        "zlib": lambda x, clean: zlib.compress(x.tobytes()),
        "bytes in planes, zlib": lambda x, clean: zlib.compress(planes(x)),
        "bytes in planes, zstd": lambda x, clean: zstd.compress(planes(x)),
        "blosc2, bits in planes, zstd": lambda x, clean: blosc(x),
        "levels and what is off, zlib (kept)": lambda x, clean: pack(x),
        "levels and what is off, zstd (and zlib, in time)": lambda x, clean: zstd.compress(
            zlib.decompress(pack(x)[13:])
        ),
        "to clean, floats, zlib (not exact)": lambda x, clean: zlib.compress(planes(x - clean)),
        "to clean, bits, zlib": lambda x, clean: zlib.compress(planes(bits_off(x, clean))),
        "to clean, bits, zstd": lambda x, clean: zstd.compress(planes(bits_off(x, clean))),
        "PNG of 16 bits (exact where said)": lambda x, clean: png(x),
    }


class Small(nn.Module):
    """A classifier of images seven times as large."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(F.avg_pool2d(x, 7))


def measured(attacked: np.ndarray, clean: np.ndarray) -> dict[str, Any]:
    found = {}
    for name, way in ways().items():
        started = time.process_time()
        size = sum(len(way(x, other)) for x, other in zip(attacked, clean))
        seconds = time.process_time() - started
        found[name] = {
            "bits a number": short(8 * size / attacked.size),
            "milliseconds an image": short(1000 * seconds / len(attacked)),
        }
    packed = [pack(x) for x in attacked]
    started = time.process_time()
    back = np.stack([unpack(content) for content in packed])
    seconds = time.process_time() - started
    assert back.tobytes() == attacked.tobytes()
    levels = np.rint(attacked.astype(float) * 65535) / 65535
    return {
        "ways": found,
        "read, milliseconds an image": short(1000 * seconds / len(attacked)),
        "exact as 16 bits, share of images": float(
            np.mean((levels.astype(np.float32) == attacked).all((1, 2, 3)))
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cifar10", help="zip, or folder, of CIFAR-10")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--large", type=int, default=8, help="of those, at 224 x 224")
    args = parser.parse_args()
    torch.set_num_threads(1)
    net = pretrained.classifier(NETWORK)
    x, y = data.source(args.cifar10, n=args.images).batch(0, args.images)
    larger = F.interpolate(x[: args.large], (224, 224), mode="bicubic").clamp(0, 1)
    larger = (255 * larger).round() / 255
    rows = []
    for name, settings in ATTACKS.items():
        cases = [(net, x, y)] + [(Small(net), larger, y[: args.large])] * (name in LARGE)
        for model, images, labels in cases:
            given = dict(settings)
            with seeded(0):
                made = attack(given.pop("name"), **given).run(model.eval(), images.clone(), labels)
            about = {"attack": name, "side": images.shape[-1], "images": len(images)}
            rows.append(about | measured(made.detach().numpy(), images.numpy()))
            print(about, {way: f["bits a number"] for way, f in rows[-1]["ways"].items()})
    write("stored_images", weights=weights(NETWORK), rows=rows)


if __name__ == "__main__":
    main()
