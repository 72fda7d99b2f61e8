"""A bundle's file: what is written comes back, and what nobody honest writes is refused."""

from __future__ import annotations

import io
import json
import math
import struct
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from scoreopt_defense.evaluation.bundle import Bundle, BundleError
from scoreopt_defense.evaluation.plan.parts import Defence

N, K = 6, 4


def a_bundle(images=None, **other):
    rng = np.random.default_rng(0)
    behaviour = {"logits": {"of": [0.5, -0.25], "rounding": 1e-6}}
    given = {
        "defence": "mine", "fingerprint": Defence(about={"votes": 1}, versions={"torch": "2"},
                                                  behaviour=behaviour),
        "norm": "linf", "eps": 8 / 255, "clean": "0" * 64,
        "images": rng.random((N, 3, 5, 7), dtype=np.float32) if images is None else images,
        "labels": np.arange(N), "predicted": rng.integers(0, N, (N, K)), "made": {"by": "hand"},
    }  # fmt: skip
    return Bundle(**given | other)


LEVELS = np.random.default_rng(1).integers(0, 256, (N, 3, 5, 7))


@pytest.mark.parametrize(
    ("images", "kept"),
    [
        (None, "<f4"),
        (np.random.default_rng(0).random((N, 1, 2, 3)), "<f8"),
        (LEVELS.astype(np.float32) / np.float32(255), "<u2"),  # as a folder of PNG
        (LEVELS / 255, "<u2"),
    ],
    ids=["float32", "float64", "levels", "levels in float64"],
)
def test_a_bundle_comes_back_bit_for_bit_and_numpy_reads_it(images, kept, tmp_path):
    bundle = a_bundle(images)
    path = bundle.write(tmp_path / "out.zip")
    read = Bundle.read(path)
    assert read.images.dtype == bundle.images.dtype
    for name in ("images", "labels", "predicted"):
        np.testing.assert_array_equal(getattr(read, name), getattr(bundle, name))
    plain = ("defence", "norm", "eps", "clean", "made", "claim", "fingerprint")
    assert all(getattr(read, name) == getattr(bundle, name) for name in plain)
    with np.load(path, allow_pickle=False) as arrays:
        assert arrays["images"].dtype.str == kept
        np.testing.assert_array_equal(arrays["predicted"], bundle.predicted)
    assert path.read_bytes() == bundle.write(tmp_path / "again.zip").read_bytes()


def test_the_claim_is_a_sentence_with_its_interval():
    right = np.zeros((N, K), dtype=int) + np.arange(N)[:, None]
    right[3:] = 0
    assert a_bundle(predicted=right).claim == "of 6 images 50.0 % (12 to 88) stand at linf 8/255"


# What may be wrong, as a change to the members that an honest writer writes.


def _about(**changes):
    def change(members):
        about = json.loads(members["bundle.json"])
        about |= changes
        members["bundle.json"] = json.dumps(about).encode()

    return change


def _without(key):
    def change(members):
        about = json.loads(members["bundle.json"])
        del about[key]
        members["bundle.json"] = json.dumps(about).encode()

    return change


def _array(name, array, **how):
    def change(members):
        stream = io.BytesIO()
        np.save(stream, array, **how)
        members[name] = stream.getvalue()

    return change


def _raw(name, content):
    return lambda members: members.__setitem__(name, content)


def _header(shape, kind="<f4", rest=b""):
    """An array that says so, and holds what there is."""
    stream = io.BytesIO()
    said = {"descr": kind, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, said)
    return stream.getvalue() + rest


NOT_FINITE = a_bundle().images.copy()
NOT_FINITE[2, 0, 0, 0] = np.nan
HOSTILE = {
    "zip slip": (_raw("../../evil.py", b"import os"), "must hold bundle.json, images.npy"),
    "an absolute name": (_raw("/etc/passwd", b""), "and nothing else"),
    "code": (_raw("run.py", b""), "and nothing else"),
    "a missing member": (lambda members: members.pop("labels.npy"), "once each"),
    "another version": (_about(format=2), "format: Input should be 1, got '2'"),
    "an unknown key": (_about(more=1), "more: Extra inputs are not permitted"),
    "a missing key": (_without("eps"), "eps: Field required"),
    "no JSON": (_raw("bundle.json", b"\x80\x04."), "Invalid JSON"),
    "JSON without end": (_raw("bundle.json", b"[" * 10**5), "Invalid JSON"),
    "much JSON": (_raw("bundle.json", b" " * (2**22 + 1)), "at most 4,194,304 bytes"),
    "NaN for eps": (_about(eps=math.nan), "eps: Input should be a finite number"),
    "no ball": (_about(eps=0), "eps: Input should be greater than 0"),
    "another norm": (_about(norm="flow"), "norm: Input should be 'linf', 'l2' or 'l1'"),
    "a million rows": (_about(shape=[10**6, 3, 5, 7]), "shape.0: Input should be less than"),
    "a huge image": (_about(shape=[1, 3, 2**14, 2**14]), "at most 268,435,456 numbers"),
    "many draws": (_about(purifications=10**6), "purifications: Input should be less than"),
    "a shape that lies": (_about(shape=[N, 3, 7, 5]), "of shape (6, 3, 7, 5), row by row, and"),
    "a header that lies": (
        _raw("images.npy", _header((10**6, 3, 5, 7), rest=bytes(64))),
        "says <f4 of (1000000, 3, 5, 7)",
    ),
    "fewer numbers": (_raw("images.npy", _header((N, 3, 5, 7), rest=bytes(64))), "has other than"),
    "more numbers": (
        _raw("labels.npy", _header((N,), "<i8", bytes(8 * N + 8))),
        "labels.npy of",
    ),
    "another type": (_array("images.npy", a_bundle().images.astype("f8")), "images.npy of"),
    "objects": (
        _array("labels.npy", np.array([{}] * N), allow_pickle=True),
        "labels.npy of",
    ),
    "a header that is code": (
        _raw("labels.npy", b"\x93NUMPY\x01\x00\x20\x00" + b"__import__('os').abort()".ljust(32)),
        "is no array",
    ),
    "no array": (_raw("labels.npy", b"hello"), "is no array"),
    "NaN": (_array("images.npy", NOT_FINITE), "must be finite and in [0, 1]"),
    "far": (_array("images.npy", a_bundle().images + 1), "must be finite and in [0, 1]"),
    "a class below 0": (_array("labels.npy", np.arange(N) - 1), "classes must be from 0 on"),
    "another claim": (_about(claim="of 6 images 100 % stand"), "and its predictions say"),
    "an answer of words": (
        _about(fingerprint={"about": {}, "versions": {}, "behaviour": {"logits": "all"}}),
        "fingerprint.behaviour.logits",
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_bundle_is_refused_in_a_sentence(what, tmp_path):
    change, said = HOSTILE[what]
    path = a_bundle().write(tmp_path / "out.zip")
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(BundleError) as error:
        Bundle.read(path)
    assert said in str(error.value)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.zip"]


def _bomb(path):
    """100 MB of zeros in 100 kB, of which no more than is expected is inflated."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, bytes(10**8) if name == "images.npy" else content)


def _understated(path):
    """As the bomb, and its list of members says that it is small."""
    _bomb(path)
    content = bytearray(path.read_bytes())
    at = content.rfind(b"images.npy") - 46
    content[at + 24 : at + 28] = struct.pack("<L", 2648)
    path.write_bytes(content)


def _twice(path):
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("labels.npy", b"")


def _many(path):
    with zipfile.ZipFile(path, "w") as archive:
        for place in range(2000):
            archive.writestr(str(place), b"")


def _packed_otherwise(path):
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def _encrypted(path):
    content = bytearray(path.read_bytes())
    at = content.find(b"PK\1\2")
    content[at + 8] |= 1
    path.write_bytes(content)


def _flipped(path):
    content = bytearray(path.read_bytes())
    content[content.find(b"images.npy") + 500] ^= 4
    path.write_bytes(content)


FILES = {
    "a bomb": (_bomb, "images.npy of"),
    "a bomb that says it is none": (_understated, "bundle"),
    "a member twice": (_twice, "once each"),
    "a long list of members": (_many, "must be a zip of 4 members"),
    "a packing of large memory": (_packed_otherwise, "packed otherwise than by deflate"),
    "encrypted": (_encrypted, "damaged one"),
    "a flipped bit": (_flipped, "damaged one"),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-9]), "must be a zip"),
    "empty": (lambda path: path.write_bytes(b""), "damaged one"),
    "a pickle": (lambda path: path.write_bytes(b"\x80\x04" * 99), "must be a zip"),
    "after a comment": (
        lambda path: path.write_bytes(path.read_bytes()[:-2] + b"\x05\x00hello"),
        "must be a zip",
    ),
}


@pytest.mark.parametrize("what", FILES)
def test_a_hostile_file_is_refused_in_a_sentence(what, tmp_path):
    change, said = FILES[what]
    path = a_bundle().write(tmp_path / "out.zip")
    change(path)
    with pytest.raises(BundleError) as error:
        Bundle.read(path)
    assert said in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("change", [{"norm": "flow"}, {"eps": math.inf}, {"clean": "none"}])
def test_what_no_reader_takes_is_not_written(change, tmp_path):
    with pytest.raises(BundleError, match=next(iter(change))):
        replace(a_bundle(), **change).write(tmp_path / "out.zip")
    assert not list(tmp_path.iterdir())


def test_nothing_is_inflated_that_is_too_large(tmp_path, monkeypatch):
    path = a_bundle().write(tmp_path / "out.zip")
    _bomb(path)
    read = []
    inflate = zipfile.ZipExtFile.read

    def watched(self, n=-1):
        content = inflate(self, n)
        read.append(len(content))
        return content

    monkeypatch.setattr(zipfile.ZipExtFile, "read", watched)
    with pytest.raises(BundleError):
        Bundle.read(path)
    assert max(read) < 20_000
