"""CIFAR-10 and CIFAR-100 as torchvision stores them, of random images."""

from __future__ import annotations

import pickle

import numpy as np
import torch


def write_cifar(root, classes):
    """The layout that torchvision reads, with its integrity check out of the way."""
    rng = np.random.default_rng(classes)
    pixels = rng.integers(0, 256, (12, 3, 32, 32), dtype=np.uint8)
    labels = rng.integers(0, classes, 12).tolist()
    if classes == 10:
        folder, key = root / "cifar-10-batches-py", "labels"
        files = {f"data_batch_{i}": slice(2 * i - 2, 2 * i) for i in range(1, 6)}
        files["test_batch"] = slice(10, 12)
        meta = ("batches.meta", {"label_names": [f"class {i}" for i in range(10)]})
    else:
        folder, key = root / "cifar-100-python", "fine_labels"
        files = {"train": slice(0, 10), "test": slice(10, 12)}
        meta = ("meta", {"fine_label_names": [f"class {i}" for i in range(100)]})
    folder.mkdir(parents=True)
    for name, rows in files.items():
        batch = {"data": pixels[rows].reshape(-1, 3072), key: labels[rows]}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / meta[0]).write_bytes(pickle.dumps(meta[1]))
    return torch.from_numpy(pixels).float() / 255, torch.tensor(labels)
