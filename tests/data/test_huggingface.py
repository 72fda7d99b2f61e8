"""Hugging Face's data sets as a source: made here, of no network."""

from __future__ import annotations

import pickle
from io import BytesIO

import numpy as np
import pytest
import torch

from scoreopt_defense import data
from scoreopt_defense.evaluation.config import load

datasets = pytest.importorskip("datasets")
pillow = pytest.importorskip("PIL.Image")

CLASSES = ["ant", "bee", "cat"]
PIXELS = np.random.default_rng(3).integers(0, 256, (30, 9, 8, 3), dtype=np.uint8)


def png(pixels) -> bytes:
    stream = BytesIO()
    pillow.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def made(images=None, labels=None, *, kind=None, image="image", label="label", **others):
    images = [png(pixels) for pixels in PIXELS] if images is None else images
    encoded = [{"bytes": i, "path": None} if isinstance(i, bytes) else i for i in images]
    labels = [n % 3 for n in range(len(images))] if labels is None else labels
    features = {
        image: datasets.Image(),
        label: kind or datasets.ClassLabel(names=CLASSES),
        **{name: of for name, (of, _) in others.items()},
    }
    rows = {image: encoded, label: labels} | {name: v for name, (_, v) in others.items()}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder, and the data set that is mapped from it."""
    folder = tmp_path_factory.mktemp("set")
    made().save_to_disk(folder)
    return folder


def expected(places):
    return torch.from_numpy(PIXELS[places]).permute(0, 3, 1, 2).float() / 255


def test_the_images_are_those_that_were_stored(saved):
    for source in (data.source(made()), data.source(f"hf:{saved}")):
        assert (len(source), source.shape, source.classes) == (30, (3, 9, 8), tuple(CLASSES))
        x, y = source.batch(4, 9)
        assert torch.equal(x, expected(slice(4, 9)))
        assert y.tolist() == [1, 2, 0, 1, 2]
    assert data.source(made()).digests() == data.source(f"hf:{saved}").digests()


def test_a_draw_and_a_users_own_selection_are_of_the_rows(saved):
    drawn = data.source(f"hf:{saved}", n=5, seed=2)
    places = np.random.default_rng(2).permutation(30)[:5]
    assert torch.equal(drawn.load().x, expected(places))
    assert drawn.labels.tolist() == (places % 3).tolist()
    mine = datasets.load_from_disk(str(saved)).shuffle(seed=1).select([7, 3])
    again = data.source(mine)
    kept = [np.asarray(image) for image in mine["image"]]
    assert torch.equal(again.load().x, torch.from_numpy(np.stack(kept)).permute(0, 3, 1, 2) / 255)


def test_a_reference_travels_and_no_pixels(saved):
    source = data.source(f"hf:{saved}", n=20)
    sent = pickle.dumps(source)
    assert torch.equal(pickle.loads(sent).load().x, source.load().x)
    png_of_one = png(PIXELS[0])
    assert png_of_one in pickle.dumps(data.source(made()))  # in memory there is nothing to refer to
    assert png_of_one not in sent


def test_images_that_are_files_beside_it_are_read_there(tmp_path):
    paths = [tmp_path / f"{n}.png" for n in range(3)]
    for path, pixels in zip(paths, PIXELS):
        path.write_bytes(png(pixels))
    source = data.source(made([{"bytes": None, "path": str(path)} for path in paths]))
    assert torch.equal(source.load().x, expected(slice(3)))


def test_sizes_are_made_one_by_a_crop():
    images = [png(PIXELS[0]), png(PIXELS[1][:, :7])]
    with pytest.raises(ValueError, match=r"must share one size.* 8 x 9 \(row 0 of the data set\)"):
        data.source(made(images))
    cropped = data.source(made(images), preprocessing=data.Preprocessing(crop=6))
    assert cropped.load().x.shape == (2, 3, 6, 6)


@pytest.mark.parametrize("name", ["there", "no folder"])
def test_splits(name, saved, tmp_path):
    splits = datasets.DatasetDict(train=made(), validation=made([png(PIXELS[5])]))
    splits.save_to_disk(tmp_path / "splits")
    whole = f"hf:{tmp_path / 'splits'}" if name == "there" else splits
    assert len(data.source(whole, split="train")) == 30
    for split in ("test", "validation"):  # which stands for a test that is not there
        assert len(data.source(whole, split=split)) == 1
    del splits["validation"]
    with pytest.raises(ValueError, match=r"has no split 'validation'; there are \['train'\]"):
        data.source(splits)


def test_a_configuration_names_it(saved, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(
        f'[images]\nsource = "hf:{saved}"\ncolumns = ["image", "label"]\ncrop = 8\nn = 4\n'
        '[defences.it]\nclassifier = "python:test_huggingface:classifier"\n'
    )
    materials = load(path).materials()
    assert materials.images.shape == (3, 8, 8)
    path.write_text(path.read_text().replace("hf:", "hf:no-folder/"))
    with pytest.raises(Exception, match="no-folder"):
        load(path).materials()


def classifier():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64, 3))


INT, STRING = datasets.Value("int64"), datasets.Value("string")


@pytest.mark.parametrize(
    ("options", "labels"),
    [
        ({}, [0, 1, 2]),
        ({"kind": INT}, [0, 1, 2]),
        ({"kind": INT, "label": "digit", "columns": ("image", "digit")}, [0, 1, 2]),
        ({"coarse": (datasets.ClassLabel(names=["x"]), [0] * 3), "columns": ("image", "label")},
         [0, 1, 2]),
        ({"coarse": (datasets.ClassLabel(names=["x"]), [0] * 3), "columns": ("image", "coarse")},
         [0, 0, 0]),
        ({"id": (INT, [4, 5, 6])}, [0, 1, 2]),
    ],
)  # fmt: skip
def test_columns_are_found_or_named(options, labels):
    columns = options.pop("columns", None)
    source = data.source(made([png(p) for p in PIXELS[:3]], **options), columns=columns)
    assert source.labels.tolist() == labels


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: made().to_iterable_dataset(), TypeError, "load it without streaming=True"),
        (lambda: [1, 2], TypeError, "a source's name or a datasets.Dataset, got list"),
        (lambda: made(kind=INT, label="digit"), ValueError,
         r"0 columns of labels .* columns = \[image, label\], of image \(Image\), digit \(Value\)"),
        (lambda: made(again=(datasets.Image(), [None] * 30)), ValueError, "2 columns of images"),
        (lambda: made().with_transform(lambda row: row), ValueError, "has a transform"),
        (lambda: made([png(PIXELS[0])], [-1]), ValueError, "classes from 0 on, got -1"),
        (lambda: made([png(PIXELS[0])], [None]), ValueError, "labels must be whole numbers"),
        (lambda: made([png(PIXELS[0]), None]), ValueError, "row 1 of the data set .*has no image"),
        (lambda: made([png(PIXELS[0])[:-30]]), ValueError, "row 0 of the data set cannot be read"),
        (lambda: made([{"bytes": None, "path": "/no/file"}]), ValueError, "row 0 of .*No such fil"),
    ],
)  # fmt: skip
def test_what_is_no_such_data_set_is_said(make, error, said):
    with pytest.raises(error, match=said):
        data.source(make())


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (("picture", "label"), r"no column 'picture'; there are image \(Image\)"),
        (("label", "image"), "'label' must be a column of images"),
    ],
)
def test_columns_that_are_not_there(columns, said):
    with pytest.raises(ValueError, match=said):
        data.source(made(), columns=columns)


def test_columns_are_of_data_sets_alone():
    with pytest.raises(ValueError, match="which mnist is not"):
        data.source("mnist", columns=("image", "label"))


def test_of_a_hub_that_does_not_answer_there_is_one_line(monkeypatch, caplog):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")  # where nobody listens
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    said = r"^127\.0\.0\.1 cannot be reached, and hf:nobody/nothing is not in the cache"
    with pytest.raises(ConnectionError, match=said):
        data.source("hf:nobody/nothing")
    assert not caplog.records  # of no retries


@pytest.mark.parametrize("content", [None, "{}", "["])
def test_a_folder_that_is_none_is_named(content, tmp_path):
    if content is not None:
        for name in ("state.json", "dataset_info.json"):
            (tmp_path / name).write_text(content)
    with pytest.raises((ValueError, OSError)):
        data.source(f"hf:{tmp_path}")
