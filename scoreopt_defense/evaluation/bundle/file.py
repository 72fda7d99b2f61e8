"""A claim of robustness as a file that anybody can check: a zip of JSON and of numpy's arrays.

Nothing in it is run, and nothing of it is unpacked: ``numpy.load("OUT.zip")`` reads it too. Of what
somebody sends, no more is read than stands at the head of this module.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from scoreopt_defense._checks import check_file
from scoreopt_defense._files import replacing
from scoreopt_defense.evaluation.judging.threat_model import level
from scoreopt_defense.evaluation.plan.parts import Defence
from scoreopt_defense.evaluation.record.statistics import Proportion, proportion
from scoreopt_defense.evaluation.sections import Section

from pydantic import (  # isort: skip  # which sections found
    Field,
    FiniteFloat,
    ValidationError,
)

__all__ = ["Bundle", "BundleError"]

_ABOUT = "bundle.json"
_MEMBERS = (_ABOUT, "images.npy", "labels.npy", "predicted.npy")
_MOST_IMAGES, _MOST_DRAWS = 50_000, 1_000  # ImageNet's validation set; purifications of an image
_MOST_NUMBERS = 2**28  # of all images: 1 GiB of float32
_MOST_ABOUT = 2**22  # bytes of JSON; of a suite of 20 attacks it has some 20,000
_MOST_HEADER = 2**12  # bytes of an array before its numbers; numpy writes 128
_MOST_LIST = 2**12  # bytes of the zip's list of members; four take 300
_END, _END_64 = struct.Struct("<4s4H2LH"), 20  # what a zip ends with, and a large one before it
_FINEST = 65535  # levels of what is kept as integers


class BundleError(ValueError):
    """A file that is no bundle, or none that can be believed, and why."""


class _Answer(Section):
    of: list[FiniteFloat]
    rounding: FiniteFloat


class _Fingerprint(Section):
    about: dict[str, Any]
    versions: dict[str, str]
    behaviour: dict[str, _Answer] | None


_Side = Annotated[int, Field(ge=1, le=_MOST_NUMBERS)]


class _Header(Section):
    """``bundle.json``: see :class:`Bundle`."""

    format: Literal[1]
    claim: str
    defence: Annotated[str, Field(max_length=200)]
    fingerprint: _Fingerprint
    norm: Literal["linf", "l2", "l1"]
    eps: Annotated[FiniteFloat, Field(gt=0)]
    clean: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    shape: tuple[Annotated[int, Field(ge=1, le=_MOST_IMAGES)], _Side, _Side, _Side]
    dtype: Literal["float32", "float64"]
    purifications: Annotated[int, Field(ge=1, le=_MOST_DRAWS)]
    made: dict[str, Any]


@dataclass(frozen=True, eq=False, kw_only=True)
class Bundle:
    """Attacked images of one defence, and how they were judged.

    The clean images are not in it. Whoever checks a claim has to know that it is about the test set
    and its labels, so that a copy that is sent along proves nothing; a licence may forbid to pass
    them on; and it would be half as large again.

    Attributes:
        defence: what it is called.
        fingerprint: what tells it from others.
        norm, eps: the ball around each clean image, whose pixels are in [0, 1].
        clean: digest of the clean images and their labels, in this order: that of a plan.
        images: attacked, float32 or float64, shape ``(n, C, H, W)``, in [0, 1].
        labels: int64, shape ``(n,)``.
        predicted: int32, shape ``(n, k)``: the class that each of an image's k purifications got,
            none of which chose the image.
        made: how, for people: attacks, judging, versions, machine.
    """

    defence: str
    fingerprint: Defence
    norm: str
    eps: float
    clean: str
    images: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    made: dict[str, Any] = field(default_factory=dict)

    @property
    def right(self) -> np.ndarray:
        """Whether each purification was classified rightly, shape ``(n, k)``."""
        return self.predicted == self.labels[:, None]

    @property
    def share(self) -> Proportion:
        """Robust accuracy: the mean over purifications, with its interval over images."""
        return proportion(float(self.right.mean(1).sum()), len(self.labels))

    @property
    def claim(self) -> str:
        """What it claims, in a sentence without its full stop."""
        return said(self.share, self.norm, self.eps)

    def write(self, path: str | Path) -> Path:
        """Write it, whole or not at all; the same bundle has the same bytes.

        Images are kept as integers of 16 bits where those say every bit of them, as of a folder of
        PNG, and else as the floats that they are.

        Raises:
            BundleError: of more than a reader takes.
        """
        path, kind = Path(path), self.images.dtype
        levels = np.rint(self.images * _FINEST).astype(np.uint16)
        exact = np.array_equal(_of_levels(levels, kind), self.images)
        about = _checked({
            "format": 1, "claim": self.claim, "defence": self.defence,
            "fingerprint": {n: v for n, v in asdict(self.fingerprint).items() if n != "id"},
            "norm": self.norm, "eps": self.eps, "clean": self.clean, "shape": self.images.shape,
            "dtype": str(kind), "purifications": self.predicted.shape[1], "made": self.made,
        }, path)  # fmt: skip
        arrays = {
            "images.npy": levels if exact else self.images,
            "labels.npy": self.labels.astype("<i8"),
            "predicted.npy": self.predicted.astype("<i4"),
        }
        with replacing(path) as part, zipfile.ZipFile(part, "w") as archive:
            contents = {_ABOUT: about.model_dump_json(indent=1).encode()} | {
                name: _npy(array) for name, array in arrays.items()
            }
            for name, content in contents.items():
                archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED, 9)
        return path

    @classmethod
    def read(cls, path: str | Path) -> Bundle:
        """The inverse of :meth:`write`, of a file that anybody may have made.

        Raises:
            OSError: if there is no such file.
            BundleError: if it is none, is larger than it may be, or says what cannot be.
        """
        path = Path(path)
        try:
            return cls._read(path)
        except BundleError:
            raise
        except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError,
                RuntimeError, ValueError) as error:  # fmt: skip
            raise BundleError(f"{path} is no bundle, or a damaged one: {error}") from error

    @classmethod
    def _read(cls, path: Path) -> Bundle:
        _check_list(path)
        with zipfile.ZipFile(path) as archive:
            names = [info.filename for info in archive.infolist()]
            if sorted(names) != sorted(_MEMBERS):
                raise BundleError(
                    f"{path} must hold {', '.join(_MEMBERS)}, once each and nothing else, got "
                    f"{names[:8]}"
                )
            about = _checked(_content(archive, _ABOUT, _MOST_ABOUT), path)
            n, draws = about.shape[0], about.purifications

            def array(name: str, shape: tuple[int, ...], *kinds: str) -> np.ndarray:
                size = int(np.prod(shape, dtype=object)) * max(np.dtype(k).itemsize for k in kinds)
                content = _content(archive, name, size + _MOST_HEADER)
                return _array(content, f"{name} of {path}", shape, kinds)

            kind = np.dtype(about.dtype).newbyteorder("<")
            images = array("images.npy", about.shape, "<u2", kind.str)
            labels = array("labels.npy", (n,), "<i8")
            predicted = array("predicted.npy", (n, draws), "<i4")
        if images.dtype.kind == "u":
            images = _of_levels(images, kind)
        if not (images.min() >= 0 and images.max() <= 1):  # NaN neither
            raise BundleError(f"{path}: its images must be finite and in [0, 1]")
        if min(labels.min(), predicted.min()) < 0:
            raise BundleError(f"{path}: its classes must be from 0 on")
        of = about.fingerprint
        found = cls(
            defence=about.defence, norm=about.norm, eps=about.eps, clean=about.clean,
            fingerprint=Defence(**of.model_dump()),
            images=images.astype(about.dtype), labels=labels, predicted=predicted, made=about.made,
        )  # fmt: skip
        if about.claim != found.claim:
            raise BundleError(f"{path} claims {about.claim!r}, and its predictions say: "
                              f"{found.claim}")  # fmt: skip
        return found


def said(share: Proportion, norm: str, eps: float) -> str:
    """A robust accuracy as bundles say it."""
    low, high = 100 * share.low, 100 * share.high
    return (
        f"of {share.n} images {100 * share.value:.1f} % ({low:.0f} to {high:.0f}) stand at {norm} "
        f"{level(eps)}"
    )


def _checked(about: bytes | dict[str, Any], path: Path) -> _Header:
    try:
        if isinstance(about, bytes):
            found = _Header.model_validate_json(about)
        else:
            found = _Header.model_validate(about)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise BundleError(
            f"{path}: {key or _ABOUT}: {first['msg']}, got {str(first['input'])[:60]!r}"
        ) from error
    if (count := int(np.prod(found.shape, dtype=object))) > _MOST_NUMBERS:
        raise BundleError(f"{path} must have at most {_MOST_NUMBERS:,} numbers, got {count:,}")
    return found


def _check_list(path: Path) -> None:
    """That the list of members is short, which is read as a whole.

    Raises:
        BundleError: otherwise.
    """
    size = check_file(path)
    with path.open("rb") as file:
        file.seek(max(0, size - _END.size - _END_64))
        tail = file.read()
    signature, *_, listed, _, comment = _END.unpack(tail[-_END.size :])
    if signature != b"PK\5\6" or comment or b"PK\6\7" in tail or listed > _MOST_LIST:
        raise BundleError(f"{path} must be a zip of {len(_MEMBERS)} members: cut off, or none")


def _content(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """A member, of which no more is read than may be."""
    about = archive.getinfo(name)
    if about.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BundleError(f"{name} of {archive.filename} is packed otherwise than by deflate")
    with archive.open(about) as file:
        content = file.read(most + 1)  # to the end, where its checksum is compared
    if len(content) > most:
        raise BundleError(f"{name} of {archive.filename} must have at most {most:,} bytes")
    return content


def _array(content: bytes, name: str, shape: tuple[int, ...], kinds: tuple[str, ...]) -> np.ndarray:
    """Numbers of numpy's format, of this shape and one of these types."""
    stream = io.BytesIO(content)
    try:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("of another version of the format")
        said, by_columns, kind = np.lib.format.read_array_header_1_0(stream, _MOST_HEADER)
    except Exception as error:  # it is Python's text
        raise BundleError(f"{name} is no array: {str(error)[:200]}") from error
    if said != shape or by_columns or kind.str not in kinds:
        raise BundleError(
            f"{name} must hold {' or '.join(kinds)} of shape {shape}, row by row, and says "
            f"{kind.str} of {said}"
        )
    if len(content) - stream.tell() != int(np.prod(shape)) * kind.itemsize:
        raise BundleError(f"{name} has other than the numbers of shape {shape}")
    return np.frombuffer(content, kind, offset=stream.tell()).reshape(shape)


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(array, array.dtype.newbyteorder("<")), allow_pickle=False)
    return stream.getvalue()


def _of_levels(levels: np.ndarray, kind: np.dtype[Any]) -> np.ndarray:
    """The same bits on every machine: a division is correctly rounded."""
    return levels.astype(kind) / np.array(_FINEST, dtype=kind)
