"""What was found in images once is not read again, unless they have changed."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest

from scoreopt_defense import data
from scoreopt_defense.data import Array, cache, files

pillow = pytest.importorskip("PIL.Image")

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def looked(tmp_path, monkeypatch):
    """The places that are read; the cache is for few images too, and no pixels are kept."""
    found = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_LEAST", 1)
    monkeypatch.setattr(files, "_KEPT", 0)

    def note(kind, name):
        real = getattr(kind, name)

        def noted(self, place):
            found.append(place)
            return real(self, place)

        monkeypatch.setattr(kind, name, noted)

    note(files.Encoded, "_header")
    note(Array, "digest")
    return found


def folder(root):
    for place, pixels in enumerate(PIXELS):
        (root / "images" / "ab"[place % 2]).mkdir(parents=True, exist_ok=True)
        pillow.fromarray(pixels).save(root / "images" / "ab"[place % 2] / f"{place}.png")
    return root / "images"


def archive(root):
    return shutil.make_archive(root / "images", "zip", folder(root))


def array(root):
    np.save(root / "images.npy", PIXELS)
    np.save(root / "labels.npy", np.arange(6) % 2)
    return root / "images.npy"


def saved(root):
    datasets = pytest.importorskip("datasets")
    pixels = [pillow.fromarray(image) for image in PIXELS]
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(2))
    made = datasets.Dataset.from_dict({"image": pixels, "label": [0, 1] * 3}, features=features)
    made.save_to_disk(root / "images")
    return f"hf:{root / 'images'}"


KINDS = pytest.mark.parametrize("make", [folder, archive, array, saved])


@KINDS
def test_a_second_start_reads_none_of_them(make, looked, tmp_path):
    where = make(tmp_path)
    first = data.source(where).digests()
    assert sorted(looked) == list(range(6))
    assert len(set(first)) == 6
    looked.clear()
    again = data.source(where)
    assert again.digests() == first
    assert again.load().x.shape == (6, 3, 8, 8)
    assert not looked
    fewer = data.source(where, n=3, order="index")  # which is another source
    assert set(fewer.digests()) < set(first)
    cropped = data.source(where, preprocessing=data.Preprocessing(crop=4)).digests()
    assert not set(cropped) & set(first)


def test_a_file_that_has_changed_is_read_again(looked, tmp_path):
    where = folder(tmp_path)
    file, first = where / "a" / "2.png", data.source(where).digests()
    about = file.stat()
    pillow.fromarray(255 - PIXELS[2]).save(file)
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))  # who copies may keep its time
    second = data.source(where).digests()
    assert [a == b for a, b in zip(first, second)] == [True, False, True, True, True, True]
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"2\.png cannot be read"):
        data.source(where)
    shutil.move(file, where / "b" / "2.png")
    pillow.fromarray(PIXELS[2]).save(where / "b" / "2.png")
    assert set(data.source(where).digests()) - set(first)  # of another class


def test_labels_are_part_of_an_arrays_digests(looked, tmp_path):
    where = array(tmp_path)
    first = data.source(where).digests()
    np.save(tmp_path / "labels.npy", np.array([0, 1, 0, 1, 0, 0]))
    assert [a == b for a, b in zip(first, data.source(where).digests())] == [True] * 5 + [False]


@pytest.mark.parametrize("content", ["", "{}", "[1]", "no folder"])
def test_a_cache_that_is_damaged_or_cannot_be_had_changes_nothing(
    content, looked, tmp_path, monkeypatch
):
    where = folder(tmp_path)
    first = data.source(where).digests()
    if content == "no folder":
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    else:
        (kept,) = (tmp_path / "cache" / "scoreopt-defense").iterdir()
        kept.write_text(content)
    looked.clear()
    assert data.source(where).digests() == first
    assert sorted(looked) == list(range(6))


def test_of_few_images_nothing_is_kept(looked, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_LEAST", 7)
    data.source(folder(tmp_path)).digests()
    assert not (tmp_path / "cache").exists()
