"""Images that are read where they are worked on: the same as all at once, and little to send."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from toy_evaluation import Ascent, Noisy, found, images

from scoreopt_defense import data
from scoreopt_defense.evaluation import Judging, Result, evaluate
from scoreopt_defense.evaluation.run import unit as units

pillow = pytest.importorskip("PIL.Image")


def write(root, sizes, *, grey=()):
    """Random images of these heights and widths, in two classes."""
    generator = np.random.default_rng(0)
    for place, size in enumerate(sizes):
        shape = size if place in grey else (*size, 3)
        folder = root / "ab"[place % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, shape, dtype=np.uint8)
        pillow.fromarray(pixels).save(folder / f"{place:02d}.png")
    return root


def toy_files(root, count=12):
    x, y = images(count)
    for place, (image, label) in enumerate(zip(x, y)):
        folder = root / str(int(label))
        folder.mkdir(parents=True, exist_ok=True)
        levels = (image * 255).round().byte().permute(1, 2, 0).numpy()
        pillow.fromarray(levels).save(folder / f"{place:02d}.png")
    return root


@pytest.mark.parametrize("kind", ["mnist", "folder"])
def test_a_larger_draw_begins_with_a_smaller_one(kind, tmp_path):
    source = "mnist" if kind == "mnist" else toy_files(tmp_path / "images")
    few, more = (data.load(source, n=n, seed=3) for n in (5, 9))
    assert torch.equal(more.x[:5], few.x)
    assert torch.equal(more.y[:5], few.y)
    by_index = data.load(source, n=9, seed=3, order="index")
    assert not torch.equal(by_index.x, more.x)
    assert {i.numpy().tobytes() for i in by_index.x} == {i.numpy().tobytes() for i in more.x}
    with pytest.raises(ValueError, match=r"order must be one of \['drawn', 'index'\], got 'size'"):
        data.load(source, order="size")


def test_a_source_is_read_in_parts_and_travels_without_its_pixels(tmp_path):
    root = toy_files(tmp_path / "images")
    whole = data.load(root)
    source = pickle.loads(pickle.dumps(data.source(root)))
    assert len(pickle.dumps(source)) < 4000 < whole.x.nbytes
    x, y = source.batch(3, 7)
    assert torch.equal(x, whole.x[3:7])
    assert torch.equal(y, whole.y[3:7])
    part = source.take(np.array([5, 1]))
    assert torch.equal(part.load().x, whole.x[[5, 1]])
    assert part.digests() == [source.digests()[5], source.digests()[1]]


def test_an_array_is_mapped_and_travels_as_its_path(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (500, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    np.save(tmp_path / "labels.npy", np.arange(500) % 3)
    source = data.source(tmp_path / "images.npy")
    assert len(pickle.dumps(source)) < pixels.nbytes / 5
    x, y = source.batch(490, 600)
    assert torch.equal((x * 255).round().byte().permute(0, 2, 3, 1), torch.from_numpy(pixels[490:]))
    assert y.tolist() == [place % 3 for place in range(490, 500)]


@pytest.mark.parametrize("size", [(40, 60), (61, 37), (32, 32)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_images_are_resized_and_cropped_as_torchvision_does_it(size, interpolation):
    transforms = pytest.importorskip("torchvision.transforms")
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    theirs = transforms.Compose([
        transforms.Resize(36, transforms.InterpolationMode(interpolation)),
        transforms.CenterCrop(32),
    ])  # fmt: skip
    expected = np.asarray(theirs(pillow.fromarray(pixels)))
    ours = data.Preprocessing(36, 32, interpolation)
    assert (ours(pixels) == expected).all()
    assert ours.size(*size) == (32, 32)
    resized = data.Preprocessing(36)
    assert resized.size(*size) == resized(pixels).shape[:2]


def test_files_of_any_size_and_colour_become_one(tmp_path, monkeypatch):
    root = write(tmp_path / "images", [(9, 12), (14, 8), (8, 8)], grey=[1])
    with pytest.raises(ValueError, match="must share one size, or be cropped to one"):
        data.source(root)
    source = data.source(root, preprocessing=data.Preprocessing(10, 8))
    assert source.shape == (3, 8, 8)
    assert source.load().x.shape == (3, 3, 8, 8)
    monkeypatch.setattr("scoreopt_defense.data.files._KEPT", 0)  # found before it is decoded
    with pytest.raises(ValueError, match=r"00\.png: crop must be at most its 9 x 12 pixels"):
        data.source(root, preprocessing=data.Preprocessing(crop=10))


class Dataset(torch.utils.data.Dataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.y)

    def __getitem__(self, place):
        return self.x[place], int(self.y[place])


def judged(source, **options):
    settings = {"batch": 4, "judging": Judging(purifications=2), "checks": False} | options
    model = {"noisy": Noisy().eval()}
    return evaluate(model, source, {"ascent": Ascent()}, **settings)


def figures(result: Result):
    return [
        [part.tolist() for part in (of.images, of.labels, of.predicted, of.lead)]
        for of in (result.judged("noisy", attack) for attack in ("clean", "ascent"))
    ]


def test_figures_do_not_depend_on_how_images_are_read(tmp_path):
    root = toy_files(tmp_path / "images")
    x, y, _ = data.load(root)
    expected = figures(judged((x, y)))
    assert figures(judged(data.source(root))) == expected
    assert figures(judged(data.source(root), workers=2)) == expected
    assert figures(judged(Dataset(x, y))) == expected


class Counted(Dataset):
    def __init__(self, x, y):
        super().__init__(x, y)
        self.read = []

    def __getitem__(self, place):
        self.read.append(place)
        return super().__getitem__(place)


@pytest.mark.parametrize("has_targets", [False, True])
def test_a_data_sets_items_are_read_once_before_they_are_worked_on(has_targets):
    """But for the first, which is asked for twice more: whether it is the same again."""
    x, y = images(6)
    dataset = Counted(x, y)
    if has_targets:
        dataset.targets = y.tolist()
    source = data.Items(dataset)
    assert len(set(source.digests())) == 6
    assert sorted(dataset.read) == [0, 0, 0, 1, 2, 3, 4, 5]
    assert source.digests() == pickle.loads(pickle.dumps(source)).digests()
    dataset.x = [*x[:5], x[5, :, :-1]]
    again = pickle.loads(pickle.dumps(source))
    with pytest.raises(ValueError, match=r"item 5 must have the shape .* of the first"):
        again.digests()


def test_a_data_sets_item_that_is_no_image_is_named():
    x, y = images(4)
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        evaluate(Noisy().eval(), Dataset(200 * x, y))


def test_clean_images_past_the_first_are_not_stored(tmp_path, monkeypatch):
    x, y = images(12)
    kept = judged((x, y), out=tmp_path / "all")
    monkeypatch.setattr(units, "CLEAN_KEPT", 8)
    few = judged((x, y), out=tmp_path / "few")
    assert figures(few) == figures(kept)
    assert torch.equal(torch.from_numpy(few.adversarial("noisy", "clean")[:8]), x[:8])
    assert np.isnan(few.adversarial("noisy", "clean")[8:]).all()
    assert not np.isnan(few.adversarial("noisy", "ascent")).any()
    last = few.adversarial("noisy", "ascent", images=[11, 2])
    np.testing.assert_array_equal(last, few.adversarial("noisy", "ascent")[[11, 2]])
    assert [len(of.store.pixels.held()) for of in (kept, few)] == [6, 5]
    assert found(few) != found(kept)
