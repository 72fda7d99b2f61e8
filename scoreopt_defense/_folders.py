"""Which folders are classes and which are splits, told from the paths in a folder or a zip."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from scoreopt_defense._pixels import IMAGE_SUFFIXES, is_image_name

__all__ = ["Layout", "layout", "walk"]

#: Names of folders that are splits, in any case, and which split each is.
SPLITS = {
    **{"train": "train", "training": "train", "test": "test", "testing": "test"},
    **{"val": "val", "valid": "val", "validation": "val"},
}
# What file managers, archivers and network drives leave; besides all names that begin with a dot.
_TOOLS = {
    *("__macosx", "__pycache__", "@eadir", "lost+found", "#recycle", "$recycle.bin"),
    *("system volume information", "thumbs.db", "desktop.ini"),
}
_EXPECTED = (
    "expected class/image files, or split/class/image where splits are folders called train, test "
    f"or val; images end in {IMAGE_SUFFIXES}"
)


class Layout(NamedTuple):
    """Images of one split, or of all.

    Attributes:
        classes: the names of all splits' classes, sorted.
        images: (path, index into ``classes``) of each image, sorted by path.
    """

    classes: tuple[str, ...]
    images: tuple[tuple[str, int], ...]


class _Entry(NamedTuple):
    folders: tuple[str, ...]
    name: str  # empty for a folder
    path: str
    is_image: bool


def layout(
    paths: Iterable[str], *, split: str | None = None, source: str | Path = "the folder"
) -> Layout:
    """Classes are the first level of folders below the splits, or below the root without splits.

    An empty class and one that another split alone has count too, so that no label depends on what
    happens to be there. What lies deeper is of its class. One folder around everything is passed
    through. What begins with a dot, or tools leave, is left out.

    Args:
        paths: of files, below the root, with "/" between names; of folders, where they end in it.
        split: ``"train"``, ``"validation"`` or ``"test"`` (``val``, if there is no such folder)
            where there are splits; all of them by default.
        source: what errors call the root.

    Raises:
        ValueError: naming what is neither: images outside of classes, folders of other files.
    """
    entries = list(_entries(paths))
    images = sorted((entry for entry in entries if entry.is_image), key=lambda entry: entry.path)
    if not images:
        raise ValueError(f"no images in {source}: {_EXPECTED}")
    level, splits = _level(entries, images)
    if splits:
        wanted = _of_split(images, level, split)
        if not wanted:
            raise ValueError(f"{source} has no {split} images, only folders {sorted(splits)}")
        images = [e for e in images if len(e.folders) <= level or e.folders[level] in wanted]
        entries = [e for e in entries if len(e.folders) > level and e.folders[level] in splits]
        unlabelled = _unlabelled(entries, level)
        for entry in images:
            if len(entry.folders) > level and entry.folders[level] in unlabelled:
                raise ValueError(
                    f"{entry.path} in {source} lies in the only class of its split, and the others "
                    f"have no such class: {_EXPECTED}"
                )
        entries = [e for e in entries if e.folders[level] not in unlabelled]
        level += 1
    for entry in images:
        if len(entry.folders) <= level:
            raise ValueError(f"{entry.path} in {source} lies in no class: {_EXPECTED}")
        within = entry.folders[level : level + 2]
        if len(within) > 1 and any(name.casefold() in SPLITS for name in within):
            raise ValueError(f"{entry.path} in {source} has its split too deep: {_EXPECTED}")
    classes = tuple(sorted(_classes(entries, level)))
    index = {name: i for i, name in enumerate(classes)}
    return Layout(classes, tuple((entry.path, index[entry.folders[level]]) for entry in images))


def _refuse(problem: str) -> None:
    raise ValueError(problem)


def walk(root: Path, problem: Callable[[str], None] = _refuse) -> Iterator[str]:
    """The paths of files and folders below a folder, as :func:`layout` takes them.

    Links are followed; what tools leave is not entered.

    Args:
        root: the folder.
        problem: is told of each folder that can't be read, link to nothing, and link to a folder
            that it lies in; such a one is left out. By default it is a ValueError.
    """
    to_do = [(str(root), "", {os.path.realpath(root)})]
    while to_do:
        folder, prefix, above = to_do.pop()
        try:
            found = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            problem(f"{folder} cannot be read: {error.strerror}")
            continue
        for entry in found:
            place, path = entry.path, prefix + entry.name
            if _is_of_tools(entry.name):
                continue
            if entry.is_symlink() and not os.path.exists(place):
                problem(f"{place} is a link to nothing that can be read")
            elif not entry.is_dir():
                yield path
            elif (real := os.path.realpath(place)) in above:
                problem(f"{place} is a link to a folder that it lies in")
            else:
                yield f"{path}/"
                to_do.append((place, f"{path}/", above | {real}))


def _entries(paths: Iterable[str]) -> Iterator[_Entry]:
    """Without what tools leave."""
    seen: dict[str, tuple[str, ...] | None] = {}  # ImageNet has a million files in a thousand
    for path in paths:
        above, _, name = path.rpartition("/")
        if above not in seen:
            parts = tuple(part for part in above.split("/") if part not in ("", "."))
            seen[above] = None if any(map(_is_of_tools, parts)) else parts
        folders = seen[above]
        if folders is not None and not _is_of_tools(name):
            yield _Entry(folders, name, path, is_image_name(name))


def _is_of_tools(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _TOOLS


def _level(entries: list[_Entry], images: list[_Entry]) -> tuple[int, set[str]]:
    """How deep the splits are, and their folders; or how deep the classes are, and none."""
    level = 0
    while True:
        names = {entry.folders[level] for entry in entries if len(entry.folders) > level}
        outside = any(len(entry.folders) == level for entry in images)
        if splits := _splits(names, images, level):
            return level, splits
        if outside and not names:  # folders in one another, the last of which has the images
            return 0, set()
        if outside or len(names) != 1:
            return level, set()
        level += 1


def _splits(names: set[str], images: list[_Entry], level: int) -> set[str]:
    """The folders of a level that are splits; one called "train" can be a class beside others.

    Raises:
        ValueError: if some are, and there are images in others.
    """
    named = {name for name in names if name.casefold() in SPLITS}
    below = [entry for entry in images if len(entry.folders) > level]
    others = [entry for entry in below if entry.folders[level] not in named]
    nested = any(len(e.folders) > level + 1 for e in below if e.folders[level] in named)
    if others and not nested:
        return set()
    if others and named:
        raise ValueError(f"{others[0].path} lies beside the splits {sorted(named)}: {_EXPECTED}")
    return named


def _unlabelled(entries: list[_Entry], level: int) -> set[str]:
    """Splits whose images all lie in one folder, no class of the largest: Tiny ImageNet's have."""
    classes: dict[str, set[str]] = {}
    for entry in entries:
        if len(entry.folders) > level + 1:
            classes.setdefault(entry.folders[level], set()).add(entry.folders[level + 1])
    largest = max(classes.values(), key=len, default=set())
    if len(largest) == 1:
        return set()
    return {split for split, own in classes.items() if len(own) == 1 and not own <= largest}


def _of_split(images: list[_Entry], level: int, split: str | None) -> set[str]:
    """The folders with the images of a split."""
    present = {entry.folders[level] for entry in images if len(entry.folders) > level}
    kinds = {SPLITS[folder.casefold()] for folder in present}
    if split == "validation" or (split == "test" and "test" not in kinds):
        split = "val"
    return {name for name in present if split in (None, SPLITS[name.casefold()])}


def _classes(entries: list[_Entry], level: int) -> set[str]:
    """Folders of a level.

    Raises:
        ValueError: naming one that has files, and none of them an image.
    """
    within = [entry for entry in entries if len(entry.folders) > level]
    with_images = {entry.folders[level] for entry in within if entry.is_image}
    for entry in within:
        if entry.name and entry.folders[level] not in with_images:
            raise ValueError(
                f"{entry.path} lies in a folder that has no images and is not empty: {_EXPECTED}"
            )
    return {entry.folders[level] for entry in within}
