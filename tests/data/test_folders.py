"""Which folders are classes: the same rules for folders, zips and whatever tools leave in them."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from scoreopt_defense import data
from scoreopt_defense._folders import layout, walk

Image = pytest.importorskip("PIL.Image")

TWO = ["ant/1.png", "bee/2.png"]
BOTH = ["train/ant/1.png", "train/bee/2.png", "test/ant/3.png", "test/bee/4.png"]

# paths, the split that is asked for, and the class of each image that is found
CLASSES = {
    "folders of images": (TWO, None, {"ant/1.png": "ant", "bee/2.png": "bee"}),
    "the same, asked for a split": (TWO, "test", {"ant/1.png": "ant", "bee/2.png": "bee"}),
    "one class": (["ant/1.png"], None, {"ant/1.png": "ant"}),
    "an empty class": ([*TWO, "ape/"], None, {"ant/1.png": "ant", "bee/2.png": "bee"}),
    "a deeper level": (
        ["ant/images/1.png", "ant/2.png", "bee/images/left/1.png"],
        None,
        {"ant/images/1.png": "ant", "ant/2.png": "ant", "bee/images/left/1.png": "bee"},
    ),
    "a deeper level of one class": (["ant/images/1.png"], None, {"ant/images/1.png": "ant"}),
    "a deeper level below splits": (
        ["train/ant/images/1.png", "test/bee/images/1.png"],
        "train",
        {"train/ant/images/1.png": "ant"},
    ),
    "train": (BOTH, "train", {"train/ant/1.png": "ant", "train/bee/2.png": "bee"}),
    "test": (BOTH, "test", {"test/ant/3.png": "ant", "test/bee/4.png": "bee"}),
    "both": (["train/ant/1.png", "test/bee/2.png"], None,
             {"train/ant/1.png": "ant", "test/bee/2.png": "bee"}),
    "a class that the split lacks": (
        [*BOTH, "train/ape/5.png"], "test", {"test/ant/3.png": "ant", "test/bee/4.png": "bee"},
    ),
    "a class that is empty in each split": (
        [*BOTH, "test/ape/"], "test", {"test/ant/3.png": "ant", "test/bee/4.png": "bee"},
    ),
    "capitals": (["Train/ant/1.png", "Test/ant/2.png"], "test", {"Test/ant/2.png": "ant"}),
    "a whole word": (["Training/ant/1.png", "Testing/ant/2.png"], "train",
                     {"Training/ant/1.png": "ant"}),
    "val for test": (["train/ant/1.png", "valid/ant/2.png"], "test", {"valid/ant/2.png": "ant"}),
    "test rather than val": (
        ["test/ant/1.png", "val/ant/2.png", "train/ant/3.png"], "test", {"test/ant/1.png": "ant"},
    ),
    "test without labels, train wanted": (["train/ant/1.png", "test/2.png"], "train",
                                          {"train/ant/1.png": "ant"}),
    "splits without labels, train wanted": (
        [*BOTH[:2], "val/images/3.png", "test/images/4.png"], "train",
        {"train/ant/1.png": "ant", "train/bee/2.png": "bee"},
    ),
    "a class called train": (
        ["plane/1.png", "train/2.png"], "test", {"plane/1.png": "plane", "train/2.png": "train"},
    ),
    "a folder around all": ([f"mine/{path}" for path in TWO], None,
                            {"mine/ant/1.png": "ant", "mine/bee/2.png": "bee"}),
    "folders around the splits": ([f"a/b/{path}" for path in BOTH], "test",
                                  {"a/b/test/ant/3.png": "ant", "a/b/test/bee/4.png": "bee"}),
    "notes beside the splits": (
        [*BOTH, "README.md", "docs/notes.txt", "docs/old/"], "test",
        {"test/ant/3.png": "ant", "test/bee/4.png": "bee"},
    ),
    "notes in a class": ([*TWO, "ant/notes.txt"], None, {"ant/1.png": "ant", "bee/2.png": "bee"}),
    "what tools leave": (
        [*TWO, ".git/x/1.png", ".ipynb_checkpoints/1.png", "__MACOSX/ant/._1.png", "@eaDir/1.png",
         "lost+found/", "$RECYCLE.BIN/9.png", "Thumbs.db", "ant/.1.png", "ant/Thumbs.db",
         ".cache/", "System Volume Information/"],
        None, {"ant/1.png": "ant", "bee/2.png": "bee"},
    ),
    "a class with what tools leave alone": (
        [*TWO, "ape/.DS_Store", "ape/Thumbs.db", "ape/"], None,
        {"ant/1.png": "ant", "bee/2.png": "bee"},
    ),
    "a point before the paths": ([f"./{path}" for path in TWO], None,
                                 {"./ant/1.png": "ant", "./bee/2.png": "bee"}),
    "a folder called as an image": (["a.png/1.png", "b/2.png"], None,
                                    {"a.png/1.png": "a.png", "b/2.png": "b"}),
    "not in order": (["cow/1.JPG", "ant/2.jpeg", "bee/3.webp"], None,
                     {"ant/2.jpeg": "ant", "bee/3.webp": "bee", "cow/1.JPG": "cow"}),
}  # fmt: skip
EXTRA = {  # classes that have no image in the split that was asked for
    "an empty class": {"ape"},
    "a class that the split lacks": {"ape"},
    "a class that is empty in each split": {"ape"},
    "a class with what tools leave alone": {"ape"},
    "a deeper level below splits": {"bee"},
}


@pytest.mark.parametrize("case", CLASSES)
def test_classes_are_the_first_level_below_the_root_or_the_splits(case):
    paths, split, expected = CLASSES[case]
    found = layout(paths, split=split)
    assert {path: found.classes[label] for path, label in found.images} == expected
    assert found.classes == tuple(sorted({*expected.values(), *EXTRA.get(case, ())}))
    assert [path for path, _ in found.images] == sorted(expected)
    assert layout(reversed(paths), split=split) == found


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_label_means_the_same_in_every_split(split):
    paths = ["train/ant/1.png", "train/bee/2.png", "test/bee/3.png", "test/cow/4.png"]
    found = layout(paths, split=split)
    assert found.classes == ("ant", "bee", "cow")
    assert [label for path, label in found.images if "bee" in path] == [1]


@pytest.mark.parametrize(
    ("paths", "split", "said"),
    [
        ([], None, "no images in the folder: expected class/image files"),
        (["ant/", "ant/notes.txt"], None, "no images in the folder"),
        (["1.png", "2.png"], None, r"1\.png in the folder lies in no class: expected class/image"),
        ([*TWO, "banner.png"], None, r"banner\.png in the folder lies in no class"),
        (["train/1.png"], "train", r"train/1\.png in the folder lies in no class"),
        (["train/1.png", "test/2.png"], "test", r"test/2\.png in the folder lies in no class"),
        ([*BOTH, "test/5.png"], "test", r"test/5\.png in the folder lies in no class"),
        ([*BOTH, "5.png"], "test", r"5\.png in the folder lies in no class"),
        (["mine/1.png", "mine/ant/2.png"], None, r"mine/1\.png in the folder lies in no class"),
        ([*BOTH, "extra/ape/5.png"], "test", r"extra/ape/5\.png lies beside the splits \['test',"),
        ([*TWO, "docs/notes.txt"], None, r"docs/notes\.txt lies in a folder that has no images"),
        ([*BOTH, "train/docs/a.svg"], "test", r"train/docs/a\.svg lies in a folder that has no"),
        (
            ["ant/train/1.png", "bee/test/2.png"],
            "test",
            r"ant/train/1\.png .* has its split too deep",
        ),
        (["train/train/ant/1.png"], "train", r"train/train/ant/1\.png .* has its split too deep"),
        (
            [*BOTH[:2], "val/images/3.png"],
            "test",
            r"val/images/3\.png in the folder lies in the only class of its split",
        ),
        (
            [*BOTH[:2], "val/images/3.png", "test/images/4.png"],
            None,
            r"images/\d\.png in the folder lies in the only class of its split",
        ),
        (["train/ant/1.png"], "test", r"the folder has no test images, only folders \['train'\]"),
        (["Test/ant/1.png"], "train", r"the folder has no train images, only folders \['Test'\]"),
    ],
)
def test_anything_else_is_refused_by_name(paths, split, said):
    with pytest.raises(ValueError, match=said):
        layout(paths, split=split)


# ---- folders on disk, and zips


def pixels(level: int) -> np.ndarray:
    return np.full((4, 4, 3), level, dtype=np.uint8)


def write(root: Path, paths: list[str]) -> Path:
    """Images each of its own grey, from 10 on in steps of 10; folders where a path ends in "/"."""
    for i, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if path.endswith("/"):
            (root / path).mkdir(exist_ok=True)
        else:
            Image.fromarray(pixels(10 * i + 10)).save(root / path)
    return root


def zipped(root: Path, *, separator: str = "/") -> Path:
    archive = root.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(root.rglob("*")):
            name = path.relative_to(root).as_posix().replace("/", separator)
            if path.is_file():
                file.writestr(name, path.read_bytes())
            else:
                file.writestr(f"{name}/", b"")
    return archive


PATHS = ["ant/1.png", "bee/", "cow/in/2.png"]


@pytest.mark.parametrize("kind", ["folder", "zip", "a zip from Windows"])
def test_folders_and_zips_follow_the_same_rules(kind, tmp_path):
    source = write(tmp_path / "images", PATHS)
    if kind != "folder":
        source = zipped(source, separator="/" if kind == "zip" else "\\")
    images = data.load(source)
    assert images.classes == ("ant", "bee", "cow")
    assert images.y.tolist() == [0, 2]
    assert (images.x[:, 0, 0, 0] * 255).round().tolist() == [10, 30]


def test_the_letters_of_a_zips_suffix_do_not_matter(tmp_path):
    archive = zipped(write(tmp_path / "images", PATHS))
    archive.rename(tmp_path / "IMAGES.ZIP")
    assert data.load(tmp_path / "IMAGES.ZIP").classes == ("ant", "bee", "cow")


def test_links_to_folders_are_followed(tmp_path):
    root = write(tmp_path / "images", ["ant/1.png", "cow/2.png"])
    write(tmp_path / "elsewhere", ["3.png"])
    (root / "bee").symlink_to(tmp_path / "elsewhere")
    images = data.image_folder(root)
    assert images.classes == ("ant", "bee", "cow")
    assert images.y.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("target", "said"),
    [("missing", "bee is a link to nothing"), (".", "bee is a link to a folder that it lies in")],
)
def test_links_that_lead_nowhere_are_refused_by_name(target, said, tmp_path):
    root = write(tmp_path / "images", TWO[:1])
    (root / "bee").symlink_to(root / target)
    with pytest.raises(ValueError, match=said):
        data.image_folder(root)


def test_a_link_in_a_zip_is_refused_by_name(tmp_path):
    archive = zipped(write(tmp_path / "images", TWO))
    with zipfile.ZipFile(archive, "a") as file:
        link = zipfile.ZipInfo("cow")
        link.external_attr = 0o120777 << 16
        file.writestr(link, "ant")
    with pytest.raises(ValueError, match=r"cow in .* is a link"):
        data.image_zip(archive)


def test_a_folder_that_cannot_be_read_is_an_error_that_names_it(tmp_path, monkeypatch):
    root = write(tmp_path / "images", TWO)
    scandir = os.scandir

    def denied(folder):
        if Path(folder).name == "ant":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(ValueError, match=r"ant cannot be read: Permission denied"):
        data.image_folder(root)


def test_a_walk_tells_its_problems_and_goes_on(tmp_path):
    root = write(tmp_path / "images", [*TWO, ".cache/3.png"])
    (root / "again").symlink_to(root)
    (root / "ant" / "gone.png").symlink_to(root / "missing")
    problems: list[str] = []
    assert sorted(walk(root, problems.append)) == ["ant/", "ant/1.png", "bee/", "bee/2.png"]
    assert len(problems) == 2


def test_what_is_no_folder_is_said(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(
        FileNotFoundError, match=r"a\.tar is a file, but neither a zip nor a \.npy file"
    ):
        data.load(tmp_path / "a.tar")


def test_a_subset_has_the_classes_of_the_whole(tmp_path):
    root = write(tmp_path / "images", ["ant/1.png", "bee/2.png", "cow/3.png", "dog/"])
    for seed in range(4):
        part = data.image_folder(root, n=1, seed=seed)
        assert part.classes == ("ant", "bee", "cow", "dog")
        assert torch.equal((part.x[:, 0, 0, 0] * 255).round(), 10.0 * (part.y + 1))
