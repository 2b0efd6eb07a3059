import numpy as np
import pytest
import torch
from PIL import Image

from tests.vision.conftest import config
from todm.errors import CorpusError
from todm.vision import data
from todm.vision.data import Batch


def _write(path, value, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, value, dtype=np.uint8)).save(path)


def test_digits_are_split_without_overlap():
    splits = [data.digits(s) for s in data.SPLITS]
    assert [len(labels) for _, labels in splits] == [800, 200, 797]
    seen = [im.tobytes() for images, _ in splits for im in images]
    assert len(set(seen)) == len(seen)  # no image comes twice in the collection
    images, labels = splits[0]
    assert images.dtype == np.uint8
    assert images.max() == 255
    assert np.bincount(labels).min() > 60


def test_a_batch_is_normalised():
    images = data.load(config(), "dev")
    batch = images.batch(config(), [5, 0])
    raw = np.asarray(images.items[5])
    assert batch.images_BCHW.shape == (2, 1, 8, 8)
    assert batch.labels.tolist() == images.labels[[5, 0]].tolist()
    assert batch.images_BCHW[0, 0, 3, 4] == pytest.approx((raw[3, 4] / 255 - 0.25) / 0.5)


def test_canvases_have_classes_of_pixels():
    batch = data.load(config("segmentation", size=(12, 16)), "dev").batch(
        config("segmentation", size=(12, 16)), [0, 1, 2]
    )
    assert batch.images_BCHW.shape == (3, 1, 12, 16)
    assert batch.labels.shape == (3, 12, 16)


def test_a_folder_of_class_folders_with_splits(tmp_path):
    for split, value in (("train", 10), ("val", 20), ("test", 30)):
        _write(tmp_path / split / "b" / "x.png", value)
        _write(tmp_path / split / "a" / "y.png", value + 1)
    settings = config(classes=("a", "b"), data=str(tmp_path))
    for split, value in (("train", 10), ("dev", 20), ("test", 30)):
        images = data.load(settings, split)
        assert images.labels.tolist() == [0, 1]
        batch = images.batch(settings, [0, 1])
        pixels = (batch.images_BCHW[:, 0, 0, 0] * 0.5 + 0.25) * 255
        assert pixels.round().tolist() == [value + 1, value]


def test_large_images_are_cropped_in_the_middle(tmp_path):
    wide = np.zeros((32, 64, 3), dtype=np.uint8)
    wide[:, 16:48] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    settings = config(channels=3, mean=(0, 0, 0), std=(1, 1, 1))
    images = data.from_file(tmp_path, split="train", classes=())
    assert images.labels is None
    batch = images.batch(settings, [0])
    # Half of the width is left, away from the edges of what is bright.
    middle = batch.images_BCHW[0, :, :, 2:6]
    torch.testing.assert_close(middle, torch.full((3, 8, 4), 200 / 255), atol=0.02, rtol=0)


def test_crop_keeps_a_share(tmp_path):
    framed = np.zeros((40, 40), dtype=np.uint8)
    framed[10:30, 10:30] = 255
    Image.fromarray(framed).save(tmp_path / "x.png")
    image = data.from_file(tmp_path, split="train", classes=())
    full = image.batch(config(mean=(0,), std=(1,)), [0]).images_BCHW.mean()
    half = image.batch(config(mean=(0,), std=(1,), crop=0.5), [0]).images_BCHW.mean()
    assert full == pytest.approx(0.25, abs=0.02)
    assert half == pytest.approx(1, abs=0.05)  # edges are blurred


@pytest.mark.parametrize("named", [True, False])
def test_npz(tmp_path, named):
    images = np.random.default_rng(0).integers(0, 255, (6, 8, 8, 1)).astype(np.uint8)
    stem = "test_" if named else ""
    np.savez(
        tmp_path / "x.npz", **{f"{stem}images": images, f"{stem}labels": np.arange(6)[:, None]}
    )
    found = data.load(config(data=str(tmp_path / "x.npz")), "test")
    assert found.labels.tolist() == [0, 1, 2, 3, 4, 5]
    batch = found.batch(config(mean=(0,), std=(1,)), [4])
    assert (batch.images_BCHW[0, 0] * 255).round().int().tolist() == images[4, :, :, 0].tolist()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": np.zeros((2, 8, 8), np.uint8)}, "`images`"),
        ({"images": np.zeros((2, 8, 8))}, "float64"),
        ({"images": np.zeros((2, 8, 8), np.uint8), "labels": np.zeros(3, int)}, "one for each"),
        ({"images": np.zeros((2, 8, 8), np.uint8)}, "has no classes"),
        ({"images": np.zeros((2, 8, 8), np.uint8), "labels": np.array([0, 12])}, "0 to 9"),
        (
            {"images": np.zeros((2, 8, 8), np.uint8), "labels": np.zeros((2, 8, 8), int)},
            "one class",
        ),
    ],
)
def test_npz_that_cannot_be_used(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(CorpusError, match=message):
        data.load(config(data=str(tmp_path / "x.npz")), "test")


def test_folders_that_cannot_be_used(tmp_path):
    (tmp_path / "empty").mkdir()
    for place, message in (
        (tmp_path / "empty", "has no images"),
        (tmp_path / "no", "is neither a folder of images"),
    ):
        with pytest.raises(CorpusError, match=message):
            data.load(config(data=str(place)), "test")
    _write(tmp_path / "other" / "train" / "1" / "x.png", 3)
    with pytest.raises(CorpusError, match="has no folder 'test'"):
        data.load(config(data=str(tmp_path / "other")), "test")
    _write(tmp_path / "names" / "cat" / "x.png", 3)
    with pytest.raises(CorpusError, match="has no classes"):
        data.load(config(data=str(tmp_path / "names")), "test")
    with pytest.raises(CorpusError, match="imported without data"):
        data.load(config(data=""), "test")
    with pytest.raises(CorpusError, match="no split 'tset'"):
        data.load(config(), "tset")


def test_a_damaged_image_is_named(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"\x89PNG and nothing more")
    images = data.from_file(tmp_path, split="train", classes=())
    with pytest.raises(CorpusError, match=r"bad.png is not a readable image"):
        images.batch(config(), [0])


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_shifts_move_images_over_black(task):
    settings = config(task, shift=2, mean=(0.25,), std=(0.5,), size=(7, 9))
    images = torch.rand(40, 1, 7, 9)
    labels = torch.randint(1, 9, (40, 7, 9)) if task == "segmentation" else torch.arange(40)
    moved = data.shifted(Batch(images, labels), settings, torch.Generator().manual_seed(0))
    found = set()
    for index in range(40):
        places = [
            (dy, dx)
            for dy in range(-2, 3)
            for dx in range(-2, 3)
            if torch.allclose(_moved(images[index, 0], dy, dx, -0.5), moved.images_BCHW[index, 0])
        ]
        assert len(places) == 1
        found.add(places[0])
        if task == "segmentation":
            assert torch.equal(_moved(labels[index], *places[0], 0), moved.labels[index])
    assert len(found) > 10
    assert moved.labels.shape == labels.shape


def _moved(image, dy, dx, ground):
    """Pixel by pixel."""
    height, width = image.shape
    out = torch.full_like(image, ground)
    for y in range(height):
        for x in range(width):
            if 0 <= y + dy < height and 0 <= x + dx < width:
                out[y, x] = image[y + dy, x + dx]
    return out
