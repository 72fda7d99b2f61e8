"""Attacked images as other programs keep them, and files that are none."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import torch
import torchattacks
from PIL import Image
from toys import labels, smooth_classifier

from scoreopt_defense.evaluation.bundle import attacked_images

N = 12
LEVELS = np.random.default_rng(0).integers(0, 256, (N, 3, 8, 8), dtype=np.uint8)
IMAGES = torch.from_numpy(LEVELS).float() / 255
SHAPE = tuple(IMAGES.shape)


def _png(path, order=range(N)):
    path.mkdir()
    for name, place in zip(range(N), order):
        Image.fromarray(LEVELS[place].transpose(1, 2, 0)).save(path / f"adv_{name}.png")


KEPT = {
    "floats.npy": lambda path: np.save(path, IMAGES.numpy()),
    "bytes.npy": lambda path: np.save(path, LEVELS),
    "last.npy": lambda path: np.save(path, LEVELS.transpose(0, 2, 3, 1)),
    "tensor.pt": lambda path: torch.save(IMAGES, path),
    "torchattacks.pt": lambda path: torch.save(
        {"adv_inputs": IMAGES, "labels": torch.zeros(N), "clean_inputs": 0 * IMAGES}, path
    ),
    "autoattack.pth": lambda path: torch.save({"adv_complete": IMAGES}, path),
    "folder": _png,
}


@pytest.mark.parametrize("name", KEPT)
def test_images_are_read_as_they_are_kept(name, tmp_path):
    KEPT[name](tmp_path / name)
    assert torch.equal(attacked_images(tmp_path / name, SHAPE), IMAGES)


def test_what_torchattacks_saves(tmp_path):
    attack = torchattacks.FGSM(smooth_classifier(torch.float32), eps=0.1)
    loader = torch.utils.data.DataLoader([*zip(IMAGES, labels(N))], batch_size=4)
    attack.save(loader, save_path=str(tmp_path / "saved.pt"), verbose=False)
    found = attacked_images(tmp_path / "saved.pt", SHAPE)
    assert torch.equal(found, attack(IMAGES, labels(N)))


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("was-run",)


def _lying(path):
    """An array that says it is far larger than its file."""
    np.save(path, IMAGES.numpy())
    path.write_bytes(path.read_bytes().replace(b"(12, 3, 8, 8)", b"(99, 3, 8, 8)"))


REFUSED = {
    "pickle.pt": (lambda path: path.write_bytes(pickle.dumps(Harmful())), "nothing in it was run"),
    "torch.pt": (lambda path: torch.save({"x": Harmful()}, path), "nothing in it was run"),
    "objects.npy": (lambda path: np.save(path, [Harmful()], allow_pickle=True), "no array"),
    "lying.npy": (_lying, "damaged"),
    "none.pt": (lambda path: path.write_bytes(b"hello"), "nothing in it was run"),
    "other.pt": (lambda path: torch.save({"z": IMAGES}, path), "a tensor called one of"),
    "text.pt": (lambda path: torch.save("text", path), "must hold a tensor"),
    "fewer.npy": (lambda path: np.save(path, LEVELS[:5]), "each of the 12 clean ones"),
    "wide.pt": (lambda path: torch.save(torch.zeros(1).expand(10**6, 3, 8, 8), path), "each of"),
    "nan.npy": (lambda path: np.save(path, IMAGES.numpy() * np.nan), "must be finite"),
    "pixels.npy": (lambda path: np.save(path, 255 * IMAGES.numpy()), "divide pixels by 255"),
    "words.npy": (lambda path: np.save(path, np.array(["a"])), "uint8 pixels or floats"),
    "empty": (lambda path: path.mkdir(), "must hold 12 images, got 0"),
    "images.txt": (lambda path: path.write_text("a"), "must be .npy, .pt, .zip or a folder"),
    "none.zip": (lambda path: path.write_text("a"), "damaged one"),
    "absent.npy": (lambda path: None, "No such file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_is_none_is_refused_in_a_sentence(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, said = REFUSED[name]
    make(tmp_path / name)
    with pytest.raises((ValueError, OSError), match=said) as error:
        attacked_images(tmp_path / name, SHAPE)
    assert name in str(error.value)
    assert not (tmp_path / "was-run").exists()
