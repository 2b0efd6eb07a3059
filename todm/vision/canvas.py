"""Images for segmentation, composed of several real digits; a class for every pixel.

Class 0 is the background, class 1 + d the ink of a digit d.
"""

import numpy as np

INK = 80
"""From this grey value (of 255) on, a pixel is a digit's."""
STEP = 4
"""Places are multiples of this, so that a small model learns the task in minutes."""


def compose(
    images_IHW: np.ndarray, labels_I: np.ndarray, *, num: int, size: tuple[int, int], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Canvases with two to five digits at random places; later ones lie on top.

    Args:
        images_IHW: uint8, the digits.
        labels_I: their classes, from 0.
        num: canvases.
        size: their height and width.
        seed: of places and choices.

    Returns:
        uint8 [num, H, W] images, and int64 [num, H, W] classes.
    """
    draw = np.random.default_rng(seed)
    height, width = images_IHW.shape[1:]
    canvases = draw.integers(0, 40, (num, *size)).astype(np.uint8)  # noise below the ink
    classes = np.zeros((num, *size), dtype=np.int64)
    for canvas, classes_HW in zip(canvases, classes, strict=True):
        for index in draw.integers(0, len(images_IHW), draw.integers(2, 6)):
            y = STEP * draw.integers(0, (size[0] - height) // STEP + 1)
            x = STEP * draw.integers(0, (size[1] - width) // STEP + 1)
            place = (slice(y, y + height), slice(x, x + width))
            ink = images_IHW[index] >= INK
            canvas[place] = np.maximum(canvas[place], images_IHW[index])
            classes_HW[place] = np.where(ink, 1 + labels_I[index], classes_HW[place])
    return canvases, classes
