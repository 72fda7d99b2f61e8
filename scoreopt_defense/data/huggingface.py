"""Images of Hugging Face's ``datasets``, read where they are worked on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scoreopt_defense._optional import optional
from scoreopt_defense._pixels import Header, content_of
from scoreopt_defense.data.cache import stamp
from scoreopt_defense.data.files import Encoded
from scoreopt_defense.data.preprocessing import Preprocessing
from scoreopt_defense.pretrained.reach import hub_or_cache

__all__ = ["HuggingFace", "opened"]


class HuggingFace(Encoded):
    """The images of a ``datasets.Dataset``, as they are stored; see :func:`opened`.

    Arrow maps what is on disk: a copy in another process is a reference. One of a data set in
    memory is all of it.

    Args:
        dataset: or a dictionary of its splits.
        split: of those, which one; ``"validation"`` stands for a ``"test"`` that is not there.
        columns: of the images and of their labels; by default the only one of images, and the only
            one of classes, or else the one of whole numbers that is called "label".
        choose: of how many there are, the places of those that are wanted, in their order.
        preprocessing: as of :class:`~scoreopt_defense.data.files.Encoded`.

    Raises:
        TypeError: of another object, and of a data set that is streamed.
        ValueError: as :class:`~scoreopt_defense.data.files.Encoded`, or if the split or the columns
            are not there, or not told.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        split: str = "test",
        columns: tuple[str, str] | None = None,
        choose: Callable[[int], np.ndarray] = np.arange,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        library = optional("datasets", extra="huggingface")
        if isinstance(dataset, Mapping):
            dataset = _of_split(dataset, split)
        if isinstance(dataset, library.IterableDataset):
            raise TypeError(
                "a data set that is streamed has neither length nor places: load it without "
                "streaming=True"
            )
        if not isinstance(dataset, library.Dataset):
            raise TypeError(
                "images must be a source's name or a datasets.Dataset, got "
                f"{type(dataset).__name__}"
            )
        if dataset.format["type"] == "custom":
            raise ValueError(
                "the data set has a transform, which would be left out: take it off by "
                "with_format(None), and say resize and crop in preprocessing"
            )
        self.image, label = columns or _columns(library, dataset.features)
        for name in (self.image, label):
            if name not in dataset.features:
                raise ValueError(
                    f"there is no column {name!r}; there are {_told(dataset.features)}"
                )
        if not isinstance(dataset.features[self.image], library.Image):
            raise ValueError(
                f"{self.image!r} must be a column of images, of {_told(dataset.features)}"
            )
        self.rows = choose(len(dataset))
        chosen = dataset.select_columns([self.image, label]).with_format("arrow")
        self._table = chosen if choose is np.arange else chosen.select(self.rows)
        super().__init__(
            "the data set",
            self._table.select_columns(label)[:][label].to_numpy(),
            getattr(dataset.features[label], "names", ()),
            preprocessing,
            self._changes(),
        )

    def _changes(self) -> str | None:
        """Nothing, of a data set in memory, or one that says where its images are."""
        files = [file["filename"] for file in self._table.cache_files]
        chunks = self._table.data.column(self.image).chunks
        if not files or any(chunk.field("bytes").null_count for chunk in chunks):
            return None
        return f"{Header._fields} {stamp(files)} {self._table._fingerprint}"

    def _content(self, place: int) -> bytes:
        image = self._table[place][self.image][0].as_py()
        if image is None:
            raise ValueError("it has no image")
        return content_of(Path(image["path"])) if image["bytes"] is None else image["bytes"]

    def _said(self, place: int) -> str:
        return f"row {self.rows[place]} of {self.where}"


def opened(name: str, split: str) -> Any:
    """The data set, or a dictionary of its splits.

    Args:
        name: a folder that ``save_to_disk`` wrote, which takes no network; or an id of
            huggingface.co, which is downloaded on first use, to the cache of ``datasets``.
        split: of an id; ``"validation"`` stands for a ``"test"`` that is not there.

    Raises:
        ValueError: if the folder is none, or there is no such split.
        OSError: if it can't be downloaded, or read.
    """
    library = optional("datasets", extra="huggingface")
    if Path(name).is_dir():
        try:
            return library.load_from_disk(name)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{name} is no data set that save_to_disk wrote: {error}") from error
    with hub_or_cache(f"hf:{name}"):
        try:
            return library.load_dataset(name, split=split)
        except ValueError:
            if split != "test":
                raise
            return library.load_dataset(name, split="validation")


def _of_split(dataset: Mapping[str, Any], split: str) -> Any:
    if split == "test" and "test" not in dataset:
        split = "validation"
    if split not in dataset:
        raise ValueError(f"the data set has no split {split!r}; there are {sorted(dataset)}")
    return dataset[split]


def _columns(library: Any, features: Mapping[str, Any]) -> tuple[str, str]:
    """The only ones that there can be."""
    images = [n for n, of in features.items() if isinstance(of, library.Image)]
    labels = [n for n, of in features.items() if isinstance(of, library.ClassLabel)]
    if not labels and str(getattr(features.get("label"), "dtype", "")).strip("u").startswith("int"):
        labels = ["label"]
    for what, found in {"images": images, "labels": labels}.items():
        if len(found) != 1:
            raise ValueError(
                f"the data set has {len(found)} columns of {what} where one is expected; say "
                f"columns = [image, label], of {_told(features)}"
            )
    return images[0], labels[0]


def _told(features: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} ({type(of).__name__})" for name, of in features.items())
