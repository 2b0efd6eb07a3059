"""Images and their classes: scikit-learn's digits, canvases of them, or the user's own.

Letters: B images of a batch, C channels, H and W height and width.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from todm.errors import CorpusError, MissingExtra
from todm.vision.canvas import compose
from todm.vision.config import VisionConfig

SPLITS = ("train", "dev", "test")
DIGITS = {"train": slice(0, 800), "dev": slice(800, 1000), "test": slice(1000, 1797)}
"""After a fixed permutation, since the collection is in the order of its writers."""
CANVASES = {"train": 4000, "dev": 200, "test": 500}
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm"}


@dataclasses.dataclass(frozen=True)
class Batch:
    """Images ready for a model.

    Attributes:
        images_BCHW: normalised.
        labels: classes [B], or of pixels [B, H, W]; None in calibration data without classes.
    """

    images_BCHW: Tensor
    labels: Tensor | None


@dataclasses.dataclass(frozen=True)
class Images:
    """The images of a split, in memory (uint8 [H, W] or [H, W, C]) or as files."""

    items: Sequence[np.ndarray | Path]
    labels: np.ndarray | None

    def __len__(self) -> int:
        return len(self.items)

    def batch(self, config: VisionConfig, indices: Sequence[int]) -> Batch:
        """A batch of the images at these indices."""
        images = torch.stack([_tensor(self.items[i], config) for i in indices])
        labels = None if self.labels is None else torch.from_numpy(self.labels[list(indices)])
        return Batch(images, labels)

    def batches(self, config: VisionConfig, indices: Sequence[int]) -> Iterator[Batch]:
        """All of `indices`, in order, `config.batch` at a time."""
        for start in range(0, len(indices), config.batch):
            yield self.batch(config, indices[start : start + config.batch])


def load(config: VisionConfig, split: str) -> Images:
    """A split of a model's data, with classes.

    Raises:
        CorpusError: it is missing, or does not fit the model.
        MissingExtra: a package is not installed.
    """
    if split not in SPLITS:
        raise CorpusError(f"there is no split {split!r}: choose from {', '.join(SPLITS)}")
    if not config.data:
        raise CorpusError(
            "this model was imported without data: give a folder of class folders or an .npz file"
        )
    if config.data == "digits":
        images, labels = digits(split)
        return Images(list(images), labels)
    if config.data == "canvas":
        seed = SPLITS.index(split)
        images, labels = compose(*digits(split), num=CANVASES[split], size=config.size, seed=seed)
        return Images(list(images), labels)
    return _checked(from_file(Path(config.data), split=split, classes=config.classes), config)


def digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Handwritten digits shipped with scikit-learn: uint8 [I, 8, 8] images, int64 [I] classes.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingExtra("scikit-learn", "vision", "the digits") from None
    collection: Any = load_digits()
    images = np.round(collection.images * (255 / 16)).astype(np.uint8)
    chosen = np.random.default_rng(0).permutation(len(images))[DIGITS[split]]
    return images[chosen], collection.target[chosen].astype(np.int64)


def from_file(path: Path, *, split: str, classes: Sequence[str]) -> Images:
    """A user's images: an .npz file, or a folder, with or without folders of the splits.

    A folder (or its subfolder `train`, `dev` or `test`) holds a folder of images for each class, or
    images alone. An .npz file holds `images` and perhaps `labels`, or `train_images` and so on.

    Raises:
        CorpusError: nothing usable is there.
    """
    if path.is_file() and path.suffix == ".npz":
        return _from_npz(path, split)
    if not path.is_dir():
        raise CorpusError(
            f"{path} is neither a folder of images nor an .npz file: give one of these"
        )
    inner = [p for name in (split, *(["val"] * (split == "dev"))) if (p := path / name).is_dir()]
    if not inner and any((path / s).is_dir() for s in SPLITS):
        raise CorpusError(f"{path} has no folder {split!r}: put the images of that split there")
    root = inner[0] if inner else path
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not files:
        raise CorpusError(f"{root} has no images ({', '.join(sorted(SUFFIXES))}): give another")
    if any(p.parent == root for p in files):
        return Images(files, None)
    return Images(files, _classes_of(files, root, classes))


def shifted(batch: Batch, config: VisionConfig, generator: torch.Generator) -> Batch:
    """Every image (and the classes of its pixels) moved by up to `config.shift`, over black."""
    most, (height, width) = config.shift, config.size
    if not most:
        return batch
    black = [-m / s for m, s in zip(config.mean, config.std, strict=True)]
    ground_C11 = torch.tensor(black)[:, None, None]
    images = F.pad(batch.images_BCHW - ground_C11, (most,) * 4) + ground_C11
    places = torch.randint(0, 2 * most + 1, (len(images), 2), generator=generator).tolist()
    moved = [i[:, y : y + height, x : x + width] for i, (y, x) in zip(images, places, strict=True)]
    labels = batch.labels
    if labels is not None and labels.ndim == 3:
        wide = F.pad(labels, (most,) * 4)
        cut = zip(wide, places, strict=True)
        labels = torch.stack([c[y : y + height, x : x + width] for c, (y, x) in cut])
    return Batch(torch.stack(moved), labels)


def _checked(images: Images, config: VisionConfig) -> Images:
    """Images whose classes are those of the model.

    Raises:
        CorpusError: they are not.
    """
    if images.labels is None:
        raise CorpusError(
            f"{config.data} has no classes: one folder for each, or `labels` beside `images`"
        )
    if images.labels.min() < 0 or images.labels.max() >= len(config.classes):
        raise CorpusError(
            f"{config.data} has classes {images.labels.min()} to {images.labels.max()}, and the model "
            f"0 to {len(config.classes) - 1}: relabel them"
        )
    if (images.labels.ndim == 3) != (config.task == "segmentation"):
        raise CorpusError(
            f"labels of {config.data} have {images.labels.ndim} axes, which is not for {config.task}: "
            "one class an image, or one a pixel"
        )
    return images


def _from_npz(path: Path, split: str) -> Images:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = [split, "val"] if split == "dev" else [split]
            stems = [f"{n}_" for n in names if f"{n}_images" in arrays] or [""]
            images = arrays[f"{stems[0]}images"]
            has_labels = f"{stems[0]}labels" in arrays
            labels = arrays[f"{stems[0]}labels"] if has_labels else None
    except (OSError, ValueError, KeyError) as error:
        raise CorpusError(
            f"{path} cannot be used: {error}; an array `images` (or `{split}_images`) is needed"
        ) from None
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not len(images):
        raise CorpusError(
            f"images of {path} are {images.dtype} {list(images.shape)}: uint8 [images, height, width] "
            "or [images, height, width, channels] is needed"
        )
    if labels is None:
        return Images(list(images), None)
    labels = labels.squeeze(-1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if len(labels) != len(images) or not np.issubdtype(labels.dtype, np.integer):
        raise CorpusError(f"labels of {path} must be whole numbers, one for each of its images")
    return Images(list(images), labels.astype(np.int64))


def _classes_of(files: Sequence[Path], root: Path, classes: Sequence[str]) -> np.ndarray | None:
    """The class of each file by its first folder; None if folders are not the model's classes."""
    names = [p.relative_to(root).parts[0] for p in files]
    if not set(names) <= set(classes):
        return None
    return np.array([classes.index(name) for name in names], dtype=np.int64)


def _tensor(item: np.ndarray | Path, config: VisionConfig) -> Tensor:
    """One image, normalised, [C, H, W]; resized by its shorter side and cropped where it has to be."""
    shape = config.size if config.channels == 1 else (*config.size, config.channels)
    if not isinstance(item, np.ndarray) or item.shape != shape:
        item = _fitted(item, config)
    values_HWC = torch.from_numpy(item).float().div(255).reshape(*config.size, config.channels)
    normal = (values_HWC - torch.tensor(config.mean)) / torch.tensor(config.std)
    return normal.permute(2, 0, 1)


def _fitted(item: np.ndarray | Path, config: VisionConfig) -> np.ndarray:
    """As timm evaluates: the shorter side to size / crop, then the centre. uint8, [H, W] or [H, W, 3]."""
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtra("pillow", "vision", "reading images") from None
    try:
        if isinstance(item, Path):
            image = Image.open(item)
        else:
            image = Image.fromarray(item.squeeze(-1) if item.shape[-1] == 1 else item)
        image = image.convert("L" if config.channels == 1 else "RGB")
    except (OSError, ValueError, TypeError, Image.DecompressionBombError) as error:
        raise CorpusError(f"{item} is not a readable image: {error}; remove it") from None
    height, width = config.size
    ratio = max(height / config.crop / image.height, width / config.crop / image.width)
    size = [max(round(image.width * ratio), width), max(round(image.height * ratio), height)]
    image = image.resize((size[0], size[1]), Image.Resampling.BICUBIC)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return np.array(image.crop((left, top, left + width, top + height)))
