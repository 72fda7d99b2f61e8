"""Image files as other people have them: read right, or refused by name; purified all the same."""

from __future__ import annotations

import io
import os
import re
import struct
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from scoreopt_defense import BitDepth, cli, data
from scoreopt_defense.cli.image_files import purify_files

Image = pytest.importorskip("PIL.Image")

RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def encoded(image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(stream, kind, **options)
    return stream.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def header(width: int, height: int) -> bytes:
    """A PNG file that declares a size and has no pixels."""
    about = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", about) + chunk(b"IDAT", zlib.compress(b""))


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def with_alpha(mode: str, alpha: int) -> bytes:
    image = Image.fromarray(RGB).convert(mode)
    levels = np.full(RGB.shape[:2], 255, dtype=np.uint8)
    levels[2, 3] = alpha
    image.putalpha(Image.fromarray(levels))
    return encoded(image)


PNG = encoded(RGB)
IDAT = PNG.index(b"IDAT")
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 6\n%%EndComments\nshowpage\n"

BROKEN = {
    "empty.png": (b"", "no image of a kind"),
    "text.png": (b"not an image", "no image of a kind"),
    "short header.png": (PNG[:20], "cannot be read"),
    "broken header.png": (flipped(PNG, 20), "cannot be read"),
    "truncated.png": (PNG[: len(PNG) // 2], "cannot be read"),
    "truncated jpg.jpg": (encoded(RGB, "JPEG")[:-40], "truncated"),
    # whose thumbnail, if it had one, would end so
    "truncated noted.jpg": (encoded(RGB, "JPEG", comment=b"\xff\xda \xff\xd9")[:-40], "truncated"),
    "truncated bmp.bmp": (encoded(RGB, "BMP")[:-40], "truncated"),
    "truncated webp.webp": (encoded(RGB, "WEBP", lossless=True)[:-40], "cannot be read"),
    "bad data.png": (flipped(PNG, IDAT + 40), "cannot be read"),
    "bad checksum.png": (flipped(PNG, IDAT + 4 + int.from_bytes(PNG[IDAT - 4 : IDAT], "big")),
                         "checksum"),
    "huge.png": (header(40_000, 40_000), "exceeds limit"),
    "large.png": (header(10_000, 10_000), "exceeds limit"),  # Pillow itself warns
    "program.png": (EPS, "no image of a kind"),  # which Pillow would have Ghostscript run
    "see-through.png": (with_alpha("RGB", 17), "must be opaque, and has pixels of alpha 17 of 255"),
    "grey see-through.png": (with_alpha("L", 254), "pixels of alpha 254 of 255"),
    "key.png": (encoded(RGB, transparency=tuple(RGB[1, 2].tolist())), "pixels of alpha 0 of 255"),
    "palette.png": (encoded(Image.fromarray(RGB).quantize(8), transparency=3), "alpha 0 of 255"),
}  # fmt: skip
NAMES = sorted(BROKEN)
SEEN_THROUGH = {name for name, (_, said) in BROKEN.items() if "alpha" in said}
UNREADABLE = [name for name in NAMES if name not in SEEN_THROUGH]  # alpha is kept of the others


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["folder", "zip", "large folder"])
def test_a_broken_image_is_an_error_that_names_it(kind, name, tmp_path, monkeypatch):
    content, said = BROKEN[name]
    source = tmp_path / "images"
    (source / "ant").mkdir(parents=True)
    (source / "ant" / name).write_bytes(content)
    if kind == "zip":
        source = source.with_suffix(".zip")
        with zipfile.ZipFile(source, "w") as archive:
            archive.writestr(f"ant/{name}", content)
    if kind == "large folder":  # of which nothing is decoded before it is worked on
        monkeypatch.setattr("scoreopt_defense.data.files._KEPT", 0)
    with pytest.raises(ValueError, match=rf"ant/{name} .*{said}"):
        data.source(source)


def purified(source: Path, target: Path, **options) -> list[Path]:
    return [found.target for found in purify_files(BitDepth(bits=8), source, target, **options)]


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_broken_image_alone_is_an_error_and_nothing_is_written(name, tmp_path):
    (tmp_path / name).write_bytes(BROKEN[name][0])
    with pytest.raises(ValueError, match=rf"{name} .*{BROKEN[name][1]}"):
        purified(tmp_path / name, tmp_path / "out.png")
    assert os.listdir(tmp_path) == [name]


def test_purifying_a_folder_goes_on_past_broken_images_and_says_which(tmp_path, capsys):
    source, target = tmp_path / "in", tmp_path / "out"
    (source / "zoo.png").mkdir(parents=True)  # a folder
    for name, (content, _) in BROKEN.items():
        (source / name).write_bytes(content)
    good = ["a.png", "zz.png", "zoo.png/b.png"]
    for name in good:
        (source / name).write_bytes(PNG)
    (source / "gone.png").symlink_to(tmp_path / "missing")
    os.mkfifo(source / "pipe.png")
    asked = ["purify", str(source), str(target), "--purifier", "BitDepth", "--set", "bits=8"]
    assert cli.main(asked) == 1
    out, error = capsys.readouterr()
    good += SEEN_THROUGH
    assert out.splitlines() == [str(target / name) for name in sorted(good)]
    for name in [*UNREADABLE, "gone.png", "pipe.png"]:
        assert sum(f"/{name} " in line for line in error.splitlines()) == 1
    assert f"{len(good)} purified, {len(UNREADABLE) + 2} skipped:" in error
    assert "Traceback" not in error
    written = [path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()]
    assert sorted(written) == sorted(good)
    for name in set(good) - SEEN_THROUGH:
        assert np.array_equal(np.asarray(Image.open(target / name)), RGB)
    for name in SEEN_THROUGH:
        was, now = (Image.open(folder / name).convert("RGBA") for folder in (source, target))
        assert np.array_equal(np.asarray(was), np.asarray(now))


def test_two_images_of_one_output_are_named_before_anything_is_written(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "a.jpg").write_bytes(PNG)
    with pytest.raises(
        ValueError, match=r"a\.jpg and a\.png would both be written to .*out/a\.png"
    ):
        purified(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_a_network_does_not_take_is_skipped_too(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "b.png").write_bytes(encoded(RGB[:4]))

    class Picky(BitDepth):
        def purify(self, x_a, noise, **options):
            if x_a.shape[2] != 4:
                raise ValueError("only images of height 4")
            return super().purify(x_a, noise, **options)

    a, b = purify_files(Picky(bits=8), tmp_path, tmp_path / "out")
    assert a.target is None
    assert re.search(r"a\.png could not be purified: only images of height 4; .*--pad 16", a.why)
    assert b == (tmp_path / "out" / "b.png", "")


@pytest.mark.parametrize(("pad", "seen"), [(1, (6, 8)), (4, (8, 8)), (16, (16, 16))])
def test_sides_are_mirrored_out_for_the_network_alone(pad, seen, tmp_path):
    sizes = []

    class Watched(BitDepth):
        def purify(self, x_a, noise, **options):
            sizes.append(tuple(x_a.shape[2:]))
            return super().purify(x_a, noise, **options)

    (tmp_path / "a.png").write_bytes(PNG)
    (found,) = purify_files(Watched(bits=8), tmp_path / "a.png", tmp_path / "b.png", pad=pad)
    assert sizes == [seen]
    assert np.array_equal(np.asarray(Image.open(found.target)), RGB)


def test_what_is_there_is_kept_unless_it_is_forced(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "in" / name).write_bytes(PNG)
    (tmp_path / "out").mkdir()
    there = tmp_path / "out" / "a.png"
    there.write_text("mine")
    asked = ["purify", str(tmp_path / "in"), str(tmp_path / "out"), "--purifier", "BitDepth"]
    assert cli.main([*asked, "--set", "bits=8"]) == 0
    assert there.read_text() == "mine"
    said = capsys.readouterr()
    assert f"{there} is there already, and was kept" in said.out
    assert said.err == "1 purified, 1 kept\n"
    assert cli.main([*asked, "--set", "bits=8", "--force"]) == 0
    assert np.array_equal(np.asarray(Image.open(there)), RGB)
    assert capsys.readouterr().err == "2 purified\n"


def test_a_warning_is_a_line_without_its_place_in_the_code(tmp_path, capsys):
    Image.fromarray(np.tile(RGB, (4, 3, 1))[:16, :16]).save(tmp_path / "a.png")
    given = ["purify", str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--set", "steps=1"]
    assert cli.main([*given, "--denoiser", "cifar10-tiny"]) == 0
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.startswith("scoreopt: the denoiser's network was made for images of 32 x 32 pixel")
    assert rest == ["1 purified"]


def test_all_are_read_before_the_first_is_purified(tmp_path):
    for name, content in (("a.png", PNG), ("b.png", b"no image")):
        (tmp_path / name).write_bytes(content)
    found = purify_files(BitDepth(bits=8), tmp_path, tmp_path / "out")
    assert "b.png cannot be read" in next(found).why
    assert not (tmp_path / "out").exists()
    assert next(found).target == tmp_path / "out" / "a.png"


@pytest.mark.parametrize(("kind", "name"), [("TIFF", "a.tif"), ("GIF", "a.gif"), ("PPM", "a.pnm")])
def test_more_kinds_and_of_several_frames_none(kind, name, tmp_path):
    grey = RGB[..., 0]
    (tmp_path / name).write_bytes(encoded(grey, kind))
    purified(tmp_path, tmp_path / "out")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "a.png").convert("L")), grey)
    if kind != "PPM":
        other = Image.fromarray(255 - grey)
        moving = encoded(grey, kind, save_all=True, append_images=[other])
        (tmp_path / name).write_bytes(moving)
        with pytest.raises(ValueError, match="must be one image, and has 2 frames"):
            purified(tmp_path / name, tmp_path / "b.png")


def test_a_disk_that_is_full_leaves_no_part(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(PNG)

    def full(self, path, *_):
        Path(path).write_bytes(b"some")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space left"):
        purified(tmp_path / "a.png", tmp_path / "b.png")
    assert os.listdir(tmp_path) == ["a.png"]


def test_a_folder_or_file_in_the_way_is_skipped(tmp_path):
    for name in ("a/b.png", "c.png", "d.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(PNG)
    (tmp_path / "out/c.png").mkdir(parents=True)
    (tmp_path / "out/a").write_text("a file")
    a, c, d = purify_files(BitDepth(bits=8), tmp_path / "in", tmp_path / "out")
    assert (a.target, c.target, d.target) == (None, None, tmp_path / "out/d.png")
    assert "out/a" in a.why
    assert "c.png" in c.why
    assert sorted(os.listdir(tmp_path / "out")) == ["a", "c.png", "d.png"]


def test_a_name_as_long_as_names_can_be(tmp_path):
    name = "l" * 251 + ".png"
    (tmp_path / name).write_bytes(PNG)
    purified(tmp_path / name, tmp_path / "out" / name)
    assert os.listdir(tmp_path / "out") == [name]


@pytest.mark.parametrize("name", [b"\xff.png", b"\x1b[31m.png", "ä.png".encode()])
def test_names_of_any_bytes(name, tmp_path, capsys):
    """Not UTF-8, or what a terminal takes for a command: written as they are, printed escaped."""
    source, target = tmp_path / "in", tmp_path / "out"
    (source / "a").mkdir(parents=True)
    try:
        Path(os.fsdecode(bytes(source / "a") + b"/" + name)).write_bytes(PNG)
    except OSError:
        pytest.skip("the file system refuses the name")
    asked = ["purify", str(source), str(target), "--purifier", "BitDepth", "--set", "bits=8"]
    assert cli.main(asked) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    said.encode()  # no surrogates
    assert os.listdir(bytes(target / "a")) == [name]
    assert data.image_folder(source).y.tolist() == [0]


# ---- what is read, and as what


def read(content: bytes, tmp_path: Path, name: str = "x.png") -> np.ndarray:
    (tmp_path / "a").mkdir(parents=True)
    (tmp_path / "a" / name).write_bytes(content)
    x = data.image_folder(tmp_path).x
    return (x[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def turned(kind: str, orientation: int, pixels: np.ndarray = RGB) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(pixels, kind, exif=exif)


SHOWN = {  # as TIFF 6.0 and EXIF 2.3 define the orientations
    1: RGB,
    2: RGB[:, ::-1],
    3: RGB[::-1, ::-1],
    4: RGB[::-1],
    5: RGB.transpose(1, 0, 2),
    6: RGB.transpose(1, 0, 2)[:, ::-1],
    7: RGB.transpose(1, 0, 2)[::-1, ::-1],
    8: RGB.transpose(1, 0, 2)[::-1],
}


@pytest.mark.parametrize("orientation", SHOWN)
def test_images_are_turned_as_they_are_shown(orientation, tmp_path):
    expected = SHOWN[orientation]
    assert np.array_equal(read(turned("PNG", orientation), tmp_path), expected)
    (tmp_path / "x.png").write_bytes(turned("PNG", orientation))
    [path] = purified(tmp_path / "x.png", tmp_path / "y.png")
    assert np.array_equal(np.asarray(Image.open(path)), expected)


def test_sizes_are_those_that_are_shown(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "lying.jpg").write_bytes(turned("JPEG", 6))
    (tmp_path / "a" / "standing.jpg").write_bytes(encoded(RGB.transpose(1, 0, 2), "JPEG"))
    assert data.image_folder(tmp_path).x.shape == (2, 3, 8, 6)


def test_an_orientation_after_the_pixels_counts(tmp_path):
    content = turned("PNG", 6)
    start = content.index(b"eXIf") - 4
    length = 12 + int.from_bytes(content[start : start + 4], "big")
    exif, rest = content[start : start + length], content[:start] + content[start + length :]
    late = rest[:-12] + exif + rest[-12:]
    assert np.array_equal(read(late, tmp_path / "c"), SHOWN[6])
    (tmp_path / "c" / "a" / "0.png").write_bytes(PNG)
    with pytest.raises(ValueError, match=r"got 8 x 6 \(.*a/0\.png\), 6 x 8 \(.*a/x\.png\)"):
        data.image_folder(tmp_path / "c")


def test_damaged_exif_turns_nothing(tmp_path):
    assert np.array_equal(read(encoded(RGB, exif=b"Exif\0\0not what it says"), tmp_path), RGB)


GREY = RGB[..., 0]
PALETTE = Image.fromarray(RGB).quantize(8)
CMYK = Image.fromarray(RGB).convert("CMYK")


@pytest.mark.parametrize(
    ("content", "name", "expected"),
    [
        (encoded(RGB), "really.jpg", RGB),  # Pillow goes by what is in a file
        (encoded(RGB, "BMP"), "x.bmp", RGB),
        (encoded(RGB, "PPM"), "x.ppm", RGB),
        (with_alpha("RGB", 255), "opaque.png", RGB),
        (with_alpha("L", 255), "opaque grey.png",
         np.asarray(Image.fromarray(RGB).convert("L"))[..., None]),
        (encoded(GREY), "grey.png", GREY[..., None]),
        (encoded(GREY > 127), "bits.png", np.where(GREY > 127, 255, 0)[..., None]),
        (encoded(PALETTE), "palette.png", np.asarray(PALETTE.convert("RGB"))),
        (encoded(PALETTE, transparency=b"\xff" * 8), "opaque palette.png",
         np.asarray(PALETTE.convert("RGB"))),
        (encoded(CMYK, "TIFF"), "cmyk.png", np.asarray(CMYK.convert("RGB"))),
    ],
)  # fmt: skip
def test_every_kind_becomes_grey_or_rgb(content, name, expected, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(read(content, tmp_path, name), expected)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_sixteen_bits_are_scaled_by_their_range_and_not_by_what_is_used(dtype, tmp_path):
    """Of 65535, and to the nearest of 255: 128 is half-way from 0 to 1, and below it."""
    levels = np.array([[0, 128, 129, 385, 386, 4096, 65534, 65535]] * 2, dtype=dtype)
    kind = "PNG" if dtype == np.uint16 else "TIFF"
    found = read(encoded(levels, kind), tmp_path)[0, :, 0]
    assert found.tolist() == [round(level / 257) for level in levels[0].tolist()]


@pytest.mark.parametrize(("highest", "dark"), [(0, True), (255, True), (4095, True), (5000, False)])
def test_sixteen_bits_of_a_low_range_are_said(highest, dark, tmp_path):
    content = encoded(np.array([[0, highest]], dtype=np.uint16))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert read(content, tmp_path).max() == round(highest / 257)
    assert [str(w.message).split()[0] for w in said] == [f"{tmp_path}/a/x.png"] * dark


def test_sixteen_bits_of_a_low_range_in_colours_are_said(tmp_path):
    """Pillow keeps the upper 8 bits of each, and has no other."""
    about = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    for highest in (4095, 65535):
        row = b"\0" + struct.pack(">6H", *[highest] * 6)
        parts = chunk(b"IHDR", about) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
        (tmp_path / f"{highest}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    with pytest.warns(UserWarning, match=r"4095\.png has 16 bits.*nearly black: 15 of 255"):
        purified(tmp_path / "4095.png", tmp_path / "a" / "dark.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        purified(tmp_path / "65535.png", tmp_path / "a" / "bright.png")


def test_grey_among_colours_becomes_colour(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(encoded(GREY))
    (tmp_path / "a" / "2.png").write_bytes(encoded(RGB))
    x = data.image_folder(tmp_path).x
    assert x.shape == (2, 3, 6, 8)
    assert torch.equal(x[0], (torch.from_numpy(GREY.copy()).float() / 255).expand(3, -1, -1))


def test_sizes_are_compared_before_anything_is_decoded(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    for i in range(5):
        (tmp_path / "a" / f"{i}.png").write_bytes(encoded(RGB))
    (tmp_path / "a" / "9.png").write_bytes(encoded(RGB[:4]))
    decoded: list[str] = []
    monkeypatch.setattr(
        "scoreopt_defense.data.files.read_pixels", lambda _, name: decoded.append(name)
    )
    said = r"must share one size, or be cropped to one, got 8 x 6 \(.*a/0\.png\), 8 x 4 \(.*a/9"
    with pytest.raises(ValueError, match=said):
        data.image_folder(tmp_path)
    assert not decoded


def zip_of_an_image(path: Path, content: bytes) -> bytes:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/x.jpg", content)
    return path.read_bytes()


def test_a_member_whose_checksum_is_wrong_is_named(tmp_path):
    """JPEG has none of its own: the zip's tells a flipped bit of the pixels."""
    jpeg, path = encoded(RGB, "JPEG"), tmp_path / "a.zip"
    content = zip_of_an_image(path, jpeg)
    path.write_bytes(flipped(content, content.index(jpeg) + len(jpeg) - 20))
    with pytest.raises(ValueError, match=r"a\.zip/a/x\.jpg cannot be read: Bad CRC-32"):
        data.load(path)


def test_a_member_that_declares_too_many_bytes_is_named(tmp_path, monkeypatch):
    zip_of_an_image(tmp_path / "a.zip", encoded(RGB, "JPEG"))
    monkeypatch.setattr("scoreopt_defense.data.files._LARGEST", 100)
    with pytest.raises(ValueError, match=r"a\.zip/a/x\.jpg cannot be read: it has \d+ bytes"):
        data.load(tmp_path / "a.zip")


def test_a_member_with_a_password_is_named(tmp_path):
    path = tmp_path / "a.zip"
    content = bytearray(zip_of_an_image(path, encoded(RGB, "JPEG")))
    content[6] |= 1  # encrypted, says its own header
    content[content.index(b"PK\x01\x02") + 8] |= 1  # and the directory's
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.zip/a/x\.jpg cannot be read: .*encrypted"):
        data.load(path)
